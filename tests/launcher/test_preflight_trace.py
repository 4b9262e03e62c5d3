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
from support.llamas import ALL_LINEAR, TINY, case, shape, work
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM

from launcher.cli import main
from launcher.commands.estimate import Estimate
from launcher.errors import UsageError
from launcher.loading import Resolved, to_yaml
from launcher.plan import make_plan
from launcher.preflight.footprint import moments
from launcher.preflight.shape import shape_of
from launcher.preflight.states import STATES
from launcher.recipe import Lora
from launcher.train.functions import loss_function
from launcher.train.live_bytes import LiveBytes
from launcher.train.models import prepare_model
from launcher.train.trace import FEW_BLOCKS, fake_model, make_group, run_passes, shared_shapes, trace, trace_blocks

# transformers and peft warn of what they will change.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")

SMALL_LORA = Lora(rank=16, targets=ALL_LINEAR)


def real_model(recipe, precision):
    sizes = {key: value for key, value in TINY.items() if key != "model_type"}
    config = AutoConfig.for_model("llama", **sizes)
    dtype = torch.bfloat16 if recipe.adapter is not None and precision == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return prepare_model(model, recipe).train()


def peak_of_passes(recipe, plan, module, precision):
    live = LiveBytes(shared_shapes(module))
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


@pytest.fixture(autouse=True)
def deepspeed_computes_as_on_a_cpu(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


@pytest.fixture
def no_group_stays():
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.usefixtures("no_group_stays")
@pytest.mark.parametrize(
    ("strategy", "checkpoints", "offload"),
    [("ddp", False, False), ("fsdp", True, False), ("fsdp", False, True), ("zero3", True, False)],
    ids=["ddp", "fsdp-checkpointed", "fsdp-offload", "zero3-checkpointed"],
)
def test_a_few_blocks_say_exactly_what_all_would(strategy, checkpoints, offload):
    planned = case("tiny", strategy, gpus=8, length=256, checkpoints=checkpoints, offload=offload, precision="bf16")
    recipe, plan = planned.recipe, make_plan(planned.recipe, planned.topology, cores_per_node=1)
    group = make_group(recipe, plan)
    few, more, whole = (
        trace_blocks(recipe, plan, TINY | {"num_hidden_layers": layers}, group)
        for layers in (FEW_BLOCKS, FEW_BLOCKS + 1, FEW_BLOCKS + 3)
    )
    states = STATES[strategy](whole.weights, 8, offload)
    assert few.extended(more, 3).weights == whole.weights
    assert few.extended(more, 3).peak(states) == whole.peak(states)


def rows(planned):
    """Bytes of the passes of a small Llama of two blocks: before them, in each forward, and in each backward."""
    recipe, plan = planned.recipe, make_plan(planned.recipe, planned.topology, cores_per_node=1)
    return trace_blocks(recipe, plan, TINY, make_group(recipe, plan)).rows


@pytest.mark.usefixtures("no_group_stays")
def test_offload_takes_weights_and_gradients_off_the_device():
    # Two micro-batches a step: gradients are there from the start.
    kept, offloaded = (case("tiny", "fsdp", gpus=8, length=256, samples=64, offload=on) for on in (False, True))
    difference = max(map(max, rows(kept))) - max(map(max, rows(offloaded)))
    assert difference == pytest.approx(2 * 4 * shape("tiny").parameters / 8, rel=0.01)


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


def test_what_deepspeed_keeps_is_added_by_formula_and_said_to_be(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY | {"vocab_size": 8192}))
    planned = case("tiny", "zero3", nodes=2, gpus=8, length=256)
    folder = replace(planned.recipe.model, name=str(tmp_path))
    recipe = replace(planned.recipe, model=folder)
    closed = replace(planned, recipe=recipe).footprint(shape_of(folder)).parts
    found = trace(recipe, make_plan(recipe, planned.topology, cores_per_node=1)).as_json()
    assert found["bytes"] == pytest.approx(closed.total, rel=0.05)
    states = closed.parameters + closed.optimizer + closed.gradients + closed.communication
    assert found["formula"] == pytest.approx(states, rel=0.001)
    lines = list(Estimate(report=None, missing="none", traced=found | {"seconds": 1}).lines())
    assert lines[-1].endswith("by formula: partitions, gathered parameters and bucket of DeepSpeed")


@pytest.mark.usefixtures("no_group_stays")
def test_deepspeed_takes_what_is_traced_of_the_passes_and_what_the_formula_adds(monkeypatch):
    from launcher.train.engines.zero import Zero

    monkeypatch.setattr(torch.nn.functional, "linear", torch.nn.functional.linear)  # DeepSpeed replaces it for good
    monkeypatch.setenv("LOCAL_RANK", "0")
    planned = case("tiny", "zero3", length=256, checkpoints=False, precision="bf16")
    recipe, plan = planned.recipe, make_plan(planned.recipe, planned.topology, cores_per_node=1)
    found = trace_blocks(recipe, plan, TINY, None)
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    shape_of_batch = (plan.micro, recipe.data.sequence_length)
    batch = {name: torch.zeros(shape_of_batch, dtype=torch.int64) for name in ("input_ids", "labels")}
    module = real_model(recipe, "bf16")
    with LiveBytes(shared_shapes(module)) as live:
        engine = Zero(recipe, plan, module, torch.device("cpu"), "bf16")
        del module
        live.peaks = [live.now]
        engine.accumulate(lambda model: loss_function(recipe.loss)(model, batch)[0], is_last=True)
    peak = found.peak(STATES["zero3"](found.weights, 1, False))
    assert peak.passes + peak.formula == pytest.approx(live.peak, rel=0.01)


def test_zero_of_a_stage_without_formula_cannot_be_traced():
    planned = case("1b", "zero1")
    with pytest.raises(UsageError, match="zero1 cannot be traced; ddp, fsdp, zero3 can"):
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
