"""The vocabulary of recipes: frozen dataclasses that say what to train, never where.

Importing this module, and any recipe, imports no torch. A `Function` field takes a function of the recipe's own
module, or its name as `package.module:function` or `path/to/file.py:function`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, Literal

from launcher.errors import UsageError
from launcher.strategies import STRATEGIES

Scalar = bool | int | float | str
Function = Any  # a function of the recipe's module or its name; a name once the dataclass is built
Precision = Literal["auto", "fp32", "bf16", "fp16"]


def function_name(function: str | Callable[..., Any] | None, field: str) -> str | None:
    """What `field` holds: `path/to/file.py:name` for a recipe's function, `package.module:name` for one installed."""
    if function is None:
        return None
    if isinstance(function, str):
        if ":" not in function:
            raise UsageError(f"{field}={function} names no function; write package.module:function or file.py:function")
        return function
    name = getattr(function, "__qualname__", "")
    if not (inspect.isfunction(function) or inspect.isclass(function)) or not name.isidentifier():
        raise UsageError(
            f"{field}={name or repr(function)} is not a function at the top level of a module; make it one"
        )
    if function.__module__.startswith("launcher."):
        return f"{function.__module__}:{function.__name__}"
    return f"{Path(inspect.getfile(function)).resolve()}:{function.__name__}"


def _require(is_valid: Callable[[], bool], name: str, value: object, remedy: str) -> None:
    """UsageError unless `is_valid`; a value that cannot even be compared is not."""
    try:
        if is_valid():
            return
    except (TypeError, AttributeError):
        pass
    raise UsageError(f"{name}={list(value) if isinstance(value, tuple) else value} {remedy}")


