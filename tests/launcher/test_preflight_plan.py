"""Plans that do not fit are refused, each remedy makes them fit; and how long a run takes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from datetime import date

import pytest
from support.llamas import LORA, TINY, case, shape, work
from support.runs_for_tests import REPOSITORY

from launcher.cli import main
from launcher.overrides import apply, parse
from launcher.preflight.duration import duration, seconds_of, step_flops
from launcher.preflight.gpus import GPUS, gpu_with_memory
from launcher.preflight.interruptions import daly_interval, expect, failures
from launcher.preflight.prices import SHIPPED, read_prices
from launcher.preflight.report import DoesNotFit, make_report
from launcher.preflight.saves import saves
from launcher.preflight.verdict import remedies

QLORA = {"adapter": LORA, "quantize": "nf4"}
# (GPU, size, strategy, settings, a setting that the first remedy changes)
WRONG = [
    ("l4", "1b", "ddp", {"gpus": 1}, "parallel.strategy"),
    ("l4", "1b", "ddp", {"gpus": 8}, "parallel.strategy"),
    ("l4", "1b", "fsdp", {"gpus": 1}, "parallel.cpu_offload"),
    ("l4", "1b", "fsdp", {"gpus": 8, "micro": 32}, "batch.micro"),
    ("l4", "1b", "fsdp", {"gpus": 8, "micro": 16, "checkpoints": False}, "batch.micro"),
    ("l4", "8b", "fsdp", {"gpus": 8, "micro": 1}, "parallel.cpu_offload"),
    ("l4", "8b", "ddp", {"gpus": 1, "micro": 16, "length": 2048, **QLORA}, "batch.micro"),
    ("a10g", "1b", "zero3", {"gpus": 1}, "parallel.cpu_offload"),
    ("rtx4090", "8b", "ddp", {"gpus": 2, "micro": 4, "length": 2048, "adapter": LORA}, "batch.micro"),
    ("a100-40gb", "8b", "ddp", {"gpus": 8}, "parallel.strategy"),
    ("a100-40gb", "8b", "fsdp", {"gpus": 4, "micro": 1}, "parallel.cpu_offload"),
    ("a100-40gb", "8b", "fsdp", {"gpus": 8, "micro": 4, "length": 4096, "checkpoints": False}, "model.activation"),
    ("a100-40gb", "8b", "zero3", {"gpus": 4, "micro": 1}, "parallel.cpu_offload"),
    ("h100", "8b", "ddp", {"gpus": 8}, "parallel.strategy"),
    ("h100", "8b", "fsdp", {"gpus": 1}, "parallel.cpu_offload"),
    ("h100", "8b", "fsdp", {"gpus": 8, "micro": 2, "length": 8192, "checkpoints": False}, "model.activation"),
    ("h100", "70b", "fsdp", {"gpus": 8, "micro": 1, "length": 4096}, "parallel.cpu_offload"),
    ("h100", "70b", "zero3", {"gpus": 8, "micro": 1, "length": 4096}, "parallel.cpu_offload"),
    ("h100", "70b", "ddp", {"gpus": 8, "micro": 1, "adapter": LORA}, "parallel.strategy"),
    ("h200", "8b", "ddp", {"gpus": 1}, "parallel.strategy"),
    ("h200", "70b", "fsdp", {"gpus": 8, "micro": 1, "length": 4096}, "parallel.cpu_offload"),
    ("b200", "70b", "ddp", {"gpus": 8, "micro": 1}, "parallel.strategy"),
    ("b200", "8b", "ddp", {"gpus": 8, "micro": 16, "length": 8192, **QLORA}, "batch.micro"),
]  # fmt: skip


def wrong(size, strategy, settings):
    samples = 64 * settings.get("gpus", 1) * settings.get("micro", 4)
    return case(size, strategy, samples=samples, **settings)


def applied(planned, changes):
    """The case after the words of a remedy, as the command line takes them."""
    nodes = [int(change.split()[1]) for change in changes if change.startswith("--nodes")]
    recipe = apply(planned.recipe, parse([change for change in changes if not change.startswith("--")]))
    return replace(planned, recipe=recipe).on_nodes(nodes[0] if nodes else planned.topology.nodes)


@pytest.mark.parametrize(("gpu", "size", "strategy", "settings", "first"), WRONG)
def test_a_plan_that_does_not_fit_is_refused_and_each_remedy_makes_it_fit(gpu, size, strategy, settings, first):
    planned = wrong(size, strategy, settings)
    with pytest.raises(DoesNotFit, match=r"a rank needs .* GiB at .*; use .*--force starts it anyway") as refused:
        make_report(planned, GPUS[gpu]).refuse_misfit()
    assert refused.value.exit_code == 3
    found = remedies(planned, shape(size), GPUS[gpu])
    assert found[0][0].startswith(first)
    for changes in found:
        assert applied(planned, changes).total(shape(size)) <= GPUS[gpu].memory


def test_what_nothing_helps_is_said_to_need_a_larger_gpu():
    with pytest.raises(DoesNotFit, match="use a larger GPU"):
        make_report(case("70b", "fsdp", gpus=1, length=131072, micro=1), GPUS["t4"]).refuse_misfit()


def test_a_plan_that_fits_or_whose_gpu_is_unknown_is_not_refused():
    for size, strategy, gpu, fits in (("1b", "fsdp", GPUS["h100"], True), ("70b", "ddp", None, None)):
        report = make_report(case(size, strategy, gpus=8), gpu)
        report.refuse_misfit()
        assert report.fits is fits


def test_a_7b_model_and_a_trillion_tokens_take_8_a100_490_days():
    assert seconds_of(6 * 7e9 * 1e12, gpus=8, peak=312e12, mfu=0.4) / 86400 == pytest.approx(490, rel=0.01)


def test_operations_are_six_per_parameter_and_token_and_causal_attention():
    found = step_flops(work(case("8b", length=4096), "8b"), samples=1)
    matrices = shape("8b").parameters - shape("8b").embedding - (2 * 32 + 1) * 4096
    attention = 3 * 2 * 32 * 4096 * 4096 / 2 * 2  # query x key and weights x value, forward and twice backward, halved
    assert found == pytest.approx(4096 * (6 * matrices + attention))


def test_frozen_weights_need_no_gradient():
    full, frozen = (step_flops(work(case("8b", length=64, adapter=a), "8b"), samples=1) for a in (None, LORA))
    assert 0.66 < frozen / full < 0.68


def test_the_share_of_the_peak_can_be_given():
    found = work(case("8b", "fsdp", gpus=8), "8b")
    slow, fast = (duration(found, GPUS["h100"], samples=32, steps=10, mfu=m) for m in (0.2, 0.4))
    assert slow.seconds == pytest.approx(2 * fast.seconds)
    assert slow.gpu_hours == pytest.approx(8 * slow.seconds / 3600)
    assert "as given" in slow.assumptions[1]
    assert duration(found, gpu_with_memory(80), samples=32, steps=10, mfu=None) is None


def test_the_interval_is_youngs_where_saves_are_cheap_and_dalys_bound_where_they_are_not():
    assert daly_interval(1, 1e6) == pytest.approx(math.sqrt(2e6), rel=0.01)
    assert daly_interval(10, 5) == 5


def test_a_checkpoint_is_not_begun_before_the_last_one_is_durable():
    planned, rare = case("70b", "fsdp", nodes=128, gpus=8), failures(nodes=128, ranks=1024, node_hours=None)
    found = saves(work(planned, "70b"), 1.0, 1_000_000, every="auto", failures=rare)
    assert found.interval_seconds == found.best_seconds >= found.save_seconds == found.bytes / 1e9
    assert found.best_every == math.ceil(found.best_seconds)
    each_step = saves(work(planned, "70b"), 1.0, 1_000_000, every=1, failures=rare, store_speed=10e9)
    assert each_step.interval_seconds == each_step.save_seconds == found.save_seconds / 10


def test_interruptions_are_as_many_as_nodes_and_time_make_them():
    assert failures(nodes=1, ranks=8, node_hours=None).seconds == 7 * 24 * 3600
    assert failures(nodes=128, ranks=1024, node_hours=None).seconds == pytest.approx(50_000 / 1024 * 3600)
    assert failures(nodes=4, ranks=32, node_hours=12).seconds == 3 * 3600


def test_what_is_expected_adds_saves_lost_work_and_restarts():
    # 100 h of work, saved each hour for 36 s; every 10 h half an hour and 2 minutes are lost.
    found = expect(360_000, interval_seconds=3600, blocked_seconds=36, failure_seconds=36_000)
    assert found.lost_seconds == 1920
    assert found.seconds == pytest.approx(363_600 / (1 - 1920 / 36_000))
    assert found.interruptions == pytest.approx(found.seconds / 36_000)


def test_a_run_that_loses_more_than_it_gains_is_never_done():
    assert expect(360_000, interval_seconds=7200, blocked_seconds=1, failure_seconds=3600).seconds is None


def test_prices_that_ship_are_dated_have_a_source_and_are_of_gpus_that_are_known():
    for price in read_prices(SHIPPED):
        assert price.gpu in GPUS
        assert date.fromisoformat(price.as_of) <= date.today()
        assert price.source
        assert price.on_demand is not None
        assert price.spot is None or price.spot < price.on_demand


HEADER = "cloud,instance,gpu,gpus,on_demand,spot,as_of,source\n"


def test_own_prices_take_the_place_of_those_that_ship_and_instances_are_paid_whole(tmp_path, capsys):
    (tmp_path / "own.csv").write_text(HEADER + "ours,box,h100,8,80,20,2026-11-01,our contract\n")
    words = ["--gpu", "h100", "--nodes", "2", "--gpus", "4", "steps=1000000", "--prices", str(tmp_path / "own.csv")]
    cost = json.loads(planned(capsys, *words, "--json")[1].out)["cost"]
    hours = cost["expected"]["seconds"] / 3600
    (found,) = cost["usd"]
    assert (found["on_demand"], found["spot"]) == (pytest.approx(160 * hours), pytest.approx(40 * hours))
    assert "ours box, as of 2026-11-01, our contract" in planned(capsys, *words)[1].out


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (HEADER + "ours,box,h101,8,80,20,2026-11-01,x\n", "line 2: gpu=h101 is not known; use one of"),
        (HEADER + "ours,box,h100,none,80,20,2026-11-01,x\n", "line 2: gpus=none is not a number of GPUs"),
        (HEADER + "ours,box,h100,8,cheap,20,2026-11-01,x\n", "line 2: on_demand=cheap is no price"),
        (HEADER + "ours,box,h100,8,80,-1,2026-11-01,x\n", "line 2: spot=-1 is no price"),
        ("cloud,instance\nours,box\n", "must have lines, and the columns cloud,instance,gpu"),
        ("", "must have lines"),
    ],
)  # fmt: skip
def test_prices_that_cannot_be_read_are_one_line(tmp_path, capsys, text, complaint):
    (tmp_path / "own.csv").write_text(text)
    code, output = planned(capsys, "--gpu", "h100", "--prices", str(tmp_path / "own.csv"))
    assert code == 2
    assert complaint in output.err
    assert output.err.count("\n") == 1


def planned(capsys, *words):
    code = main([str(REPOSITORY / "recipes/llama_fsdp.py"), "--plan", *words])
    return code, capsys.readouterr()


def test_the_plan_of_a_shipped_recipe_is_for_the_gpus_asked_for(capsys):
    code, output = planned(capsys, "--gpu", "h100", "--nodes", "2", "--gpus", "8", "--json")
    found = json.loads(output.out)
    assert code == 0
    assert found["world"] == {"nodes": 2, "gpus_per_node": 8, "ranks": 16}
    assert found["memory"]["fits"] is True
    rank = found["memory"]["rank"]
    kinds = ("parameters", "base", "gradients", "optimizer", "activations", "communication", "workspace")
    assert sum(rank[kind] for kind in kinds) == pytest.approx(rank["allocated"], abs=8)
    assert rank["allocated"] + rank["margin"] == pytest.approx(rank["total"], abs=2)
    assert found["checkpoint"]["bytes"] == 12 * 1_235_814_400
    assert found["cost"]["gpu_hours"] == found["time"]["gpu_hours"]
    assert len(found["assumptions"]) >= 5


def test_a_plan_that_does_not_fit_says_so_and_what_would(capsys):
    code, output = planned(capsys, "--gpu", "t4", "parallel.strategy=ddp")
    assert code == 3
    assert "DOES NOT FIT: t4 has 14.5 GiB" in output.out
    assert "fits with  parallel.strategy=fsdp parallel.cpu_offload=true" in output.out
    assert planned(capsys, "--gpu", "t4", "parallel.strategy=ddp", "--force")[0] == 0


def test_without_a_gpu_the_plan_says_which_sizes_would_do(capsys):
    code, output = planned(capsys, "parallel.strategy=ddp")
    assert code == 0
    assert "fits GPUs of 40, 80, 141, 192 GB" in output.out
    assert "time       not known without the kind of GPU; give --gpu" in output.out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--gpu", "h300"], "--gpu h300 is not known"),
        (["--gpu", "8"], "did you mean --gpus 8?"),
        (["--gpu", "h100", "--gpu-memory", "80"], "give one"),
        (["--gpu-memory", "0"], "0 is not a number of GB"),
        (["--mfu", "40"], "40 is not a share between 0 and 1"),
        (["--mtbf-hours", "0"], "0 is not a number of hours above 0"),
        (["--store-speed", "fast"], "fast is not a number of GB above 0"),
        (["--prices", "nowhere.csv"], "--prices nowhere.csv cannot be read"),
        (["parallel.strategy=zero1"], "parallel.strategy=zero1 has no closed formula"),
        (["model.name=nobody/nothing"], "its shape does not ship"),
        (["data.sequence_length=200000"], "above the model's limit of 131072"),
    ],
)
def test_what_cannot_be_planned_is_one_line(capsys, words, complaint):
    code, output = planned(capsys, *words)
    assert code == 2
    assert complaint in output.err
    assert output.err.count("\n") == 1


def test_a_recipe_with_a_model_of_its_own_is_told_to_trace_it(capsys):
    code = main([str(REPOSITORY / "recipes/gpt_pretrain.py"), "--plan"])
    assert code == 2
    assert "trace it with --trace" in capsys.readouterr().err


def test_a_launch_that_would_not_fit_is_refused_before_anything_is_made(tmp_path, capsys, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(TINY | {"hidden_size": 8192, "num_hidden_layers": 80}))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # the launcher then counts on one GPU
    words = [f"model.name={tmp_path}", "--gpu", "l4", f"--runs-dir={tmp_path / 'runs'}"]
    recipe = str(REPOSITORY / "recipes/llama_fsdp.py")
    assert main([recipe, *words]) == 3
    assert "a rank needs" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert main([recipe, *words, "--force", "--dry-run", "--no-steps"]) == 0


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--gpu", "h100"], "--gpu h100: this run has no GPU; give --plan"),
        (["--gpu", "2"], "did you mean --gpus 2?"),
        (["--mfu", "0.5"], "--mfu says something of a plan; give --plan or --dry-run"),
        (["--prices", "own.csv"], "--prices says something of a plan; give --plan or --dry-run"),
        (["--store-speed", "2"], "--store-speed says something of a plan; give --plan or --dry-run"),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(tmp_path, capsys, monkeypatch, words, complaint):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["gpt_tiny", *words, f"--runs-dir={tmp_path}"]) == 2
    assert complaint in capsys.readouterr().err


def test_a_dry_run_says_what_a_plan_says(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")  # a machine without Slurm
    recipe = str(REPOSITORY / "recipes/llama_fsdp.py")
    words = [recipe, "--nodes", "2", "--gpus", "8", "--gpu", "h100", "--mfu", "0.4", f"--runs-dir={tmp_path}"]
    assert main([*words, "--plan"]) == 0
    plan = capsys.readouterr().out.splitlines()
    assert main([*words, "--dry-run", "--no-steps"]) == 0
    output = capsys.readouterr()
    assert "#SBATCH --gpus-per-node=8\n" in output.out
    assert set(plan) <= set(output.err.splitlines())


def test_a_plan_imports_no_torch():
    code = (
        "import sys; from launcher.cli import main;"
        "main(['recipes/llama_qlora.py', '--plan', '--gpu', 'h100', '--json']);"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True)


def test_the_gpu_that_the_target_names_is_the_one_that_has_to_hold_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    words = [str(REPOSITORY / "recipes/llama_fsdp.py"), "--on", "slurm", "model.name=meta-llama/Llama-3.1-70B"]
    assert main([*words, "slurm.gpu_type=h100", "--gpus", "8", "--dry-run", f"--runs-dir={tmp_path}"]) == 3
    assert "and h100 has 79.0 GiB; use " in capsys.readouterr().err
