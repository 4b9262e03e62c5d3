"""From a recipe file (or YAML that `launch show` printed) to a resolved recipe, and back to YAML."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NoReturn

from launcher.errors import LaunchError, UsageError
from launcher.overrides import apply, flatten, from_mapping, parse
from launcher.places import check_object
from launcher.recipe import Recipe

IMPORT_SECONDS = 10
_MOST_DEPTH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A recipe after all overrides; `origins` says for each leaf who set it: recipe, laptop, command line."""

    recipe: Recipe
    origins: Mapping[str, str]
    source: str  # the file that it came from


def load(source: str, words: Sequence[str], *, laptop: bool) -> Resolved:
    """The recipe of `source` with its laptop overrides (if `laptop`) and the `KEY=VALUE` words on top.

    source: `file.py`, `file.py:NAME`, the name of a shipped recipe, or a YAML file.
    Raises UsageError, one line, for whatever is wrong with any of them.
    """
    given = parse(words)
    if "\0" in source:
        raise UsageError(f"there is no recipe {source!r}; launch ls lists those that ship")
    if source.endswith((".yaml", ".yml")):
        path = Path(source).resolve()
        resolved = load_yaml(path)
    else:
        path, name = _find(source)
        recipe = _pick(_import(path), name, path)
        resolved = Resolved(recipe=recipe, origins=dict.fromkeys(flatten(recipe), "recipe"), source=str(path))
    layers = {"laptop": resolved.recipe.laptop if laptop else {}, "command line": given}
    resolved = _layered(resolved, layers, path.name)
    return replace(resolved, recipe=_absolute(replace(resolved.recipe, laptop={}), path.parent))


def freeze(resolved: Resolved, root: Path, config: Path) -> None:
    """Write a run's config.yaml."""
    from launcher.runs import write_text

    write_text(config, frozen(resolved, root))


def frozen(resolved: Resolved, root: Path) -> str:
    """The text of a run's config.yaml: what lies under `root` is in the run's code."""
    return to_yaml(relocated(resolved, root, Path("code")))


def load_frozen(config: Path, words: Sequence[str] = ()) -> Resolved:
    """The recipe of a run folder, with the functions of its code snapshot, and the words on top."""
    resolved = load_yaml(config)
    here = relocated(resolved, Path("code"), config.parent / "code")
    if not words:
        return here
    changed = _layered(here, {"command line": parse(words)}, config.name)
    return replace(changed, recipe=_absolute(changed.recipe, Path(resolved.source).parent))


def _layered(resolved: Resolved, layers: Mapping[str, Mapping[str, Any]], source: str) -> Resolved:
    """The recipe under layers of settings by their origin, the last one on top."""
    settings = {key: value for layer in layers.values() for key, value in layer.items()}
    recipe = apply(resolved.recipe, settings, source)
    origins = {key: resolved.origins.get(key, "recipe") for key in flatten(recipe)}
    for origin, layer in layers.items():
        origins |= {key: origin for key in origins if any(key == s or key.startswith(f"{s}.") for s in layer)}
    return replace(resolved, recipe=recipe, origins=origins)


