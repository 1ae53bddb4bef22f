"""From words on the command line to one call of a typed function.

The function's signature is the command line (tyro). Mistakes are one line, as everywhere else.
"""

from __future__ import annotations

import difflib
import functools
import io
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from typing import Any, Literal

from ovbridge.errors import ConfigError

DetectionPrecisionName = Literal["fp32", "mixed", "bf16", "auto"]
"""`ovbridge.device.DetectionPrecision`, without importing PyTorch."""


def call(function: Callable[..., None], argv: Sequence[str], *, verb: str, examples: str = "") -> None:
    """Parse `argv` by the signature of `function` and call it; raises ConfigError as `bind` does."""
    bind(function, argv, verb=verb, examples=examples)()


def bind(function: Callable[..., None], argv: Sequence[str], *, verb: str, examples: str = "") -> Callable[[], None]:
    """`function` with the arguments that `argv` gives it, ready to be called.

    Args:
        function: its parameters become options, its Google-style docstring their help.
        argv: the words after the verb.
        verb: e.g. "detect" or "label regions", for the usage line.
        examples: shown by `--help` below the description, one command a line.

    Raises:
        ConfigError: an option is unknown, missing, or has a value of the wrong type.
    """
    import tyro

    @functools.wraps(function)
    def later(*args: Any, **kwargs: Any) -> Callable[[], None]:
        return functools.partial(function, *args, **kwargs)

    summary = (function.__doc__ or "").split("\n\n")[0].strip()
    description = f"{summary}\n\nexamples:\n{_indent(examples)}" if examples else summary
    complaint = io.StringIO()
    try:
        # Only parsing is captured: the function itself runs after it, with its own standard error.
        with redirect_stderr(complaint):
            return tyro.cli(
                later,
                prog=f"ovbridge {verb}",
                description=description,
                args=list(argv),
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(f"{_first_complaint(complaint.getvalue())}; see 'ovbridge {verb} --help'") from None


def pick(argv: Sequence[str], prog: str, choices: Mapping[str, str], *, epilog: str = "") -> str:
    """The first word of `argv` if it is one of `choices`; prints the list and exits on `--help` or nothing.

    Raises:
        ConfigError: the word is none of them; the message names the nearest.
    """
    word = argv[0] if argv else "--help"
    if word in ("-h", "--help", "help"):
        width = max(map(len, choices))
        lines = [f"usage: {prog} {'VERB' if prog == 'ovbridge' else 'WHAT'} ...", ""]
        lines += [f"  {name:<{width}}  {line}" for name, line in choices.items()]
        lines += ["", epilog or f"'{prog} {next(iter(choices))} --help' says more of one."]
        print("\n".join(lines).rstrip())
        sys.exit(0)
    if word not in choices:
        near = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
        hint = f"did you mean '{prog} {near[0]}'?" if near else f"there are {', '.join(choices)}"
        raise ConfigError(f"{prog} has no {word!r}: {hint}")
    return word


def _indent(text: str) -> str:
    return "\n".join(f"  {line.strip()}" for line in text.strip().splitlines())


def _first_complaint(box: str) -> str:
    """The first sentence of tyro's message as one line.

    The message is a title, then blocks between rules, in a frame whose characters depend on the terminal.
    """
    blocks: list[list[str]] = [[]]
    for row in box.splitlines():
        words = row.strip(" │╭╮╰╯├┤─")
        if words and set(words) != {"-"}:
            blocks[-1].append(words)
        elif row.strip(" │├┤"):
            blocks.append([])
    blocks = [block for block in blocks if block]
    del blocks[0][0]
    blocks = [block for block in blocks if block]
    sentence = " ".join(blocks[0])
    if sentence.startswith("Missing from"):
        absent = [row.split()[0] for row in blocks[0] if row.startswith("--")]
        return f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} required"
    suggestion = next(
        (re.search(r"--[\w.-]+", " ".join(b[1:])) for b in blocks if b[:1] == ["Perhaps you meant:"]), None
    )
    sentence = sentence.removeprefix("Error parsing ")
    return sentence[:1].lower() + sentence[1:] + (f" (perhaps {suggestion.group()})" if suggestion else "")
