"""One recipe under every strategy: the same losses, one checkpoint for all of them, and every sample once."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from support.runs_for_tests import (
    Processes,
    digests,
    json_lines,
    launch,
    small_words,
    start,
    steps_of,
    wait_for_step,
)
from support.strategies import Job, Result, largest_deviation, run_jobs, unequal_tensors

DDP: dict[str, object] = {"parallel.strategy": "ddp"}
FSDP: dict[str, object] = {"parallel.strategy": "fsdp"}
OFFLOAD: dict[str, object] = {**FSDP, "parallel.cpu_offload": "true"}
SPREADS = {"ddp": DDP, "fsdp": FSDP, "fsdp+offload": OFFLOAD}
UNCLIPPED = {"optimizer.clip": "null"}
CUT = 6  # steps before the save
REST = 4  # steps after the restore
TOLERANCE = 1e-5
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

Ranks = tuple[str, int]


def word(ranks: Ranks) -> str:
    return f"{ranks[0]}-{ranks[1]}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("strategies")


@pytest.fixture(scope="module")
def trained(folder: Path) -> dict[int, dict[str, Result]]:
    """By world size and name: runs from scratch. Those of the pairs save where they end."""
    jobs: dict[int, list[Job]] = {world: [] for world in (1, 2, 3, 4)}
    for world in (1, 2):
        jobs[world] += [Job(name=name, settings=settings, steps=50) for name, settings in SPREADS.items()]
    for name, settings in SPREADS.items():
        jobs[2].append(Job(name=f"{name} unclipped", settings=settings | UNCLIPPED, steps=10))
        recomputing = settings | {"model.activation_checkpointing": "true"}
        jobs[2].append(Job(name=f"{name} recomputing", settings=recomputing, steps=10))
        uneven = settings | {"batch.size": "5", "batch.micro": "1"}
        jobs[2].append(Job(name=f"{name} uneven", settings=uneven, steps=10))
        for precision in ("bf16", "fp16"):
            low = settings | {"precision": precision}
            jobs[2].append(Job(name=f"{name} {precision}", settings=low, steps=10))
    hybrid = FSDP | {"parallel.shard_within_node": "true"}
    jobs[4] += [Job(name="hybrid", settings=hybrid, steps=10, nodes=2), Job(name="ddp", settings=DDP, steps=10)]
    for spread, world in dict.fromkeys(saved for saved, _ in PAIRS):
        name = word((spread, world))
        jobs[world].append(Job(name=name, settings=SPREADS[spread], steps=CUT, target=str(folder / name)))
    return {world: run_jobs(folder / f"train-{world}", world, of_world) for world, of_world in jobs.items()}


@pytest.fixture(scope="module")
def restored(folder: Path, trained: dict[int, dict[str, Result]]) -> dict[tuple[Ranks, Ranks], Result]:
    """What each pair trains after the restore; what it restored is saved again at once, beside."""
    jobs: dict[int, list[Job]] = {}
    for saved, (spread, world) in PAIRS:
        settings, source = SPREADS[spread], str(folder / word(saved))
        name = f"{word(saved)} to {word((spread, world))}"
        copy = Job(name=f"{name} copied", settings=settings, steps=0, source=source, target=str(folder / name))
        jobs.setdefault(world, []).extend([copy, Job(name=name, settings=settings, steps=REST, source=source)])
    found: dict[str, Result] = {}
    for world, of_world in jobs.items():
        found |= run_jobs(folder / f"restore-{world}", world, of_world)
    return {(saved, to): found[f"{word(saved)} to {word(to)}"] for saved, to in PAIRS}


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("spread", SPREADS)
def test_every_strategy_has_the_losses_of_one_rank_alone(trained, spread, world):
    reference = trained[1]["ddp"]
    result = trained[world][spread]
    assert reference.losses[-1] < 0.7 * reference.losses[0], "it learns"
    assert largest_deviation(result.losses, reference.losses) < TOLERANCE
    assert largest_deviation(result.norms, reference.norms) < 20 * TOLERANCE


def test_offload_changes_no_bit_nor_does_sharding_over_one_rank_or_without_clipping(trained):
    for world in (1, 2):
        assert trained[world]["fsdp+offload"].losses == trained[world]["fsdp"].losses
    assert trained[1]["fsdp"].losses == trained[1]["ddp"].losses
    assert trained[2]["fsdp unclipped"].losses == trained[2]["ddp unclipped"].losses


def test_hybrid_sharding_has_the_losses_of_data_parallelism(trained):
    assert largest_deviation(trained[4]["hybrid"].losses, trained[4]["ddp"].losses) < TOLERANCE


@pytest.mark.parametrize("spread", SPREADS)
def test_recomputing_activations_changes_no_bit(trained, spread):
    assert trained[2][f"{spread} recomputing"].losses == trained[2][spread].losses[:10]


@pytest.mark.parametrize("spread", SPREADS)
def test_ranks_with_fewer_micro_batches_than_others_keep_step(trained, spread):
    assert largest_deviation(trained[2][f"{spread} uneven"].losses, trained[2]["ddp uneven"].losses) < TOLERANCE


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("spread", SPREADS)
def test_low_precision_stays_close_to_fp32(trained, spread, precision):
    result = trained[2][f"{spread} {precision}"]
    assert 0 < largest_deviation(result.losses, trained[2][spread].losses[:10]) < 0.01
    assert (result.loss_scale is not None) == (precision == "fp16")


@pytest.mark.parametrize(("saved", "to"), PAIRS, ids=lambda ranks: word(ranks))
def test_a_checkpoint_of_any_strategy_goes_on_under_any_other(folder, trained, restored, saved, to):
    assert unequal_tensors(str(folder / word(saved)), str(folder / f"{word(saved)} to {word(to)}")) == []
    rest = trained[1]["ddp"].losses[CUT : CUT + REST]
    assert largest_deviation(restored[saved, to].losses, rest) < TOLERANCE


def test_a_killed_run_under_fsdp_ends_like_one_that_was_not(tmp_path):
    words = [*small_words(2, steps=30), "parallel.strategy=fsdp"]
    whole = launch(*words, "--name", "whole", runs_dir=tmp_path)
    assert whole.returncode == 0, whole.stderr
    launcher = start(*words, "--name", "killed", runs_dir=tmp_path)
    wait_for_step(tmp_path / "killed", 12)
    os.kill(Processes(launcher.pid).find()["rank"][1], signal.SIGKILL)
    _, errors = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, errors
    events = json_lines(tmp_path / "killed/attempts/0001/events.jsonl")
    assert [event["event"] for event in events].count("restarted") == 1
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    assert steps_of(tmp_path / "killed") == list(range(1, 31))


def test_a_run_goes_on_under_other_strategies_and_world_sizes_with_every_sample_once(tmp_path, undisturbed):
    run = tmp_path / "run"
    first = launch(*small_words(4), "stop_after=15", "--name", "run", runs_dir=tmp_path)
    assert first.returncode == 75, first.stderr
    for stop, ranks, spread in ((30, 2, FSDP), (45, 3, OFFLOAD), (60, 1, DDP | {"parallel.cpu_offload": "false"})):
        words = [f"{key}={value}" for key, value in spread.items()]
        result = launch("resume", "run", "--gpus", str(ranks), f"stop_after={stop}", *words, runs_dir=tmp_path)
        assert result.returncode == (75 if stop < 60 else 0), result.stderr
        assert "parallel.strategy changed: " in result.stderr or spread is OFFLOAD
    reference = undisturbed(1)
    assert digests(run)["samples"] == digests(reference)["samples"]
    assert losses(run) == pytest.approx(losses(reference), rel=TOLERANCE)


def test_a_4_bit_base_trains_the_same_sharded_as_on_one_rank_alone(small_llama, tmp_path):
    words = [
        "recipes/llama_qlora.py", "--laptop", f"model.name={small_llama}", "data.sequence_length=64", "steps=4",
        "batch.size=4", "batch.micro=2", "evaluation.samples=0", "schedule.warmup_steps=0", "optimizer.lr=1e-2",
    ]  # fmt: skip
    for name, ranks, strategy in (("alone", 1, "ddp"), ("sharded", 2, "fsdp")):
        added = (f"parallel.strategy={strategy}", "--gpus", str(ranks), "--name", name)
        result = launch(*words, *added, runs_dir=tmp_path)
        assert result.returncode == 0, result.stderr
    alone = losses(tmp_path / "alone")
    assert alone[-1] < alone[0], "it learns"
    assert losses(tmp_path / "sharded") == pytest.approx(alone, rel=TOLERANCE)


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
