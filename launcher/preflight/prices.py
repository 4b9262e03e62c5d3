"""What GPUs cost: a dated table that ships, or one of the user's own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.topology import Topology
from launcher.errors import UsageError
from launcher.preflight.gpus import GPUS

SHIPPED = Path(__file__).with_name("prices.csv")
_COLUMNS = ("cloud", "instance", "gpu", "gpus", "on_demand", "spot", "as_of", "source")


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """US dollars per hour of one instance that has `gpus` GPUs, on a day. None: not sold so, or not known."""

    cloud: str
    instance: str
    gpu: str
    gpus: int
    on_demand: float | None
    spot: float | None
    as_of: str
    source: str

    def instances(self, nodes: int, gpus_per_node: int) -> int:
        """How many are paid for, each of them whole."""
        return nodes * math.ceil(gpus_per_node / self.gpus)


def read_prices(path: Path) -> tuple[Price, ...]:
    """The prices in a CSV file. Raises UsageError naming the line and the value that cannot be one."""
    import csv

    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"--prices {path} cannot be read ({error}); give a CSV file") from error
    if not rows or set(rows[0]) != set(_COLUMNS):
        raise UsageError(f"--prices {path} must have lines, and the columns {','.join(_COLUMNS)}")
    return tuple(_price(row, f"--prices {path}, line {number}") for number, row in enumerate(rows, start=2))


def _price(row: Mapping[str, str | None], where: str) -> Price:
    text = {name: row[name] or "" for name in _COLUMNS}
    if text["gpu"] not in GPUS:
        raise UsageError(f"{where}: gpu={text['gpu']} is not known; use one of {', '.join(GPUS)}")
    if not text["gpus"].isascii() or not text["gpus"].isdecimal() or int(text["gpus"]) < 1:
        raise UsageError(f"{where}: gpus={text['gpus']} is not a number of GPUs; give that of one instance")
    return Price(
        cloud=text["cloud"],
        instance=text["instance"],
        gpu=text["gpu"],
        gpus=int(text["gpus"]),
        on_demand=_dollars(text["on_demand"], f"{where}: on_demand"),
        spot=_dollars(text["spot"], f"{where}: spot"),
        as_of=text["as_of"],
        source=text["source"],
    )


def _dollars(text: str, where: str) -> float | None:
    if not text:
        return None
    try:
        dollars = float(text)
    except ValueError:
        dollars = math.nan
    if not 0 < dollars < math.inf:
        raise UsageError(f"{where}={text} is no price; give US dollars per hour of one instance, or leave it empty")
    return dollars


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """US dollars of so many hours, at a price; None where it is not sold so."""

    price: Price
    on_demand: float | None
    spot: float | None


def costs(prices: Sequence[Price], gpu: str, topology: Topology, hours: float) -> list[Cost]:
    """Of the instances that have such GPUs."""
    found = []
    for price in (price for price in prices if price.gpu == gpu):
        paid = hours * price.instances(topology.nodes, topology.ranks_per_node)
        on_demand, spot = (None if each is None else paid * each for each in (price.on_demand, price.spot))
        found.append(Cost(price=price, on_demand=on_demand, spot=spot))
    return found
