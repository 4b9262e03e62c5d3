"""What a run has cost: GPU-hours, and US dollars where the price of its machines is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from launcher.preflight.prices import Price
from launcher.stay import Stay

_SECONDS_PER_HOUR = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """US dollars for a stay. on_demand: of machines that are never taken away, so that no step is done again; None
    where that is not known."""

    price: Price
    is_spot: bool
    spent: float
    on_demand: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """Of a run, of which unpriced says what is not in it. on_demand: what it would have cost so, if that differs."""

    gpu_hours: float
    charges: tuple[Charge, ...]
    unpriced: tuple[str, ...]

    @property
    def spent(self) -> float | None:
        return sum(charge.spent for charge in self.charges) if self.charges else None

    @property
    def on_demand(self) -> float | None:
        each = [charge.on_demand for charge in self.charges]
        known = [dollars for dollars in each if dollars is not None]
        return sum(known) if known == each and any(charge.is_spot for charge in self.charges) else None

    def as_json(self) -> dict[str, Any]:
        spent, on_demand = self.spent, self.on_demand
        return {
            "gpu_hours": self.gpu_hours,
            "spent_usd": spent,
            "on_demand_usd": on_demand,
            "saved_usd": None if spent is None or on_demand is None else on_demand - spent,
            "prices": [asdict(price) for price in dict.fromkeys(charge.price for charge in self.charges)],
            "unpriced": list(self.unpriced),
        }


def bill(stays: Sequence[Stay], prices: Sequence[Price], *, are_own: bool) -> Bill | None:
    """None for a run that had no GPUs.

    are_own: the prices are those of the user, which go for all machines; those that ship go for a known cloud alone.
    """
    if not stays:
        return None
    paid = [stay for stay in stays if are_own or stay.rent.cloud is not None or stay.seconds is None]
    charges = {stay.attempt: charge for stay in paid if (charge := _charge(stay, prices)) is not None}
    return Bill(
        gpu_hours=sum(stay.gpu_hours or 0.0 for stay in stays),
        charges=tuple(charges.values()),
        unpriced=tuple(_unpriced([stay for stay in paid if stay.attempt not in charges])),
    )


def _charge(stay: Stay, prices: Sequence[Price]) -> Charge | None:
    """At the lowest price of such machines."""
    offers = [
        (_dollars(price.spot if stay.rent.is_spot else price.on_demand, price, stay), price)
        for price in prices
        if price.gpu == stay.gpu and stay.rent.cloud in (None, price.cloud)
    ]
    sold = [(dollars, price) for dollars, price in offers if dollars is not None]
    if stay.seconds is None or not sold:
        return None
    spent, price = min(sold, key=lambda offer: offer[0])
    useful = max(0.0, 1 - stay.again_seconds / stay.seconds) if stay.seconds else 0.0
    on_demand = _dollars(price.on_demand, price, stay)
    return Charge(
        price=price,
        is_spot=stay.rent.is_spot,
        spent=spent,
        on_demand=None if on_demand is None else on_demand * useful,
    )


def _dollars(per_hour: float | None, price: Price, stay: Stay) -> float | None:
    if per_hour is None or stay.seconds is None:
        return None
    return per_hour * price.instances(stay.nodes, stay.gpus_per_node) * stay.seconds / _SECONDS_PER_HOUR


def _unpriced(stays: Sequence[Stay]) -> Iterator[str]:
    """Each reason once, with its attempts."""
    attempts: dict[str, list[str]] = {}
    for stay in stays:
        attempts.setdefault(_reason(stay), []).append(str(stay.attempt))
    for reason, numbers in attempts.items():
        yield f"of attempt{'s' if len(numbers) > 1 else ''} {', '.join(numbers)} {reason}"


def _reason(stay: Stay) -> str:
    if stay.seconds is None:
        return "the hours are not seen here; the bill of the cloud has them"
    if stay.gpu is None:
        return "the kind of GPU is not known, so no price is; the bill of the cloud has it"
    kind, where = "spot" if stay.rent.is_spot else "on-demand", f" on {stay.rent.cloud}" if stay.rent.cloud else ""
    return f"no {kind} price of {stay.gpu}{where} is known; give --prices FILE"
