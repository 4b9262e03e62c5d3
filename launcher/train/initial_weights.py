"""Random initial weights of which no rank has more than one whole: how each was drawn is recorded, and repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from checkpoints.flat_shard import State, held_parts

_aten = torch.ops.aten
_OVERWRITES = (_aten.normal_.default, _aten.uniform_.default, _aten.fill_.Scalar, _aten.zero_.default)
# They hand out memory, past the operators that a dispatch mode sees.
_HANDS_OUT = (
    torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.__dlpack__, torch.Tensor.tolist, torch.Tensor.data_ptr,
    torch.Tensor.untyped_storage, torch.Tensor.share_memory_,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Write:
    """An operator that changed some of a parameter in place; `random_state` is that before it, if it drew numbers."""

    operator: Callable[..., Any]
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    arguments: tuple[Any, ...]
    random_state: torch.Tensor | None

    def repeat(self, whole: torch.Tensor) -> None:
        if self.random_state is not None:
            torch.set_rng_state(self.random_state)
        self.operator(whole.as_strided(self.size, self.stride, self.offset), *self.arguments)


@dataclass(slots=True)
class _Weight:
    """A parameter's memory; while it has none, `writes` says what would be in it."""

    whole: torch.Tensor
    bytes: int
    writes: list[_Write] = field(default_factory=list)
    has_memory: bool = True

    @contextmanager
    def scratch(self) -> Iterator[None]:
        """Memory for the moment, with anything in it."""
        self.whole.untyped_storage().resize_(self.bytes)
        yield
        self.forget()

    def forget(self) -> None:
        self.whole.untyped_storage().resize_(0)
        self.has_memory = False

    @torch.no_grad()
    def remember(self) -> torch.Tensor:
        if not self.has_memory:
            self.whole.untyped_storage().resize_(self.bytes)
            with _disable_current_modes(), torch.random.fork_rng(devices=[]):
                for write in self.writes:
                    write.repeat(self.whole)
            self.has_memory = True
        return self.whole


@dataclass(frozen=True, slots=True)
class InitialWeights:
    """The weights of a model by name, until they are taken."""

    weights: dict[str, _Weight]

    @torch.no_grad()
    def fill(self, tensors: State) -> None:
        """Write them in place, one after the other; of one that is held in parts, the parts that this rank has.

        Can be called once: what is written is forgotten here.
        """
        for name in tensors.keys() & self.weights.keys():  # buffers have had their values all along
            whole = self.weights.pop(name).remember()
            for _, box, part in held_parts({name: tensors[name]}):
                part.copy_(whole[box])
            del whole  # before the next one has memory


def build_without_memory(build: Callable[[], torch.nn.Module]) -> tuple[torch.nn.Module, InitialWeights]:
    """What `build` returns, its parameters on the meta device, and their values, bit by bit; the CPU's memory alone.

    A parameter has memory while an operator works on it. One keeps it that was registered with its values in it, or
    that was looked at since it was last written.
    """
    recorder = _Recorder()
    hook = register_module_parameter_registration_hook(recorder.adopt)
    try:
        with _Handing(recorder), recorder:
            module = build()
    finally:
        hook.remove()
    weights = {name: recorder.weight_of(parameter) for name, parameter in module.named_parameters()}
    hollow: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
    for inner in module.modules():
        for name, parameter in inner._parameters.items():
            if parameter is not None:
                meta = torch.empty_like(parameter, device="meta")
                hollow.setdefault(parameter, torch.nn.Parameter(meta, requires_grad=parameter.requires_grad))
                inner._parameters[name] = hollow[parameter]
    return module, InitialWeights(weights)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Takes the memory of a parameter away once all of it is written by an operator that can be repeated."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._weights: dict[int, _Weight] = {}  # by their storage, which they keep alive

    def adopt(self, _module: torch.nn.Module, _name: str, parameter: torch.nn.Parameter) -> None:
        with torch._C.DisableTorchFunction():
            self.weight_of(parameter)

    def weight_of(self, parameter: torch.Tensor) -> _Weight:
        storage = parameter.untyped_storage()
        found = self._weights.get(storage._cdata)
        if found is None:
            found = _Weight(parameter.detach(), storage.nbytes())
            if storage.resizable() and parameter.is_contiguous() and storage.nbytes() == parameter.nbytes:
                self._weights[storage._cdata] = found
        return found

    def remember(self, tensor: torch.Tensor) -> None:
        found = self._weights.get(tensor.untyped_storage()._cdata)
        if found is not None:
            found.remember()

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        touched = [w for t in tensors if (w := self._weights.get(t.untyped_storage()._cdata)) is not None]
        if not touched:
            return operator(*args, **kwargs)
        if operator.is_view and len(tensors) == 1 and not touched[0].has_memory:
            with touched[0].scratch():
                return operator(*args, **kwargs)
        if len(tensors) == 1 and not kwargs and _is_write(operator) and args[0] is tensors[0]:
            return self._write(touched[0], operator, args)
        for weight in touched:
            weight.remember()
        return operator(*args, **kwargs)

    def _write(self, weight: _Weight, operator: Any, args: tuple[Any, ...]) -> Any:
        target = args[0]
        overwrites = operator in _OVERWRITES and target.is_contiguous() and target.nbytes == weight.bytes
        if weight.has_memory and not overwrites:
            return operator(*args)
        draws = torch.Tag.nondeterministic_seeded in operator.tags
        write = _Write(
            operator=operator, size=tuple(target.shape), stride=target.stride(), offset=target.storage_offset(),
            arguments=args[1:], random_state=torch.get_rng_state() if draws else None,
        )  # fmt: skip
        weight.writes = [write] if overwrites else [*weight.writes, write]
        if draws:  # what is drawn next must not be another
            with weight.scratch():
                operator(*args)
        weight.forget()
        return target


def _is_write(operator: Any) -> bool:
    """Whether it changes items of its first argument and nothing else."""
    first = operator._schema.arguments[0].alias_info
    is_in_place = operator._schema.name.endswith("_") and first is not None and first.is_write
    return is_in_place and torch.Tag.inplace_view not in operator.tags


class _Handing(TorchFunctionMode):
    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in _HANDS_OUT:
            with torch._C.DisableTorchFunction():
                self._recorder.remember(args[0])
        return function(*args, **(kwargs or {}))
