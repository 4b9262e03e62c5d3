"""The closed formula of memory, against what was measured on a GPU, what was published, and its own definition."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from support.llamas import ALL_LINEAR, LORA, case, shape, work

from launcher.errors import UsageError
from launcher.preflight.footprint import footprint
from launcher.preflight.gpus import GPUS, gpu_named, gpu_with_memory, local_gpu
from launcher.preflight.shape import NoShape, read_shape, shape_of
from launcher.preflight.spread import SPREADS, checkpoint_bytes
from launcher.preflight.verdict import alternatives, largest_micro
from launcher.recipe import Lora, Model

GIB = 2**30
QLORA = {"adapter": LORA, "quantize": "nf4", "micro": 8}


@pytest.mark.parametrize(
    ("size", "parameters"), [("1b", 1_235_814_400), ("8b", 8_030_261_248), ("70b", 70_553_706_496)]
)
def test_shapes_that_ship_have_as_many_parameters_as_the_published_models(size, parameters):
    assert shape(size).parameters == parameters


# Of docs/benchmarks.md, section GPU: peaks of what PyTorch had allocated on one H200.
@pytest.mark.parametrize(
    ("size", "settings", "measured"),
    [
        ("1b", QLORA, 13.5),
        ("8b", QLORA, 19.7),
        ("1b", {}, 23.1),
        ("1b", {"strategy": "zero3"}, 30.7),
    ],
    ids=["qlora-1b", "qlora-8b", "ddp-1b", "zero3-1b"],
)
def test_the_formula_is_within_two_percent_of_what_was_measured_on_a_gpu(size, settings, measured):
    assert footprint(work(case(size, **settings), size)).parts.total / GIB == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize(("size", "saved"), [("1b", 0.13), ("8b", 0.47)])
def test_checkpoints_of_adapters_have_the_size_that_was_measured(size, saved):
    assert checkpoint_bytes(work(case(size, **QLORA), size)) / GIB == pytest.approx(saved, rel=0.05)


def test_a_checkpoint_of_all_weights_has_the_size_that_was_measured():
    assert checkpoint_bytes(work(case("1b"), "1b")) / GIB == pytest.approx(13.81, rel=0.001)


# Rajbhandari et al. 2020, table 1: GB of model states of 7.5 B parameters, by the degree of data parallelism.
@pytest.mark.parametrize(
    ("strategy", "ranks", "gigabytes"),
    [("ddp", 1, 120), ("fsdp", 1, 120), ("fsdp", 4, 30), ("fsdp", 16, 7.5), ("fsdp", 64, 1.88)],
)
def test_model_states_are_those_of_the_zero_paper(strategy, ranks, gigabytes):
    found = work(case("8b", strategy, gpus=ranks), "8b")
    spread = SPREADS[strategy](found)
    states = spread.parameters + spread.gradients + spread.optimizer
    assert states * 7.5e9 / found.shape.parameters / 1e9 == pytest.approx(gigabytes, rel=0.005)


def test_zero3_keeps_one_copy_of_the_parameters_more_than_the_zero_paper():
    spread = SPREADS["zero3"](work(case("8b", "zero3", gpus=8), "8b"))
    states = spread.parameters + spread.gradients + spread.optimizer
    assert states == pytest.approx(20 * shape("8b").parameters / 8)


def test_offload_moves_the_state_to_the_host():
    on_gpu = footprint(work(case("8b", "fsdp", gpus=8), "8b"))
    on_host = footprint(work(case("8b", "fsdp", gpus=8, offload=True), "8b"))
    assert (on_host.parts.parameters, on_host.parts.optimizer, on_gpu.host.offload) == (0, 0, 0)
    assert on_host.host.offload == pytest.approx(16 * shape("8b").parameters)


def test_staging_is_shared_by_the_nodes():
    found = work(case("8b", "fsdp", nodes=4, gpus=8), "8b")
    assert footprint(found).host.staging == checkpoint_bytes(found) / 4


def test_activation_checkpointing_is_worth_its_name():
    kept, computed_again = (
        footprint(work(case("8b", "fsdp", gpus=8, checkpoints=c), "8b")).parts.activations for c in (False, True)
    )
    assert computed_again < kept / 10


@pytest.mark.parametrize("strategy", list(SPREADS))
def test_more_ranks_need_no_more_of_each(strategy):
    totals = [footprint(work(case("8b", strategy, gpus=ranks), "8b")).total for ranks in (2, 4, 8)]
    assert totals == sorted(totals, reverse=True)


def test_adapters_are_counted_where_they_are():
    one = work(case("1b", adapter=Lora(rank=16, targets=("q_proj",))), "1b")
    every = work(case("1b", adapter=LORA), "1b")
    assert one.trainable == 16 * 16 * (2048 + 2048)
    assert every.trainable == 11_272_192
    assert set(every.adapted) == set(ALL_LINEAR)


def test_the_table_has_each_strategy_on_each_number_of_nodes():
    rows = list(alternatives(case("8b", gpus=8, samples=256), shape("8b")))
    assert len(rows) == 15
    totals = {(strategy, nodes): total for strategy, nodes, total in rows}
    assert totals["ddp", 1] == totals["ddp", 4] > totals["fsdp", 1] > totals["fsdp", 4]
    assert all(total is not None for total in totals.values())


def test_the_table_has_no_figure_for_what_the_plan_refuses():
    rows = {(s, n): t for s, n, t in alternatives(case("1b", **QLORA, gpus=8, samples=8), shape("1b"))}
    assert rows["fsdp", 1] is not None
    assert rows["fsdp", 2] is None  # 16 ranks, 8 samples


@pytest.mark.parametrize("size", ["l4", "h100"])
def test_the_largest_micro_batch_fits_and_the_next_does_not(size):
    wide = case("1b", "fsdp", gpus=8, samples=4096)
    best = largest_micro(wide, shape("1b"), GPUS[size])
    assert wide.with_micro(best).total(shape("1b")) <= GPUS[size].memory < wide.with_micro(best + 1).total(shape("1b"))


def test_no_micro_batch_fits_where_the_state_alone_does_not():
    assert largest_micro(case("70b", gpus=8, samples=64), shape("70b"), GPUS["h100"]) == 0


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"model_type": "gpt2"}, "model_type=gpt2 has no closed formula"),
        ([], "model_type=None has no closed formula"),
        ({"model_type": "llama", "hidden_size": "wide", "num_attention_heads": 2}, "hidden_size=wide is not a size"),
        ({"model_type": "llama", "attention_bias": True}, "a model with biases"),
    ],
)
def test_a_configuration_that_cannot_be_computed_is_named(tmp_path, config, complaint):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(NoShape, match=complaint):
        shape_of(Model(name=str(tmp_path)))


def test_a_damaged_configuration_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(NoShape, match="cannot be read"):
        shape_of(Model(name=str(tmp_path)))


def test_a_model_of_a_recipe_has_no_closed_formula():
    with pytest.raises(NoShape, match="no configuration to compute from"):
        shape_of(Model(build="launcher.train.gpt:byte_gpt"))


def test_a_local_folder_gives_the_shape(tmp_path):
    config = {"model_type": "mistral", "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2, "vocab_size": 256}))
    found = shape_of(Model(name=str(tmp_path)))
    assert (found.key_value_heads, found.head_width, found.is_tied) == (4, 16, False)
    assert found == replace(read_shape(config | {"num_hidden_layers": 2, "vocab_size": 256}, "x"))


def test_gpus_are_known_by_name_and_by_the_size_on_their_box():
    assert gpu_named("H100") == GPUS["h100"]
    assert gpu_with_memory(80).memory == GPUS["h100"].memory
    assert gpu_with_memory(10).memory == 10e9
    with pytest.raises(UsageError, match="--gpu h300 is not known; use --gpu-memory GB, or one of"):
        gpu_named("h300")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA L4", "l4"),
        ("Tesla T4", "t4"),
    ],
)
def test_the_gpu_of_a_machine_is_the_one_that_its_driver_names(tmp_path, model, name):
    (tmp_path / "0000:01:00.0").mkdir()
    (tmp_path / "0000:01:00.0" / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 1\n")
    assert local_gpu(tmp_path) == GPUS[name]


def test_a_gpu_that_is_not_in_the_table_is_not_guessed(tmp_path):
    (tmp_path / "0000:01:00.0").mkdir()
    (tmp_path / "0000:01:00.0" / "information").write_text("Model: \t\t NVIDIA H20\n")
    assert local_gpu(tmp_path) is None
    assert local_gpu(tmp_path / "nothing") is None
