"""What one GPU of this machine tells of a run. Here there is none: steps are real on the CPU, figures computed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.llamas import LORA, case, shape
from support.runs_for_tests import REPOSITORY

from launcher.preflight.calibration import Scale, estimates, measured_mfu, one_micro_batch, scale_of
from launcher.preflight.gpus import GPUS, gpu_with_memory
from launcher.preflight.prices import SHIPPED, read_prices
from launcher.preflight.report import Known, make_report
from launcher.preflight.steps import real_steps
from launcher.recipe import Batch

H100, L4 = GPUS["h100"], GPUS["l4"]
REAL = Scale(is_real=True, gpu=H100, reason="it fits")
KNOWN = Known(prices=read_prices(SHIPPED))


@pytest.mark.parametrize(
    ("size", "settings", "gpu", "is_real", "reason"),
    [
        ("1b", {}, H100, True, "of the 79.0 GiB of h100"),
        ("1b", {}, L4, False, "the real size does not fit: it needs 2"),
        ("8b", {"strategy": "fsdp", "gpus": 8}, H100, False, "the real size does not fit"),
        ("8b", {"adapter": LORA, "quantize": "nf4"}, L4, True, "of the 22.0 GiB of l4"),
        ("1b", {"strategy": "zero1"}, H100, False, "what the real size needs is not known: parallel.strategy=zero1"),
        ("tiny", {}, H100, False, "its shape does not ship"),
        ("1b", {}, None, False, "there is no GPU here whose kind is known"),
    ],
)
def test_the_real_size_is_taken_where_the_formula_says_that_one_gpu_holds_it(size, settings, gpu, is_real, reason):
    found = scale_of(case(size, samples=64, **settings).recipe, gpu)
    assert found.is_real == is_real
    assert reason in found.reason


def test_a_step_of_the_real_size_is_one_micro_batch_however_the_batch_is_given():
    recipe = case("1b", samples=64, micro=4).recipe
    assert one_micro_batch(recipe).batch == Batch(size=4, micro=4)
    in_tokens = replace(recipe, batch=Batch(tokens=64 * 1024, micro=4))
    assert one_micro_batch(in_tokens).batch == Batch(tokens=4 * 1024, micro=4)


def test_the_mfu_of_a_speed_gives_that_speed_when_a_plan_is_made_with_it():
    planned = case("1b", samples=64, micro=4)
    mfu = measured_mfu(planned.recipe, H100, tokens_per_second=20_000)
    assert mfu is not None
    found = make_report(planned, H100, Known(mfu=mfu)).duration
    assert found is not None
    assert found.step_seconds == pytest.approx(64 * 1024 / 20_000)
    # By hand: 6 operations for each of 1.24 B parameters, and 2 x 3 x 16 x 1,024 x 2,048 for attention.
    assert mfu == pytest.approx(20_000 * (6 * shape("1b").parameters + 6 * 16 * 1024 * 2048) / 989e12, rel=0.01)


def test_a_gpu_of_unknown_speed_has_no_mfu():
    assert measured_mfu(case("1b").recipe, gpu_with_memory(80), tokens_per_second=20_000) is None


def test_time_and_cost_are_stated_anew_with_what_was_measured():
    planned = case("1b", samples=64, gpus=8)
    speed, note, time, expected, *costs = estimates(REAL, 20_000, planned, H100, KNOWN)
    assert speed.startswith("speed      20,000 tokens/s: 15.4% of the peak of h100 (MFU), measured on one GPU")
    assert "1 node x 8 GPUs = 8 ranks are supposed to do as much each" in note
    assert time.startswith("time ")
    assert "and 0.41 s a step" in time  # 64 samples of 1,024 tokens, on eight of them
    assert expected.startswith("expected ")
    assert any("gcp a3-highgpu-1g, as of 2026-" in line for line in costs)


@pytest.mark.parametrize(
    ("scale", "gpu", "said"),
    [
        (Scale(is_real=False, gpu=None, reason="no GPU"), None, "at the scale of a laptop (no GPU): no MFU follows"),
        (Scale(is_real=False, gpu=L4, reason="too large"), L4, "no MFU follows from that"),
        (REAL, L4, "that says nothing of the machines of this run"),
    ],
)
def test_what_was_measured_elsewhere_or_smaller_changes_no_estimate(scale, gpu, said):
    lines = list(estimates(scale, 20_000, case("1b"), gpu, KNOWN))
    assert said in lines[-1]
    assert not [line for line in lines if line.startswith(("time", "cost"))]


def test_real_steps_at_the_real_size_leave_the_laptop_overrides_aside(tmp_path):
    (tmp_path / "own.py").write_text(
        (REPOSITORY / "recipes/gpt_tiny.py").read_text().replace("RECIPE =", "BASE =")
        + 'from dataclasses import replace\nRECIPE = replace(BASE, laptop={"batch.size": 1})\n'
    )
    words = [f"data.path={REPOSITORY / 'recipes/data/python_reference.txt'}", "model.arguments.width=32"]
    told: list[str] = []
    assert real_steps(str(tmp_path / "own.py"), words, replace(REAL, gpu=None), told.append) > 0
    assert told[0].startswith("trained    3 steps of 8 samples on cpu")
