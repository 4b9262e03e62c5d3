"""What cannot work, from the recipe, the model's folder and the kind of GPU alone; found before anything is queued."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.topology import Topology
from launcher.errors import UsageError
from launcher.preflight.gpus import Gpu
from launcher.preflight.shape import NoShape, config_of
from launcher.recipe import Recipe


def refuse_incompatible(recipe: Recipe, gpu: Gpu | None) -> None:
    """Raises UsageError for the first thing that is known not to work. A model whose folder is not here is let pass."""
    _check_precision(recipe, gpu)
    _check_data(recipe)
    with suppress(NoShape):
        config = config_of(recipe.model)
        if not isinstance(config, dict):
            return
        _check_heads(config, str(recipe.model.name))
        _check_length(config, recipe.data.sequence_length)
        _check_vocabulary(config, Path(str(recipe.model.name)).expanduser())


def cautions(recipe: Recipe, topology: Topology) -> Iterator[str]:
    """What nobody has tried."""
    if recipe.quantize != "none" and recipe.parallel.strategy.startswith("zero") and topology.has_gpus:
        tried = "has not been tried on GPUs; a run in which no gradient arrives is refused at its first step"
        yield f"warning: quantize={recipe.quantize} with parallel.strategy={recipe.parallel.strategy} {tried}"


def _check_precision(recipe: Recipe, gpu: Gpu | None) -> None:
    if recipe.precision == "bf16" and gpu is not None and not gpu.has_bf16:
        raise UsageError(f"precision=bf16 needs an NVIDIA GPU of Ampere or later, not {gpu.name}; use precision=auto")


def _check_data(recipe: Recipe) -> None:
    path = recipe.data.path
    if path is None or path.endswith(".txt") or (path.endswith(".jsonl") and recipe.model.build is None):
        return
    raise UsageError(f"data.path={path} is not .txt, nor .jsonl with a model that has a tokenizer; use data.build")


def _check_heads(config: Mapping[str, Any], name: str) -> None:
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    shared = config.get("num_key_value_heads") or heads
    if not all(isinstance(size, int) and size > 0 for size in (width, heads, shared)):
        return
    remedy = "that is no model; correct its config.json"
    if width % heads and config.get("head_dim") is None:  # type: ignore[operator]
        raise UsageError(f"model.name={name}: {heads} heads do not divide a hidden_size of {width}; {remedy}")
    if heads % shared:  # type: ignore[operator]
        raise UsageError(f"model.name={name}: {shared} key-value heads do not divide {heads} heads; {remedy}")


def _check_length(config: Mapping[str, Any], length: int) -> None:
    longest = config.get("max_position_embeddings")
    if isinstance(longest, int) and length > longest:
        raise UsageError(
            f"data.sequence_length={length} is above the model's limit of {longest}; use data.sequence_length={longest}"
        )


def _check_vocabulary(config: Mapping[str, Any], folder: Path) -> None:
    """A token that has no row in the embedding ends the run, on a GPU without saying why."""
    columns = config.get("vocab_size")
    try:
        tokenizer = json.loads((folder / "tokenizer.json").read_bytes())
        tokens = tokenizer["model"]["vocab"]
        most = max(tokens.values() if isinstance(tokens, dict) else range(len(tokens)))
        most = max([most, *(token["id"] for token in tokenizer.get("added_tokens") or ())])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return  # there is none, or transformers has to say what is wrong with it
    if isinstance(columns, int) and isinstance(most, int) and most >= columns:
        raise UsageError(
            f"model.name={folder}: its tokenizer has token {most}, and the model's vocab_size is {columns}; "
            "use the tokenizer of this model, or resize its embedding"
        )
