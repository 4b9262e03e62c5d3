"""The flagship recipe for real: a 4-bit Llama with adapters, interrupted, resumed, exported, loaded by peft."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs_for_tests import REPOSITORY, digests, environment, launch, steps_of

FLAGSHIP = [
    "recipes/llama_qlora.py",
    "steps=4",
    "checkpoint.every=2",
    "evaluation.samples=0",
    "data.sequence_length=64",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`whole` was never disturbed; `parts` was stopped in the middle and resumed."""
    folder = tmp_path_factory.mktemp("flagship")
    whole = launch(*FLAGSHIP, "--laptop", "--name", "whole", runs_dir=folder, timeout=300)
    assert whole.returncode == 0, whole.stderr
    stopped = launch(*FLAGSHIP, "--laptop", "stop_after=2", "--name", "parts", runs_dir=folder, timeout=300)
    assert stopped.returncode == 75, stopped.stderr
    resumed = launch("resume", "parts", runs_dir=folder, timeout=300)
    assert resumed.returncode == 0, resumed.stderr
    return folder


def test_an_interrupted_qlora_run_ends_with_the_same_adapter(runs):
    assert digests(runs / "parts") == digests(runs / "whole")
    assert steps_of(runs / "parts") == [1, 2, 3, 4]


def test_only_adapters_and_their_optimizer_state_are_saved(runs):
    saved = sum(path.stat().st_size for path in (runs / "whole/checkpoints/data").glob("*/rank-*.bin"))
    adapters = 4_884_480 * 4  # rank 16 on all linear layers of the 135M Llama, fp32
    assert saved < 2 * 3 * 1.05 * adapters, "two checkpoints of an adapter and its two moments"


def test_the_exported_adapter_answers_in_transformers_and_peft(runs, tmp_path):
    exported = tmp_path / "adapter"
    result = launch("checkpoints", "export", "whole", str(exported), runs_dir=runs)
    assert result.returncode == 0, result.stderr
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in exported.iterdir()}
    answer = run_script(first_run_script(), exported, tmp_path)
    assert answer.strip()


def test_the_merged_export_is_a_plain_transformers_model(runs, tmp_path):
    exported = tmp_path / "merged"
    result = launch("checkpoints", "export", "whole", str(exported), "--merged", runs_dir=runs)
    assert result.returncode == 0, result.stderr
    script = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
ids = AutoTokenizer.from_pretrained(sys.argv[1])("def", return_tensors="pt")
print(type(model).__name__, model.generate(**ids, max_new_tokens=2).shape)
"""
    assert run_script(script, exported, tmp_path).startswith("LlamaForCausalLM")


def test_another_base_model_is_refused_by_name(runs, tmp_path):
    result = launch("resume", "parts", "model.name=/nowhere", "--allow-change", "model.name", runs_dir=runs)
    assert result.returncode == 0, "a run that has ended well has nothing to resume"
    result = launch(*FLAGSHIP, "model.name=/nowhere", "--laptop", "--name", "other", runs_dir=tmp_path)
    assert result.returncode == 2
    assert "model.name=/nowhere is not a folder" in result.stderr.splitlines()[-1]


def first_run_script() -> str:
    """The script that docs/first-run.md shows."""
    text = (REPOSITORY / "docs/first-run.md").read_text()
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found[1]


def run_script(script: str, exported: Path, folder: Path) -> str:
    path = folder / "script.py"
    path.write_text(script)
    result = subprocess.run(
        [sys.executable, path, exported],
        env=environment(folder),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
