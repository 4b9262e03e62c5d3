"""`KEY=VALUE` words on top of a recipe: typed, checked, and never more than data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from typing import Any

from launcher.errors import UsageError
from launcher.recipe import Recipe

_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_OPEN_KEYS = ("model.arguments.", "data.arguments.")
_PROBLEMS = (
    ("converted to Integer", "is not a whole number"),
    ("converted to Float", "is not a number"),
    ("valid bool|converted to Boolean", "is not true or false"),
    (r"expected one of \[(.*)\]", "is not one of {}"),
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


def flatten(recipe: Recipe) -> dict[str, Any]:
    """The recipe's leaves by dotted key, in the order of the dataclass; tuples as lists. `laptop` is left out."""
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
        if key not in known and not _is_open(key):
            raise UsageError(_unknown(key, value, recipe, known))
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    config = _tree_of(replace(recipe, laptop={}), source)
    for key, value in settings.items():
        try:
            OmegaConf.update(config, key, _read(value, config, key), merge=False, force_add=_is_open(key))
        except OmegaConfBaseException as error:
            raise UsageError(f"{key}={value} {_problem(error)}") from error
    return replace(_as_recipe(config, source), laptop=recipe.laptop)


def _is_open(key: str) -> bool:
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
    return _as_recipe(_config_of(settings, source), source)


def known_keys(recipe: Recipe) -> list[str]:
    """Every key that can be set: the leaves, and the section that can be null."""
    return [*dict.fromkeys([*flatten(recipe), "adapter"])]


def _tree_of(recipe: Recipe, source: str) -> Any:
    """The recipe as an omegaconf tree."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    settings = asdict(recipe)
    if "${" in repr(settings):
        return _config_of(settings, source)
    try:
        config = OmegaConf.structured(recipe)  # in half the time of a merge
    except (OmegaConfBaseException, TypeError):
        return _config_of(settings, source)  # names what is wrong by its whole key
    _allow_writing(config)
    return config


def _config_of(settings: Mapping[str, Any], source: str) -> Any:
    """An omegaconf tree with the types of a recipe and these values."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    config = OmegaConf.structured(Recipe)
    _allow_writing(config)
    try:
        merged = OmegaConf.unsafe_merge(config, _deeply_escaped(settings))
    except (OmegaConfBaseException, TypeError) as error:
        raise UsageError(_located(error, source, settings)) from error
    _allow_writing(merged)
    return merged


def _deeply_escaped(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _deeply_escaped(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_deeply_escaped(inner) for inner in value]
    return _escaped(value) if isinstance(value, str) else value


def _as_recipe(config: Any, source: str) -> Recipe:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        recipe: Recipe = OmegaConf.to_object(config)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise UsageError(_located(error, source, OmegaConf.to_container(config))) from error  # type: ignore[arg-type]
    return recipe


def _allow_writing(config: Any) -> None:
    """omegaconf keeps frozen dataclasses read-only; what is written here becomes a new frozen one."""
    from omegaconf import OmegaConf

    OmegaConf.set_readonly(config, False)
    for key in config:
        node = config._get_node(key)
        if OmegaConf.is_dict(node) and not node._is_none():
            _allow_writing(node)


def _read(value: Any, config: Any, key: str) -> Any:
    """The value that a text stands for, by YAML's rules for scalars and lists; any other text stands for itself.

    Where `key` is a text in the recipe, a number or a truth value stays the text that it was.
    """
    if not isinstance(value, str):
        return _deeply_escaped(value)
    import yaml
    from omegaconf import OmegaConf, StringNode

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
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    leaves: dict[str, Any] = {}
    _add_leaves(settings, "", leaves)
    config = OmegaConf.structured(Recipe)
    _allow_writing(config)
    for key, value in leaves.items():
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
