"""The flagship recipe on samples that are full of tokens, so that tokens per second say what the hardware does."""

from __future__ import annotations

from typing import Any

from launcher import Data, replace
from recipes.llama_qlora import RECIPE as QLORA

SAMPLES = 64


def tokens(split: str, length: int, vocabulary: int) -> list[dict[str, Any]]:
    import torch

    drawn = torch.randint(vocabulary, (SAMPLES, length + 1), generator=torch.Generator().manual_seed(0)).tolist()
    return [{"id": f"{split}-{i}", "input_ids": ids[:-1], "labels": ids[1:]} for i, ids in enumerate(drawn)]


RECIPE = replace(QLORA, data=Data(build=tokens, arguments={"length": 1024, "vocabulary": 128256}), laptop={})
