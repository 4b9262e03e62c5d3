"""The names that SkyPilot has for accelerators and regions.

SkyPilot fetches its catalogue when it is used. Where it has, that is read; elsewhere these lists of 2026 tell a slip of
the pen from a name.
"""

from __future__ import annotations

import csv
from pathlib import Path

from cluster.errors import ClusterError
from cluster.settings import nearest_of

_FETCHED = Path(".sky/catalogs")

_ACCELERATORS = (
    "A10", "A100", "A100-80GB", "A10G", "B200", "B300", "GB200", "GH200", "H100", "H100-MEGA", "H100-SXM", "H200",
    "H200-SXM", "K80", "L4", "L40", "L40S", "MI300X", "P100", "RTX4090", "RTX5090", "RTXPRO6000", "T4", "V100",
    "V100-32GB",
)  # fmt: skip
_REGIONS = {
    "aws": (
        "af-south-1", "ap-east-1", "ap-northeast-1", "ap-northeast-2", "ap-northeast-3", "ap-south-1", "ap-south-2",
        "ap-southeast-1", "ap-southeast-2", "ap-southeast-3", "ap-southeast-4", "ca-central-1", "ca-west-1",
        "eu-central-1", "eu-central-2", "eu-north-1", "eu-south-1", "eu-south-2", "eu-west-1", "eu-west-2", "eu-west-3",
        "il-central-1", "me-central-1", "me-south-1", "sa-east-1", "us-east-1", "us-east-2", "us-west-1", "us-west-2",
    ),
    "gcp": (
        "africa-south1", "asia-east1", "asia-east2", "asia-northeast1", "asia-northeast2", "asia-northeast3",
        "asia-south1", "asia-south2", "asia-southeast1", "asia-southeast2", "australia-southeast1",
        "australia-southeast2", "europe-central2", "europe-north1", "europe-southwest1", "europe-west1", "europe-west2",
        "europe-west3", "europe-west4", "europe-west6", "europe-west8", "europe-west9", "europe-west10",
        "europe-west12", "me-central1", "me-central2", "me-west1", "northamerica-northeast1", "northamerica-northeast2",
        "southamerica-east1", "southamerica-west1", "us-central1", "us-east1", "us-east4", "us-east5", "us-south1",
        "us-west1", "us-west2", "us-west3", "us-west4",
    ),
    "azure": (
        "australiaeast", "brazilsouth", "canadacentral", "canadaeast", "centralindia", "centralus", "eastasia",
        "eastus", "eastus2", "francecentral", "germanywestcentral", "italynorth", "japaneast", "japanwest",
        "koreacentral", "northcentralus", "northeurope", "norwayeast", "polandcentral", "qatarcentral",
        "southafricanorth", "southcentralus", "southeastasia", "southindia", "spaincentral", "swedencentral",
        "switzerlandnorth", "uaenorth", "uksouth", "ukwest", "westcentralus", "westeurope", "westus", "westus2",
        "westus3",
    ),
}  # fmt: skip
CLOUDS = tuple(sorted(_REGIONS))


def check_accelerator(name: str) -> None:
    """Raises ClusterError with the nearest name for one that SkyPilot does not have; case does not matter to it."""
    known = _column("common/accelerators.csv", "AcceleratorName") or _ACCELERATORS
    if name.lower() not in {other.lower() for other in known}:
        raise ClusterError(f"sky.accelerators={name!r} is no accelerator of SkyPilot; {nearest_of(name, known)}")


def check_region(cloud: str, region: str) -> None:
    """Raises ClusterError with the nearest name for one that the cloud does not have."""
    known = _column(f"{cloud}/vms.csv", "Region") or _REGIONS[cloud]
    if region not in known:
        raise ClusterError(f"sky.region={region!r} is no region of {cloud}; {nearest_of(region, known)}")


def _column(name: str, column: str) -> tuple[str, ...]:
    """Of SkyPilot's own catalogue, in its newest version here; empty where it has fetched none."""
    versions = sorted((Path.home() / _FETCHED).glob("v*"), key=lambda folder: int(folder.name[1:]))
    try:
        with open(versions[-1] / name, newline="") as file:
            return tuple(sorted({row[column] for row in csv.DictReader(file)}))
    except (OSError, IndexError, KeyError, ValueError):
        return ()
