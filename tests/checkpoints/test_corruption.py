"""A sample of the damage that scripts/campaign/corrupt does at length, to checkpoints of 1 MB."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from random import Random

import pytest
from support.attic import Attic
from support.damage import damages, verdicts


@pytest.mark.parametrize(("ranks", "cases"), [(1, 60), (4, 50)])
def test_damage_is_found_named_and_gone_back_from(ranks: int, cases: int, tmp_path: Path) -> None:
    attic, random = Attic.make(tmp_path / "checkpoints", megabytes=1, ranks=ranks), Random(ranks)
    found = list(islice(verdicts(attic, random), cases))
    assert {kind for kind, _ in found} == set(damages(attic, random)), "each kind has its turn"
    assert [(kind, wrong) for kind, wrong in found if wrong] == []


def test_an_undamaged_log_is_no_finding(tmp_path: Path) -> None:
    attic = Attic.make(tmp_path / "checkpoints", megabytes=1, ranks=1)
    assert attic.misses_damage() == f"restored commit {attic.newest.n}"
