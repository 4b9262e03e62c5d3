"""Real processes on a real file system, whose n-th system call fails or kills them: `strace` has the kernel do it."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from support.crash_points import check, folder

from checkpoints.entry import Commit

CALLS = ("fsync", "linkat", "mkdirat", "unlinkat")
ACTIONS = ("signal=SIGKILL", "error=EIO")
ROOT = Path(__file__).resolve().parents[2]
SECONDS = 300


@dataclass(frozen=True)
class Point:
    """The n-th such call of each thread is hit."""

    call: str
    n: int
    action: str


def run(store: Path, point: Point | None = None, log: str = "/dev/null") -> list[Commit]:
    """The commits that a run of `crash_program` was told of before it ended. Returns when its writer has, too."""
    inject = [] if point is None else ["-e", f"inject={point.call}:{point.action}:when={point.n}"]
    trace = ["strace", "-f", "-qq", "-o", log, "-e", f"trace={','.join(CALLS)}", *inject]
    program = [sys.executable, "-m", "support.crash_program", str(store)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    ended = subprocess.run(
        [*trace, *program], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=SECONDS
    )
    return [Commit(**json.loads(line)) for line in ended.stdout.splitlines()]


def points(base: Path) -> list[Point]:
    """As many as the thread with the most such calls has, for each call and each action."""
    log = base / "log"
    assert len(run(base / "undisturbed", log=str(log))) == 3
    counts = Counter(re.findall(r"^(\d+) +(\w+)\(", log.read_text(), re.MULTILINE))
    most = {call: max(number for (_, name), number in counts.items() if name == call) for call in CALLS}
    return [Point(call, n, action) for call in CALLS for action in ACTIONS for n in range(1, most[call] + 1)]


def try_point(point: Point) -> int:
    """Hit a run at the point and check what it leaves. The number of commits that it was told of."""
    with TemporaryDirectory() as base:
        store = Path(base) / "run" / "checkpoints"
        told = run(store, point)
        check(folder(store), told)
        return len(told)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/campaign/crash-points", description="Hit each system call in turn.")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default: %(default)s)")
    options = parser.parse_args()
    with TemporaryDirectory() as base:
        chosen = points(Path(base))
    with ThreadPoolExecutor(options.jobs) as pool:
        told = list(pool.map(try_point, chosen))
    cut_short = sum(number < 3 for number in told)
    print(f"{len(chosen)} points, {cut_short} of which cost the run a commit: nothing that was acknowledged was lost")


if __name__ == "__main__":
    main()
