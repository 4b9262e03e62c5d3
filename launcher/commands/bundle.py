"""Every file and command of a launch before it is made: to be printed, and to be kept in a folder."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.backend import Backend
from cluster.job import Submission
from launcher import loading
from launcher.code_snapshot import Tree, code_of
from launcher.commands.train import Work, record_of
from launcher.errors import UsageError
from launcher.supervise import Start

_SECRET = re.compile(
    r"(\b\w*(?:TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY)\w*=)(\"[^\"]*\"|'[^']*'|\S+)",
    re.IGNORECASE,
)


def masked(text: str) -> str:
    """The text without the values of variables whose names are those of secrets."""
    return _SECRET.sub(r"\1***", text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """files: texts by path, as they would be written or executed, but for secrets. summary: what to know of them."""

    files: Mapping[str, str]
    summary: Sequence[str]

    @classmethod
    def of(
        cls, works: Sequence[Work], starts: Sequence[Start], submissions: Sequence[Submission], backend: Backend
    ) -> Bundle:
        files: dict[str, str] = {}
        new = next((work for work in works if not work.exists), None)
        tree = None if new is None else code_of(Path(new.resolved.source))
        for work, start in zip(works, starts, strict=True):
            number = len(work.run.attempts()) + 1
            root = work.run.code if work.exists or tree is None else tree.root
            files[f"{work.run.name}/run.json"] = _json(record_of(work))
            files[f"{work.run.name}/config.yaml"] = loading.frozen(work.resolved, root)
            attempt = {"submission": number, **start.record(backend), "number": number}
            files[f"{work.run.name}/attempts/{number:04d}/attempt.json"] = _json(attempt)
        for index, submission in enumerate(submissions):
            folder = "" if len(submissions) == 1 else f"{works[index].run.name}/"
            files |= {f"{folder}{name}": masked(text) for name, text in _texts(submission, starts[index])}
        if tree is not None:
            files["code.txt"] = "".join(f"{size:>10} {name}\n" for name, size in _sizes(tree))
        return cls(files=files, summary=tuple(_summary(works, submissions[0], tree)))

    def as_json(self, target: str) -> dict[str, object]:
        return {"target": target, "files": dict(self.files), "summary": list(self.summary)}

    def lines(self) -> Iterator[str]:
        """What is printed beside the submission: the list of the code is summed up."""
        yield from self.summary
        for name, text in self.files.items():
            if name.endswith(("config.yaml", "torchrun.txt")):
                yield f"{name}:"
                yield from (f"  {line}" for line in text.splitlines())

    def write(self, folder: Path) -> None:
        """Raises UsageError for a folder that has something in it, or cannot be made."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise UsageError(f"--bundle {folder} is not empty; choose another folder")
            for name, text in self.files.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"--bundle {folder} cannot be written ({error.strerror}); choose another folder"
            ) from error


def _json(value: object) -> str:
    """As the run folder has it, but for secrets."""
    return json.dumps(_without_secrets(value), indent=1, sort_keys=True) + "\n"


def _without_secrets(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _without_secrets(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_secrets(inner) for inner in value]
    return masked(value) if isinstance(value, str) else value


def _texts(submission: Submission, start: Start) -> Iterator[tuple[str, str]]:
    yield "environment.txt", "".join(f"{name}={value}\n" for name, value in sorted(submission.environment.items()))
    for request in submission.requests:
        yield request.path.name, request.text
    if submission.requests:
        sent = {shlex.join(request.command) for request in submission.requests}
        yield "submission.txt", "".join(f"{command}\n" for command in sorted(sent))
    elif submission.payloads:
        yield "submission.sh", submission.script
        yield "calls.txt", "".join(f"{function}({argument!r})\n" for function, argument in submission.payloads)
    else:
        yield "submission.sh", f"{submission}\n"
        yield "torchrun.txt", f"{_torchrun(start)}\n"


def _torchrun(start: Start) -> str:
    nodes, ranks = start.topology.nodes, start.topology.ranks_per_node
    words = ["torchrun", f"--nnodes={nodes}", f"--nproc-per-node={ranks}", "--max-restarts=0", "--rdzv-backend=static"]
    reason = (
        "# So torchrun would start as many ranks of a script. Here torch elastic starts them as forks of one process."
    )
    return f"{reason}\n{shlex.join([*words, 'SCRIPT'])}"


def _sizes(tree: Tree) -> Iterator[tuple[str, int]]:
    yield from ((name, path.stat().st_size) for name, path in sorted(tree.files.items()))


def _summary(works: Sequence[Work], submission: Submission, tree: Tree | None) -> Iterator[str]:
    for name, value in sorted(submission.environment.items()):
        yield masked(f"{'variable':10} {name}={value}")
    if tree is not None:
        sizes = dict(_sizes(tree))
        folders = Counter(name.partition("/")[0] + "/" if "/" in name else "." for name in sizes)
        where = ", ".join(f"{folder} {count}" for folder, count in sorted(folders.items()))
        yield f"{'code':10} {len(sizes)} files of {sum(sizes.values()) / 1e6:.1f} MB from {tree.root}: {where}"
        if tree.left_out:
            yield f"{'left out':10} {', '.join(tree.left_out)}"
    for work in works:
        checkpoints = work.checkpoints or "checkpoints/"
        kept = f"run.json, config.yaml, code/, attempts/, metrics.jsonl, tensorboard/; {checkpoints}"
        yield f"{'folder':10} {work.run.folder}: {kept}"
