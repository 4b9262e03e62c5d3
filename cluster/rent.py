"""What the price of machines depends on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rent:
    """cloud: aws, azure or gcp. accelerator: its name there. None where the place does not say.

    is_spot: the machines are cheaper, and may be taken away.
    """

    cloud: str | None = None
    accelerator: str | None = None
    is_spot: bool = False
