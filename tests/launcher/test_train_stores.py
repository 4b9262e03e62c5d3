"""Stores on a machine that has few ports to give, and gives each of them again and again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support.runs_for_tests import REPOSITORY

RESTARTS = """
import sys
from datetime import timedelta
from torch.distributed import TCPStore
from launcher.train.stores import Stores

stores = Stores()
for restart in range(3):
    if sys.argv[1] == "forgetful":
        stores = Stores()
    store = stores.make("127.0.0.1")
    joined = TCPStore("127.0.0.1", store.port, is_master=True, multi_tenant=True, timeout=timedelta(seconds=5))
    joined.set("restart", str(restart))
    assert store.get("restart") == str(restart).encode()
    del store, joined
"""


def restarts(kind: str) -> subprocess.CompletedProcess[str]:
    lines = ["ip link set lo up", "echo 40000 40007 > /proc/sys/net/ipv4/ip_local_port_range", 'exec "$@"']
    inside = ["sh", "-c", " && ".join(lines), "-", sys.executable, "-c", RESTARTS, kind]
    return subprocess.run(["unshare", "--net", *inside], cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a network with few ports")
def test_each_restart_gets_a_store_that_can_be_joined():
    result = restarts("mindful")
    assert result.returncode == 0, result.stderr
    # Without the memory of ports it fails: the check can.
    assert "EADDRINUSE" in restarts("forgetful").stderr
