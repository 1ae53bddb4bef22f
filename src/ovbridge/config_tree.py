"""Nested frozen dataclasses to JSON and back, and `a.b=value` overrides of single fields.

The annotations of the dataclasses are the schema: `int`, `float`, `bool`, `str`, `Path`, `Literal`, unions,
tuples and dataclasses in any nesting.
"""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ovbridge.errors import ConfigError

C = TypeVar("C")

_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def to_json(value: Any) -> Any:
    """A JSON-ready copy: dataclasses become objects, tuples lists, paths strings."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_json(kind: type[C], data: Mapping[str, Any], where: str = "") -> C:
    """The dataclass `kind` from an object made by `to_json`; absent fields take their default.

    Raises ConfigError naming the first field that is unknown, absent without a default, or of the wrong type.
    """
    values = _field_values(kind, data, where)
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where or kind.__name__} cannot be made: {error}") from None


def apply_overrides(config: C, overrides: Sequence[str]) -> C:
    """`config` with each `a.b=value` of `overrides` set, in order.

    Raises ConfigError naming the nearest field where one does not exist, or the type where a value does not parse.
    """
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"override {override!r} has no '=': write it as field.name=value")
        config = _replace_at(config, path.strip().split("."), text.strip(), path.strip(), config)
    return config


def leaf_paths(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every settable field below `config` as (dotted path, value), in the order of declaration."""
    for field in fields(config):
        value, path = getattr(config, field.name), f"{prefix}{field.name}"
        if is_dataclass(value) and not isinstance(value, type):
            yield from leaf_paths(value, path + ".")
        else:
            yield path, value


def first_difference(left: Any, right: Any, ignore: frozenset[str] = frozenset(), path: str = "") -> str | None:
    """The first place where two JSON values differ, as "path: left, not right"; None where they agree.

    Paths in `ignore` are skipped with everything below them.
    """
    if path in ignore:
        return None
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        for key in [*left, *(key for key in right if key not in left)]:
            found = first_difference(left.get(key), right.get(key), ignore, f"{path}.{key}" if path else key)
            if found:
                return found
        return None
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        pairs = (
            first_difference(a, b, ignore, f"{path}[{i}]") for i, (a, b) in enumerate(zip(left, right, strict=True))
        )
        return next((found for found in pairs if found), None)
    return None if left == right else f"{path}: {_short(left)}, not {_short(right)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _hints(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def _field_values(kind: type[Any], data: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where or kind.__name__} must be an object, got {_short(data)}")
    hints = _hints(kind)
    for key in data:
        if key not in hints:
            raise ConfigError(f"{where or kind.__name__} has no field {key!r}: {_nearest(key, list(hints))}")
    return {key: _from_json_value(value, hints[key], f"{where}.{key}" if where else key) for key, value in data.items()}


def _from_json_value(value: Any, hint: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _first_that_fits(args, lambda option: _from_json_value(value, option, where), where, value)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where} cannot be {_short(value)}: use one of {', '.join(map(str, args))}")
        return value
    if origin is tuple:
        return _tuple_of(value, args, where)
    if hint is None or hint is type(None):
        return _checked(value, value is None, where, "none")
    if isinstance(hint, type) and is_dataclass(hint):
        return from_json(hint, value, where)
    if hint is Path:
        return Path(_checked(value, isinstance(value, (str, Path)), where, "a path"))
    if hint is float:
        return float(
            _checked(value, isinstance(value, (int, float)) and not isinstance(value, bool), where, "a number")
        )
    if hint is int:
        return _checked(value, isinstance(value, int) and not isinstance(value, bool), where, "a whole number")
    if hint is bool:
        return _checked(value, isinstance(value, bool), where, "true or false")
    if hint is str:
        return _checked(value, isinstance(value, str), where, "text")
    raise TypeError(f"{where}: annotation {hint!r} has no JSON form")


def _tuple_of(value: Any, args: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    _checked(value, isinstance(value, (list, tuple)), where, "a list")
    item_hints = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else list(args)
    _checked(value, len(item_hints) == len(value), where, f"a list of {len(item_hints)}")
    return tuple(_from_json_value(item, hint, where) for item, hint in zip(value, item_hints, strict=True))


def _checked(value: Any, good: bool, where: str, wanted: str) -> Any:
    if not good:
        raise ConfigError(f"{where} must be {wanted}, got {_short(value)}")
    return value


def _first_that_fits(options: Sequence[Any], convert: Any, where: str, value: Any) -> Any:
    failures = []
    for option in sorted(options, key=lambda option: option is not type(None)):
        try:
            return convert(option)
        except ConfigError as failure:
            failures.append(failure)
    raise failures[-1] if len(options) == 2 else ConfigError(f"{where} cannot be {_short(value)}")


def _replace_at(node: Any, keys: list[str], text: str, path: str, root: Any) -> Any:
    hints = _hints(type(node)) if is_dataclass(node) else {}
    if keys[0] not in hints:
        raise ConfigError(f"there is no field {path!r}: {_nearest(path, [leaf for leaf, _ in leaf_paths(root)])}")
    if len(keys) > 1:
        value = _replace_at(getattr(node, keys[0]), keys[1:], text, path, root)
    else:
        value = _from_text(text, hints[keys[0]], path)
    try:
        return replace(node, **{keys[0]: value})
    except (ConfigError, ValueError) as error:
        # A record that stands in several places does not know the path of its fields.
        known = isinstance(error, ConfigError) and path in str(error)
        raise ConfigError(str(error) if known else f"{path}={text} does not fit: {error}") from None


def _from_text(text: str, hint: Any, path: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _first_that_fits(args, lambda option: _from_text(text, option, path), path, text)
    if hint is type(None):
        return _checked(None, text.lower() in ("none", "null", ""), path, "none")
    if hint is str or hint is Path:
        return hint(text)
    if hint is bool:
        return _BOOLEANS[_checked(text.lower(), text.lower() in _BOOLEANS, path, "true or false")]
    if origin is tuple and not text.startswith("["):
        return _tuple_of_text([part.strip() for part in text.split(",") if part.strip()], args, path)
    try:
        value = json.loads(text.replace("_", "") if hint in (int, float) else text)
    except json.JSONDecodeError:
        value = text
    return _from_json_value(value, hint, path)


def _tuple_of_text(parts: list[str], args: tuple[Any, ...], path: str) -> tuple[Any, ...]:
    item_hints = [args[0]] * len(parts) if len(args) == 2 and args[1] is Ellipsis else list(args)
    _checked(parts, len(item_hints) == len(parts), path, f"{len(item_hints)} values separated by commas")
    return tuple(_from_text(part, hint, path) for part, hint in zip(parts, item_hints, strict=True))


def _nearest(name: str, known: list[str]) -> str:
    last = name.rsplit(".", 1)[-1]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    near += [path for path in known if path.rsplit(".", 1)[-1] == last and path not in near]
    return f"did you mean {', '.join(near[:3])}?" if near else f"known fields: {', '.join(known[:20])}"
