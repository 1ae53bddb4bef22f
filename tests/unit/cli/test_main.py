from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ovbridge.cli import main
from ovbridge.cli.arguments import call, pick
from ovbridge.console import stdout
from ovbridge.errors import ConfigError, DataError


def _verb(monkeypatch: pytest.MonkeyPatch, action: object) -> None:
    monkeypatch.setattr(main.importlib, "import_module", lambda name: SimpleNamespace(run=action))


def test_help_lists_every_verb_without_heavy_imports() -> None:
    code = (
        "import sys; from ovbridge.cli.main import run\n"
        "try: run(['--help'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'numpy', 'transformers', 'matplotlib', 'lance', 'tyro'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for verb, line in main.VERBS.items():
        assert f"  {verb}" in done.stdout
        assert line in done.stdout


def test_every_verb_has_its_file() -> None:
    from importlib.util import find_spec

    for verb in main.VERBS:
        assert find_spec(f"ovbridge.cli.{verb}") is not None, verb


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ovbridge 0.")


def test_unknown_verb_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["trian"]) == 2
    assert capsys.readouterr().err == "error: ovbridge has no 'trian': did you mean 'ovbridge train'?\n"


def test_users_mistake_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(argv: list[str]) -> None:
        raise DataError("a.jpg is\n damaged: replace it")

    _verb(monkeypatch, fail)
    assert main.run(["detect"]) == 2
    assert capsys.readouterr().err == "error: a.jpg is damaged: replace it\n"


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(argv: list[str]) -> None:
        raise KeyboardInterrupt

    _verb(monkeypatch, stop)
    assert main.run(["train"]) == 130
    assert capsys.readouterr().err == "interrupted: the same command goes on from here\n"


def test_interrupt_that_says_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(argv: list[str]) -> None:
        raise KeyboardInterrupt("stopped at step 7, saved")

    _verb(monkeypatch, stop)
    assert main.run(["train"]) == 130
    assert capsys.readouterr().err == "interrupted: stopped at step 7, saved\n"


def test_our_own_faults_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(argv: list[str]) -> None:
        raise ZeroDivisionError

    _verb(monkeypatch, fault)
    with pytest.raises(ZeroDivisionError):
        main.run(["train"])


def test_closed_pipe_is_quiet() -> None:
    code = (
        "from types import SimpleNamespace; from ovbridge.cli import main\n"
        "def run(argv):\n"
        "    for i in range(100000): print(i)\n"
        "main.importlib.import_module = lambda name: SimpleNamespace(run=run)\n"
        "import sys; sys.exit(main.run(['world']))"
    )
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert program.stdout is not None
    assert program.stderr is not None
    program.stdout.readline()
    program.stdout.close()
    assert program.stderr.read() == b""
    program.stderr.close()
    assert program.wait() == 141


def _greet(*, name: str, times: int = 1) -> None:
    """Say hello.

    Args:
        name: to whom.
        times: how often.
    """
    print(f"hello {name} " * times)


def test_call_parses_by_signature(capsys: pytest.CaptureFixture[str]) -> None:
    call(_greet, ["--name", "you", "--times", "2"], verb="greet")
    assert capsys.readouterr().out == "hello you hello you \n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], r"^--name is required; see 'ovbridge greet --help'$"),
        (["--name", "a", "--tmies", "2"], r"unrecognized options: --tmies, 2 \(perhaps --times\)"),
        (["--name", "a", "--times", "x"], "^--times: could not convert|^--times: invalid"),
        (["--name", "a", "--times"], "--times"),
    ],
)
def test_wrong_options_are_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        call(_greet, argv, verb="greet")
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().err == ""


def test_a_mistyped_option_is_named_beside_the_missing_one() -> None:
    with pytest.raises(ConfigError, match=r"^--name is required, and there is no --nam; see"):
        call(_greet, ["--nam", "you"], verb="greet")


def _collect(*, names: tuple[str, ...] = (), out: str = "") -> None:
    """Print what was given."""
    print(*names, out)


@pytest.mark.parametrize(
    "argv",
    [
        ["--names", "a", "b", "--out", "o", "--names", "c"],
        ["--names=a", "--names", "b", "--out=o", "--names=c"],
        ["--names", "a", "b", "c", "--out", "o"],
    ],
)
def test_a_list_option_given_again_adds_to_it(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    call(_collect, argv, verb="collect")
    assert capsys.readouterr().out == "a b c o\n"


def test_of_any_other_option_the_last_counts(capsys: pytest.CaptureFixture[str]) -> None:
    call(_collect, ["--out", "a", "--names", "x", "--out", "b"], verb="collect")
    assert capsys.readouterr().out == "x b\n"


@pytest.mark.parametrize("redirect", [">&-", "> out.txt"])
def test_output_that_is_closed_or_cannot_show_a_name(redirect: str, tmp_path: Path) -> None:
    command = f"{sys.executable} -m ovbridge world --out wörld --train 0 --val 0 --seed 0 --image-labels 0 {redirect}"
    ascii_only = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, **ascii_only}, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    if redirect != ">&-":
        assert r"written to w\udcc3\udcb6rld" in (tmp_path / "out.txt").read_text()


def test_call_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        call(_greet, ["--help"], verb="greet", examples="ovbridge greet --name you")
    assert not stop.value.code
    shown = capsys.readouterr().out
    for text in ("usage: ovbridge greet", "Say hello.", "ovbridge greet --name you", "to whom"):
        assert text in shown


def test_pick_lists_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert pick(["tags", "x"], "ovbridge label", {"regions": "a", "tags": "b"}) == "tags"
    with pytest.raises(SystemExit):
        pick([], "ovbridge label", {"regions": "boxes for all", "tags": "b"})
    assert "regions  boxes for all" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="did you mean 'ovbridge label tags'"):
        pick(["tag"], "ovbridge label", {"regions": "a", "tags": "b"})


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_refuses_is_one_line(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(argv: list[str]) -> None:
        raise OSError(number, os.strerror(number), "found/a.jpg")

    _verb(monkeypatch, refused)
    assert main.run(["detect"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: cannot write found/a.jpg (")
    assert line.count("\n") == 1


def test_other_faults_of_the_system_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(argv: list[str]) -> None:
        raise OSError(errno.EBADF, "bad file descriptor")

    _verb(monkeypatch, broken)
    with pytest.raises(OSError, match="bad file descriptor"):
        main.run(["detect"])


def test_a_terminal_without_unicode_shows_every_name(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["ovbridge", "doctor"])
    _verb(monkeypatch, lambda argv: stdout.print("a 猫"))
    with pytest.raises(SystemExit):
        main.main()
    sys.stdout.flush()
    assert shown.getvalue() == b"a \\u732b\n"
