from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from launcher import Data, Model, Parallel, Recipe
from launcher.errors import UsageError
from launcher.train.models import load_model, prepare_model, repeated_blocks

ODD = Path(__file__).parents[1] / "support/odd_gpt.py"
RECIPE = Recipe(
    model=Model(build=f"{ODD}:odd_gpt", arguments={"width": 8, "layers": 3}),
    data=Data(path="x.txt"),
    steps=1,
    parallel=Parallel(strategy="fsdp"),
)
CPU = torch.device("cpu")


def test_the_repeated_blocks_are_the_items_of_the_outermost_lists():
    def block() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2)]))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixed = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
            self.inner = nn.ModuleDict({"layers": nn.ModuleList([block(), block()])})
            self.stack = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
            self.empty = nn.ModuleList([nn.Tanh(), nn.Tanh()])

    model = Model()
    assert repeated_blocks(model) == [*model.inner["layers"], *model.stack]


def test_a_model_whose_values_a_checkpoint_brings_has_no_memory_but_its_buffers():
    loaded = load_model(RECIPE, CPU, "fp32", restores=True).module
    whole = load_model(replace(RECIPE, parallel=Parallel()), CPU, "fp32").module
    assert all(parameter.is_meta for parameter in loaded.parameters())
    assert [(n, p.shape, p.dtype) for n, p in loaded.named_parameters()] == [
        (n, p.shape, p.dtype) for n, p in whole.named_parameters()
    ]
    for name, buffer in whole.named_buffers():
        assert torch.equal(loaded.get_buffer(name), buffer), name


def test_a_parameter_that_is_shared_stays_shared_without_memory(tmp_path):
    (tmp_path / "tied.py").write_text(
        "def tied():\n"
        "    from torch import nn\n"
        "    model = nn.Sequential(nn.Embedding(4, 2), nn.Linear(2, 4, bias=False))\n"
        "    model[1].weight = model[0].weight\n"
        "    return model\n"
    )
    recipe = replace(RECIPE, model=Model(build=f"{tmp_path / 'tied.py'}:tied"))
    model = load_model(recipe, CPU, "fp32", restores=True).module
    assert model[1].weight is model[0].weight
    assert model[0].weight.is_meta


def test_a_buffer_that_is_in_no_checkpoint_has_its_first_numbers_after_a_restore(tmp_path):
    (tmp_path / "noisy.py").write_text(
        "def noisy():\n"
        "    import torch\n"
        "    model = torch.nn.Linear(4, 4)\n"
        "    model.register_buffer('noise', torch.randn(4), persistent=False)\n"
        "    return model\n"
    )
    recipe = replace(RECIPE, model=Model(build=f"{tmp_path / 'noisy.py'}:noisy"))
    first = load_model(recipe, CPU, "fp32").module.noise
    assert torch.equal(load_model(recipe, CPU, "fp32", restores=True).module.noise, first)


def test_a_model_is_handed_over_for_training_also_where_it_was_built_for_inference(tmp_path):
    (tmp_path / "still.py").write_text("def still():\n    from torch import nn\n    return nn.Dropout(0.5).eval()\n")
    recipe = replace(RECIPE, model=Model(build=f"{tmp_path / 'still.py'}:still"))
    assert load_model(recipe, CPU, "fp32").module.training


def test_recomputing_activations_needs_a_list_of_layers():
    recipe = replace(RECIPE, model=Model(build="m:f", activation_checkpointing=True))
    with pytest.raises(UsageError, match=r"model\.activation_checkpointing=true needs a model with a list of layers"):
        prepare_model(nn.Linear(2, 2), recipe)


def test_a_model_that_freezes_parameters_is_built_whole_because_no_checkpoint_has_them(tmp_path):
    (tmp_path / "frozen.py").write_text(
        "def frozen():\n"
        "    from torch import nn\n"
        "    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))\n"
        "    model[0].requires_grad_(False)\n"
        "    return model\n"
    )
    recipe = replace(RECIPE, model=Model(build=f"{tmp_path / 'frozen.py'}:frozen"))
    restored = load_model(recipe, CPU, "fp32", restores=True).module
    for name, parameter in load_model(recipe, CPU, "fp32").module.named_parameters():
        assert torch.equal(restored.get_parameter(name), parameter), name
