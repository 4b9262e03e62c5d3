from __future__ import annotations

from pathlib import Path

import pytest

from launcher import Data, Evaluation, Lora, Model, Recipe
from launcher.errors import UsageError
from launcher.overrides import apply, flatten, from_mapping

RECIPE = Recipe(model=Model(name="a"), data=Data(path="x.txt"), steps=10)


@pytest.mark.parametrize("text", ["true", "12", "1e-4", "1_000", "0x10", "2020-01-01", "9" * 5000])
def test_a_text_stays_the_text_that_was_typed(text):
    assert apply(RECIPE, {"evaluation.prompt": text}).evaluation.prompt == text


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("7", 7), ("true", True), ("word", "word"), ("2020-01-01", "2020-01-01")]
)
def test_an_argument_of_the_users_own_has_the_type_that_yaml_sees(text, value):
    argument = apply(RECIPE, {"model.arguments.it": text}).model.arguments["it"]
    assert (argument, type(argument)) == (value, type(value))


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "${a", "a ${b} \\${c}", "\\\\${d}"])
def test_interpolation_means_nothing_wherever_it_stands(text):
    recipe = Recipe(
        model=Model(name=text, arguments={"a": text}),
        data=Data(path=text),
        steps=3,
        adapter=Lora(targets=(text,)),
        evaluation=Evaluation(prompt=text),
    )
    assert apply(recipe, {}) == recipe
    assert apply(recipe, {"model.arguments.b": text, "adapter.targets": [text]}).model.arguments == {
        "a": text,
        "b": text,
    }


BAD_WORDS = {
    ("adapter.rank", "4"): "adapter.rank=4 needs an adapter, and this recipe has none",
    ("adapter", "3"): "adapter=3 is not a section; set its keys one by one",
    ("laptop", "1"): "unknown setting laptop=1; give the setting itself, or use --laptop",
    ("laptop.steps", "1"): "unknown setting laptop.steps=1; give the setting itself",
    ("optimizer.betas", "[0.9]"): "optimizer.betas=[0.9] has 1 values instead of 2",
    ("optimizer.betas", "3"): "optimizer.betas=3 is not a list",
    ("steps", "null"): "steps=null cannot be null",
    ("steps", "9" * 5000): "is not a whole number",
    ("model.arguments.x", "[1]"): "model.arguments.x=[1] is not a text, a number, true or false",
    ("model.arguments.x.y", "1"): "model.arguments.x.y=1",
    ("model.build", "3"): "3 is not a function at the top level of a module",
    ("evaluation.prompt", "???"): "evaluation.prompt is missing",
}


@pytest.mark.parametrize(("key", "value", "said"), [(*word, said) for word, said in BAD_WORDS.items()])
def test_a_value_of_the_wrong_kind_is_one_line_that_says_the_right_kind(key, value, said):
    with pytest.raises(UsageError) as caught:
        apply(RECIPE, {key: value})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_setting_of_a_section_that_is_taken_away_is_refused():
    recipe = Recipe(model=Model(name="a"), data=Data(path="x.txt"), steps=10, adapter=Lora())
    with pytest.raises(UsageError, match=r"adapter.rank=4"):
        apply(recipe, {"adapter": "null", "adapter.rank": "4"})


BAD_MAPPINGS = {
    "x: steps is missing": {"model": {"name": "a"}, "data": {"path": "b"}},
    "x: steps=abc is not a whole number": {"model": {"name": "a"}, "data": {"path": "b"}, "steps": "abc"},
    "x: optimizer.lrr is unknown; did you mean lr?": {"optimizer": {"lrr": 1}},
    "x: 3 is unknown": {3: 4},
    "x: optimizer cannot be null": {"optimizer": None},
    "x: model=3 is not a section": {"model": 3},
}


@pytest.mark.parametrize(("said", "settings"), BAD_MAPPINGS.items())
def test_a_mapping_that_is_no_recipe_is_refused_by_key(said, settings):
    with pytest.raises(UsageError) as caught:
        from_mapping(settings, "x")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_path_object_is_a_path():
    recipe = Recipe(model=Model(name="a"), data=Data(path=Path("x.txt")), steps=10)  # type: ignore[arg-type]
    assert apply(recipe, {}) == RECIPE


def test_every_leaf_has_its_key():
    assert {"model.name", "optimizer.betas", "stop_after", "evaluation.prompt", "adapter"} <= set(flatten(RECIPE))
    assert not {key for key in flatten(RECIPE) if key.startswith("laptop")}
