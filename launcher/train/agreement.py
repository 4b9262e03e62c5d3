"""What the ranks decide together, so that all of them take the same branch."""

from __future__ import annotations

import torch
import torch.distributed as dist


def any_rank(is_true: bool, device: torch.device) -> bool:
    """Whether it is true on any rank. All of them ask at the same time, and get the same answer."""
    votes = torch.tensor(float(is_true), device=device)
    dist.all_reduce(votes)
    return bool(votes)
