"""Which place a command line means: `--on`, a profile, and the settings of a place among the overrides."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.backend import BACKENDS, Backend, backend_named
from launcher.errors import UsageError
from launcher.loading import refuse_bombs
from launcher.runs import read_text

PROFILES = Path("profiles")
SPOT = "local_spot"  # what `--on spot` means where there is no profiles/spot.yaml


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`words` are those that are left for the recipe; `profile` is the file that was read, if one was."""

    backend: Backend
    words: tuple[str, ...]
    profile: Path | None


def choose_target(
    on: str | None,
    nodes: int,
    words: Sequence[str],
    before: Mapping[str, Any],
    spot: Mapping[str, object] | None = None,
    *,
    is_planned: bool = False,
) -> Target:
    """Without `on`: where the run was before, if it goes on there; else Slurm, for several nodes where there is one;
    else here.

    before: the record of the newest attempt, empty when there is none. spot: settings of `local_spot` from flags.
    is_planned: nothing will be submitted, so that Slurm need not be there. Raises UsageError and ClusterError.
    """
    profile: Path | None = None
    settings: dict[str, object] = {}
    before_on = before.get("target", "local")
    if on is None and backend_named(before_on).resumes_there:
        name, settings = before_on, dict(before.get("settings", {}))
    elif on is None:
        has_slurm = nodes > 1 and (is_planned or backend_named("slurm").is_reachable())
        name = "slurm" if has_slurm else "local"
    elif on not in BACKENDS and os.path.isfile(PROFILES / f"{Path(on).name}.yaml"):
        profile = PROFILES / f"{Path(on).name}.yaml"
        name, settings = _read_profile(profile)
    else:
        name, _, scheduler = (SPOT if on == "spot" else on).partition(":")
        settings = {"scheduler": scheduler} if scheduler else {}
    given, rest = _split(words, name)
    if spot and name != SPOT:
        flag = f"--spot-{next(iter(spot)).replace('_', '-')}"
        raise UsageError(f"{flag} is for --on spot, and this is --on {name}; give --on spot, or leave it out")
    return Target(backend=backend_named(name, settings | given | dict(spot or {})), words=rest, profile=profile)


def recipe_words(words: Sequence[str]) -> tuple[str, ...]:
    """Those that are no settings of a place."""
    return tuple(word for word in words if word.partition("=")[0].partition(".")[0] not in BACKENDS)


def _split(words: Sequence[str], name: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """The settings of the place among the words, and the other words."""
    settings: dict[str, str] = {}
    rest = recipe_words(words)
    for word in (word for word in words if word not in rest):
        key, _, value = word.partition("=")
        place, _, setting = key.partition(".")
        if place != name:
            raise UsageError(f"{key} is a setting of --on {place}, and this is --on {name}; give --on {place}")
        if setting in settings:
            raise UsageError(f"{key} is given twice: {settings[setting]} and {value}; give it once")
        settings[setting] = value
    return settings, rest


def _read_profile(path: Path) -> tuple[str, dict[str, object]]:
    """(target, its settings) of a profile. Raises UsageError."""
    import yaml

    try:
        text = read_text(path)
        refuse_bombs(text, path)
        # All values as they are written: to YAML 1:00:00 is 3600, which Slurm would take for minutes.
        content = yaml.load(text, Loader=yaml.BaseLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}; see profiles/example.yaml") from error
    name = content.get("target") if isinstance(content, dict) else None
    if name not in BACKENDS:
        known = ", ".join(sorted(BACKENDS))
        raise UsageError(f"{path} must name its target: give `target: slurm`, or another one of: {known}")
    settings = content.get(name, {})
    unknown = [key for key in content if key not in ("target", name)]
    if unknown or not isinstance(settings, dict):
        raise UsageError(f"{path} must have `target: {name}` and the settings under `{name}:`, and nothing else")
    return name, {str(key): value for key, value in settings.items()}
