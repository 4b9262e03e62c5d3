from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from cluster.topology import Topology
from launcher import AdamW, Data, Model, Recipe, Schedule
from launcher.plan import make_plan
from launcher.train.data import collate
from launcher.train.engines import Engine, make_engine
from launcher.train.failures import NonFiniteLoss
from launcher.train.gpt import GPT
from launcher.train.optim import learning_rate

RECIPE = Recipe(model=Model(build="m:f"), data=Data(path="x.txt"), steps=10, optimizer=AdamW(lr=1e-2, clip=0.5))
PLAN = make_plan(RECIPE, Topology(nodes=1, ranks_per_node=1, has_gpus=False), cores_per_node=2)


@pytest.fixture(autouse=True)
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def make() -> Engine:
    torch.manual_seed(0)
    model = GPT(vocabulary=16, context=8, width=8, layers=1, heads=2)
    return make_engine(RECIPE, PLAN, model, torch.device("cpu"), "fp32")


def examples(lengths: list[int]) -> list[dict[str, object]]:
    torch.manual_seed(1)
    rows = [torch.randint(0, 16, (length + 1,)).tolist() for length in lengths]
    return [{"id": str(i), "input_ids": row[:-1], "labels": row[1:]} for i, row in enumerate(rows)]


def test_a_step_is_the_same_however_the_batch_is_cut_into_micro_batches():
    rows = examples([8, 3, 5, 8, 1, 2])
    whole, cut = make(), make()
    first = whole.train_step([collate(rows)], lr=1e-2, wants_stop=False)
    second = cut.train_step([collate(rows[:1]), collate(rows[1:4]), collate(rows[4:])], lr=1e-2, wants_stop=False)
    assert (first.targets, first.tokens) == (second.targets, second.tokens) == (27, 27)
    assert first.loss == pytest.approx(second.loss, rel=1e-6)
    assert first.grad_norm == pytest.approx(second.grad_norm, rel=1e-5)
    for name, tensor in whole.state().items():
        assert torch.allclose(tensor, cut.state()[name], rtol=1e-4, atol=1e-6), name


def test_the_step_is_that_of_the_mean_loss_with_clipping():
    rows = examples([8, 8])
    engine = make()
    torch.manual_seed(0)
    model = GPT(vocabulary=16, context=8, width=8, layers=1, heads=2)
    batch = collate(rows)
    loss = torch.nn.functional.cross_entropy(model(batch["input_ids"]).flatten(0, 1), batch["labels"].flatten())
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    result = engine.train_step([batch], lr=1e-2, wants_stop=False)
    assert result.loss == pytest.approx(loss.item(), rel=1e-6)
    assert result.grad_norm == pytest.approx(float(norm), rel=1e-5)


def test_a_loss_that_is_not_finite_is_refused_before_the_weights_change():
    engine = make()
    before = {name: tensor.clone() for name, tensor in engine.state().items()}
    with torch.no_grad():
        poisoned = engine.model.get_parameter("norm.weight")
        poisoned[0] = float("nan")
    with pytest.raises(NonFiniteLoss, match="the loss is nan; samples: 0, 1"):
        engine.train_step([collate(examples([4, 4]))], lr=1e-2, wants_stop=False)
    for name, tensor in engine.state().items():
        if name != "model.norm.weight":
            assert torch.equal(tensor, before[name]), name


def test_the_state_has_moments_before_the_first_step():
    state = make().state()
    assert torch.equal(state["optimizer.norm.weight.exp_avg"], torch.zeros(8))
    assert {name.rpartition(".")[2] for name in state if name.startswith("optimizer.")} == {
        "step",
        "exp_avg",
        "exp_avg_sq",
    }


def test_a_wish_to_stop_comes_back_with_the_step():
    assert make().train_step([collate(examples([2]))], lr=1e-2, wants_stop=True).should_stop


@pytest.mark.parametrize(
    ("kind", "step", "expected"),
    [
        ("constant", 1, 0.25),
        ("constant", 4, 1.0),
        ("constant", 100, 1.0),
        ("linear", 52, 0.55),
        ("linear", 100, 0.1),
        ("cosine", 52, 0.55),
        ("cosine", 100, 0.1),
    ],
)
def test_the_learning_rate_warms_up_and_decays(kind, step, expected):
    schedule = Schedule(kind=kind, warmup_steps=4, final_fraction=0.1)
    assert learning_rate(step, 100, 1.0, schedule) == pytest.approx(expected)
