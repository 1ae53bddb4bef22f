"""The paper's caption rule against the official script's output."""

import json

from ovbridge.data.caption_tags import make_tagger
from ovbridge.data.coco_synonyms import COCO_SYNONYMS
from ovbridge.data.image_labels import synonyms_from_lvis
from ovbridge.vocabulary.coco_names import COCO_OVD


def test_tags_equal_the_official_ones(goldens):
    golden = json.loads((goldens / "caption_tags.json").read_text())
    assert len(golden["captions"]) == 11
    tag = make_tagger(COCO_OVD.names, golden["synonyms"], "paper")
    for image, captions in golden["captions"].items():
        got = [COCO_OVD.category_ids[k] for k in tag(captions)]
        assert got == golden["pos_category_ids"].get(image, []), captions


def test_shipped_synonyms_are_the_official_ones(goldens, shared_data):
    golden = json.loads((goldens / "caption_tags.json").read_text())["synonyms"]
    assert {name: list(s) for name, s in COCO_SYNONYMS.items()} == golden
    metadata = shared_data / "metadata"
    from_lvis = synonyms_from_lvis(metadata / "lvis_v1_train_cat_info.json", metadata / "coco_to_synset.json")
    assert from_lvis == COCO_SYNONYMS


def test_the_word_rule_finds_what_the_paper_rule_misses(goldens):
    captions = json.loads((goldens / "caption_tags.json").read_text())["captions"]
    tag = make_tagger(COCO_OVD.names, COCO_SYNONYMS, "words")
    found = {image: {COCO_OVD.names[k] for k in tag(texts)} for image, texts in captions.items()}
    assert found["0"] == {"person", "horse", "dog"}
    assert found["2"] == {"dog", "hot dog"}
    assert "cell phone" in found["6"]
    assert found["12"] == {"hot dog", "airplane"}
    assert "skateboard" in found["16"]
