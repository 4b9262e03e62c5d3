from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cluster.topology import Topology
from launcher import AdamW, Data, Model, Parallel, Recipe, Schedule, replace
from launcher.errors import UsageError
from launcher.plan import make_plan
from launcher.train.data import collate
from launcher.train.engines import Engine, make_engine
from launcher.train.engines.first_gradients import check_first_gradients
from launcher.train.failures import NoGradient, NonFiniteLoss
from launcher.train.gpt import GPT
from launcher.train.optim import learning_rate
from launcher.train.precision import LossScale

RECIPE = Recipe(model=Model(build="m:f"), data=Data(path="x.txt"), steps=10, optimizer=AdamW(lr=1e-2, clip=0.5))
PLAN = make_plan(RECIPE, Topology(nodes=1, ranks_per_node=1, has_gpus=False), cores_per_node=2)


@pytest.fixture(autouse=True)
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(params=["ddp", "fsdp"])
def strategy(request: pytest.FixtureRequest) -> str:
    return request.param


def make(strategy: str = "ddp", precision: str = "fp32", **changed: Any) -> Engine:
    torch.manual_seed(0)
    model = GPT(vocabulary=16, context=8, width=8, layers=1, heads=2)
    recipe = replace(RECIPE, parallel=Parallel(strategy=strategy), **changed)
    return make_engine(recipe, PLAN, model, torch.device("cpu"), precision)


def state_of(engine: Engine) -> dict[str, torch.Tensor]:
    return {name: getattr(tensor, "to_local", lambda t=tensor: t)().clone() for name, tensor in engine.state().items()}


def root_loss(model: GPT, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Finite at zero, where its slope is not."""
    return (model(batch["input_ids"]).sum() * 0).clamp(min=0).sqrt(), torch.tensor(1)


def examples(lengths: list[int]) -> list[dict[str, object]]:
    torch.manual_seed(1)
    rows = [torch.randint(0, 16, (length + 1,)).tolist() for length in lengths]
    return [{"id": str(i), "input_ids": row[:-1], "labels": row[1:]} for i, row in enumerate(rows)]


def test_a_step_is_the_same_however_the_batch_is_cut_into_micro_batches(strategy):
    rows = examples([8, 3, 5, 8, 1, 2])
    whole, cut = make(strategy), make(strategy)
    first = whole.train_step([collate(rows)], lr=1e-2, wants_stop=False)
    second = cut.train_step([collate(rows[:1]), collate(rows[1:4]), collate(rows[4:])], lr=1e-2, wants_stop=False)
    assert (first.targets, first.tokens) == (second.targets, second.tokens) == (27, 27)
    assert first.loss == pytest.approx(second.loss, rel=1e-6)
    assert first.grad_norm == pytest.approx(second.grad_norm, rel=1e-5)
    for name, tensor in state_of(whole).items():
        assert torch.allclose(tensor, state_of(cut)[name], rtol=1e-4, atol=1e-6), name


def test_the_step_is_that_of_the_mean_loss_with_clipping(strategy):
    rows = examples([8, 8])
    engine = make(strategy)
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


def test_a_gradient_that_is_not_finite_is_refused_before_the_weights_change(strategy):
    engine = make(strategy, loss=root_loss)
    before = state_of(engine)
    with pytest.raises(NonFiniteLoss, match=r"the loss is finite, but its gradient is not \(nan\); samples: 0, 1"):
        engine.train_step([collate(examples([4, 4]))], lr=1e-2, wants_stop=False)
    for name, tensor in state_of(engine).items():
        assert torch.equal(tensor, before[name]), name


def test_a_step_that_overflows_fp16_is_computed_again_with_a_smaller_loss_scale(strategy):
    batch = collate(examples([8, 8]))
    reference, engine = make(strategy), make(strategy, "fp16")
    assert engine.loss_scale is not None
    engine.loss_scale.factor = 2.0**40
    result = engine.train_step([batch], lr=1e-2, wants_stop=False)
    assert engine.loss_scale.factor < 2.0**40
    assert engine.loss_scale.good_steps == 1
    expected = reference.train_step([batch], lr=1e-2, wants_stop=False)
    assert result.loss == pytest.approx(expected.loss, rel=1e-2)
    assert result.grad_norm == pytest.approx(expected.grad_norm, rel=5e-2)


def test_the_loss_scale_grows_after_many_good_steps_and_gives_up_where_nothing_helps():
    scale = LossScale()
    for _ in range(2000):
        scale.grow()
    assert scale == LossScale(factor=2.0**17)
    scale.factor = 2.0**-23
    scale.shrink()
    assert scale == LossScale(factor=2.0**-24)
    with pytest.raises(NonFiniteLoss, match="at any loss scale"):
        scale.shrink()


def test_a_parameter_without_dimensions_cannot_be_sharded():
    model = torch.nn.Linear(2, 2)
    model.gain = torch.nn.Parameter(torch.tensor(1.0))
    recipe = replace(RECIPE, parallel=Parallel(strategy="fsdp"))
    with pytest.raises(UsageError, match=r"cannot shard the parameter gain, .* use parallel\.strategy=ddp"):
        make_engine(recipe, PLAN, model, torch.device("cpu"), "fp32")


def test_an_adapter_that_gets_no_gradient_is_named():
    device, some = torch.device("cpu"), torch.tensor([0.0, 1e-30])
    good = {"a.lora_A.default.weight": torch.zeros(2), "a.lora_B.default.weight": some}
    check_first_gradients(good, device)
    for dead in (torch.zeros(2), None):
        with pytest.raises(NoGradient, match="no gradient reaches 1 of 2 adapters, such as b;"):
            check_first_gradients({**good, "b.lora_A.default.weight": dead, "b.lora_B.default.weight": None}, device)


def test_the_state_has_moments_before_the_first_step(strategy):
    state = state_of(make(strategy))
    assert torch.equal(state["optimizer.norm.weight.exp_avg"], torch.zeros(8))
    assert {name.rpartition(".")[2] for name in state if name.startswith("optimizer.")} == {
        "step",
        "exp_avg",
        "exp_avg_sq",
    }


@pytest.mark.parametrize("wishes", [(False, False), (True, False), (False, True)])
def test_a_wish_to_stop_or_to_save_comes_back_with_the_step(wishes):
    wants_stop, wants_save = wishes
    result = make().train_step([collate(examples([2]))], lr=1e-2, wants_stop=wants_stop, wants_save=wants_save)
    assert (result.should_stop, result.should_save) == wishes


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
