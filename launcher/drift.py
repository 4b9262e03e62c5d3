"""What changed since a run started, and whether the result would still be the same."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from launcher.errors import DriftError, UsageError

# They change how often something is looked at or kept, or who loads the data; never what is computed.
_HARMLESS_SETTINGS = ("stop_after", "checkpoint.", "evaluation.", "data.workers")
# They change how the same sums are cut, as another number of ranks does: same samples, other rounding.
_ROUNDING_SETTINGS = ("parallel.", "batch.micro", "model.activation_checkpointing", "deterministic")
_MACHINE = ("python", "cpu", "gpus")
_PLACE = ("nodes", "ranks_per_node", "has_gpus", "precision")
_DECIDING_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One difference. `decides_result`: the run would end with other weights than without it."""

    field: str
    before: object
    after: object
    decides_result: bool

    def __str__(self) -> str:
        return " ".join(f"{self.field} changed: {self.before} -> {self.after}".split())


def compare_settings(before: Mapping[str, object], after: Mapping[str, object]) -> list[Change]:
    """Differences between two flattened recipes."""
    return [
        Change(
            field=key,
            before=before.get(key),
            after=after.get(key),
            decides_result=not key.startswith(_HARMLESS_SETTINGS + _ROUNDING_SETTINGS),
        )
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    ]


def compare_environments(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Differences between two records of `environment`, of what has a say in the result."""
    packages_before, packages_after = before["packages"], after["packages"]
    changes = [
        Change(field=name, before=old, after=new, decides_result=_release(old) != _release(new))
        for name in _DECIDING_PACKAGES
        if (old := packages_before.get(name)) != (new := packages_after.get(name))
    ]
    return changes + _said(before, after, _MACHINE)


def compare_places(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Differences between the records of two attempts; the samples stay the same, and the loss within tolerance."""
    return _said(before, after, _PLACE)


def refuse_unknown_fields(allowed: Collection[str], settings: Collection[str]) -> None:
    """Raises UsageError for a `--allow-change` that can name no change; `settings` are the keys of the recipe."""
    known = [*settings, "code", "data", "base_model", *_DECIDING_PACKAGES, *_MACHINE, *_PLACE]
    for field in allowed:
        if field not in known:
            nearest = get_close_matches(field, known, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else "the line that refused to resume names one"
            raise UsageError(f"--allow-change {field}: there is no such field; {hint}")


def _said(before: Mapping[str, Any], after: Mapping[str, Any], fields: Sequence[str]) -> list[Change]:
    return [
        Change(field=field, before=before.get(field), after=after.get(field), decides_result=False)
        for field in fields
        if before.get(field) != after.get(field)
    ]


def _release(version: str | None) -> str | None:
    """The version without its build: 2.13.0 of 2.13.0+cpu."""
    return version and version.partition("+")[0]


def compare_code(frozen: Mapping[str, str], now: Mapping[str, str]) -> list[Change]:
    """The files that differ from the run's snapshot, as one change; the snapshot is what runs: it decides nothing."""
    changed = sorted(name for name in {*frozen, *now} if frozen.get(name) != now.get(name))
    if not changed:
        return []
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    after = f"{', '.join(changed[:3])}{more} differ now; the run goes on with its snapshot"
    return [Change(field="code", before="the snapshot", after=after, decides_result=False)]


def compare_identities(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Differences between the digests of what a run depends on: its data, its base model."""
    return [
        Change(field=name, before=_short(before.get(name)), after=_short(after.get(name)), decides_result=True)
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]


def check(changes: Iterable[Change], allowed: Collection[str]) -> list[str]:
    """A line for each change. Raises DriftError for the first one that decides the result and is not in `allowed`."""
    lines = []
    for change in changes:
        if change.decides_result and change.field not in allowed:
            remedy = f"Undo it, or insist with --allow-change {change.field}"
            raise DriftError(f"{change}; the run would not end the same. {remedy}")
        lines.append(str(change))
    return lines


def _short(digest: object) -> str:
    return "none" if digest is None else f"digest {str(digest)[:12]}"
