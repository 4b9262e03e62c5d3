"""Adapters on a 4-bit base that is small: exported with it, and held to it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.runs_for_tests import launch, run_script, steps_of


@pytest.fixture(scope="module")
def runs(small_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run` has stopped half-way; its base lies beside it."""
    folder = tmp_path_factory.mktemp("adapters")
    base = folder / "base"
    shutil.copytree(small_llama, base)
    result = launch(
        "recipes/llama_qlora.py", "--laptop", f"model.name={base}", "data.sequence_length=64", "steps=4",
        "stop_after=2", "batch.size=2", "batch.micro=2", "evaluation.samples=0", "schedule.warmup_steps=1",
        "--name", "run", runs_dir=folder,
    )  # fmt: skip
    assert result.returncode == 75, result.stderr
    return folder


def test_the_merged_export_is_a_plain_transformers_model(runs, tmp_path):
    exported = tmp_path / "merged"
    result = launch("checkpoints", "export", "run", str(exported), "--merged", runs_dir=runs)
    assert result.returncode == 0, result.stderr
    (tmp_path / "load.py").write_text("""
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
ids = AutoTokenizer.from_pretrained(sys.argv[1])("def", return_tensors="pt")
print(type(model).__name__, model.generate(**ids, max_new_tokens=2).shape)
""")
    assert run_script("load.py", str(exported), tmp_path).startswith("LlamaForCausalLM")


def test_a_base_model_that_changed_is_refused_by_name_before_the_first_step(runs):
    weights = runs / "base/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    refused = launch("resume", "run", runs_dir=runs)
    assert refused.returncode == 2, refused.stderr
    assert "base_model changed: digest" in refused.stderr.splitlines()[-1]
    assert "--allow-change base_model" in refused.stderr.splitlines()[-1]
    assert steps_of(runs / "run") == [1, 2]
