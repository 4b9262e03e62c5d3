"""One recipe under every strategy: the same losses, and one checkpoint for all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.strategies import (
    CUT,
    REST,
    SPREADS,
    TOLERANCE,
    Exchange,
    Job,
    Result,
    by_world,
    largest_deviation,
    run_phases,
    word,
)

FEW = 5
STEPS = {"ddp": 16, "fsdp": 16, "fsdp+offload": FEW}
VARIANTS: dict[str, dict[str, object]] = {
    "undivided": {"optimizer.clip": "null", "batch.micro": "6"},
    "recomputing": {"model.activation_checkpointing": "true"},
    "uneven": {"batch.size": "5", "batch.micro": "1"},
    "in bf16": {"precision": "bf16"},
    "in fp16": {"precision": "fp16"},
}
# Saved by the one, restored by the other: the diagonal, and corners.
PAIRS = [
    (("ddp", 1), ("fsdp", 2)),
    (("ddp", 2), ("fsdp+offload", 3)),
    (("fsdp", 2), ("ddp", 1)),
    (("fsdp", 2), ("fsdp", 2)),
    (("fsdp", 3), ("fsdp+offload", 2)),
    (("fsdp+offload", 2), ("fsdp", 3)),
    (("fsdp+offload", 3), ("ddp", 2)),
    (("fsdp+offload", 3), ("fsdp", 1)),
]


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Exchange:
    return Exchange(tmp_path_factory.mktemp("strategies"), PAIRS)


@pytest.fixture(scope="module")
def results(exchange: Exchange) -> dict[str, Result]:
    """By the words that say who."""
    plain = exchange.from_scratch({(name, world): steps for name, steps in STEPS.items() for world in (1, 2)})
    phases = [*by_world([*plain, *varied()]), *by_world(exchange.restores())]
    return run_phases(exchange.folder / "run", phases)


def varied() -> Iterator[tuple[int, Job]]:
    """Runs, with their world sizes."""
    for name in ("ddp", "fsdp"):  # offload changes no bit
        for what, changed in VARIANTS.items():
            yield 2, Job(name=f"{name} {what}", settings=SPREADS[name] | changed, steps=FEW)
    hybrid = SPREADS["fsdp"] | {"parallel.shard_within_node": "true"}
    yield 4, Job(name="hybrid", settings=hybrid, steps=FEW, nodes=2)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("spread", STEPS)
def test_every_strategy_has_the_losses_of_one_rank_alone(results, spread, world):
    reference, result = results["ddp-1"], results[f"{spread}-{world}"]
    assert reference.losses[-1] < 0.8 * reference.losses[0], "it learns"
    assert largest_deviation(result.losses, reference.losses[: STEPS[spread]]) < TOLERANCE
    # Later the norms drift apart more than the losses do.
    early = min(STEPS[spread], 10)
    assert largest_deviation(result.norms[:early], reference.norms[:early]) < TOLERANCE


def test_offload_changes_no_bit_nor_does_sharding_on_one_rank_or_where_nothing_is_clipped_or_accumulated(results):
    losses = {name: result.losses for name, result in results.items()}
    for world in (1, 2):
        assert losses[f"fsdp+offload-{world}"] == losses[f"fsdp-{world}"][: STEPS["fsdp+offload"]]
    assert losses["fsdp-1"] == losses["ddp-1"]
    assert losses["fsdp undivided"] == losses["ddp undivided"]


def test_hybrid_sharding_has_the_losses_of_one_rank_alone(results):
    reference = results["ddp-1"].losses[:FEW]
    assert largest_deviation(results["hybrid"].losses, reference) < TOLERANCE


@pytest.mark.parametrize("spread", ["ddp", "fsdp"])
def test_recomputing_activations_changes_no_bit(results, spread):
    assert results[f"{spread} recomputing"].losses == results[f"{spread}-2"].losses[:FEW]


@pytest.mark.parametrize("spread", ["ddp", "fsdp"])
def test_ranks_with_fewer_micro_batches_than_others_keep_step(results, spread):
    reference = results["ddp uneven"].losses
    assert largest_deviation(results[f"{spread} uneven"].losses, reference) < TOLERANCE


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("spread", ["ddp", "fsdp"])
def test_low_precision_stays_close_to_fp32(results, spread, precision):
    result = results[f"{spread} in {precision}"]
    assert 0 < largest_deviation(result.losses, results[f"{spread}-2"].losses[:FEW]) < 0.01
    assert (result.loss_scale is not None) == (precision == "fp16")


@pytest.mark.parametrize(("saved", "to"), PAIRS, ids=word)
def test_a_checkpoint_of_any_strategy_goes_on_under_any_other(exchange, results, saved, to):
    assert exchange.unequal_tensors(saved, to) == []
    rest = results["ddp-1"].losses[CUT : CUT + REST]
    assert largest_deviation(results[exchange.name(saved, to)].losses, rest) < TOLERANCE


def test_a_4_bit_base_takes_a_step_under_every_strategy_in_low_precision(small_llama, tmp_path):
    base: dict[str, object] = {"model.name": str(small_llama), "batch.size": 2, "precision": "bf16"}
    jobs = [(1, Job(name=name, settings=base | spread, steps=1)) for name, spread in SPREADS.items()]
    results = run_phases(tmp_path / "run", by_world(jobs))
    for name, result in results.items():
        assert result.losses == pytest.approx(results["ddp"].losses, rel=1e-3), name
        assert result.norms == pytest.approx(results["ddp"].norms, rel=0.05), name
