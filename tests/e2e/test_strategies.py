"""One recipe under every strategy: the same losses, one checkpoint for all of them, and every sample once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.runs_for_tests import (
    check_that_a_killed_rank_changes_nothing,
    digests,
    json_lines,
    launch,
    small_words,
)
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

STEPS = {"ddp": 30, "fsdp": 30, "fsdp+offload": 10}
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
    phases = [*by_world([*from_scratch(), *exchange.saves()]), *by_world(exchange.restores())]
    return run_phases(exchange.folder / "run", phases)


def from_scratch() -> Iterator[tuple[int, Job]]:
    """Runs, with their world sizes."""
    for name, steps in STEPS.items():
        for world in (1, 2):
            yield world, Job(name=f"{name} on {world}", settings=SPREADS[name], steps=steps)
    for name in ("ddp", "fsdp"):  # offload changes no bit
        for what, changed in VARIANTS.items():
            yield 2, Job(name=f"{name} {what}", settings=SPREADS[name] | changed, steps=10)
    hybrid = SPREADS["fsdp"] | {"parallel.shard_within_node": "true"}
    yield 4, Job(name="hybrid", settings=hybrid, steps=10, nodes=2)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("spread", STEPS)
def test_every_strategy_has_the_losses_of_one_rank_alone(results, spread, world):
    reference, result = results["ddp on 1"], results[f"{spread} on {world}"]
    assert reference.losses[-1] < 0.7 * reference.losses[0], "it learns"
    assert largest_deviation(result.losses, reference.losses[: STEPS[spread]]) < TOLERANCE
    # Later the norms drift apart more than the losses do.
    assert largest_deviation(result.norms[:10], reference.norms[:10]) < TOLERANCE


def test_offload_changes_no_bit_nor_does_sharding_on_one_rank_or_where_nothing_is_clipped_or_accumulated(results):
    losses = {name: result.losses for name, result in results.items()}
    for world in (1, 2):
        assert losses[f"fsdp+offload on {world}"] == losses[f"fsdp on {world}"][: STEPS["fsdp+offload"]]
    assert losses["fsdp on 1"] == losses["ddp on 1"]
    assert losses["fsdp undivided"] == losses["ddp undivided"]


def test_hybrid_sharding_has_the_losses_of_one_rank_alone(results):
    reference = results["ddp on 1"].losses[:10]
    assert largest_deviation(results["hybrid"].losses, reference) < TOLERANCE


@pytest.mark.parametrize("spread", ["ddp", "fsdp"])
def test_recomputing_activations_changes_no_bit(results, spread):
    assert results[f"{spread} recomputing"].losses == results[f"{spread} on 2"].losses[:10]


@pytest.mark.parametrize("spread", ["ddp", "fsdp"])
def test_ranks_with_fewer_micro_batches_than_others_keep_step(results, spread):
    reference = results["ddp uneven"].losses
    assert largest_deviation(results[f"{spread} uneven"].losses, reference) < TOLERANCE


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("spread", ["ddp", "fsdp"])
def test_low_precision_stays_close_to_fp32(results, spread, precision):
    result = results[f"{spread} in {precision}"]
    assert 0 < largest_deviation(result.losses, results[f"{spread} on 2"].losses[:10]) < 0.01
    assert (result.loss_scale is not None) == (precision == "fp16")


@pytest.mark.parametrize(("saved", "to"), PAIRS, ids=word)
def test_a_checkpoint_of_any_strategy_goes_on_under_any_other(exchange, results, saved, to):
    assert exchange.unequal_tensors(saved, to) == []
    rest = results["ddp on 1"].losses[CUT : CUT + REST]
    assert largest_deviation(results[exchange.name(saved, to)].losses, rest) < TOLERANCE


def test_a_killed_run_under_fsdp_ends_like_one_that_was_not(tmp_path):
    evaluation = {"evaluation__samples": 7, "evaluation__tokens": 8}  # a rank has more samples than the other
    check_that_a_killed_rank_changes_nothing(
        [*small_words(2, steps=30, **evaluation), "parallel.strategy=fsdp"], tmp_path
    )


def test_a_run_goes_on_under_other_strategies_and_world_sizes_with_every_sample_once(tmp_path, undisturbed):
    run = tmp_path / "run"
    first = launch(*small_words(4), "stop_after=15", "--name", "run", runs_dir=tmp_path)
    assert first.returncode == 75, first.stderr
    back = SPREADS["ddp"] | {"parallel.cpu_offload": "false"}
    for stop, ranks, settings in ((30, 2, SPREADS["fsdp"]), (45, 3, SPREADS["fsdp+offload"]), (60, 1, back)):
        words = [f"{key}={value}" for key, value in settings.items()]
        result = launch("resume", "run", "--gpus", str(ranks), f"stop_after={stop}", *words, runs_dir=tmp_path)
        assert result.returncode == (75 if stop < 60 else 0), result.stderr
        assert "parallel.strategy changed: " in result.stderr or stop == 45
    reference = undisturbed(1)
    assert digests(run)["samples"] == digests(reference)["samples"]
    assert losses(run) == pytest.approx(losses(reference), rel=10 * TOLERANCE)


def llama_words(recipe: str, folder: Path) -> list[str]:
    return [
        f"recipes/{recipe}.py", "--laptop", f"model.name={folder}", "data.sequence_length=64", "steps=4",
        "batch.size=4", "batch.micro=2", "evaluation.samples=0", "schedule.warmup_steps=0", "optimizer.lr=1e-2",
    ]  # fmt: skip


def test_a_4_bit_base_trains_the_same_sharded_as_on_one_rank_alone(small_llama, tmp_path):
    for spread, ranks in (("ddp", 1), ("fsdp", 2)):
        settings = [f"{key}={value}" for key, value in SPREADS[spread].items()]
        name = spread.replace("+", "-")
        words = [*llama_words("llama_qlora", small_llama), *settings, "--gpus", str(ranks), "--name", name]
        result = launch(*words, runs_dir=tmp_path)
        assert result.returncode == 0, result.stderr
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "ddp"), rel=TOLERANCE)


def test_a_4_bit_base_takes_a_step_under_every_strategy_in_low_precision(small_llama, tmp_path):
    base: dict[str, object] = {"model.name": str(small_llama), "batch.size": 2, "precision": "bf16"}
    jobs = [(1, Job(name=name, settings=base | spread, steps=1)) for name, spread in SPREADS.items()]
    results = run_phases(tmp_path / "run", by_world(jobs))
    for name, result in results.items():
        assert result.losses == pytest.approx(results["ddp"].losses, rel=1e-3), name
        assert result.norms == pytest.approx(results["ddp"].norms, rel=0.05), name


def test_all_weights_of_a_base_that_ranks_read_in_parts_train_the_same_and_resume(small_llama, tmp_path):
    words = llama_words("llama_fsdp", small_llama)
    alone = launch(*words, "parallel.strategy=ddp", "--name", "alone", runs_dir=tmp_path)
    assert alone.returncode == 0, alone.stderr
    stopped = launch(*words, "--gpus", "2", "stop_after=2", "--name", "parts", runs_dir=tmp_path)
    assert stopped.returncode == 75, stopped.stderr
    resumed = launch("resume", "parts", "--gpus", "2", runs_dir=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "alone"), rel=TOLERANCE)
    exported = launch("checkpoints", "export", "parts", str(tmp_path / "exported"), runs_dir=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "exported/model.safetensors").stat().st_size > 1_000_000


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in json_lines(run / "metrics.jsonl")]


def test_the_loss_scale_is_in_the_checkpoint_and_a_resumed_run_ends_the_same(tmp_path):
    words = [*small_words(1, steps=6), "parallel.strategy=fsdp", "precision=fp16"]
    assert launch(*words, "--name", "whole", runs_dir=tmp_path).returncode == 0
    stopped = launch(*words, "stop_after=3", "--name", "stopped", runs_dir=tmp_path)
    assert stopped.returncode == 75, stopped.stderr
    (manifest,) = (tmp_path / "stopped/checkpoints/data").glob("*/MANIFEST.json")
    assert '"good_steps":3' in manifest.read_text().replace(" ", "")
    resumed = launch("resume", "stopped", runs_dir=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert digests(tmp_path / "stopped") == digests(tmp_path / "whole")
