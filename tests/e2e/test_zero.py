"""ZeRO: the same losses as data parallelism, and its flat partitions in the checkpoint that all strategies share."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest
from support.runs_for_tests import REPOSITORY, check_that_a_killed_rank_changes_nothing, small_words
from support.strategies import (
    CUT,
    REST,
    SPREADS,
    TOLERANCE,
    Exchange,
    Job,
    Ranks,
    Result,
    by_world,
    largest_deviation,
    run_phases,
    whole_state,
    word,
)

pytestmark = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed; scripts/setup does")

ZERO = ("zero1", "zero2", "zero3")
COMPARED = {1: ("zero1", "zero3"), 2: ("zero1", "zero2", "zero3")}
STEPS = CUT + REST
FEW = 5
VARIANTS: dict[str, dict[str, object]] = {
    "unclipped": {"optimizer.clip": "null", "batch.micro": "6"},
    "uneven": {"batch.size": "5", "batch.micro": "1"},
    "recomputing": {"model.activation_checkpointing": "true"},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "moody": {
        "model.build": f"{REPOSITORY / 'tests/support/moody.py'}:moody_gpt",
        "batch.micro": "6",
    },
}
# Stage 2 does with gradients as 3 does, and with parameters as 1 does; offload is a matter of where gradients arrive.
VARIED = {
    "zero1": tuple(VARIANTS),
    "zero2": ("uneven", "moody"),
    "zero3": tuple(VARIANTS),
    "zero1+offload": ("moody",),
    "zero3+offload": ("moody", "bf16", "fp16"),
}
# Saved by the one, restored by the other.
PAIRS: list[tuple[Ranks, Ranks]] = [
    (("zero3", 2), ("ddp", 1)),
    (("zero3", 2), ("fsdp", 2)),
    (("zero3", 2), ("zero3", 3)),
    (("zero3", 2), ("zero1", 1)),
    (("zero2", 2), ("zero3+offload", 3)),
    (("zero3+offload", 2), ("zero2+offload", 2)),
    (("fsdp", 2), ("zero3", 3)),
    (("ddp", 1), ("zero3", 2)),
    (("zero1", 1), ("zero3", 2)),
]


def varied(what: str) -> list[str]:
    """Who is tried with that variant."""
    return [name for name, variants in VARIED.items() if what in variants]


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Exchange:
    return Exchange(tmp_path_factory.mktemp("zero"), PAIRS)


@pytest.fixture(scope="module")
def results(exchange: Exchange) -> dict[str, Result]:
    """By the words that say who."""
    compared = {(name, world): STEPS for world, names in COMPARED.items() for name in ("ddp", *names)}
    plain = exchange.from_scratch({**compared, **{(f"{stage}+offload", 2): FEW for stage in ZERO}})
    phases = [*by_world([*plain, *with_variants()]), *by_world(exchange.restores())]
    return run_phases(exchange.folder / "run", phases)


def with_variants() -> Iterator[tuple[int, Job]]:
    """Runs of two ranks."""
    for name, varied in {"ddp": VARIANTS, **VARIED}.items():
        for what in varied:
            yield 2, Job(name=f"{name} {what}", settings=SPREADS[name] | VARIANTS[what], steps=FEW)


@pytest.mark.parametrize(("world", "name"), [(world, name) for world, names in COMPARED.items() for name in names])
def test_every_stage_has_the_losses_of_data_parallelism(results, world, name):
    reference, result = results[f"ddp-{world}"], results[f"{name}-{world}"]
    assert reference.losses[-1] < 0.9 * reference.losses[0], "it learns"
    assert largest_deviation(result.losses, reference.losses) < TOLERANCE
    assert largest_deviation(result.norms, reference.norms) < 200 * TOLERANCE, "some batches are that sensitive"


@pytest.mark.parametrize("stage", varied("unclipped"))
def test_without_clipping_and_accumulation_the_losses_are_those_of_data_parallelism_bit_by_bit(results, stage):
    assert results[f"{stage} unclipped"].losses == results["ddp unclipped"].losses


@pytest.mark.parametrize("stage", ZERO)
def test_offload_changes_no_bit(results, stage):
    assert results[f"{stage}+offload-2"].losses == results[f"{stage}-2"].losses[:FEW]


@pytest.mark.parametrize("stage", varied("recomputing"))
def test_recomputing_activations_changes_no_bit(results, stage):
    assert results[f"{stage} recomputing"].losses == results[f"{stage}-2"].losses[:FEW]


@pytest.mark.parametrize("stage", varied("uneven"))
def test_ranks_with_fewer_micro_batches_than_others_keep_step(results, stage):
    assert largest_deviation(results[f"{stage} uneven"].losses, results["ddp uneven"].losses) < TOLERANCE


@pytest.mark.parametrize("name", varied("moody"))
def test_a_layer_that_a_step_does_not_use_has_no_gradient_left_from_the_step_before(results, name):
    reference = results["ddp moody"].losses
    assert largest_deviation(results[f"{name} moody"].losses, reference) < TOLERANCE


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", varied("bf16"))
def test_low_precision_is_that_of_data_parallelism(results, name, precision):
    result, reference = results[f"{name} {precision}"], results[f"ddp {precision}"]
    assert largest_deviation(result.losses, reference.losses) < 1e-3
    assert 0 < largest_deviation(result.losses, results[f"{name}-2"].losses[:FEW]) < 0.01
    assert result.loss_scale == reference.loss_scale


@pytest.mark.parametrize(("saved", "to"), PAIRS, ids=word)
def test_a_checkpoint_of_any_strategy_goes_on_under_any_other(exchange, results, saved, to):
    assert exchange.unequal_tensors(saved, to) == []
    rest = results["ddp-1"].losses[CUT : CUT + REST]
    assert largest_deviation(results[exchange.name(saved, to)].losses, rest) < TOLERANCE


@pytest.mark.usefixtures("results")
def test_a_checkpoint_has_the_names_and_shapes_that_data_parallelism_gives_it(exchange):
    shapes = {name: tensor.shape for name, tensor in whole_state(str(exchange.folder / "ddp-1")).items()}
    for ranks in ("zero1-1", "zero2-2", "zero3-2", "zero3+offload-2"):
        state = whole_state(str(exchange.folder / ranks))
        assert {name: tensor.shape for name, tensor in state.items()} == shapes


def test_a_killed_run_ends_like_one_that_was_not_and_nothing_of_deepspeed_reaches_the_terminal(tmp_path):
    words = [*small_words(2, steps=30, evaluation__samples=8), "parallel.strategy=zero3", "parallel.cpu_offload=true"]
    whole = check_that_a_killed_rank_changes_nothing(words, tmp_path)
    assert "deepspeed" not in (whole.stdout + whole.stderr).lower()
