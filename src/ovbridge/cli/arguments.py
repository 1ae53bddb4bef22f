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
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

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

    An option that takes several values may come several times: they add up. Of any other the last counts.
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
                args=_joined(argv, _list_options(function)),
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        problem = _first_complaint(complaint.getvalue())
        known = _options(function)
        for option in (word.partition("=")[0] for word in argv if word.startswith("--")):
            # The parser complains of what is missing first; a mistyped option is why it is.
            if problem.endswith("required") and "." not in option and option.replace("_", "-") not in known:
                problem += f", and there is no {option}"
        raise ConfigError(f"{problem}; see 'ovbridge {verb} --help'") from None


def _options(function: Callable[..., None]) -> dict[str, Any]:
    """The options of `function` with their types, e.g. "--set": tuple[str, ...]."""
    found = {}
    for name, hint in get_type_hints(function, include_extras=True).items():
        plain, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        renamed = [mark.name for mark in marks if getattr(mark, "name", None)]
        found[f"--{(renamed or [name])[0].replace('_', '-')}"] = plain
    return found


def _list_options(function: Callable[..., None]) -> frozenset[str]:
    """Those that take any number of values."""
    return frozenset(
        option
        for option, kind in _options(function).items()
        if get_origin(kind) is tuple and get_args(kind)[-1:] == (...,)
    )


def _joined(argv: Sequence[str], list_options: frozenset[str]) -> list[str]:
    """`argv` with the values of each list option behind its first occurrence: the parser would keep the last alone."""
    current: list[str] = []
    groups, first = [current], dict[str, list[str]]()
    for word in argv:
        option, equals, value = word.partition("=")
        option = option.replace("_", "-")
        if not word.startswith("--"):
            current.append(word)
        elif option in first:
            current = first[option]
            current += [value] if equals else []
        else:
            current = [option, value] if equals and option in list_options else [word]
            groups.append(current)
            if option in list_options:
                first[option] = current
    return [word for group in groups for word in group]


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
