from rich.console import Console

from ovbridge import console
from ovbridge.data.coco import CocoDataset

ODD = "a [/b] [red] :dog:"


def test_brackets_and_colons_are_no_markup(capsys, monkeypatch):
    console.stdout.print(ODD)
    monkeypatch.setattr(console, "stderr", Console(stderr=True, force_terminal=True, width=200))
    with console.Ticker(ODD, 1) as tick:
        tick(note=f"of {ODD}")
    printed = capsys.readouterr()
    assert ODD in printed.out
    assert printed.err.count(ODD) >= 2


def test_a_path_with_brackets_can_be_named_in_a_note(tmp_path, capsys):
    path = tmp_path / "[v]" / "boxes.json"
    path.parent.mkdir()
    path.write_text(
        '{"images": [{"id": 1, "file_name": "a.jpg", "width": 9, "height": 9}],'
        '"categories": [{"id": 1, "name": "mug"}],'
        '"annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 0, 2]}]}'
    )
    CocoDataset.load(path)
    assert "[v]" in capsys.readouterr().err
