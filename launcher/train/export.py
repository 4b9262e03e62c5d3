"""From a checkpoint to files that other tools load without this code.

    python -m launcher.train.export RUN_FOLDER COMMIT DESTINATION [merged]

A run with an adapter gives a PEFT adapter, or base and adapter merged; one of a pre-trained model gives a transformers
folder; one of a recipe's own model gives `model.safetensors`, with the model's own parameter names.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from checkpoints.entry import Commit
from checkpoints.errors import CheckpointError
from checkpoints.log import CommitLog
from checkpoints.restorer import load
from checkpoints.store import open_store
from launcher import loading
from launcher.errors import LaunchError
from launcher.recipe import Parallel, Recipe
from launcher.runs import Run
from launcher.train.functions import find_function
from launcher.train.models import load_model, locate, prepare_model, saved_buffers


def export(run: Run, commit_number: int, destination: Path, *, merged: bool) -> None:
    recipe = loading.load_frozen(run.config).recipe
    log = CommitLog(open_store(run.checkpoints))
    entry = log.read()
    commit = next(commit for commit in (entry.live if entry else ()) if commit.n == commit_number)
    destination.mkdir(parents=True, exist_ok=True)
    if recipe.model.build is not None:
        _export_own(recipe, log, commit, destination)
    elif recipe.adapter is None or merged:
        _export_whole(recipe, log, commit, destination)
    else:
        _export_adapter(recipe, log, commit, destination)


def _export_adapter(recipe: Recipe, log: CommitLog, commit: Commit, destination: Path) -> None:
    """The base is built without its weights: an adapter of a model that does not fit here can be exported here."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source = locate(str(recipe.model.name))
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source))
        adapted: Any = prepare_model(base, recipe)
    trained = {name: torch.empty(p.shape, dtype=p.dtype) for name, p in adapted.named_parameters() if p.requires_grad}
    _restore(log, commit, trained)
    adapted.load_state_dict(trained, strict=False, assign=True)
    adapted.peft_config["default"].base_model_name_or_path = source
    adapted.save_pretrained(destination)
    AutoTokenizer.from_pretrained(source).save_pretrained(destination)


def _export_whole(recipe: Recipe, log: CommitLog, commit: Commit, destination: Path) -> None:
    """The model in full precision; an adapter, if there is one, is added into the weights it was trained beside."""
    whole = replace(recipe, quantize="none", parallel=Parallel())
    loaded = load_model(whole, torch.device("cpu"), "fp32")
    _restore(log, commit, {n: p.detach() for n, p in loaded.module.named_parameters() if p.requires_grad})
    model: Any = loaded.module
    (model if recipe.adapter is None else model.merge_and_unload()).save_pretrained(destination)
    if loaded.tokenizer is not None:
        loaded.tokenizer.save_pretrained(destination)


def _export_own(recipe: Recipe, log: CommitLog, commit: Commit, destination: Path) -> None:
    from safetensors.torch import save_file

    model = find_function(str(recipe.model.build))(**recipe.model.arguments)
    tensors = {name: p.detach() for name, p in model.named_parameters()} | saved_buffers(model)
    _restore(log, commit, tensors)
    save_file(tensors, destination / "model.safetensors")


def _restore(log: CommitLog, commit: Commit, parameters: Mapping[str, torch.Tensor]) -> None:
    load(log.store, commit, {f"model.{name}": tensor for name, tensor in parameters.items()})


def main(run_folder: str, commit_number: str, destination: str, *options: str) -> int:
    try:
        export(Run(Path(run_folder)), int(commit_number), Path(destination), merged="merged" in options)
    except (LaunchError, CheckpointError) as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
