"""Settings that are plainly of the type of their field, or plainly not: nearly all. omegaconf, which `launcher.tree`
asks about the rest, takes as long to import and to read a recipe as all else that a command does before it starts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from launcher.errors import UsageError
from launcher.recipe import Recipe

PROBLEMS = {int: "is not a whole number", float: "is not a number", bool: "is not true or false"}
NOT_A_CHOICE = "is not one of {}"

# What stands for itself, or for a number, in YAML. At most 15 digits: more are not exact in a float.
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,14})")
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,15})?([eE][+-]?[0-9]{1,2})?")
_TEXT = re.compile(r"[A-Za-z/][A-Za-z0-9_./:@+-]*")
_NO_TEXTS = {"true", "false", "yes", "no", "on", "off", "y", "n", "t", "f", "null", "inf", "infinity", "nan"}
_EXACT = 2**53


class NotPlain(Exception):
    """It takes YAML's rules, or a conversion."""


def apply(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe with `settings` by dotted key. Raises UsageError as omegaconf's tree does, and NotPlain."""
    mapping = asdict(recipe)
    for key, value in settings.items():
        *sections, name = key.split(".")
        holder: Any = mapping
        hint: Any = Recipe
        for section in sections:
            hint = _hint_in(hint, section)
            holder = holder.get(section)
        hint = _hint_in(hint, name)
        if not isinstance(holder, dict):
            raise NotPlain
        holder[name] = _read(key, value, hint)
    return from_mapping(mapping)


def from_mapping(settings: Mapping[str, Any]) -> Recipe:
    """The recipe that a nested mapping spells out. Raises UsageError as omegaconf's tree does, and NotPlain."""
    recipe: Recipe = _section(Recipe, settings)
    return recipe


def _section(kind: Any, settings: Any) -> Any:
    needed = {one.name for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING}
    hints = _hints(kind)
    if not (type(settings) is dict and needed <= settings.keys() <= hints.keys()):
        raise NotPlain
    return kind(**{name: _value(settings[name], hints[name]) for name in hints if name in settings})


def _value(value: Any, hint: Any) -> Any:
    if (kind := _section_kind(hint)) is not None and value is not None:
        return _section(kind, value)
    return _exact(tuple(value) if type(value) is list else value, hint)


@cache
def _hints(kind: type) -> Mapping[str, Any]:
    return get_type_hints(kind)


def _hint_in(hint: Any, name: str) -> Any:
    """The type of what is called `name` in a section, or in a dictionary of arguments."""
    if get_origin(hint) is dict:
        return get_args(hint)[1]
    if (kind := _section_kind(hint)) is None:
        raise NotPlain
    return _hints(kind).get(name)


def _section_kind(hint: Any) -> Any:
    return next(filter(is_dataclass, _kinds(hint)), None)


def _read(key: str, value: Any, hint: Any) -> Any:
    """What a setting means where a `hint` is wanted."""
    if not isinstance(value, str):
        return _exact(value, hint)
    kinds = _kinds(hint)
    if _INTEGER.fullmatch(value):
        return _exact(int(value), hint)
    if float in kinds and _DECIMAL.fullmatch(value):
        return float(value)
    if bool in kinds and value in ("true", "false"):
        return value == "true"
    if not _TEXT.fullmatch(value) or value.lower() in _NO_TEXTS:
        raise NotPlain
    if str in kinds or value in get_args(hint):
        return value
    if get_origin(hint) is Literal:
        raise UsageError(f"{key}={value} {NOT_A_CHOICE.format(', '.join(get_args(hint)))}")
    for kind in kinds:
        if kind in PROBLEMS:
            raise UsageError(f"{key}={value} {PROBLEMS[kind]}")
    raise NotPlain


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types of which a single value may be."""
    if get_origin(hint) is UnionType:
        return get_args(hint)
    return () if get_args(hint) else (hint,)


def _exact(value: Any, hint: Any) -> Any:
    """The value, if a `hint` holds it as it is."""
    kinds = _kinds(hint)
    if float in kinds and int not in kinds and type(value) is int and abs(value) < _EXACT:
        return float(value)
    if not _fits(value, hint):
        raise NotPlain
    return value


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:  # a function's name
        return value is None or type(value) is str
    if origin is None:
        return type(value) is hint
    if origin is UnionType:
        return any(_fits(value, kind) for kind in inner)
    if origin is Literal:
        return type(value) is str and value in inner
    if type(value) is not origin:
        return False
    if origin is dict:
        return all(_fits(key, inner[0]) and _fits(one, inner[1]) for key, one in value.items())
    kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner  # tuple[X, ...] or tuple[X, Y]
    return len(value) == len(kinds) and all(map(_fits, value, kinds))
