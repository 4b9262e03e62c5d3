"""A recipe as an omegaconf tree, which makes of each setting what its type and YAML's rules say. What it refuses is a
UsageError in our words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import yaml
from omegaconf import OmegaConf, StringNode
from omegaconf.errors import OmegaConfBaseException

from launcher.errors import UsageError
from launcher.overrides import flatten, is_open
from launcher.plain import NOT_A_CHOICE, PROBLEMS
from launcher.recipe import Recipe

_PROBLEMS = (
    ("converted to Integer", PROBLEMS[int]),
    ("converted to Float", PROBLEMS[float]),
    ("valid bool|converted to Boolean", PROBLEMS[bool]),
    (r"expected one of \[(.*)\]", NOT_A_CHOICE),
    (r"length (\d+) does not match type hint length (\d+)", "has {} values instead of {}"),
    ("is not a TupleConfig", "is not a list"),
    ("to string|for field of type .str", "is not a text"),
    ("incompatible container types", "is not a section; set its keys one by one"),
    (r"with type hint 'Union\[int, str\]", "is not a whole number or a text"),
    ("with type hint 'Union", "is not a text, a number, true or false"),
    ("not Optional", "cannot be null"),
    ("issing mandatory value", "is missing"),
    ("is not a subclass of", "is not a section; set its keys one by one"),
    (r"not in '\w+'. Did you mean: '(\w+)'", "is unknown; did you mean {}?"),
    (r"^Key '.*' not in '\w+'", "is unknown"),
)


def apply(recipe: Recipe, settings: Mapping[str, Any], source: str) -> Recipe:
    """The recipe with `settings` by dotted key. Raises UsageError for a value that its type, or the recipe, refuses."""
    config = _of_recipe(recipe, source)
    for key, value in settings.items():
        _update(config, key, value)
    return _to_recipe(config, source)


def from_mapping(settings: Mapping[str, Any], source: str) -> Recipe:
    """The recipe that a nested mapping spells out. Raises UsageError naming `source` and the key that is wrong."""
    return _to_recipe(_of_settings(settings, source), source)


def _of_recipe(recipe: Recipe, source: str) -> Any:
    settings = asdict(recipe)
    if "${" in repr(settings):
        return _of_settings(settings, source)
    try:
        # In half the time of a merge; what omegaconf has just made itself needs no copy.
        config = OmegaConf.structured(recipe, flags={"no_deepcopy_set_nodes": True})
    except (OmegaConfBaseException, TypeError):
        return _of_settings(settings, source)  # names what is wrong by its whole key
    _allow_writing(config)
    return config


def _of_settings(settings: Mapping[str, Any], source: str) -> Any:
    """An omegaconf tree with the types of a recipe and these values."""
    config = OmegaConf.structured(Recipe)
    _allow_writing(config)
    try:
        merged = OmegaConf.unsafe_merge(config, _deeply_escaped(settings))
    except (OmegaConfBaseException, TypeError) as error:
        raise UsageError(_located(error, source, settings)) from error
    _allow_writing(merged)
    return merged


def _update(config: Any, key: str, value: Any) -> None:
    """A text is read as a YAML scalar or list."""
    try:
        OmegaConf.update(config, key, _read(value, config, key), merge=False, force_add=is_open(key))
    except OmegaConfBaseException as error:
        raise UsageError(f"{key}={value} {_problem(error)}") from error


def _to_recipe(config: Any, source: str) -> Recipe:
    """Raises UsageError for a value that a recipe refuses."""
    try:
        recipe: Recipe = OmegaConf.to_object(config)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise UsageError(_located(error, source, OmegaConf.to_container(config))) from error  # type: ignore[arg-type]
    return recipe


def _allow_writing(config: Any) -> None:
    """omegaconf keeps frozen dataclasses read-only; what is written here becomes a new frozen one."""
    OmegaConf.set_readonly(config, False)
    for key in config:
        node = config._get_node(key)
        if OmegaConf.is_dict(node) and not node._is_none():
            _allow_writing(node)


def _deeply_escaped(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _deeply_escaped(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_deeply_escaped(inner) for inner in value]
    return _escaped(value) if isinstance(value, str) else value


def _read(value: Any, config: Any, key: str) -> Any:
    """The value that a text stands for, by YAML's rules for scalars and lists; any other text stands for itself.

    Where `key` is a text in the recipe, a number or a truth value stays the text that it was.
    """
    if not isinstance(value, str):
        return _deeply_escaped(value)
    try:
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={_escaped(value)}"]), resolve=True)["value"]  # type: ignore[index, call-overload]
    except (yaml.YAMLError, ValueError):
        return _escaped(value)
    if isinstance(parsed, list):
        return _deeply_escaped(parsed)
    section, _, name = key.rpartition(".")
    holder = OmegaConf.select(config, section)
    holds_text = OmegaConf.is_dict(holder) and isinstance(holder._get_node(name), StringNode)
    is_text = isinstance(parsed, str | dict) or (parsed is None and value.startswith("#"))
    return _escaped(value) if is_text or (holds_text and parsed is not None) else parsed


def _escaped(text: str) -> str:
    """The text with `${...}` made literal, as omegaconf's grammar says: backslashes before it doubled, and one more."""
    if "${" not in text:
        return text
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)


def _located(error: Exception, source: str, settings: Mapping[str, Any]) -> str:
    """What is wrong with which setting of `settings`, and where."""
    key, problem = getattr(error, "full_key", None) or _culprit(settings), _problem(error)
    value = _value_at(settings, str(key))
    says_value = (
        value is not None and not isinstance(value, Mapping) and not problem.startswith(("is unknown", "is missing"))
    )
    where = f"{source}: " if source else ""
    return f"{where}{key}{f'={value}' if says_value else ''} {problem}"


def _culprit(settings: Mapping[str, Any]) -> str:
    """The key that omegaconf refuses, where it does not say so itself: they are given to it one by one."""
    config = OmegaConf.structured(Recipe)
    _allow_writing(config)
    for key, value in flatten(settings).items():
        alone = value
        for name in reversed(key.split(".")):
            alone = {name: alone}
        try:
            config = OmegaConf.unsafe_merge(config, _deeply_escaped(alone))
        except (OmegaConfBaseException, TypeError):
            return key
    return "a value"


def _value_at(settings: Mapping[str, Any], key: str) -> Any:
    value: Any = settings
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _problem(error: Exception) -> str:
    """What omegaconf found wrong, in the words of our messages."""
    text = str(error).splitlines()[0]
    for pattern, problem in _PROBLEMS:
        if found := re.search(pattern, text):
            return problem.format(*(group.replace("'", "") for group in found.groups()))
    return f"cannot be used ({text})"
