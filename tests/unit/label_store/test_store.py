from __future__ import annotations

import json
import multiprocessing
import os
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest
import torch

from ovbridge.errors import StoreError, VocabularyError
from ovbridge.label_store import ImageSet, LabelledImage, LabelStore, Manifest, NamedBoxes, save_text_bank
from ovbridge.label_store.table import read_settled
from ovbridge.structures import RegionTargets
from ovbridge.vocabulary import TextBank, Vocabulary

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["ovbridge.labeling.run", "ovbridge.labeling.labellers"])
REGIONS = Manifest(
    table="regions",
    proposer="fake",
    proposer_digest="p" * 64,
    proposer_trained_on="nothing",
    queries=("all objects",),
    selection={"top_k": 2},
    encoder="fake-clip",
    encoder_digest="c" * 64,
    embedding_dim=3,
    crop_rule="tight",
    precision="fp32",
)
TAGS = replace(
    REGIONS, table="tags", queries=("every {}",), encoder=None, encoder_digest=None, embedding_dim=None, crop_rule=None
)


def regions(key: str, count: int, value: float = 1.0) -> LabelledImage:
    targets = RegionTargets(
        boxes_xyxy=torch.tensor([[i, 0.5, i + 10.25, 7.0] for i in range(count)]).reshape(-1, 4),
        embeddings=torch.tensor([[value, i, -2.5] for i in range(count)]).reshape(-1, 3),
        scores=torch.tensor([0.5 / (i + 1) for i in range(count)]),
    )
    return LabelledImage(image_key=key, labels=targets)


def failed(key: str, cause: str = "broken") -> LabelledImage:
    return LabelledImage(image_key=key, labels=None, cause=cause)


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return LabelStore.create_or_open(tmp_path / "store", REGIONS)


def test_regions_come_back_as_written(store: LabelStore) -> None:
    store.append("regions", [regions("a.jpg", 2), regions("b/c.jpg", 1, value=4.0)])
    found = LabelStore.open(store.path).regions(["b/c.jpg", "a.jpg", "never.jpg"])
    assert set(found) == {"a.jpg", "b/c.jpg"}
    torch.testing.assert_close(found["a.jpg"].boxes_xyxy, torch.tensor([[0, 0.5, 10.25, 7], [1, 0.5, 11.25, 7]]))
    torch.testing.assert_close(found["a.jpg"].embeddings, torch.tensor([[1.0, 0, -2.5], [1, 1, -2.5]]))
    torch.testing.assert_close(found["a.jpg"].scores, torch.tensor([0.5, 0.25]))
    torch.testing.assert_close(found["b/c.jpg"].embeddings, torch.tensor([[4.0, 0, -2.5]]))


@pytest.mark.parametrize("memory_limit", [0, 150, 1 << 30], ids=["from disk", "boxes in memory", "in memory"])
def test_empty_and_failed_images_among_others(store: LabelStore, memory_limit: int) -> None:
    store.append("regions", [regions("a", 1), regions("none", 0), failed("bad"), regions("z", 2, value=9.0)])
    reader = LabelStore.open(store.path, memory_limit=memory_limit)
    found = reader.regions(["z", "none", "bad", "a"])
    assert {key: len(value) for key, value in found.items()} == {"z": 2, "none": 0, "a": 1}
    assert found["none"].embeddings.shape == (0, 3)
    assert found["z"].embeddings[:, 0].tolist() == [9.0, 9.0]
    assert found["a"].embeddings[0, 0] == 1.0
    assert {k: len(v) for k, v in reader.regions(["none"]).items()} == {"none": 0}
    assert reader.regions([]) == {}
    assert reader.done_keys("regions") == {"a", "none", "bad", "z"}
    assert reader.failures("regions") == {"bad": "broken"}


def test_a_key_is_stored_once(store: LabelStore) -> None:
    assert store.append("regions", [regions("a", 2), regions("a", 1)]) == ["a"]
    other = LabelStore.create_or_open(store.path, REGIONS)
    assert other.append("regions", [regions("a", 2, value=5.0), regions("b", 1)]) == ["b"]
    assert store.append("regions", [regions("b", 2)]) == []
    rows = lance.dataset(str(store.path / "regions.lance")).to_table(columns=["image_key", "rank"]).to_pylist()
    assert sorted((r["image_key"], r["rank"]) for r in rows) == [("a", 0), ("b", 0)]


