"""What a bundle says beside what a launch has made."""

from __future__ import annotations

import json
from pathlib import Path

OF_THE_START = ("started", "launcher", "handle", "start")  # known when an attempt is submitted, and not before


def check_bundle(bundle: Path, run: Path) -> None:
    """Byte for byte, but for what an attempt is told when it is submitted."""
    name = run.name
    for file in ("run.json", "config.yaml"):
        assert (bundle / name / file).read_bytes() == (run / file).read_bytes()
    attempt = json.loads((run / "attempts/0001/attempt.json").read_text())
    known = {key: value for key, value in attempt.items() if key not in OF_THE_START}
    assert json.loads((bundle / name / "attempts/0001/attempt.json").read_text()) == known
    copied = {str(path.relative_to(run / "code")): path.stat().st_size for path in files_of(run / "code")}
    assert {line[11:]: int(line[:10]) for line in (bundle / "code.txt").read_text().splitlines()} == copied


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
