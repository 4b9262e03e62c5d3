from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from checkpoints.owner import Owner, owner_is_alive, this_process


def test_this_process_is_alive() -> None:
    assert owner_is_alive(this_process("job"))


def test_a_process_that_has_ended_is_not_alive_even_while_its_exit_status_waits() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        owner = Owner.of_process("job", process.pid)
        assert owner_is_alive(owner)
        process.kill()
        while owner_is_alive(owner):
            pass
    assert not owner_is_alive(owner)
    with pytest.raises(ProcessLookupError):
        Owner.of_process("job", process.pid)


def test_a_pid_that_is_used_again_is_another_process() -> None:
    owner = this_process("job")
    assert not owner_is_alive(replace(owner, started=owner.started + 1))


def test_nothing_survives_a_reboot() -> None:
    assert not owner_is_alive(replace(this_process("job"), boot_id="another boot"))


def test_a_process_on_another_host_is_taken_to_be_alive() -> None:
    assert owner_is_alive(replace(this_process("job"), host="another-host", boot_id="another boot"))