def _append_many(path: Path, worker: int) -> None:
    mine = LabelStore.create_or_open(path, REGIONS)
    for i in range(6):
        mine.append("regions", [regions(f"{worker}-{i}-{j}", 2) for j in range(3)] + [regions(f"shared-{i}", 1)])
    mine.compact("regions")


def test_two_writers_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    writers = [CONTEXT.Process(target=_append_many, args=(tmp_path / "store", worker)) for worker in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(400)
        assert writer.exitcode == 0
    keys = lance.dataset(str(tmp_path / "store" / "regions.lance")).to_table(columns=["image_key"])["image_key"]
    expected = [f"{w}-{i}-{j}" for w in range(2) for i in range(6) for j in range(3)] * 2
    assert sorted(keys.to_pylist()) == sorted(expected + [f"shared-{i}" for i in range(6)])


def test_compaction_keeps_rows_and_open_readers(store: LabelStore) -> None:
    for i in range(5):
        store.append("regions", [regions(f"{i}", 1, value=float(i))])
    reader = LabelStore.open(store.path, memory_limit=0)
    before = reader.regions(["3"])["3"]
    (store.path / "regions.lance" / "data" / "left-by-a-kill.lance").write_bytes(b"half a file")
    store.compact("regions")
    assert len(list((store.path / "regions.lance" / "data").iterdir())) == 1
    torch.testing.assert_close(reader.regions(["3"])["3"].embeddings, before.embeddings)
    assert {k: float(v.embeddings[0, 0]) for k, v in reader.regions(list("01234")).items()} == {
        f"{i}": float(i) for i in range(5)
    }
    assert store.append("regions", [regions("4", 1), regions("5", 1)]) == ["5"]


def test_failures_can_be_taken_up_again(store: LabelStore) -> None:
    store.append("regions", [regions("a", 1), failed("bad"), regions("b", 1, value=3.0)])
    assert store.discard_failures("regions", ["bad"]) == 1
    assert store.done_keys("regions") == {"a", "b"}
    store.append("regions", [regions("bad", 1, value=7.0)])
    found = LabelStore.open(store.path, memory_limit=0).regions(["bad", "b"])
    assert float(found["bad"].embeddings[0, 0]) == 7.0
    assert float(found["b"].embeddings[0, 0]) == 3.0
    assert store.failures("regions") == {}


def test_failures_of_other_images_stay(store: LabelStore) -> None:
    store.append("regions", [failed("it's \\ bad"), failed("worse"), regions("a", 1)])
    assert store.discard_failures("regions", ["it's \\ bad", "a", "never"]) == 1
    assert store.failures("regions") == {"worse": "broken"}
    assert store.done_keys("regions") == {"worse", "a"}


def test_store_travels_to_another_process(store: LabelStore) -> None:
    store.append("regions", [regions("a", 1)])
    store.regions(["a"])
    copy = pickle.loads(pickle.dumps(store))
    assert len(copy.regions(["a"])["a"]) == 1
    with CONTEXT.Pool(1) as pool:
        assert len(pool.apply(store.regions, (["a"],))["a"]) == 1


def tagged(key: str, names: tuple[str, ...], scores: tuple[float, ...]) -> LabelledImage:
    boxes = torch.arange(4.0 * len(names)).reshape(-1, 4)
    return LabelledImage(image_key=key, labels=NamedBoxes(names=names, boxes_xyxy=boxes, scores=torch.tensor(scores)))


def test_tags_are_read_as_columns_of_the_readers_vocabulary(tmp_path: Path) -> None:
    store = LabelStore.create_or_open(tmp_path, TAGS)
    store.append("tags", [tagged("a", ("mug", "kite", "sofa"), (0.9, 0.4, 0.8)), tagged("b", (), ()), failed("c")])
    found = store.tags(["a", "b", "c"], Vocabulary.of_names(["kite", "hat", "mug"]))
    assert set(found) == {"a", "b"}
    assert found["a"].class_ids.tolist() == [2, 0]
    assert found["a"].boxes_xyxy.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(found["b"]) == 0
    confident = store.tags(["a"], Vocabulary.of_names(["kite", "hat", "mug"]), min_score=0.5)
    assert confident["a"].class_ids.tolist() == [2]


def asked(image: LabelledImage, *names: str) -> LabelledImage:
    return replace(image, asked=names)


def test_tags_for_other_names_replace_those_of_an_image(tmp_path: Path) -> None:
    store = LabelStore.create_or_open(tmp_path, TAGS)
    store.append("tags", [asked(tagged(key, ("mug",), (0.9,)), "kite", "mug") for key in "abc"])
    store.append("tags", [asked(failed("d"), "mug")])
    new = {"a": ("kite", "mug"), "b": ("hat",), "d": ("hat", "mug")}
    assert store.done_keys("tags", new.get) == {"a", "c"}
    other = LabelStore.create_or_open(tmp_path, TAGS)
    for writer, added in ((other, ["b", "d"]), (store, [])):
        rows = [asked(tagged(key, ("hat", "mug"), (0.5, 0.25)), *names) for key, names in new.items()]
        assert writer.append("tags", rows) == added
    found = LabelStore.open(tmp_path).tags(list("abcd"), Vocabulary.of_names(["hat", "mug"]))
    assert {key: value.class_ids.tolist() for key, value in found.items()} == {
        "a": [1],
        "b": [0, 1],
        "c": [1],
        "d": [0, 1],
    }
    table = lance.dataset(str(tmp_path / "tags.lance")).to_table(columns=["image_key", "rank", "asked"])
    assert [r["asked"] for r in table.to_pylist() if r["image_key"] == "b"] == [["hat"], None]


def test_a_store_that_does_not_note_names_goes_on(tmp_path: Path) -> None:
    store = LabelStore.create_or_open(tmp_path, TAGS)
    store.append("tags", [tagged("a", ("mug",), (0.9,))])
    lance.dataset(str(tmp_path / "tags.lance")).drop_columns(["asked"])
    old = LabelStore.open(tmp_path)
    assert old.done_keys("tags", lambda key: ("hat",)) == old.keys_of_unknown_names("tags") == {"a"}
    assert old.append("tags", [asked(tagged(k, ("hat",), (0.5,)), "hat") for k in "ab"]) == ["b"]
    assert old.done_keys("tags", lambda key: ("hat", "mug")) == {"a"}
    found = LabelStore.open(tmp_path).tags(["a", "b"], Vocabulary.of_names(["hat", "mug"]))
    assert [found[key].class_ids.tolist() for key in "ab"] == [[1], [0]]


def test_a_vocabulary_that_shares_no_name_is_refused(tmp_path: Path) -> None:
    store = LabelStore.create_or_open(tmp_path, TAGS)
    store.append("tags", [tagged("a", ("mug",), (0.9,))])
    with pytest.raises(VocabularyError, match="mug"):
        store.tags(["a"], Vocabulary.of_names(["Becher"]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"proposer": "other", "proposer_digest": "q" * 64},
            ["proposer 'fake' (pppppppppppp)", "'other' (qqqqqqqqqqqq)", "another --store"],
        ),
        ({"proposer_digest": "q" * 64}, ["proposer 'fake' (pppppppppppp)", "'fake' (qqqqqqqqqqqq)"]),
        ({"precision": "bf16"}, ["precision fp32", "has bf16"]),
        ({"encoder_digest": "q" * 64}, ["image encoder 'fake-clip' (cccccccccccc)"]),
        ({"crop_rule": "square"}, ["crop rule tight", "square"]),
        ({"selection": {"top_k": 5}}, ["top k 2", "has 5"]),
    ],
)
def test_labels_of_two_origins_do_not_mix(store: LabelStore, change: dict[str, object], words: list[str]) -> None:
    before = (store.path / "regions.json").read_text()
    with pytest.raises(StoreError) as caught:
        LabelStore.create_or_open(store.path, replace(REGIONS, **change))  # type: ignore[arg-type]
    assert all(word in str(caught.value) for word in words), caught.value
    assert (store.path / "regions.json").read_text() == before


