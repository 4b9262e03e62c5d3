"""A run of one rank in a process of its own, to be killed from outside: python crash_program.py STORE_FOLDER

Restores, saves three steps, and tells on stdout each commit that it was told of. The writer process is the real one.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from support.saving import start

from checkpoints.posix_store import PosixStore


def main(folder: Path) -> None:
    alone = start(PosixStore(folder), keep=1)
    first = alone.restored.commit.step + 1 if alone.restored else 1
    for step in range(first, first + 3):
        commit = alone.save(step).commit
        if commit is not None:
            print(json.dumps(asdict(commit)), flush=True)
    alone.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
