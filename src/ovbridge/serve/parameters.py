"""From query and form to checked values: one clear sentence for whatever does not fit."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import Any, TypeVar

from pydantic import ValidationError

from ovbridge.serve.failures import unprocessable
from ovbridge.serve.limits import Limits
from ovbridge.serve.schemas import Asked
from ovbridge.serve.uploads import Upload

A = TypeVar("A", bound=Asked)

_ALIASES = {"score_threshold": "threshold", "name": "names"}
_ADDRESS_MARK = "://"


def read_asked(kind: type[A], query: Iterable[tuple[str, str]], upload: Upload, limits: Limits) -> A:
    """The parameters of a request; a field of the body goes before a query parameter of the same name.

    Raises RequestError (422): unknown, repeated, too many, or of the wrong form.
    """
    given: dict[str, list[str]] = {}
    for name, value in query:
        given.setdefault(_ALIASES.get(name, name), []).append(value)
    in_body = {_ALIASES.get(name, name): values for name, values in upload.fields.items()}
    given |= in_body
    values: dict[str, Any] = {}
    for name, texts in given.items():
        if name not in kind.model_fields:
            raise _unknown(name, kind)
        if name == "names":
            whole = upload.is_list and name in in_body
            values["names"] = listed_names(texts, limits) if whole else split_names(texts, limits)
        elif len(texts) != 1:
            raise unprocessable("bad_parameter", f"{name} is given {len(texts)} times: give it once")
        else:
            values[name] = texts[0]
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the request"
        raise unprocessable("bad_parameter", f"{where}: {first['msg'][:200]}") from None


def split_names(texts: list[str], limits: Limits) -> list[str]:
    """Names with commas between, or repeated, each once and in order.

    Raises RequestError (422) for none, too many, one too long, one that is an address, or no text.
    """
    # Counted before anything is split: a body may hold millions.
    _check_count(sum(text.count(",") + text.count("|") + 1 for text in texts), limits)
    names = dict.fromkeys(name.strip() for text in texts for name in text.split(","))
    names.pop("", None)
    _check_names(names, limits)
    return list(names)


def listed_names(texts: list[str], limits: Limits) -> list[str]:
    """The items of a list, each a name as it is: commas belong to it, and it may come twice.

    Raises RequestError (422) as `split_names`, and for an empty item.
    """
    _check_count(len(texts), limits)
    names = [text.strip() for text in texts]
    _check_names(names, limits)
    if "" in names:
        raise unprocessable("bad_parameter", f"names: item {names.index('')} of the list is empty: leave it out")
    return names


def _check_count(count: int, limits: Limits) -> None:
    if count > limits.names:
        raise unprocessable("too_many_names", f"there are more than {limits.names} names: ask for fewer at a time")


def _check_names(names: Collection[str], limits: Limits) -> None:
    if not names:
        raise unprocessable("bad_parameter", "names holds no name: write one, or leave the parameter out")
    for name in names:
        if len(name) > limits.name_characters:
            raise unprocessable(
                "name_too_long",
                f"the name {name[:20]!r}... has {len(name)} characters, at most {limits.name_characters}",
            )
        if _ADDRESS_MARK in name:
            raise unprocessable("address_refused", "a name is an address: names are words, and nothing is fetched")
        if not _is_text(name):
            raise unprocessable("bad_parameter", "a name holds half of a character: send whole Unicode text")


def read_box(text: str | None, width: int, height: int) -> tuple[float, float, float, float]:
    """ "left,top,right,bottom" in pixels; None is the whole picture. Raises RequestError (422) for an empty box."""
    if text is None:
        return 0.0, 0.0, float(width), float(height)
    x1, y1, x2, y2 = (float(part) for part in text.split(","))
    x2, y2 = min(x2, width), min(y2, height)
    if x2 <= x1 or y2 <= y1:
        raise unprocessable("bad_parameter", f"box {text} holds nothing of the picture, which is {width}x{height}")
    return x1, y1, x2, y2


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _unknown(name: str, kind: type[Asked]) -> Exception:
    if name in ("image", "file"):
        return unprocessable("no_image", "image must be an uploaded file: texts and addresses are not fetched")
    if "url" in name.lower():
        return unprocessable("address_refused", "pictures are not fetched from addresses: upload the file as 'image'")
    near = difflib.get_close_matches(name, kind.model_fields, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(kind.model_fields)}"
    return unprocessable("unknown_parameter", f"there is no parameter {name[:40]!r}: {hint}")
