"""GPUs: how much memory they have, and how fast they multiply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import UsageError

_NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """memory: bytes that a process can use. flops: dense, per second, in bf16 (fp16, on older ones); None: unknown.

    has_bf16: not known to lack it.
    """

    name: str
    memory: float
    flops: float | None
    has_bf16: bool = True


def _gpu(name: str, gib: float, teraflops: float, *, has_bf16: bool = True) -> Gpu:
    return Gpu(name=name, memory=gib * 2**30, flops=teraflops * 1e12, has_bf16=has_bf16)


# Memory: what cards of this name offer to PyTorch, rounded down. Speed: of the vendors' data sheets.
GPUS: Mapping[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        _gpu("t4", 14.5, 65, has_bf16=False),
        _gpu("l4", 22.0, 121),
        _gpu("a10g", 22.0, 70),
        _gpu("rtx4090", 23.5, 165),
        _gpu("a100-40gb", 39.3, 312),
        _gpu("l40s", 44.0, 362),
        _gpu("a100", 79.0, 312),
        _gpu("h100", 79.0, 989),
        _gpu("h200", 139.0, 989),
        _gpu("b200", 178.0, 2250),
        _gpu("mi300x", 191.0, 1307),
    )
}
# By the size on the box, in GB: the card of that size which offers least.
SIZES: Mapping[int, str] = {24: "l4", 40: "a100-40gb", 80: "h100", 141: "h200", 192: "b200"}


def gpu_named(name: str) -> Gpu:
    """Raises UsageError for a GPU that is not in the table."""
    if name.lower() in GPUS:
        return GPUS[name.lower()]
    if name.isdecimal():
        raise UsageError(f"--gpu {name} is no kind of GPU, such as h100; did you mean --gpus {name}?")
    raise UsageError(f"--gpu {name} is not known; use --gpu-memory GB, or one of {', '.join(GPUS)}")


def gpu_with_memory(gigabytes: float) -> Gpu:
    """A GPU of that size, of unknown speed."""
    name = f"a GPU of {gigabytes:g} GB"
    known = SIZES.get(int(gigabytes)) if gigabytes == int(gigabytes) else None
    memory = GPUS[known].memory if known is not None else gigabytes * 1e9
    return Gpu(name=name, memory=memory, flops=None)


def local_gpu(drivers: Path = _NVIDIA_GPUS) -> Gpu | None:
    """The GPU of this machine, by the model that its driver names; None where that is not in the table."""
    for path in sorted(drivers.glob("*/information")):
        text = path.read_text(encoding="utf-8", errors="replace")
        return gpu_of_model(text.partition("Model:")[2].partition("\n")[0])
    return None


def gpu_of_model(model: str) -> Gpu | None:
    """Of such a name as `NVIDIA A100-SXM4-80GB`; None where that is not in the table."""
    words = model.lower().replace("geforce", "").replace("rtx ", "rtx").split()
    if "40gb" in model.lower() and any(word.startswith("a100") for word in words):
        return GPUS["a100-40gb"]
    return next((GPUS[word.partition("-")[0]] for word in words if word.partition("-")[0] in GPUS), None)
