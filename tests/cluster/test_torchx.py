"""A job as an AppDef of torchx."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.jobs import JOB

from cluster.errors import ClusterError, Refused
from cluster.torchx_ import TorchxBackend

APP = """\
name: r1-1
roles:
- name: node
  image: ghcr.io/acme/train:1
  entrypoint: /opt/venv/bin/python
  args:
  - -m
  - cluster.node
  - /opt/venv/bin/python
  - -m
  - launcher.train
  - /shared/my runs/r1
  - '1'
  env:
    OMP_WAIT_POLICY: passive
    PYTHONPATH: /shared/my runs/r1/code
  num_replicas: 1
  max_retries: 0
  resource:
    cpu: 32
    gpu: 8
    memMB: 200000
"""
ONE = replace(
    JOB,
    topology=replace(JOB.topology, nodes=1),
    command=("/usr/bin/python3", "-m", "launcher.train", str(JOB.run_folder), "1"),
)
WHOLE = {
    "scheduler": "slurm", "arguments": ["partition=gpu"], "image": "ghcr.io/acme/train:1", "gpus": "true",
    "python": "/opt/venv/bin/python", "memory": "200000",
}  # fmt: skip


def test_an_app_is_this():
    (request,) = TorchxBackend(WHOLE).render([ONE]).requests
    assert request.text == APP
    assert request.command == ("torchx", "run", "-s", "slurm", "-cfg", "partition=gpu")


def test_several_nodes_and_no_scheduler_are_refused():
    with pytest.raises(ClusterError, match=r"--nodes 2 is more than --on torchx has \(1\)"):
        TorchxBackend({"scheduler": "mine"}).topology(2, 8)
    with pytest.raises(ClusterError, match="give --on torchx:SCHEDULER"):
        TorchxBackend({}).render([ONE])
    with pytest.raises(ClusterError, match="must be KEY=VALUE"):
        TorchxBackend({"arguments": "partition"})


def test_torchx_looks_at_it_before_it_is_submitted():
    pytest.importorskip("torchx", reason="the extra torchx is not installed; scripts/setup --dev does it")
    here = WHOLE | {"scheduler": "local_cwd", "arguments": ["prepend_cwd=True"]}
    backend = TorchxBackend(here)
    backend.check(backend.render([ONE]))
    unknown = TorchxBackend(here | {"scheduler": "nowhere"})
    with pytest.raises(Refused, match="torchx: Scheduler backend: nowhere does not exist"):
        unknown.check(unknown.render([ONE]))
    wrong = TorchxBackend(here | {"arguments": "prepend_cdw=True"})
    with pytest.raises(Refused, match=r"torchx: .*prepend_cdw"):
        wrong.check(wrong.render([ONE]))
