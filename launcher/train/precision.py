"""Precision: what a step computes in. Parameters, gradients and moments are fp32 throughout."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from launcher.errors import UsageError
from launcher.train.agreement import any_rank
from launcher.train.failures import NonFiniteLoss

COMPUTE_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # None: that of the parameters
_BF16_CAPABILITY = (8, 0)  # Ampere; before it bf16 is emulated (CUDA programming guide, "Arithmetic Instructions")
_GROWTH_STEPS = 2000
_LEAST = 2.0**-24


def settle_precision(wanted: str, device: torch.device) -> str:
    """What `wanted` is on the devices of all ranks. Raises UsageError for what one of them lacks."""
    if device.type != "cuda" or wanted in ("fp32", "fp16"):
        return wanted
    lacks_bf16 = torch.cuda.get_device_capability(device) < _BF16_CAPABILITY
    if wanted == "bf16" and lacks_bf16:
        name = torch.cuda.get_device_name(device)
        raise UsageError(f"precision=bf16 needs an NVIDIA GPU of Ampere or later, not {name}; use precision=auto")
    return "fp16" if any_rank(lacks_bf16, device) else "bf16"


@dataclass(slots=True)
class LossScale:
    """fp16 has no room for small gradients: the loss is multiplied before the backward pass (Micikevicius et al. 2018).

    The factor is the largest power of two that did not overflow lately; the same on every rank.
    """

    factor: float = 2.0**16
    good_steps: int = 0  # since it last changed

    def grow(self) -> None:
        """After a step without overflow."""
        self.good_steps += 1
        if self.good_steps == _GROWTH_STEPS:
            self.factor, self.good_steps = 2 * self.factor, 0

    def shrink(self) -> None:
        """After an overflow. Raises NonFiniteLoss when no factor helps."""
        self.factor, self.good_steps = self.factor / 2, 0
        if self.factor < _LEAST:
            raise NonFiniteLoss("the gradient overflows fp16 at any loss scale; use precision=bf16 or precision=fp32")
