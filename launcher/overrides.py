"""`KEY=VALUE` words on top of a recipe: typed, checked, and never more than data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from launcher import plain
from launcher.errors import UsageError
from launcher.recipe import Recipe

_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_OPEN_KEYS = ("model.arguments.", "data.arguments.")


def flatten(recipe: Recipe | Mapping[str, Any]) -> dict[str, Any]:
    """Its leaves by dotted key, in their order; tuples as lists. `laptop` is left out."""
    leaves: dict[str, Any] = {}
    _add_leaves(recipe, "", leaves)
    return leaves


def _add_leaves(value: Any, prefix: str, leaves: dict[str, Any]) -> None:
    if is_dataclass(value):
        items: Iterable[tuple[str, Any]] = ((field.name, getattr(value, field.name)) for field in fields(value))
    elif isinstance(value, Mapping):
        items = value.items()
    else:
        leaves[prefix] = list(value) if isinstance(value, tuple) else value
        return
    for name, inner in items:
        if (prefix, name) != ("", "laptop"):
            _add_leaves(inner, f"{prefix}.{name}" if prefix else str(name), leaves)


def parse(words: Sequence[str]) -> dict[str, str]:
    """`KEY=VALUE` words as a dictionary of texts. Raises UsageError for anything else, and for a key given twice."""
    parsed: dict[str, str] = {}
    for word in words:
        key, separator, value = word.partition("=")
        if not separator:
            raise UsageError(f"{word!r} is not a setting; write KEY=VALUE, such as optimizer.lr=1e-4")
        if key in parsed:
            raise UsageError(f"{key} is given twice: {parsed[key]} and {value}; give it once")
        parsed[key] = value
    return parsed


def apply(recipe: Recipe, settings: Mapping[str, Any], source: str = "") -> Recipe:
    """The recipe with `settings` by dotted key. A text is read as a YAML scalar or list; `${...}` in it means nothing.

    Raises UsageError for an unknown key (with the nearest known one), a value of the wrong type, or one out of range;
    `source` is named where the recipe itself holds such a value.
    """
    known = known_keys(recipe)
    for key, value in settings.items():
        if key not in known and not is_open(key):
            raise UsageError(_unknown(key, value, recipe, known))
    bare = replace(recipe, laptop={})
    try:
        changed = plain.apply(bare, settings)
    except plain.NotPlain:
        from launcher import tree

        changed = tree.apply(bare, settings, source)
    return replace(changed, laptop=recipe.laptop)


def is_open(key: str) -> bool:
    """Whether the key may be one that the recipe has not got."""
    return key.startswith(_OPEN_KEYS) and _KEY.fullmatch(key) is not None


def _unknown(key: str, value: object, recipe: Recipe, known: Sequence[str]) -> str:
    if key == "laptop" or key.startswith("laptop."):
        return f"unknown setting {key}={value}; give the setting itself, or use --laptop or --no-laptop"
    if key.startswith("adapter.") and recipe.adapter is None:
        return f"{key}={value} needs an adapter, and this recipe has none; start from one that has"
    from difflib import get_close_matches

    nearest = get_close_matches(key, known, n=1, cutoff=0.5)
    return f"unknown setting {key}={value}" + (
        f"; did you mean {nearest[0]}?" if nearest else "; launch show RECIPE lists all"
    )


def from_mapping(settings: Mapping[str, Any], source: str) -> Recipe:
    """The recipe that a nested mapping spells out. Raises UsageError naming `source` and the key that is wrong."""
    try:
        return plain.from_mapping(settings)
    except plain.NotPlain:
        from launcher import tree

        return tree.from_mapping(settings, source)


def known_keys(recipe: Recipe) -> list[str]:
    """Every key that can be set: the leaves, and the section that can be null."""
    return [*dict.fromkeys([*flatten(recipe), "adapter"])]
