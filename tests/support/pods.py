"""The pods of a JobSet, played by this machine: processes that are given the container's command and variables."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psutil


class Pods:
    """The pods of one start of a JobSet, one for each node, all with addresses of this machine.

    before: what comes before a node's command. environment: what the machines have set.
    """

    def __init__(
        self,
        jobset: dict[str, Any],
        start: int,
        before: Callable[[int], Sequence[str]] = lambda node: (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        (nodes,) = jobset["spec"]["replicatedJobs"]
        job = nodes["template"]["spec"]
        fields = {
            "metadata.annotations['jobset.sigs.k8s.io/restart-attempt']": lambda _: str(start),
            "metadata.annotations['batch.kubernetes.io/job-completion-index']": str,
            "status.podIP": lambda node: f"127.0.0.{node + 1}",
        }
        (container,) = job["template"]["spec"]["containers"]
        system = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        self.processes = [
            subprocess.Popen(
                [*before(node), *container["command"]],
                cwd=container["workingDir"],
                env={**system, **(environment or {}), **_given(container, fields, node)},
            )
            for node in range(job["completions"])
        ]

    def kill(self, node: int) -> None:
        for one in self._all_of(node):
            with suppress(psutil.NoSuchProcess):  # children end with their parent
                one.kill()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While the context lasts, nothing goes on, so that a run cannot end meanwhile."""
        stopped = [one for node in range(len(self.processes)) for one in self._all_of(node)]
        for one in stopped:
            one.suspend()
        try:
            yield
        finally:
            for one in stopped:
                one.resume()

    def _all_of(self, node: int) -> list[psutil.Process]:
        process = psutil.Process(self.processes[node].pid)
        return [process, *process.children(recursive=True)]

    def codes(self) -> list[int]:
        return [process.wait(300) for process in self.processes]

    def close(self) -> None:
        """End those that are still there, after a test that has failed."""
        for node, process in enumerate(self.processes):
            if process.poll() is None:
                self.kill(node)
                process.wait()


def _given(container: dict[str, Any], fields: Mapping[str, Callable[[int], str]], node: int) -> dict[str, str]:
    given = {}
    for variable in container["env"]:
        path = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        given[variable["name"]] = variable["value"] if path is None else fields[path](node)
    return given
