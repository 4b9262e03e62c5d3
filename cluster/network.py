"""Which address, and which network interface, leads from this machine to another one."""

from __future__ import annotations

import fcntl
import socket
import struct

from cluster.errors import ClusterError

_SIOCGIFADDR = 0x8915  # netdevice(7)
_ADDRESS = slice(20, 24)  # in the structure that it fills


def address_towards(host: str) -> str:
    """The address of this machine that `host` can answer to. Nothing is sent. Raises ClusterError.

    The name of this machine does not tell it: often it stands for a loopback address, or for another network.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))
            return str(probe.getsockname()[0])
    except OSError as error:
        raise ClusterError(f"no way leads from {socket.gethostname()} to {host}: {error.strerror}") from error


def interface_of(address: str) -> str | None:
    """The network interface that has this address of this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has no address
                continue
            if socket.inet_ntoa(answer[_ADDRESS]) == address:
                return name
    return None