def _find(source: str) -> tuple[Path, str | None]:
    """(file, name of the recipe in it) of what the user typed."""
    text, separator, name = source.rpartition(":")
    if not separator or (source.endswith(".py") and _is_file(Path(source))):
        text, name = source, ""
    if text.endswith(".py") and _is_file(Path(text)):
        return Path(text).resolve(), name or None
    shipped = {recipe_name: path for recipe_name, _, path in shipped_recipes()}
    if text not in shipped:
        from difflib import get_close_matches

        nearest = get_close_matches(Path(text).stem, shipped, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else "; launch ls lists those that ship"
        raise UsageError(f"there is no recipe {source}{hint}")
    return shipped[text].resolve(), name or None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name that is too long
        return False


def _import(path: Path) -> ModuleType:
    """Run the recipe's file; what it prints goes to stderr, and whatever it raises is one line.

    As when it is run as a script, modules can be imported from its folder.
    """
    try:
        code = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; make it readable") from error
    module = ModuleType(f"_recipe_{path.stem}")
    module.__file__ = str(path)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        with contextlib.redirect_stdout(sys.stderr), _time_limit(), _listed(module), _as_data():
            # Compiled here: a cached .pyc is taken for current when the file was edited within its second.
            exec(compile(code, str(path), "exec", dont_inherit=True), vars(module))
    except LaunchError as error:
        raise UsageError(f"{path}:{_line_in(error, path)}: {error}") from error
    except SyntaxError as error:
        raise UsageError(f"{error.filename or path}:{error.lineno or 0}: {error.msg}; correct that line") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == "torch":
            remedy = "import it inside the functions that use it"
            raise UsageError(f"{path.name} imports torch at its top level; {remedy}") from error
        raise UsageError(f"{path}:{_line_in(error, path)}: the recipe raised {_cause(error)}") from error
    return module


def _cause(error: BaseException) -> str:
    """The exception's type and text, if it has one: both are the recipe's own code."""
    try:
        text = str(error)
    except Exception:
        text = ""
    text = " ".join(text.split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextlib.contextmanager
def _listed(module: ModuleType) -> Iterator[None]:
    """While a recipe runs, its dataclasses find its module by name, and `import torch` fails at once, not slowly."""
    listed: dict[str, Any] = {module.__name__: module}
    if "torch" not in sys.modules:
        listed["torch"] = None
    modules = sys.modules
    modules.update(listed)
    try:
        yield
    finally:
        for name in listed:
            modules.pop(name, None)


@contextlib.contextmanager
def _as_data() -> Iterator[None]:
    """While a recipe runs, it can neither end this process unseen nor become two of it."""
    names = ("_exit", "abort", "fork", "forkpty")
    kept = {name: getattr(os, name) for name in names}
    for name in names:
        setattr(os, name, _refusal(f"os.{name}"))
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(os, name, function)


def _refusal(name: str) -> Callable[..., NoReturn]:
    def refuse(*_: object) -> NoReturn:
        raise UsageError(f"the recipe calls {name}; a recipe is data, move work into its functions")

    return refuse


def _line_in(error: BaseException, path: Path) -> int:
    line, traceback = 0, error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == str(path):
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    """UsageError after IMPORT_SECONDS, in the main thread only. A recipe may catch it: the third ends the process."""
    leave, tries = os._exit, iter(range(2))

    def give_up(_number: int, _frame: FrameType | None) -> None:
        remedy = "a recipe is data, move work into its functions"
        text = f"importing it took more than {IMPORT_SECONDS} s; {remedy}"
        if next(tries, None) is None:
            os.write(2, f"launch: the recipe catches every exception, and {text}\n".encode())
            leave(UsageError.exit_code)
        raise UsageError(text)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, IMPORT_SECONDS, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _pick(module: ModuleType, name: str | None, path: Path) -> Recipe:
    recipes = {key: value for key, value in vars(module).items() if isinstance(value, Recipe)}
    if name is None:
        name = "RECIPE" if "RECIPE" in recipes or len(recipes) != 1 else next(iter(recipes))
    if name not in recipes:
        names = ", ".join(recipes) or "none"
        raise UsageError(f"{path.name} has no recipe {name}; it has: {names} (write {path.name}:NAME)")
    return recipes[name]


def _absolute(recipe: Recipe, folder: Path) -> Recipe:
    """A data path is relative to the recipe's folder, wherever it is given. A URL stays as it is."""
    if recipe.data.path is None:
        return recipe
    if "://" in recipe.data.path:
        check_object(recipe.data.path)
        return recipe
    try:
        path = os.path.realpath(folder / recipe.data.path)
    except ValueError as error:  # NUL, or half of a surrogate pair
        raise UsageError(f"data.path={recipe.data.path!r} is no file's name ({error}); give a path") from error
    return replace(recipe, data=replace(recipe.data, path=path))


def shipped_recipes() -> list[tuple[str, str, Path]]:
    """(name, first line of the docstring, file) of the recipes that ship; none of them is imported."""
    import recipes

    folder = Path(str(recipes.__file__)).parent
    found = []
    for path in sorted(folder.glob("[!_]*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_bytes())) or ""
        found.append((path.stem, docstring.partition("\n")[0], path))
    return found


def relocated(resolved: Resolved, old: Path, new: Path) -> Resolved:
    """The same recipe with its functions and its source looked for under `new` instead of `old`."""

    def moved(text: str | None) -> str | None:
        file, separator, name = (text or "").rpartition(":")
        path = Path(file if separator else text or "")
        if text is None or path.suffix != ".py" or not path.is_relative_to(old):
            return text
        return f"{new / path.relative_to(old)}{separator}{name}"

    recipe = resolved.recipe
    recipe = replace(
        recipe,
        model=replace(recipe.model, build=moved(recipe.model.build)),
        data=replace(recipe.data, build=moved(recipe.data.build)),
        evaluation=replace(recipe.evaluation, complete=moved(recipe.evaluation.complete)),
        loss=moved(recipe.loss),
    )
    return replace(resolved, recipe=recipe)


def to_yaml(resolved: Resolved) -> str:
    """The resolved recipe, one leaf per line, each with its origin as a comment."""
    import yaml

    source = resolved.source
    # An unprintable character could end the comment: what follows would be a setting.
    lines = [f"# recipe: {source if source.isprintable() else json.dumps(source)}"]
    section: list[str] = []
    for key, value in flatten(resolved.recipe).items():
        *parents, name = key.split(".")
        for depth, parent in enumerate(parents):
            if section[: depth + 1] != parents[: depth + 1]:
                lines.append(f"{'  ' * depth}{parent}:")
        section = parents
        texts = value if isinstance(value, list) else [value]
        is_printable = all(str(text).isprintable() for text in texts)
        # An unprintable character could be a line break to YAML: it is written as an escape, between double quotes.
        text = yaml.safe_dump(
            value,
            default_flow_style=True,
            default_style=None if is_printable else '"',
            allow_unicode=is_printable,
            width=sys.maxsize,
        )
        text = text.removesuffix("\n").removesuffix("\n...")
        lines.append(f"{'  ' * len(parents)}{_as_key(name)}: {text}  # {resolved.origins.get(key, 'recipe')}")
    return "\n".join(lines) + "\n"


def _as_key(name: str) -> str:
    """An argument called `on` or `no` would be a truth value to YAML."""
    import yaml

    return name if yaml.safe_load(name) == name else f"'{name}'"


def load_yaml(path: Path) -> Resolved:
    """A recipe as `to_yaml` writes it, with the origins that it names. Raises UsageError."""
    import yaml

    from launcher.runs import read_text

    remedy = "`launch show RECIPE` prints a whole one"
    try:
        text = read_text(path)
        refuse_bombs(text, path)
        settings = yaml.safe_load(text)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; {remedy}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}; {remedy}") from error
    if not isinstance(settings, dict):
        raise UsageError(f"{path} is not a recipe; {remedy}")
    recipe = from_mapping(settings, path.name)
    first = text.partition("\n")[0]
    source = first.removeprefix("# recipe: ") if first.startswith("# recipe: ") else str(path)
    if source.startswith('"'):
        source = _unquoted(source, path)
    return Resolved(recipe=recipe, origins=_origins(text, recipe), source=source)


def refuse_bombs(text: str, path: Path) -> None:
    """An alias can stand for any amount of text, and deep nesting takes the parser for ever."""
    import yaml

    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > _MOST_DEPTH:
            raise UsageError(f"{path} has an alias (*NAME) or more than {_MOST_DEPTH} levels; write it out")


def _unquoted(text: str, path: Path) -> str:
    try:
        return str(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} names its recipe in a way that cannot be read") from error


def _origins(text: str, recipe: Recipe) -> dict[str, str]:
    """The origins in the comments of `to_yaml`; a line without one was written by hand, and counts as the recipe's."""
    origins = dict.fromkeys(flatten(recipe), "recipe")
    section: list[str] = []
    for line in text.splitlines():
        found = re.match(r"( *)'?(\w+)'?:(.*?)(?:  # ([a-z ]+))?$", line)
        if found is None:
            continue
        section = [*section[: len(found[1]) // 2], found[2]]
        key = ".".join(section)
        if key in origins and found[4]:
            origins[key] = found[4]
    return origins
