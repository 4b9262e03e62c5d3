"""The store through which the agents and ranks of one restart find each other; each restart has a new one."""

from __future__ import annotations

from typing import Any


class Stores:
    """Makes stores, each on a port of this machine that none before it had.

    torch lets the stores of a process that share a port share a server, too. It does not forget a server that is gone:
    when the kernel gives out its port again, the next one to join the new store gets no connection but an error.
    """

    def __init__(self) -> None:
        self._ports: set[int] = set()

    def make(self, address: str) -> Any:
        """A `torch.distributed.TCPStore`; it is open as long as it is referred to."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        spared = []  # held meanwhile, so that the kernel gives another port
        while True:
            store = TCPStore(address, 0, is_master=True, wait_for_workers=False, multi_tenant=True)
            if store.port not in self._ports:
                self._ports.add(store.port)
                return store
            spared.append(store)
