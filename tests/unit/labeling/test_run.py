from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ovbridge.errors import ConfigError, DataError, StoreError, TeacherError
from ovbridge.label_store import LabelStore
from ovbridge.labeling import run
from ovbridge.labeling.labellers import RegionLabeller, TagLabeller
from ovbridge.labeling.pseudo_boxes import SelectionConfig
from ovbridge.labeling.run import RunSettings, in_shard, label_images
from ovbridge.labeling.stages import label_in_order, stop_if_hopeless
from ovbridge.structures import Proposals
from ovbridge.teachers.protocol import UnknownImageError
from ovbridge.vocabulary import Vocabulary

KEYS = [f"sub/{i:02d}.npy" for i in range(12)]


@pytest.fixture
def labeller(proposer, encoder) -> RegionLabeller:
    return RegionLabeller(proposer=proposer, encoder=encoder, selection=SelectionConfig(top_k=3))


@pytest.fixture
def label(image_root: Path, tmp_path: Path, labeller: RegionLabeller, read_image) -> Callable[..., run.RunSummary]:
    def call(keys=KEYS, *, by=labeller, **settings) -> run.RunSummary:
        chosen = RunSettings(**({"batch_images": 3} | settings))
        return label_images(tmp_path / "store", image_root, keys, by, read_image=read_image, settings=chosen)

    return call


def test_every_image_is_labelled_with_its_own_regions(label, tmp_path: Path, proposer) -> None:
    summary = label()
    assert (summary.images, summary.labelled, summary.failures) == (12, 12, {})
    found = LabelStore.open(tmp_path / "store").regions(KEYS)
    for i, key in enumerate(KEYS):
        h, w = (4, 6) if i % 3 else (5, 3)
        assert found[key].boxes_xyxy.tolist() == [[w, h, 2 * w, 2 * h], [0, h, w, 2 * h], [w, 0, 2 * w, h]]
        assert found[key].embeddings.tolist() == [[40.0 + i, h, w], [30.0 + i, h, w], [20.0 + i, h, w]]
        torch.testing.assert_close(found[key].scores, torch.tensor([40.0 + i, 30.0 + i, 20.0 + i]) / 255)
    # Eight images of one size and four of the other, in batches of at most three.
    assert sorted(proposer.batches) == [1, 2, 3, 3, 3]


def test_second_run_has_nothing_to_do(label, proposer) -> None:
    label()
    proposer.batches.clear()
    summary = label()
    assert (summary.done_before, summary.labelled, proposer.batches) == (12, 0, [])


def test_run_goes_on_where_it_stopped(label, tmp_path: Path, proposer, monkeypatch) -> None:
    original, calls = type(proposer).propose, []

    def interrupted(self, images, queries):
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, images, queries)

    monkeypatch.setattr(type(proposer), "propose", interrupted)
    with pytest.raises(KeyboardInterrupt):
        label()
    done = LabelStore.open(tmp_path / "store").done_keys("regions")
    assert len(done) == sum(calls[:2])
    monkeypatch.setattr(type(proposer), "propose", original)
    assert label().done_before == len(done)
    assert LabelStore.open(tmp_path / "store").done_keys("regions") == set(KEYS)


def test_bad_images_are_recorded_and_the_rest_is_kept(label, image_root: Path, tmp_path: Path) -> None:
    (image_root / KEYS[2]).write_bytes(b"not an image")
    (image_root / KEYS[5]).unlink()
    summary = label(max_failed=0.2)
    assert summary.failures == {KEYS[2]: "image FILE is damaged", KEYS[5]: "image FILE is damaged"}
    status = LabelStore.open(tmp_path / "store").status()["regions"]
    assert (status["images"], status["failed"], status["causes"]) == (10, 2, {"image FILE is damaged": 2})


def test_too_many_bad_images_fail_the_run_at_its_end(label, image_root: Path, tmp_path: Path) -> None:
    (image_root / KEYS[0]).write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 12 images failed \(limit 5%\).*--retry-failed"):
        label()
    assert len(LabelStore.open(tmp_path / "store").regions(KEYS)) == 11
    with pytest.raises(DataError):
        label()
    np.save(image_root / KEYS[0], np.full((4, 4, 3), 9, dtype=np.uint8))
    assert label(retry_failed=True).labelled == 1
    assert LabelStore.open(tmp_path / "store").failures("regions") == {}


