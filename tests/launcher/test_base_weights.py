from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from checkpoints.flat_shard import FlatShard
from launcher.train.base_weights import BaseWeights


def test_a_rank_reads_what_it_holds_of_each_tensor_whole_or_in_part(tmp_path: Path) -> None:
    whole = {"matrix": torch.arange(35.0).view(5, 7), "vector": torch.arange(6.0), "number": torch.tensor(3.0)}
    save_file({"matrix": whole["matrix"]}, tmp_path / "model-1.safetensors")
    save_file({"vector": whole["vector"].bfloat16(), "number": whole["number"]}, tmp_path / "model-2.safetensors")
    flat = FlatShard(items=torch.zeros(20), shape=(5, 7), start=3)
    nothing = FlatShard(items=torch.zeros(0), shape=(6,), start=6)
    vector, number = torch.zeros(6), torch.zeros(())
    weights = BaseWeights(tmp_path)
    assert weights.have(whole)
    weights.fill({"matrix": flat, "vector": nothing})
    weights.fill({"vector": vector, "number": number})
    assert torch.equal(flat.items, torch.arange(3.0, 23.0))
    assert torch.equal(vector, whole["vector"])
    assert torch.equal(number, whole["number"])
    assert not weights.have({**whole, "missing": vector})
    assert not weights.have({**whole, "vector": torch.zeros(7)})
