"""A cloud that is about to take this machine away says so on its metadata service; here that becomes the notice.

Which cloud it is, the machine's firmware tells, or a variable of the AWS SDK that names a service like EC2's: elsewhere
nothing is asked, and no packet is sent.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cluster.preemption import SPOT_NOTICE_SECONDS, Mark, Notice

if TYPE_CHECKING:
    from email.message import Message

_FIRMWARE = Path("/sys/class/dmi/id")
_LINK_LOCAL = "http://169.254.169.254"
_REQUEST_SECONDS = 2.0
_FIRST_AZURE_SECONDS = 120.0  # the service is enabled by the first request (Azure, "Scheduled Events")
_LONG_POLL_SECONDS = 60
_TOKEN_SECONDS = 21600  # the longest there is (EC2, "Use IMDSv2")
_PAUSE_SECONDS = 5.0  # between looks, also after a failure (EC2, "Spot Instance interruption notices")


class Cloud(Protocol):
    """What one cloud says of this machine."""

    def interruption(self) -> Mark | None:
        """When and why this machine will be taken away; None when it will not. May wait for news.

        Raises OSError and ValueError when there is no answer, or none that can be understood.
        """

    def is_at_risk(self) -> bool:
        """Whether an interruption is more likely than usual, so that a save now is of use. Raises the same."""


def this_cloud() -> Cloud | None:
    """The cloud that this machine belongs to; None elsewhere, and where `AWS_EC2_METADATA_DISABLED` says so."""
    firmware = " ".join(_read(_FIRMWARE / name) for name in ("sys_vendor", "product_name", "bios_vendor"))
    endpoint = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT")
    if (endpoint or "Amazon" in firmware) and os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() != "true":
        return Ec2(endpoint or _LINK_LOCAL)
    if "Google" in firmware:
        return ComputeEngine("http://" + (os.environ.get("GCE_METADATA_HOST") or "metadata.google.internal"))
    if "Microsoft" in firmware:
        return Azure(_LINK_LOCAL)
    return None


def watch_cloud(cloud: Cloud, notice: Notice, pause_seconds: float = _PAUSE_SECONDS) -> None:
    """Give the notice when the cloud says that this machine goes, and ask to save when it says that it may.

    A service that does not answer is asked again.
    """

    def watch() -> None:
        while not notice.is_given():
            started = time.monotonic()
            try:
                if (end := cloud.interruption()) is not None:
                    notice.set_end(Mark(end.at, f"in {max(0.0, end.seconds_left()):.0f} s"))
                    notice.give(end.why)
                    return
                if cloud.is_at_risk():
                    notice.ask_to_save()
            except (OSError, ValueError):
                pass
            time.sleep(max(0.0, started + pause_seconds - time.monotonic()))

    threading.Thread(target=watch, name="cloud", daemon=True).start()


class Ec2:
    """EC2 spot instances, by IMDSv2."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._token = ""

    def interruption(self) -> Mark | None:
        if not (body := self._said("spot/instance-action")):
            return None
        said = json.loads(body)
        seconds = datetime.fromisoformat(said["time"]).timestamp() - time.time()
        return Mark(time.monotonic() + seconds, f"AWS will {said['action']} this spot instance")

    def is_at_risk(self) -> bool:
        """As "EC2 instance rebalance recommendations" in the EC2 user guide says."""
        return bool(self._said("events/recommendations/rebalance"))

    def _said(self, what: str) -> str:
        """Empty when there is nothing to say."""
        status, body = self._ask(what)
        if status == HTTPStatus.UNAUTHORIZED:  # no token yet, or one that is too old
            self._token = self._new_token()
            status, body = self._ask(what)
        return body if status == HTTPStatus.OK else ""

    def _ask(self, what: str) -> tuple[int, str]:
        url = f"{self._url}/latest/meta-data/{what}"
        status, _, body = _request(url, {"X-aws-ec2-metadata-token": self._token})
        return status, body

    def _new_token(self) -> str:
        wanted = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
        status, _, token = _request(f"{self._url}/latest/api/token", wanted, method="PUT")
        if status != HTTPStatus.OK:
            raise OSError(f"no IMDSv2 token ({status})")
        return token


class ComputeEngine:
    """Google Compute Engine; an answer waits for a change."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._etag = ""

    def interruption(self) -> Mark | None:
        wait = f"?wait_for_change=true&timeout_sec={_LONG_POLL_SECONDS}&last_etag={self._etag}" if self._etag else ""
        url = f"{self._url}/computeMetadata/v1/instance/preempted{wait}"
        seconds = _REQUEST_SECONDS + (_LONG_POLL_SECONDS if wait else 0)
        _, headers, body = _request(url, {"Metadata-Flavor": "Google"}, seconds=seconds)
        self._etag = headers.get("ETag", "")
        if body.strip() != "TRUE":
            return None
        return Mark(time.monotonic() + SPOT_NOTICE_SECONDS["Google Cloud spot"], "Google Cloud preempts this machine")

    def is_at_risk(self) -> bool:
        return False


class Azure:
    """Azure spot machines, by scheduled events."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._seconds = _FIRST_AZURE_SECONDS

    def interruption(self) -> Mark | None:
        url = f"{self._url}/metadata/scheduledevents?api-version=2020-07-01"
        _, _, body = _request(url, {"Metadata": "true"}, seconds=self._seconds)
        self._seconds = _REQUEST_SECONDS
        for event in json.loads(body)["Events"]:
            if event["EventType"] in ("Preempt", "Terminate"):
                seconds = parsedate_to_datetime(event["NotBefore"]).timestamp() - time.time()
                return Mark(time.monotonic() + seconds, f"Azure will take this machine away: {event['EventType']}")
        return None

    def is_at_risk(self) -> bool:
        return False


def _request(
    url: str, headers: Mapping[str, str], *, method: str = "GET", seconds: float = _REQUEST_SECONDS
) -> tuple[int, Message, str]:
    """(status, headers, body), whatever the status. Raises OSError without an answer in that time."""
    # Imported here: it takes a tenth of a second, and most machines belong to no cloud.
    import urllib.error
    import urllib.request

    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy the environment names
    request = urllib.request.Request(url, headers=dict(headers), method=method)
    try:
        with direct.open(request, timeout=seconds) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, ""


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
