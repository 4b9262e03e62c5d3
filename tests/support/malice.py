"""Checkpoints made by somebody who means harm: ways to change the newest one of a run folder."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

ESCAPE = "\x1b]0;owned\x07\x1b[31m\u202e"


class Payload:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


class RunFolder:
    """A run folder under attack."""

    def __init__(self, root: Path, outside: Path, canary: Path) -> None:
        self.root, self.outside = root, outside
        self.payload = pickle.dumps(Payload(canary))
        self.canary = canary
        self.log = sorted((root / "checkpoints/log").glob("0*.json"))
        self.entry = self.log[-1]
        commit = json.loads(self.entry.read_bytes())["live"][-1]
        self.save = root / "checkpoints" / commit["folder"]
        self.manifest, self.shard = self.save / "MANIFEST.json", self.save / "rank-00000.bin"

    def put(self, path: Path, data: bytes) -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(data)

    def sign(self, edit: Callable[[dict[str, Any]], object], path: Path | None = None) -> None:
        """Change a log entry, and compute its digest anew."""
        path = path or self.entry
        entry = json.loads(path.read_bytes())
        edit(entry)
        del entry["digest"]
        data = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode() + b"\n"
        entry["digest"] = sha256(data).hexdigest()
        self.put(path, json.dumps(entry, sort_keys=True, separators=(",", ":")).encode() + b"\n")

    def commit(self, **fields: object) -> None:
        self.sign(lambda entry: entry["live"][-1].update(fields))

    def forge(self, manifest: bytes) -> None:
        """Another manifest, that the log vouches for."""
        self.put(self.manifest, manifest)
        self.commit(manifest_digest=sha256(manifest).hexdigest())

    def edit(self, change: Callable[[dict[str, Any]], object]) -> None:
        manifest = json.loads(self.manifest.read_bytes())
        change(manifest)
        self.forge(json.dumps(manifest).encode())

    def tensor(self, **fields: object) -> None:
        self.edit(lambda manifest: manifest["tensors"][0].update(fields))

    def file(self, **fields: object) -> None:
        self.edit(lambda manifest: manifest["files"][0].update(fields))

    def raw(self, old: bytes, new: bytes) -> None:
        data = self.manifest.read_bytes()
        assert old in data
        self.forge(data.replace(old, new, 1))

    def link(self, path: Path, target: Path) -> None:
        path.unlink()
        path.symlink_to(target)

    def special(self, path: Path, make: Callable[[Path], object]) -> None:
        path.unlink()
        make(path)


def many(count: int, **fields: object) -> list[dict[str, object]]:
    return [{"name": f"t{i}", "dtype": "int8", "shape": [0], "chunks": [], **fields} for i in range(count)]


def chunk(**fields: object) -> list[dict[str, object]]:
    return [{"offsets": [0], "lengths": [1], "file": "rank-00000.bin", "start": 0, **fields}]


CASES: dict[str, Callable[[RunFolder], object]] = {
    # pickles, wherever something might load them
    "pickle as .metadata": lambda f: f.put(f.save / ".metadata", f.payload),
    "pickle as .distcp": lambda f: f.put(f.save / "__0_0.distcp", f.payload),
    "pickle as .pt": lambda f: f.put(f.save / "state.pt", f.payload),
    "pickle as .metadata of the store": lambda f: f.put(f.root / "checkpoints/.metadata", f.payload),
    "pickle as a shard": lambda f: f.put(f.shard, f.payload),
    "pickle as a shard of the right size": lambda f: f.put(f.shard, f.payload.ljust(f.shard.stat().st_size, b"\0")),
    "torch archive as a shard": lambda f: torch.save({"a": Payload(f.canary)}, f.shard),
    "pickle as the manifest": lambda f: f.put(f.manifest, f.payload),
    "pickle as the manifest, signed": lambda f: f.forge(f.payload),
    "pickle as a log entry": lambda f: f.put(f.entry, f.payload),
    "pickle as the next log entry": lambda f: f.put(f.entry.with_name(f"{len(f.log) + 1:012d}.json"), f.payload),
    "pickle named in the manifest": lambda f: f.file(path="state.pt"),
    "a dtype that is code": lambda f: f.tensor(dtype="__import__('os').mkdir('canary')"),
    "a dtype that is an attribute of torch": lambda f: f.tensor(dtype="load"),
    # paths
    "a file that climbs": lambda f: f.file(path="../../../../outside/victim"),
    "an absolute file": lambda f: f.file(path="/etc/passwd"),
    "a file with NUL": lambda f: f.file(path="rank-00000.bin\0x"),
    "a chunk in a file that climbs": lambda f: f.tensor(chunks=chunk(file="../../log/000000000001.json")),
    "a folder that climbs": lambda f: f.commit(folder="data/../../../outside"),
    "an absolute folder": lambda f: f.commit(folder="/etc"),
    "the log as a folder": lambda f: f.commit(folder="log"),
    "all saves as a folder": lambda f: f.commit(folder="data"),
    "the folder of the run": lambda f: f.commit(folder="."),
    "another store as a folder": lambda f: f.commit(folder="file:///etc"),
    # what is no file
    "the shard is a symbolic link": lambda f: f.link(f.shard, f.outside / "victim"),
    "the shard is a hard link": lambda f: f.special(f.shard, lambda p: os.link(f.outside / "victim", p)),
    "the shard is a FIFO": lambda f: f.special(f.shard, os.mkfifo),
    "the shard is a folder": lambda f: f.special(f.shard, os.mkdir),
    "the shard is endless": lambda f: f.link(f.shard, Path("/dev/zero")),
    "the manifest is a symbolic link": lambda f: f.link(f.manifest, f.outside / "victim"),
    "the manifest is a FIFO": lambda f: f.special(f.manifest, os.mkfifo),
    "the manifest is endless": lambda f: f.link(f.manifest, Path("/dev/zero")),
    "the log entry is a symbolic link": lambda f: f.link(f.entry, f.outside / "victim"),
    "the log entry is a FIFO": lambda f: f.special(f.entry, os.mkfifo),
    "the log entry is endless": lambda f: f.link(f.entry, Path("/dev/zero")),
    "the save is a symbolic link": lambda f: (shutil.move(f.save, f.outside / "save"), f.save.symlink_to(f.outside)),
    "the shard is a hole of a terabyte": lambda f: os.truncate(f.shard, 2**40),
    "the log entry is a hole of a terabyte": lambda f: os.truncate(f.entry, 2**40),
    "the manifest is a hole of four gigabytes": lambda f: os.truncate(f.manifest, 2**32),
    # sizes and shapes that explode
    "2**62 elements": lambda f: f.tensor(shape=[2**62]),
    "an empty tensor of 2**62 rows": lambda f: f.tensor(shape=[0, 2**62], chunks=[]),
    "a thousand dimensions": lambda f: f.tensor(shape=[1] * 1000),
    "a shape of -1": lambda f: f.tensor(shape=[-1]),
    "a shape of texts": lambda f: f.tensor(shape=["a"]),
    "a file of 2**62 bytes": lambda f: f.file(size=2**62),
    "a block of 2**62 bytes": lambda f: f.file(block_bytes=2**62),
    "a block of no bytes": lambda f: f.file(block_bytes=0),
    "a million blocks": lambda f: f.file(blocks=["0" * 64] * 10**6),
    "chunks that overlap": lambda f: f.tensor(chunks=chunk() * 2000),
    "a chunk past the end": lambda f: f.tensor(shape=[1], chunks=chunk(start=2**61)),
    "ten thousand tensors": lambda f: f.edit(lambda m: m.update(tensors=many(10**4))),
    "deep nesting": lambda f: f.forge(b"[" * 10**6),
    "deep nesting in the metadata": lambda f: f.raw(
        b'"metadata":{', b'"metadata":{"a":' + b"[" * 5000 + b"]" * 5000 + b","
    ),
    "a number of a million digits": lambda f: f.raw(b'"world_size":1', b'"world_size":' + b"9" * 10**6),
    "NaN": lambda f: f.raw(b'"metadata":{', b'"metadata":{"a":NaN,'),
    "infinity": lambda f: f.raw(b'"metadata":{', b'"metadata":{"a":1e999,'),
    "a world of 2**62 ranks": lambda f: f.edit(lambda m: m.update(world_size=2**62)),
    "duplicate keys": lambda f: f.raw(b'"world_size":1', b'"world_size":1,"world_size":1'),
    "no fields": lambda f: f.forge(b"{}"),
    "a list": lambda f: f.forge(b"[]"),
    "lone surrogates": lambda f: f.tensor(name="\ud800"),
    "an entry number of 2**62": lambda f: f.commit(n=2**62),
    "an entry of ten thousand commits": lambda f: f.sign(lambda e: e.update(live=e["live"] * 10**4)),
    "an entry with text for numbers": lambda f: f.sign(lambda e: e.update(epoch="1")),
    "an entry written at infinity": lambda f: f.put(
        f.entry, f.entry.read_bytes().replace(b'"written_at":1', b'"written_at":1e999')
    ),
    # names that steer a terminal
    "escapes in a tensor's name": lambda f: f.tensor(name=ESCAPE),
    "escapes in a file's name": lambda f: f.file(path=ESCAPE),
    "escapes in a folder's name": lambda f: f.commit(folder=ESCAPE),
    "escapes in the owner": lambda f: f.sign(lambda e: e["owner"].update(job=ESCAPE, host=ESCAPE)),
    "escapes in a dtype": lambda f: f.tensor(dtype=ESCAPE),
    "escapes in a key": lambda f: f.edit(lambda m: m.update({ESCAPE: 1})),
    "escapes in the name of a stray file": lambda f: f.put(f.save / f"{ESCAPE}.bin".replace("/", ""), b""),
}
