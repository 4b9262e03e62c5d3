from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from checkpoints.flat_shard import FlatShard
from launcher.train.gpt import byte_gpt
from launcher.train.initial_weights import InitialWeights, build_without_memory

SHAPE = {"context": 16, "width": 8, "layers": 2, "heads": 2}


class Odd(nn.Module):
    """What constructors do to parameters: write them twice, in part, from each other, through numpy, with a cast."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8, padding_idx=3)
        self.first, self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        nn.init.trunc_normal_(self.first.weight, std=0.02)
        nn.init.orthogonal_(self.second.weight)
        with torch.no_grad():
            self.third.weight.mul_(0.5)
            self.third.weight.t()[1].normal_()
            self.third.weight[2] = self.first.weight[0]
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.third.weight
        late = nn.Parameter(torch.empty(40, 40))
        self.late = late
        nn.init.normal_(late)
        self.same = late
        self.drawn = nn.Parameter(torch.randn(3, 3))
        self.listed = nn.Parameter(torch.tensor(self.first.weight.tolist()))
        self.numpy = nn.Parameter(torch.from_numpy(self.second.weight.detach().numpy().copy()))
        self.generated = nn.Linear(5, 5)
        nn.init.normal_(self.generated.weight, generator=torch.Generator().manual_seed(3))
        self.cast = nn.Linear(5, 5).double()
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.copies = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False)
        self.batch_norm = nn.BatchNorm1d(4)
        self.register_buffer("noise", torch.randn(4), persistent=False)
        self.register_buffer("total", self.late.detach().sum())


def built_twice(build: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module, InitialWeights]:
    """As it is, and without memory."""
    torch.manual_seed(5)
    whole, drawn = build(), torch.rand(1)
    torch.manual_seed(5)
    hollow, weights = build_without_memory(build)
    assert torch.equal(torch.rand(1), drawn), "whoever draws next draws the same"
    return whole, hollow, weights


@pytest.mark.parametrize("build", [Odd, partial(byte_gpt, **SHAPE)], ids=["odd", "gpt"])
def test_weights_are_those_of_a_model_that_is_built_whole_bit_by_bit(build):
    whole, hollow, weights = built_twice(build)
    assert all(parameter.is_meta for parameter in hollow.parameters())
    assert [(n, p.shape, p.dtype) for n, p in hollow.named_parameters()] == [
        (n, p.shape, p.dtype) for n, p in whole.named_parameters()
    ]
    state = {name: torch.zeros_like(parameter) for name, parameter in whole.named_parameters()}
    weights.fill(state)
    for name, parameter in whole.named_parameters():
        assert torch.equal(state[name], parameter), name
    for name, buffer in whole.named_buffers():
        assert torch.equal(hollow.get_buffer(name), buffer), name
    assert weights.weights == {}


def test_no_weight_of_the_shipped_model_has_memory_until_it_is_taken():
    _, _, weights = built_twice(partial(byte_gpt, **SHAPE))
    assert {weight.whole.untyped_storage().nbytes() for weight in weights.weights.values()} == {0}


def test_a_rank_gets_its_part():
    whole, _, weights = built_twice(partial(byte_gpt, **SHAPE))
    part = FlatShard(items=torch.zeros(20), shape=(16, 8), start=13)
    weights.fill({"positions.weight": part})
    assert torch.equal(part.items, whole.get_parameter("positions.weight").flatten()[13:33])


def test_parameters_that_were_one_stay_one():
    _, hollow, _ = built_twice(Odd)
    assert hollow.tied.weight is hollow.third.weight
    assert hollow.same is hollow.late
