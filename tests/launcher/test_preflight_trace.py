"""Traced memory: against tensors that a small model really has, and the closed formula against both."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from support.llamas import ALL_LINEAR, TINY, case, work
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM

from launcher.cli import main
from launcher.errors import UsageError
from launcher.loading import Resolved, to_yaml
from launcher.plan import make_plan
from launcher.preflight.footprint import moments
from launcher.preflight.shape import shape_of
from launcher.recipe import Lora
from launcher.train.live_bytes import LiveBytes
from launcher.train.models import prepare_model
from launcher.train.trace import FEW_BLOCKS, fake_model, make_group, run_passes, trace, trace_blocks

# transformers and peft warn of what they will change.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

SMALL_LORA = Lora(rank=16, targets=ALL_LINEAR)


def real_model(recipe, precision):
    sizes = {key: value for key, value in TINY.items() if key != "model_type"}
    config = AutoConfig.for_model("llama", **sizes)
    dtype = torch.bfloat16 if recipe.adapter is not None and precision == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return prepare_model(model, recipe).train()


def peak_of_passes(recipe, plan, module, precision):
    live = LiveBytes()
    run_passes(recipe, plan, module, precision, live)
    return live.peak


@pytest.mark.parametrize(
    ("precision", "adapter", "checkpoints"),
    [
        ("fp32", None, False),
        ("bf16", None, True),
        ("bf16", SMALL_LORA, True),
    ],
    ids=["fp32-all-kept", "bf16-all-checkpointed", "bf16-lora-checkpointed"],
)
def test_fake_tensors_take_what_real_ones_take_and_the_formula_is_near(precision, adapter, checkpoints):
    planned = case("tiny", length=256, checkpoints=checkpoints, adapter=adapter, precision=precision)
    recipe, plan = planned.recipe, make_plan(planned.recipe, planned.topology, cores_per_node=1)
    with FakeTensorMode(allow_non_fake_inputs=True):
        traced = peak_of_passes(recipe, plan, fake_model(recipe, TINY, precision), precision)
    measured = peak_of_passes(recipe, plan, real_model(recipe, precision), precision)
    assert traced == pytest.approx(measured, rel=0.03)
    passes = {name: parts for name, parts in moments(work(planned, "tiny")).items() if name != "the optimizer step"}
    closed = max(parts.total - parts.optimizer for parts in passes.values())
    assert closed == pytest.approx(measured, rel=0.05)


@pytest.fixture
def no_group_stays():
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.usefixtures("no_group_stays")
@pytest.mark.parametrize(("strategy", "checkpoints"), [("ddp", False), ("fsdp", True)])
def test_a_few_blocks_say_exactly_what_all_would(strategy, checkpoints):
    planned = case("tiny", strategy, gpus=8, length=256, checkpoints=checkpoints, precision="bf16")
    recipe, plan = planned.recipe, make_plan(planned.recipe, planned.topology, cores_per_node=1)
    group = make_group(recipe, plan)
    few, more, whole = (
        trace_blocks(recipe, plan, TINY | {"num_hidden_layers": layers}, group)
        for layers in (FEW_BLOCKS, FEW_BLOCKS + 1, FEW_BLOCKS + 3)
    )
    assert few.extended(more, 3).peak == whole.peak


@pytest.mark.parametrize("mode", [nullcontext, FakeTensorMode], ids=["real", "fake"])
def test_tensors_count_until_they_are_gone(mode):
    with mode(), LiveBytes() as live:
        first = torch.zeros(1000)
        second = first * 2
        assert live.now == 8000
        view = second[:10]
        del second
        assert live.now == 8000
        del view
        assert (live.now, live.peak) == (4000, 8000)
        assert first is not None


def traced(planned, tmp_path):
    """In a process of its own: a process group can be made only once."""
    (tmp_path / "config.yaml").write_text(to_yaml(Resolved(recipe=planned.recipe, origins={}, source="test")))
    topology = planned.topology
    words = [str(tmp_path / "config.yaml"), str(topology.nodes), str(topology.ranks_per_node)]
    result = subprocess.run(
        [sys.executable, "-m", "launcher.train.trace", *words], capture_output=True, text=True, check=True
    )
    return json.loads(result.stdout.splitlines()[-1])


def test_the_formula_of_fsdp_is_near_the_trace_of_64_ranks(tmp_path):
    # As many columns of logits as make them the peak, as they are in the models that ship.
    (tmp_path / "config.json").write_text(json.dumps(TINY | {"vocab_size": 8192}))
    planned = case("tiny", "fsdp", nodes=8, gpus=8, length=256)
    folder = replace(planned.recipe.model, name=str(tmp_path))
    planned = replace(planned, recipe=replace(planned.recipe, model=folder))
    closed = planned.footprint(shape_of(folder)).parts.total
    assert traced(planned, tmp_path)["bytes"] == pytest.approx(closed, rel=0.05)


def test_what_deepspeed_does_cannot_be_traced():
    planned = case("1b", "zero3")
    with pytest.raises(UsageError, match="zero3 cannot be traced; ddp, fsdp can"):
        trace(planned.recipe, make_plan(planned.recipe, planned.topology, cores_per_node=1))


UNTRACEABLE = """
from launcher import Batch, Data, Model, Recipe

def build():
    import torch

    class Looks(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Embedding(256, 256)

        def forward(self, input_ids):
            values = self.layer(input_ids)
            return values if float(values.sum()) < 1e9 else -values

    return Looks()

RECIPE = Recipe(model=Model(build=build), data=Data(path="a.txt", sequence_length=32), steps=5, batch=Batch(size=1))
"""


def test_a_model_that_looks_at_values_is_said_not_to_be_traceable(tmp_path, capsys):
    (tmp_path / "own.py").write_text(UNTRACEABLE)
    assert main([str(tmp_path / "own.py"), "--plan", "--trace"]) == 2
    assert capsys.readouterr().err.startswith("launch: the model could not be traced: ")
