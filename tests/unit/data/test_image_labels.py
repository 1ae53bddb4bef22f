import pytest
from PIL import Image

from ovbridge.data.image_labels import load_tagged_images, tagged_folders
from ovbridge.errors import DataError
from ovbridge.vocabulary import Vocabulary

MUG_KITE = Vocabulary.of_names(["mug", "garden kite"])


def _captions(payload, *texts):
    annotations = [{"id": k, "image_id": 10, "caption": text} for k, text in enumerate(texts)]
    return {"images": payload["images"], "annotations": annotations}


def test_captions_use_the_categories_and_synonyms_of_the_file_beside_them(payload, write_json):
    payload["categories"][0]["synonyms"] = ["flying toy"]
    write_json(payload, "instances_val2017.json")
    tagged = load_tagged_images(write_json(_captions(payload, "Mugs!", "a flying toy"), "captions_val2017.json"))
    assert tagged.vocabulary.names == ("mug", "kite", "drum")
    assert tagged.images[0].class_ids == (0, 1)
    assert tagged.images[0].captions == ("Mugs!", "a flying toy")
    assert [i.image_id for i in tagged.with_labels().images] == [10]
    assert tagged.image_counts() == [1, 1, 0]


def test_a_lone_captions_file_is_tagged_with_coco_names(payload, write_json):
    tagged = load_tagged_images(write_json(_captions(payload, "a sofa"), "captions_val2017.json"))
    assert [tagged.vocabulary.names[k] for k in tagged.images[0].class_ids] == ["couch"]


def test_category_ids_are_matched_by_name_to_the_vocabulary_asked_for(payload, write_json):
    payload["images"][1]["pos_category_ids"] = [55, 3]
    path = write_json(payload, "labels.json")
    assert load_tagged_images(path).images[1].class_ids == (0, 1)
    swapped = Vocabulary.of_names(["kite", "drum", "mug"])
    assert load_tagged_images(path, vocabulary=swapped).images[1].class_ids == (0, 2)
    with pytest.raises(DataError, match="image 7 has label 'mug', which is not in the vocabulary"):
        load_tagged_images(path, vocabulary=Vocabulary.of_names(["kite"]))


def test_an_unknown_label_names_its_image(payload, write_json):
    payload["images"][1]["pos_category_ids"] = [4]
    with pytest.raises(DataError, match="image 7 has label 4"):
        load_tagged_images(write_json(payload))


def test_a_file_without_labels_or_captions_is_refused(payload, write_json):
    with pytest.raises(DataError, match="neither captions nor pos_category_ids"):
        load_tagged_images(write_json(payload))


def test_folders_named_after_classes(tmp_path):
    for name, size in (("mug/2.jpg", (8, 4)), ("garden_kite/1.png", (3, 5))):
        path = tmp_path / name
        path.parent.mkdir()
        Image.new("RGB", size).save(path)
    (tmp_path / "mug" / "notes.txt").write_text("")
    tagged = tagged_folders(tmp_path, MUG_KITE)
    records = [(i.image_id, i.file_name, i.height, i.width, i.class_ids) for i in tagged.images]
    assert records == [(1, "garden_kite/1.png", 5, 3, (1,)), (2, "mug/2.jpg", 4, 8, (0,))]


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        tagged_folders(tmp_path / "absent", MUG_KITE)
    with pytest.raises(DataError, match="holds no image"):
        tagged_folders(tmp_path, MUG_KITE)
    (tmp_path / "teapot").mkdir()
    with pytest.raises(DataError, match="teapot is named after no class"):
        tagged_folders(tmp_path, MUG_KITE)