def test_a_store_that_does_not_say_its_precision_goes_on(tmp_path: Path) -> None:
    LabelStore.create_or_open(tmp_path, replace(REGIONS, precision=None))
    LabelStore.create_or_open(tmp_path, replace(REGIONS, precision="bf16"))


def _append_and_compact(path: Path, images: int) -> None:
    store = LabelStore.open(path)
    for i in range(images):
        store.append("regions", [regions(f"{i}", 2, value=float(i))])
        store.compact("regions")


@pytest.mark.parametrize("memory_limit", [0, 1 << 20])
def test_readers_may_race_with_compactions(store: LabelStore, memory_limit: int) -> None:
    store.append("regions", [regions("first", 2, value=7.0)])
    writer = CONTEXT.Process(target=_append_and_compact, args=(store.path, 60))
    writer.start()
    reads = 0
    while writer.is_alive() or reads == 0:
        reader = LabelStore.open(store.path, memory_limit=memory_limit)
        for key, found in reader.regions(["first", *map(str, range(60))]).items():
            assert float(found.embeddings[0, 0]) == (7.0 if key == "first" else float(key))
        assert "first" in reader.done_keys("regions")
        assert reader.status()["regions"]["failed"] == 0
        assert float(reader.regions(["first"])["first"].embeddings[1, 0]) == 7.0
        reads += 1
    writer.join()
    assert writer.exitcode == 0
    assert len(LabelStore.open(store.path).regions([str(i) for i in range(60)])) == 60


