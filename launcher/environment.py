"""A record of what a run ran on: enough to run it again. It holds no value of any environment variable."""

from __future__ import annotations

import os
import platform
import re
import socket
import subprocess
from pathlib import Path
from typing import Any

_PACKAGES = (
    "torch", "transformers", "peft", "bitsandbytes", "deepspeed", "accelerate", "tokenizers", "safetensors", "numpy",
    "omegaconf", "fsspec", "tensorboard", "blake3", "xxhash",
)  # fmt: skip

_GPU_FIELDS = "name,driver_version,memory.total"


def environment(code: Path) -> dict[str, Any]:
    """Versions, machine and git commit (of the tree at `code`), without importing any of the packages."""
    return {
        "python": platform.python_version(),
        "packages": _versions(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpu": _first(r"model name\s*: (.*)", Path("/proc/cpuinfo")) or platform.machine(),
        "cores": os.cpu_count(),
        "memory_kb": int(_first(r"MemTotal:\s*(\d+)", Path("/proc/meminfo")) or 0),
        "gpus": _output("nvidia-smi", f"--query-gpu={_GPU_FIELDS}", "--format=csv,noheader").splitlines(),
        "git_commit": _output("git", "-C", str(code), "rev-parse", "HEAD"),
        "git_has_changes": bool(_output("git", "-C", str(code), "status", "--porcelain")),
    }


def _versions() -> dict[str, str]:
    import importlib.metadata

    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _first(pattern: str, path: Path) -> str:
    try:
        found = re.search(pattern, path.read_text())
    except OSError:
        return ""
    return found[1].strip() if found else ""


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