def _check_arguments(arguments: Any, name: str) -> None:
    _require(lambda: {**arguments} == arguments, name, arguments, "must be a dictionary such as {'width': 64}")
    for key, value in arguments.items():
        if not isinstance(value, bool | int | float | str):
            raise UsageError(f"{name}.{key}={value} must be a text, a number, true or false")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A pre-trained causal language model by `name`, or a model of your own by `build`.

    name: a hub id, a local folder, or `package:NAME/FILE.gguf` for weights that ship inside an installed package.
    build: `build(**arguments) -> torch.nn.Module`.
    """

    name: str | None = None
    build: Function = None
    arguments: dict[str, Scalar] = field(default_factory=dict)
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "build", function_name(self.build, "model.build"))
        _check_arguments(self.arguments, "model.arguments")
        _require(
            lambda: (self.name is None) != (self.build is None),
            "model.name",
            self.name,
            "needs exactly one of name, build",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """LoRA (Hu et al. 2021): adapters of `rank`, scaled by `alpha / rank`, on layers whose names end in `targets`."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")

    def __post_init__(self) -> None:
        _require(lambda: self.rank >= 1, "adapter.rank", self.rank, "must be at least 1")
        _require(lambda: 0 < self.alpha < inf, "adapter.alpha", self.alpha, "must be greater than 0, and finite")
        _require(lambda: 0 <= self.dropout < 1, "adapter.dropout", self.dropout, "must be in [0, 1)")
        _require(lambda: len(self.targets) > 0, "adapter.targets", self.targets, "must name at least one layer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Training text: a file by `path`, or examples of your own by `build`.

    path: `.jsonl` with `id`, `question`, `answer` lines (loss on the answer), or `.txt` read as bytes. It is
        relative to the recipe, or the URL of an object in a bucket, as s3://BUCKET/NAME.
    build: `build(split, **arguments)` returns a sequence of examples for `train` or `held_out`; see docs/recipes.md.
    sequence_length: tokens per sample; longer samples are cut, shorter ones padded within their micro-batch.
    workers: loader processes per rank; 0 loads in the rank itself.
    """

    path: str | None = None
    build: Function = None
    arguments: dict[str, Scalar] = field(default_factory=dict)
    sequence_length: int = 256
    workers: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "build", function_name(self.build, "data.build"))
        _check_arguments(self.arguments, "data.arguments")
        _require(
            lambda: (self.path is None) != (self.build is None),
            "data.path",
            self.path,
            "needs exactly one of path, build",
        )
        _require(
            lambda: self.sequence_length >= 2, "data.sequence_length", self.sequence_length, "must be at least 2 tokens"
        )
        _require(lambda: self.workers >= 0, "data.workers", self.workers, "must be 0 or more processes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """How the model is spread over ranks. The number of ranks is not part of a recipe.

    strategy: one of `launcher.strategies`.
    cpu_offload: parameters and optimizer state stay in host memory; the device holds what it computes with just now.
    shard_within_node: shard over the ranks of a node and replicate across nodes (hybrid sharding, HSDP).
    """

    strategy: str = "ddp"
    cpu_offload: bool = False
    shard_within_node: bool = False

    def __post_init__(self) -> None:
        remedy = f"is not one of {', '.join(STRATEGIES)}"
        _require(lambda: self.strategy in STRATEGIES, "parallel.strategy", self.strategy, remedy)

    def describe(self) -> str:
        where = ", sharded within a node and replicated across nodes" if self.shard_within_node else ""
        return f"{self.strategy}{where}{', offloaded to host memory' if self.cpu_offload else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW:
    """AdamW (Loshchilov & Hutter 2019). `clip` bounds the global gradient norm; None leaves it alone."""

    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        _require(lambda: 0 < self.lr < 10, "optimizer.lr", self.lr, "must be greater than 0 and less than 10")
        is_pair = "must be two numbers in [0, 1)"
        _require(lambda: all(0 <= beta < 1 for beta in self.betas), "optimizer.betas", self.betas, is_pair)
        _require(lambda: 0 < self.eps < inf, "optimizer.eps", self.eps, "must be greater than 0, and finite")
        _require(
            lambda: 0 <= self.weight_decay < inf,
            "optimizer.weight_decay",
            self.weight_decay,
            "must be 0 or more, and finite",
        )
        _require(
            lambda: self.clip is None or 0 < self.clip < inf,
            "optimizer.clip",
            self.clip,
            "must be greater than 0 and finite, or null",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Learning rate over steps: linear warm-up, then `kind` down to `final_fraction` of the peak at the last step."""

    kind: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: int = 0
    final_fraction: float = 0.1

    def __post_init__(self) -> None:
        _require(lambda: self.warmup_steps >= 0, "schedule.warmup_steps", self.warmup_steps, "must be 0 or more")
        _require(
            lambda: 0 <= self.final_fraction <= 1, "schedule.final_fraction", self.final_fraction, "must be in [0, 1]"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What all ranks together compute in an optimizer step, in micro-batches of at most `micro` samples per rank.

    size: samples; 32 if neither is given. tokens: in its place; a multiple of `data.sequence_length`, which is what a
        sample counts, however short it is.
    """

    size: int | None = None
    tokens: int | None = None
    micro: int = 8

    def __post_init__(self) -> None:
        if self.size is None and self.tokens is None:
            object.__setattr__(self, "size", 32)
        _require(
            lambda: self.size is None or self.tokens is None,
            "batch.tokens",
            self.tokens,
            f"and batch.size={self.size} exclude each other; set one of them to null",
        )
        _require(lambda: self.size is None or self.size >= 1, "batch.size", self.size, "must be at least 1 sample")
        _require(
            lambda: self.tokens is None or self.tokens >= 1, "batch.tokens", self.tokens, "must be at least 1, or null"
        )
        _require(lambda: self.micro >= 1, "batch.micro", self.micro, "must be at least 1 sample")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint every `every` steps and at the end; the newest `keep` stay.

    every: `auto` saves as often as loses least, from how long saves and steps take while the run goes on.
    local_folder: on a disk of each node: checkpoints go there first, and are copied to their place from there.
    """

    every: int | str = 100
    keep: int = 3
    local_folder: str | None = None

    def __post_init__(self) -> None:
        is_valid = self.every == "auto" or (isinstance(self.every, int) and self.every >= 1)
        _require(lambda: is_valid, "checkpoint.every", self.every, "must be at least 1 step, or auto")
        _require(lambda: self.keep >= 1, "checkpoint.keep", self.keep, "must be at least 1 checkpoint")
        is_absolute = self.local_folder is None or self.local_folder.startswith("/")
        _require(lambda: is_absolute, "checkpoint.local_folder", self.local_folder, "must be a path from the root on")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Held-out perplexity before the first and after the last step, and every `every` steps if given.

    samples: how many held-out samples at most. prompt: completed before and after training, `tokens` at most.
    complete: `complete(model, prompt, tokens) -> str` for a model that has no `generate`.
    """

    every: int | None = None
    samples: int = 64
    prompt: str | None = None
    tokens: int = 64
    complete: Function = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "complete", function_name(self.complete, "evaluation.complete"))
        _require(
            lambda: self.every is None or self.every >= 1, "evaluation.every", self.every, "must be at least 1, or null"
        )
        _require(lambda: self.samples >= 0, "evaluation.samples", self.samples, "must be 0 or more")
        _require(lambda: self.tokens >= 1, "evaluation.tokens", self.tokens, "must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides the result of a run, and nothing about the machines it runs on.

    steps: optimizer steps of the whole run. stop_after: stop early at this step, resumable; the schedule is unchanged.
    deterministic: take kernels that give the same bits each time, so that an interrupted run ends with the weights of
        an undisturbed one. Without, GPUs are faster, and operations that have no such kernel can be used.
    loss: `loss(model, batch) -> (sum of losses, number of targets)`; next-token cross-entropy if not given.
    laptop: overrides, spelled as on the command line, for a machine without a GPU.
    """

    model: Model
    data: Data
    steps: int
    adapter: Lora | None = None
    quantize: Literal["none", "nf4"] = "none"
    loss: Function = None
    parallel: Parallel = field(default_factory=Parallel)
    optimizer: AdamW = field(default_factory=AdamW)
    schedule: Schedule = field(default_factory=Schedule)
    batch: Batch = field(default_factory=Batch)
    precision: Precision = "auto"
    seed: int = 0
    deterministic: bool = True
    stop_after: int | None = None
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    evaluation: Evaluation = field(default_factory=Evaluation)
    laptop: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", function_name(self.loss, "loss"))
        is_settings = isinstance(self.laptop, dict) and all(isinstance(key, str) for key in self.laptop)
        _require(lambda: is_settings, "laptop", self.laptop, "must be a dictionary such as {'optimizer.lr': 1e-3}")
        _require(lambda: self.steps >= 1, "steps", self.steps, "must be at least 1")
        _require(lambda: self.steps < 2**63, "steps", self.steps, "must be less than 2^63")
        _require(lambda: 0 <= self.seed < 2**63, "seed", self.seed, "must be in [0, 2^63)")
        _require(
            lambda: self.stop_after is None or 1 <= self.stop_after <= self.steps,
            "stop_after",
            self.stop_after,
            f"must be in [1, steps={self.steps}], or null",
        )
        _require(lambda: self.adapter is None or self.model.name is not None, "adapter", "LoRA", "needs a model.name")
        _require(
            lambda: self.quantize == "none" or self.adapter is not None,
            "quantize",
            self.quantize,
            "freezes the model; give an adapter to train, or quantize=none",
        )