def test_one_image_that_a_teacher_cannot_bear(label, image_root: Path, tmp_path: Path) -> None:
    np.save(image_root / KEYS[4], np.full((8, 12, 3), 255, dtype=np.uint8))
    assert label(max_failed=0.1).failures == {KEYS[4]: "teacher: RuntimeError: blinded"}
    assert len(LabelStore.open(tmp_path / "store").regions(KEYS)) == 11


def test_a_broken_teacher_stops_the_run(label, image_root: Path) -> None:
    for key in KEYS:
        np.save(image_root / key, np.full((8, 12, 3), 255, dtype=np.uint8))
    with pytest.raises(TeacherError, match="10 images in a row"):
        label(max_failed=1.0)


def test_many_images_that_a_proposer_does_not_know_are_no_fault_of_its_own(
    image_root: Path, encoder, read_image
) -> None:
    class Forgetful:
        name, digest, trained_on = "forgetful", "f" * 64, "nothing"

        def propose(self, images: object, queries: object) -> list[list[Proposals]]:
            raise UnknownImageError("no boxes stored for this image")

    keys = [f"sub/{i:02d}.npy" for i in range(12)]
    labeller = RegionLabeller(proposer=Forgetful(), encoder=encoder)
    outcomes = list(stop_if_hopeless(label_in_order(keys, image_root, labeller, read_image, RunSettings())))
    assert {outcome.cause for outcome in outcomes} == {"no boxes stored for this image"}
    assert len(outcomes) == 12


def test_a_full_disk_is_one_clear_line(label, tmp_path: Path, monkeypatch) -> None:
    label(KEYS[:4])
    import lance

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lance, "write_dataset", full)
    with pytest.raises(StoreError, match="No space left"):
        label(commit_images=2)
    assert len(LabelStore.open(tmp_path / "store").regions(KEYS)) == 4


def test_shards_share_the_images(label, tmp_path: Path) -> None:
    first, second = label(shard=(0, 2)), label(shard=(1, 2))
    assert first.images + second.images == 12
    assert min(first.images, second.images) > 0
    assert LabelStore.open(tmp_path / "store").done_keys("regions") == set(KEYS)
    assert all(in_shard(k, (0, 2)) != in_shard(k, (1, 2)) for k in KEYS)


def test_another_crop_rule_needs_another_store(label, proposer, encoder) -> None:
    label(KEYS[:2])
    with pytest.raises(StoreError, match="crop rule"):
        label(
            by=RegionLabeller(
                proposer=proposer, encoder=encoder, selection=SelectionConfig(top_k=3), crop_rule="square"
            )
        )


def test_tags_keep_boxes_above_the_threshold(label, tmp_path: Path, proposer) -> None:
    names = dict.fromkeys(KEYS, ("c0", "c3", "c3", "c1"))
    names[KEYS[1]] = ()
    label(by=TagLabeller(proposer=proposer, names_of=names, threshold=21 / 255))
    found = LabelStore.open(tmp_path / "store").tags(KEYS, Vocabulary.of_names(["c0", "c1", "c2", "c3"]))
    # Quadrants of image 2 hold 12, 22, 32, 42 on 8x12 pixels: c0 is below the threshold, c3 counts once.
    assert found[KEYS[2]].class_ids.tolist() == [3, 1]
    assert found[KEYS[2]].boxes_xyxy.tolist() == [[6, 4, 12, 8], [6, 0, 12, 4]]
    assert found[KEYS[0]].class_ids.tolist() == [3]
    assert len(found[KEYS[1]]) == 0
    assert LabelStore.open(tmp_path / "store").status()["tags"]["empty"] == 1


@pytest.mark.parametrize("value", [float("nan"), -0.1, 1.5])
def test_shares_and_scores_outside_0_to_1_are_refused(value: float, proposer) -> None:
    with pytest.raises(ConfigError, match="threshold"):
        TagLabeller(proposer=proposer, names_of={}, threshold=value)
    with pytest.raises(ConfigError, match="--max-failed"):
        RunSettings(max_failed=value)


