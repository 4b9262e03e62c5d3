"""What the forkserver imports must leave the GPU alone: a forked rank could not use it."""

from __future__ import annotations

import subprocess
import sys

from support.runs_for_tests import REPOSITORY

from launcher import Batch, Data, Lora, Model, Parallel, Recipe
from launcher.supervise import modules_to_preload

ON_A_MACHINE_WITH_A_GPU = """
import sys
import torch

def make_context(*_):
    print("a CUDA context was made", file=sys.stderr)
    raise SystemExit(3)

torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
torch.cuda._lazy_init = make_context
for module in sys.argv[1:]:
    __import__(module)
"""


def imports(modules):
    command = [sys.executable, "-c", ON_A_MACHINE_WITH_A_GPU, *modules]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def recipe(strategy, adapter):
    return Recipe(
        model=Model(name="a/model"), data=Data(path="data.jsonl"), steps=1, batch=Batch(size=1, micro=1),
        parallel=Parallel(strategy=strategy), adapter=adapter, quantize="nf4" if adapter else "none",
    )  # fmt: skip


def test_no_preloaded_module_makes_a_cuda_context():
    recipes = (recipe("ddp", Lora()), recipe("fsdp", None), recipe("zero3", None))
    result = imports(module for recipe in recipes for module in modules_to_preload(recipe, has_gpus=True))
    assert result.returncode == 0, result.stderr


def test_the_check_can_fail():
    assert imports(modules_to_preload(recipe("ddp", Lora()), has_gpus=False)).returncode == 3
