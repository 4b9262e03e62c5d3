from __future__ import annotations

import pytest

from cluster.errors import ClusterError
from cluster.network import address_towards, interface_of


def test_the_way_to_this_machine_is_its_loopback_interface():
    assert address_towards("127.0.0.1") == "127.0.0.1"
    assert interface_of("127.0.0.1") == "lo"


def test_an_address_of_another_machine_has_no_interface_here():
    assert interface_of("192.0.2.1") is None


def test_a_host_without_a_name_is_named():
    with pytest.raises(ClusterError, match=r"no way leads from .* to nowhere\.invalid"):
        address_towards("nowhere.invalid")