def test_a_changed_list_of_names_is_labelled_again(label, tmp_path: Path, proposer) -> None:
    names = dict.fromkeys(KEYS, ("c0", "c3"))

    def tag(keys=KEYS, **settings) -> run.RunSummary:
        return label(keys, by=TagLabeller(proposer=proposer, names_of=names, threshold=0.0), **settings)

    def found() -> list[list[int]]:
        store = LabelStore.open(tmp_path / "store")
        tags = store.tags(KEYS, Vocabulary.of_names(["c0", "c1", "c2", "c3"]))
        return [tags[key].class_ids.tolist() for key in KEYS]

    tag()
    names[KEYS[0]], names[KEYS[1]] = ("c3", "c0", "c3"), ("c1", "c2", "c3")
    names[KEYS[2]] = ()
    summary = tag()
    assert (summary.done_before, summary.labelled, summary.replaced) == (10, 2, 2)
    assert found()[:4] == [[0, 3], [1, 2, 3], [], [0, 3]]
    assert tag().done_before == 12
    # Shards take up what has changed of their own images only; each is replaced once.
    names |= dict.fromkeys(KEYS, ("c2",))
    shards = [tag(shard=(i, 2)) for i in range(2)]
    assert [s.replaced for s in shards] == [s.images for s in shards]
    assert found() == [[2]] * 12
    # A run over other images leaves these alone.
    del names[KEYS[3]]
    assert tag(list(names)).done_before == 11
    assert found() == [[2]] * 12


def test_only_failures_of_this_run_are_taken_up_again(label, image_root: Path, tmp_path: Path) -> None:
    for key in KEYS[:2]:
        (image_root / key).write_bytes(b"")
    label(max_failed=1.0)
    np.save(image_root / KEYS[1], np.full((4, 4, 3), 9, dtype=np.uint8))
    assert label(KEYS[1:], retry_failed=True).labelled == 1
    assert set(LabelStore.open(tmp_path / "store").failures("regions")) == {KEYS[0]}


def test_status_aims_at_all_shards_and_folders(label, image_root: Path, tmp_path: Path) -> None:
    for keys, of in [(KEYS[:8], 8), (KEYS[6:], 12)]:
        for shard in range(2):
            label(keys, shard=(shard, 2))
        assert LabelStore.open(tmp_path / "store").status()["regions"]["of"] == of


@pytest.fixture
def elsewhere(label, image_root: Path, tmp_path: Path, labeller: RegionLabeller, read_image) -> Callable[..., object]:
    """Labels the images of a second folder, after those of the first: a copy with the given changes."""
    label(KEYS[:10])

    def call(changed=(), gone=False) -> object:
        other = tmp_path / "other"
        shutil.copytree(image_root, other)
        for key in changed:
            np.save(other / key, np.full((8, 12, 3), 5, dtype=np.uint8))
        if gone:
            shutil.rmtree(image_root)
        return label_images(tmp_path / "store", other, KEYS, labeller, read_image=read_image)

    return call


def test_other_pictures_of_the_same_names_are_refused(elsewhere, image_root: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=rf"10 images.*{image_root}.*other pictures: use another --store"):
        elsewhere(changed=KEYS[:6])
    assert [s.root for s in LabelStore.open(tmp_path / "store").image_sets()] == [str(image_root)]


@pytest.mark.parametrize("gone", [False, True], ids=["copied", "moved"])
def test_a_copied_or_moved_folder_goes_on(elsewhere, gone: bool, capsys) -> None:
    assert elsewhere(changed=KEYS[:2], gone=gone).labelled == 2
    assert ("note: 10 of these images have been labelled from" in capsys.readouterr().err) == gone


def test_failed_commit_reaches_the_caller_even_at_the_very_end(label, monkeypatch) -> None:
    monkeypatch.setattr(LabelStore, "append", lambda *a, **k: (_ for _ in ()).throw(StoreError("disk")))
    with pytest.raises(StoreError, match="disk"):
        label(KEYS[:1])
