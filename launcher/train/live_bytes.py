"""Counts the bytes of live tensors, be they real or fake."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the tensors that operations make while it is entered, until they are gone.

    shared: shapes of parameters that a model uses in several places.
    peaks: the most between one mark and the next, of which the last is still open.
    """

    def __init__(self, shared: Collection[torch.Size] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._shared = shared
        self.now = 0
        self.peaks = [0]
        self._sizes: dict[int, int] = {}
        self._excluded: set[int] = set()

    @property
    def peak(self) -> int:
        """The most so far."""
        return max(self.peaks)

    def mark(self) -> None:
        self.peaks.append(self.now)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.add.Tensor and not torch.is_grad_enabled() and args[0].shape in self._shared:
            func = torch.ops.aten.add_.Tensor  # as autograd adds up gradients where nobody looks on
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                self.count(value)
        return result

    def count(self, tensor: torch.Tensor) -> None:
        """A tensor that was there before counts from now on; of a sharded one, what this rank holds."""
        self._resized(self._known(tensor))

    def exclude(self, tensor: torch.Tensor) -> None:
        """A tensor that does not count from now on, nor do views of it."""
        storage = self._known(tensor)
        self._excluded.add(storage._cdata)
        self.now -= self._sizes[storage._cdata]
        self._sizes[storage._cdata] = 0

    def _known(self, tensor: torch.Tensor) -> torch.UntypedStorage:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        storage = local.untyped_storage()
        if storage._cdata not in self._sizes:
            self._sizes[storage._cdata] = 0
            weakref.finalize(storage, self._forget, storage._cdata)
        return storage

    @contextmanager
    def counting_resizes(self) -> Iterator[None]:
        """FSDP empties the storage of weights that it lets go, and fills it again: no operation says so."""
        resize = torch.UntypedStorage.resize_

        def counted(storage: torch.UntypedStorage, size: int) -> Any:
            resized = resize(storage, size)
            if storage._cdata in self._sizes:
                self._resized(storage)
            return resized

        torch.UntypedStorage.resize_ = counted  # type: ignore[assignment, method-assign]
        try:
            yield
        finally:
            torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign]

    def _resized(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._excluded:
            return
        self.now += storage.nbytes() - self._sizes[storage._cdata]
        self._sizes[storage._cdata] = storage.nbytes()
        self.peaks[-1] = max(self.peaks[-1], self.now)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
        self._excluded.discard(key)
