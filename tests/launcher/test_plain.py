"""What is plain is what omegaconf makes of it, too: `launcher.tree` is asked about the same."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from launcher import Data, Lora, Model, Recipe, plain, tree
from launcher.errors import UsageError
from launcher.loading import load, shipped_recipes, to_yaml
from launcher.overrides import flatten

RECIPE = Recipe(
    model=Model(name="a", arguments={"width": 64, "it": "1"}),
    data=Data(path="x.txt"),
    steps=10,
    adapter=Lora(alpha=32),
)
KEYS = st.sampled_from([*flatten(RECIPE), "adapter", "model.arguments.new", "data.arguments.it"])
WORDS = ("fast", "auto", "bf16", "cosine", "true", "False", "yes", "null", "nan", "Infinity", "e5", "s3://b/x.y")
NUMBERS = ("0", "-0", "7", "07", "1e3", "1.5e3", "1.", "-0.0", "1e-4", "1e99", "1_000", "0x1", "9" * 15, "9" * 16)
OTHERS = (None, True, 7, 1.5, 2**60, float("inf"), (1, 2), [0.5, 0.9], ("a",), {}, {"a": 1}, Lora(), Model(name="b"))
TEXTS = st.one_of(
    st.sampled_from(WORDS),
    st.sampled_from(NUMBERS),
    st.text("abeEfnxy0123456789._-+:/@#~ ", max_size=8),
    st.integers().map(str),
    st.floats().map(str),
)


def meaning(make: Callable[..., Recipe], *words: object) -> str:
    """The recipe, with the types of its values, or the refusal."""
    try:
        return repr(make(*words))
    except UsageError as error:
        return str(error)


@settings(max_examples=1000, deadline=None)
@given(st.dictionaries(KEYS, st.one_of(TEXTS, st.sampled_from(OTHERS)), min_size=1, max_size=2))
@example({"schedule.kind": "fast", "optimizer.lr": "fast"})
def test_what_is_plain_means_what_it_means_to_omegaconf(changes):
    with suppress(plain.NotPlain):
        assert meaning(plain.apply, RECIPE, changes) == meaning(tree.apply, RECIPE, changes, "")


@settings(max_examples=300, deadline=None)
@given(KEYS, st.one_of(TEXTS, st.sampled_from(OTHERS)))
def test_a_mapping_that_is_plain_means_what_it_means_to_omegaconf(key, value):
    mapping = asdict(RECIPE)
    holder = mapping
    *sections, name = key.split(".")
    for section in sections:
        holder = holder[section]
    holder[name] = value
    with suppress(plain.NotPlain):
        assert meaning(plain.from_mapping, mapping) == meaning(tree.from_mapping, mapping, "")


@pytest.mark.parametrize("section", ["model", "adapter", "parallel", "batch"])
@pytest.mark.parametrize("value", [..., None, {}, {"nothing": 1}, 3])
def test_a_mapping_without_a_section_means_what_it_means_to_omegaconf(section, value):
    mapping = {name: inner for name, inner in asdict(RECIPE).items() if (name, value) != (section, ...)}
    if value is not ...:
        mapping[section] = value
    with suppress(plain.NotPlain):
        assert meaning(plain.from_mapping, mapping) == meaning(tree.from_mapping, mapping, "")


@pytest.mark.parametrize("key", ["optimizer.lr", "steps", "deterministic", "quantize", "stop_after", "optimizer.clip"])
def test_a_word_in_the_wrong_place_is_refused_without_omegaconf(key):
    with pytest.raises(UsageError, match=f"^{key}=fast is not "):
        plain.apply(RECIPE, {key: "fast"})


@pytest.mark.parametrize("name", [name for name, _, _ in shipped_recipes()])
def test_recipes_that_ship_are_plain_on_a_laptop_and_elsewhere(name, monkeypatch):
    monkeypatch.setattr(tree, "apply", None)
    for laptop in (True, False):
        resolved = load(name, ["optimizer.lr=1e-4", "steps=70", "checkpoint.every=auto"], laptop=laptop)
        written = yaml.safe_load(to_yaml(resolved))
        assert plain.from_mapping(written) == resolved.recipe == tree.from_mapping(written, name)


@pytest.mark.parametrize("changed", [{"steps": True}, {"precision": "fp8"}, {"adapter": Model(name="b")}, {"data": 3}])
def test_a_recipe_with_a_value_of_another_type_is_not_plain(changed):
    wrong = Recipe(**({"model": Model(name="a"), "data": Data(path="x"), "steps": 3, "adapter": Lora()} | changed))
    with pytest.raises(plain.NotPlain):
        plain.apply(wrong, {})
