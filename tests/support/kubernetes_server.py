"""A Kubernetes API server on loopback, as far as JobSets and their pods are concerned: it keeps what it is given.

It has no controllers: a test says what becomes of a JobSet. Beyond that it refuses what an API server would refuse.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

ELSEWHERE = "arn:aws:eks:x:1:cluster/there"
_JOBSETS = "/apis/jobset.x-k8s.io/v1alpha2/namespaces/"
_PODS = "/api/v1/namespaces/"


class Cluster:
    """`jobsets` and `pods` by (namespace, name); `calls` is what was asked, as `METHOD PATH?QUERY`."""

    def __init__(self, namespaces: tuple[str, ...]) -> None:
        self.namespaces = namespaces
        self.jobsets: dict[tuple[str, str], dict[str, Any]] = {}
        self.pods: dict[tuple[str, str], dict[str, Any]] = {}
        self.calls: list[str] = []

    def set_status(self, name: str, **status: object) -> None:
        (jobset,) = [jobset for (_, other), jobset in self.jobsets.items() if other == name]
        jobset["status"] = status

    def add_pod(self, jobset: str, namespace: str, **status: object) -> None:
        name = f"{jobset}-{len(self.pods)}"
        labels = {"jobset.sigs.k8s.io/jobset-name": jobset}
        self.pods[namespace, name] = {"metadata": {"name": name, "labels": labels}, "status": status}

    def answer(self, method: str, path: str, query: Mapping[str, list[str]], body: dict[str, Any]) -> tuple[int, Any]:
        prefix = _JOBSETS if path.startswith(_JOBSETS) else _PODS
        namespace, kind, *name = path.removeprefix(prefix).split("/")
        if namespace not in self.namespaces:
            return _refusal(404, f'namespaces "{namespace}" not found')
        if kind == "pods":
            return self._pods(method, namespace, query)
        return (
            self._create(namespace, body, query) if method == "POST" else self._one(method, namespace, name[0], query)
        )

    def _create(self, namespace: str, body: dict[str, Any], query: Mapping[str, list[str]]) -> tuple[int, Any]:
        name = body["metadata"]["name"]
        if (namespace, name) in self.jobsets:
            return _refusal(409, f'jobsets.jobset.x-k8s.io "{name}" already exists')
        if query.get("dryRun") != ["All"]:
            self.jobsets[namespace, name] = body
        return 201, body

    def _one(self, method: str, namespace: str, name: str, query: Mapping[str, list[str]]) -> tuple[int, Any]:
        found = self.jobsets.get((namespace, name))
        if found is None:
            return _refusal(404, f'jobsets.jobset.x-k8s.io "{name}" not found')
        if method == "DELETE":
            if query.get("propagationPolicy") == ["Foreground"] and self.pods:
                found["metadata"]["deletionTimestamp"] = "2026-11-28T05:30:00Z"
            else:
                del self.jobsets[namespace, name]
        return 200, found

    def _pods(self, method: str, namespace: str, query: Mapping[str, list[str]]) -> tuple[int, Any]:
        key, _, value = query["labelSelector"][0].partition("=")
        found = {
            at: pod for at, pod in self.pods.items() if at[0] == namespace and pod["metadata"]["labels"][key] == value
        }
        if method == "DELETE":
            self.pods = {at: pod for at, pod in self.pods.items() if at not in found}
            return 200, {"kind": "Status", "apiVersion": "v1", "status": "Success"}
        return 200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": list(found.values())}


def _refusal(code: int, message: str) -> tuple[int, Any]:
    return code, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}


@contextmanager
def kubernetes_server(config: Path, *namespaces: str) -> Iterator[Cluster]:
    """The cluster, for as long as the server runs; `config` becomes the kubeconfig that leads to it."""
    cluster = Cluster(namespaces)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _do(self) -> None:
            cluster.calls.append(f"{self.command} {self.path}")
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or "null") or {}
            parts = urlsplit(self.path)
            code, answer = cluster.answer(self.command, parts.path, parse_qs(parts.query), body)
            data = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = _do  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    config.write_text(yaml.safe_dump(_kubeconfig(f"http://127.0.0.1:{server.server_port}")))
    try:
        yield cluster
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _kubeconfig(url: str) -> dict[str, Any]:
    """With two contexts, of which the first is the current one."""
    return {
        "apiVersion": "v1", "kind": "Config", "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": name, "context": {"cluster": "c", "user": "u"}} for name in ("here", ELSEWHERE)],
    }  # fmt: skip
