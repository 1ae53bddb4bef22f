import pytest

from ovbridge.data.splits import roles_of, vocabulary_of
from ovbridge.errors import DataError
from ovbridge.vocabulary.coco_names import COCO_OVD


def _coco():
    return [{"id": i, "name": n} for i, n in zip(COCO_OVD.category_ids, COCO_OVD.names, strict=True)]


def test_coco_has_48_base_17_novel_15_unused():
    assert [len(COCO_OVD.columns(role)) for role in ("base", "novel", "unused")] == [48, 17, 15]
    assert roles_of(_coco()) == COCO_OVD.roles


@pytest.mark.parametrize("absent", [{"scissors"}, {"person", "skis"}, set(COCO_OVD.names_of("unused"))])
def test_a_file_of_some_of_coco_classes_has_the_coco_roles(absent):
    kept = [c for c in _coco() if c["name"] not in absent]
    role = dict(zip(COCO_OVD.names, COCO_OVD.roles, strict=True))
    assert roles_of(kept) == tuple(role[c["name"]] for c in kept)


def test_the_role_key_wins():
    categories = [{**c, "role": "novel"} for c in _coco()]
    assert set(roles_of(categories)) == {"novel"}


def test_rare_lvis_classes_are_novel():
    categories = [{"id": k, "name": f, "frequency": f} for k, f in enumerate("fcr")]
    assert roles_of(categories) == ("base", "base", "novel")


@pytest.mark.parametrize("names", [["person", "tram"], ["person", "cat", "tram"], ["person", "kite"], []])
def test_other_names_are_all_base(names):
    # "person" and "cat" of a file of one's own, whose ids are not COCO's, are no split either.
    own = [name for name in names if name in COCO_OVD.names]
    assert roles_of([{"id": k + 200, "name": name} for k, name in enumerate(own)]) == ("base",) * len(own)
    assert roles_of([{"id": k, "name": name} for k, name in enumerate(names)]) == ("base",) * len(names)


def test_roles_in_some_categories_only_are_refused():
    with pytest.raises(DataError, match="category 2 \\(dog\\) has no role, others have"):
        roles_of([{"id": 1, "name": "cat", "role": "novel"}, {"id": 2, "name": "dog"}])


def test_an_unknown_role_is_named():
    with pytest.raises(DataError, match="category 4 \\(mug\\) has role 'seen'"):
        roles_of([{"id": 4, "name": "mug", "role": "seen"}])


def test_coco_names_in_another_order_are_refused():
    shuffled = [{"id": k, "name": name} for k, name in enumerate(sorted(COCO_OVD.names))]
    with pytest.raises(DataError, match="category 0 is 'airplane', where COCO has 'person'"):
        vocabulary_of(shuffled, "mine.json")


def test_contiguous_coco_ids_in_order_are_fine():
    categories = [{"id": k, "name": name} for k, name in enumerate(COCO_OVD.names)]
    assert vocabulary_of(categories, "mine.json").names == COCO_OVD.names