def test_bytes_are_counted_while_a_writer_removes_files(
    store: LabelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append("regions", [regions("a", 1)])
    before = store.status()["regions"]["bytes_per_image"]
    assert before > 0
    walk = os.walk

    def late(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        for parent, folders, names in walk(folder):
            yield parent, folders, [*names, ".tmp-gone-meanwhile"]

    monkeypatch.setattr(os, "walk", late)
    assert store.status()["regions"]["bytes_per_image"] == before


def test_what_vanishes_while_it_is_read_is_read_anew(store: LabelStore) -> None:
    store.append("regions", [regions("a", 1)])
    path = store.path / "regions.lance"
    versions = []

    def read(dataset: Any) -> int:
        versions.append(dataset.version)
        if len(versions) == 1:
            store.append("regions", [regions("b", 1)])
            raise OSError("Not found")
        return int(dataset.count_rows())

    assert read_settled(path, read) == 2

    def always(dataset: Any) -> int:
        raise OSError("damaged\npage")

    with pytest.raises(StoreError, match=r"damaged page.*new --store"):
        read_settled(path, always)


def test_the_same_weights_under_another_name_are_the_same_teacher(store: LabelStore) -> None:
    LabelStore.create_or_open(store.path, replace(REGIONS, proposer="copy.safetensors"))


def test_manifest_notes_each_image_set_once(store: LabelStore, tmp_path: Path) -> None:
    first, second = ImageSet.of(tmp_path, ["b", "a"]), ImageSet.of(tmp_path, ["a", "c"])
    assert first == ImageSet.of(tmp_path, ["a", "b"])
    for image_set in (first, second, first):
        LabelStore.create_or_open(store.path, REGIONS.with_image_set(image_set))
    assert LabelStore.open(store.path).manifest("regions").image_sets == (first, second)


def test_status_counts(store: LabelStore) -> None:
    store.append("regions", [regions("a", 2), regions("b", 0), failed("c"), failed("d")], seconds=2.0, of=9)
    save_text_bank(store.path, TextBank(names=("mug",), embeddings_KD=torch.ones(1, 3), encoder="fake"))
    (store.path / "regions.log.jsonl").open("a").write('{"time": 1')
    status = LabelStore.open(store.path).status()
    expected = {"images": 2, "failed": 2, "empty": 1, "boxes": 2, "of": 9, "images_per_second": 2.0}
    assert {key: status["regions"][key] for key in expected} == expected
    assert status["regions"]["causes"] == {"broken": 2}
    assert status["text"] == {"default": {"names": 1, "dim": 3, "encoder": "fake", "templates": ["a photo of a {}"]}}
    json.dumps(status)


@pytest.mark.parametrize("line", [b"5", b"null", b"\xff\xfe{", b'{"of": 3}', b'{"process": 1, "images": "x"}'])
def test_a_damaged_log_costs_only_the_rate(store: LabelStore, line: bytes) -> None:
    store.append("regions", [regions("a", 1)], seconds=2.0, of=9)
    with (store.path / "regions.log.jsonl").open("ab") as log:
        log.write(line + b"\n")
    status = store.status()["regions"]
    assert (status["images"], status["of"], status["images_per_second"]) == (1, 9, 0.5)


def test_a_damaged_text_bank_is_named_among_the_rest(store: LabelStore) -> None:
    store.append("regions", [regions("a", 1)])
    file = save_text_bank(store.path, TextBank(names=("mug",), embeddings_KD=torch.ones(1, 3), encoder="fake"))
    file.with_name("bad.safetensors").write_bytes(b"no bank")
    status = store.status()
    assert status["regions"]["images"] == 1
    assert status["text"]["default"]["names"] == 1
    assert "bad.safetensors is not a text bank" in status["text"]["bad"]["damaged"]


def test_status_of_a_run_that_committed_nothing(store: LabelStore) -> None:
    status = store.status()["regions"]
    assert (status["images"], status["failed"], status["images_per_second"]) == (0, 0, 0.0)
    assert store.regions(["a"]) == {}


def test_text_bank_round_trip(tmp_path: Path) -> None:
    bank = TextBank(names=("a", "b"), embeddings_KD=torch.eye(2), encoder="fake")
    save_text_bank(tmp_path, bank, "lvis")
    store = LabelStore.open(tmp_path)
    assert store.text_bank("lvis").digest() == bank.digest()
    with pytest.raises(StoreError, match=r"it has: lvis.*label text"):
        store.text_bank()
    with pytest.raises(StoreError, match="cannot name"):
        save_text_bank(tmp_path, bank, "../outside")


def test_absent_store_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="label regions"):
        LabelStore.open(tmp_path / "nothing")
    store = LabelStore.create_or_open(tmp_path, TAGS)
    with pytest.raises(StoreError, match="has no regions"):
        store.regions(["a"])


def test_damage_is_one_line(store: LabelStore) -> None:
    store.append("regions", [regions("a", 1)])
    (store.path / "regions.json").write_text("{}")
    with pytest.raises(StoreError, match="manifest"):
        LabelStore.open(store.path)


def test_rows_without_a_manifest_are_not_adopted(store: LabelStore) -> None:
    store.append("regions", [regions("a", 1)])
    (store.path / "regions.json").unlink()
    with pytest.raises(StoreError, match=r"no regions\.json that says which teacher"):
        LabelStore.create_or_open(store.path, replace(REGIONS, crop_rule="square"))
    assert not (store.path / "regions.json").exists()
    LabelStore.create_or_open(store.path, TAGS)


def test_plain_lance_reads_and_searches(store: LabelStore) -> None:
    store.append("regions", [regions("a", 2), regions("none", 0), regions("b", 1, value=50.0)])
    dataset = lance.dataset(str(store.path / "regions.lance"))
    assert dataset.count_rows(filter="status = 'ok'") == 3
    query = np.array([1, 0, 0], dtype=np.float16)
    nearest = {"column": "embedding", "q": query, "k": 1, "metric": "cosine"}
    assert (
        dataset.scanner(nearest=nearest, columns=["image_key", "_distance"]).to_table()["image_key"][0].as_py() == "b"
    )


def test_half_precision_keeps_directions() -> None:
    values = torch.randn(50, 512, generator=torch.Generator().manual_seed(0)) * 0.5
    cosine = torch.nn.functional.cosine_similarity(values, values.half().float())
    assert float((1 - cosine).max()) < 1e-6


@pytest.mark.slow
def test_random_batches_from_a_large_store_are_fast_and_small(tmp_path: Path) -> None:
    import time

    dim, images = 512, 100_000
    store = LabelStore.create_or_open(tmp_path, replace(REGIONS, embedding_dim=dim))
    generator = torch.Generator().manual_seed(0)
    for first in range(0, images, 5000):
        embeddings = torch.randn(5000, 5, dim, generator=generator)
        boxes, scores = torch.rand(5000, 5, 4, generator=generator) * 300, torch.rand(5000, 5, generator=generator)
        store.append(
            "regions",
            [
                LabelledImage(
                    image_key=f"{first + i:012d}.jpg",
                    labels=RegionTargets(boxes_xyxy=boxes[i], embeddings=embeddings[i], scores=scores[i]),
                )
                for i in range(5000)
            ],
        )
    store.compact("regions")
    reader = LabelStore.open(tmp_path)
    rng = np.random.default_rng(0)
    reader.regions(["000000000000.jpg"])
    seconds = []
    for _ in range(200):
        keys = [f"{i:012d}.jpg" for i in rng.choice(images, 32, replace=False)]
        started = time.perf_counter()
        assert len(reader.regions(keys)) == 32
        seconds.append(time.perf_counter() - started)
    per_image = store.status()["regions"]["bytes_per_image"]
    print(f"median {1e3 * np.median(seconds):.2f} ms for 32 images, {per_image} bytes an image")
    assert np.median(seconds) < 0.010
    assert per_image <= 6 * 1024
