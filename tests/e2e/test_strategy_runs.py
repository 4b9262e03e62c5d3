"""Runs under the strategies, as they are launched: killed, resumed under others, on other numbers of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.runs_for_tests import (
    check_that_a_killed_rank_changes_nothing,
    digests,
    json_lines,
    launch,
    small_words,
)
from support.strategies import SPREADS, TOLERANCE


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
