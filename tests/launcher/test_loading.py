from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher import AdamW, Batch, Data, Evaluation, Lora, Model, Recipe
from launcher.errors import UsageError
from launcher.loading import Resolved, freeze, load, load_frozen, load_yaml, relocated, shipped_recipes, to_yaml
from launcher.overrides import apply, flatten

OWN = """
from launcher import Batch, Data, Model, Recipe

def build(width=2):
    import torch
    return torch.nn.Linear(width, width)

def examples(split):
    return []

RECIPE = Recipe(model=Model(build=build), data=Data(build=examples), steps=10)
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def test_command_line_wins_over_laptop_and_laptop_over_recipe(tmp_path, own):
    own.write_text(OWN.replace("steps=10", "steps=10, batch=Batch(size=64), laptop={'steps': 5, 'batch.size': 8}"))
    resolved = load(str(own), ["steps=7"], laptop=True)
    assert (resolved.recipe.steps, resolved.recipe.batch.size, resolved.recipe.batch.micro) == (7, 8, 8)
    assert resolved.origins["steps"] == "command line"
    assert resolved.origins["batch.size"] == "laptop"
    assert resolved.origins["batch.micro"] == "recipe"
    assert load(str(own), [], laptop=False).recipe.batch.size == 64


def test_functions_of_a_recipe_are_held_by_file_and_name(own):
    recipe = load(str(own), [], laptop=False).recipe
    assert recipe.model.build == f"{own}:build"
    assert recipe.data.build == f"{own}:examples"


def test_a_data_path_is_relative_to_the_recipe(own):
    own.write_text(OWN.replace("Data(build=examples)", "Data(path='texts/a.txt')"))
    assert load(str(own), [], laptop=False).recipe.data.path == str(own.parent / "texts/a.txt")


@pytest.mark.parametrize("by_laptop", [True, False])
def test_a_data_path_is_relative_to_the_recipe_whoever_gives_it(own, by_laptop):
    own.write_text(OWN.replace("Data(build=examples)", "Data(path='a.txt')").replace(
        "steps=10", "steps=10, laptop={'data.path': 'b.txt'}"))  # fmt: skip
    words = [] if by_laptop else ["data.path=b.txt"]
    assert load(str(own), words, laptop=by_laptop).recipe.data.path == str(own.parent / "b.txt")


def test_an_argument_with_the_name_of_a_truth_value_survives_yaml(tmp_path):
    arguments = {"on": 1, "no": 2, "null": 3, "plain": 4}
    recipe = Recipe(model=Model(name="a", arguments=arguments), data=Data(path="x.txt"), steps=3)
    origins = {"model.arguments.on": "laptop"}
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(Resolved(recipe=recipe, origins=origins, source="x.py")))
    again = load_yaml(path)
    assert again.recipe == recipe
    assert again.origins["model.arguments.on"] == "laptop"


def test_each_leaf_is_one_line_whatever_is_in_it():
    odd = "one\ntwo: # \x85 \u2028 \x10 é"
    recipe = Recipe(model=Model(name=odd), data=Data(path="x.txt"), steps=3, adapter=Lora(targets=(odd, "plain")))
    lines = to_yaml(Resolved(recipe=recipe, origins={}, source="x.py")).splitlines()
    assert [line for line in lines[1:] if not line.endswith(("  # recipe", ":"))] == []


BAD_YAML = {
    "a: [": "is not YAML",
    "a: 2020-13-45": "is not YAML",
    "- 1": "is not a recipe",
    "": "is not a recipe",
    "model: {name: a}\ndata: {path: b}": "steps is missing",
    "optimizer: {lrr: 1}": "optimizer.lrr is unknown; did you mean lr?",
    "\udcff": "is not YAML",
}


@pytest.mark.parametrize(("text", "said"), BAD_YAML.items())
def test_a_yaml_file_that_is_no_recipe_is_one_line(tmp_path, text, said):
    path = tmp_path / "bad.yaml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UsageError, match=re.escape(said)) as caught:
        load(str(path), [], laptop=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name, _, _ in shipped_recipes()])
@pytest.mark.parametrize("laptop", [True, False])
def test_the_yaml_that_show_prints_is_the_same_recipe(name, laptop, tmp_path):
    resolved = load(name, ["optimizer.lr=1e-4", "evaluation.prompt=it's: # odd"], laptop=laptop)
    path = tmp_path / "shown.yaml"
    path.write_text(to_yaml(resolved))
    again = load_yaml(path)
    assert again.recipe == replace(resolved.recipe, laptop={})
    assert again.origins == resolved.origins
    assert again.source == resolved.source


texts = st.text(max_size=20)


@settings(max_examples=40, deadline=None)
@given(
    name=st.text(min_size=1, max_size=20),
    prompt=st.none() | texts,
    lr=st.floats(1e-9, 9.9),
    clip=st.none() | st.floats(1e-3, 1e3),
    targets=st.lists(texts.filter(bool), min_size=1, max_size=3),
    arguments=st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.integers() | st.booleans() | texts),
)
def test_any_recipe_survives_yaml(tmp_path_factory, name, prompt, lr, clip, targets, arguments):
    recipe = Recipe(
        model=Model(name=name, arguments=arguments),
        data=Data(path="x.txt"),
        steps=3,
        adapter=Lora(targets=tuple(targets)),
        optimizer=AdamW(lr=lr, clip=clip),
        evaluation=Evaluation(prompt=prompt),
    )
    path = tmp_path_factory.mktemp("yaml") / "recipe.yaml"
    path.write_text(to_yaml(Resolved(recipe=recipe, origins={}, source="x.py")))
    assert load_yaml(path).recipe == recipe


@pytest.mark.parametrize(
    "text",
    ["${oc.env:HOME}", "a ${b} \\${c}", "'quoted'", "[brackets", "{a: 1", "x: y", "", "~", "null", "# no", "1e-4"],
)
def test_an_override_is_data(own, text):
    recipe = load(str(own), [], laptop=False).recipe
    changed = apply(recipe, {"evaluation.prompt": text})
    assert changed.evaluation.prompt in (text, "0.0001") or (
        text in ("", "~", "null") and changed.evaluation.prompt is None
    )


BAD_WORDS = {
    "optimizer.lrr=1": "did you mean optimizer.lr?",
    "optimzer.lr=1": "did you mean optimizer.lr?",
    "optimizer.lr=abc": "optimizer.lr=abc is not a number",
    "optimizer.lr=": "optimizer.lr=",
    "optimizer.lr=-1": "optimizer.lr=-1.0 must be greater than 0",
    "optimizer.lr=nan": "optimizer.lr=nan must be greater than 0",
    "optimizer.lr=inf": "optimizer.lr=inf must be greater than 0",
    "optimizer.betas=[0.9]": "optimizer.betas",
    "optimizer.betas=[0.9,1.5]": "optimizer.betas",
    "steps=0": "steps=0 must be at least 1",
    "steps=3.5": "steps=3.5 is not a whole number",
    "steps=null": "steps=null",
    "steps=1_000_000_000_000_000_000_000x": "steps=",
    "stop_after=11": "stop_after=11 must be in [1, steps=10]",
    "seed=-1": "seed=-1 must be in",
    "parallel.strategy=dpp": "parallel.strategy=dpp is not one of ddp, fsdp",
    "parallel.cpu_offload=maybe": "parallel.cpu_offload=maybe is not true or false",
    "quantize=nf4": "quantize=nf4 freezes the model",
    "adapter.rank=4": "adapter",
    "model=x": "unknown setting model=x",
    "model.name=x": "needs exactly one of name, build",
    "laptop={}": "unknown setting laptop",
    "batch.size=0": "batch.size=0 must be at least 1",
    "data.workers=-1": "data.workers=-1 must be 0 or more",
    "checkpoint.keep=0": "checkpoint.keep=0 must be at least 1",
    "steps": "is not a setting; write KEY=VALUE",
    "=3": "unknown setting",
    "a b=3": "unknown setting",
    "model.arguments.=3": "unknown setting",
    "_target_=os.system": "unknown setting _target_",
}


@pytest.mark.parametrize(("word", "said"), BAD_WORDS.items())
def test_a_bad_override_is_one_line_that_names_it(own, word, said):
    with pytest.raises(UsageError) as caught:
        load(str(own), [word], laptop=False)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_setting_given_twice_is_refused(own):
    with pytest.raises(UsageError, match="steps is given twice: 3 and 4"):
        load(str(own), ["steps=3", "steps=4"], laptop=False)


BAD_RECIPES = {
    "def broken(:": "bad.py:1:",
    "import nothing_like_this": "bad.py:1: the recipe raised ModuleNotFoundError",
    "x = 1\nraise ValueError('boom')": "bad.py:2: the recipe raised ValueError: boom",
    "import sys\nsys.exit(3)": "bad.py:2: the recipe raised SystemExit",
    "x = 1": "has no recipe RECIPE; it has: none",
    OWN.replace("RECIPE =", "A = B ="): "it has: A, B",
    OWN.replace("steps=10", "steps='ten'"): "bad.py:11: steps=ten must be at least 1",
    OWN.replace("steps=10", "steps=10.5"): "steps=10.5 is not a whole number",
    OWN.replace("steps=10", "steps=-1"): "steps=-1 must be at least 1",
    OWN.replace("steps=10", "step=10"): "unexpected keyword argument 'step'",
    OWN.replace("steps=10", "steps=10, laptop={'stepz': 3}"): "unknown setting stepz=3; did you mean steps?",
    OWN.replace("steps=10", "steps=10, laptop={3: 1}"): "must be a dictionary such as",
    OWN.replace("steps=10", "steps=10, laptop=['steps=3']"): "must be a dictionary such as",
    OWN.replace("build=build", "build=lambda: 1"): "<lambda> is not a function at the top level",
    OWN.replace("build=build", "build=__import__('functools').partial(build)"): "is not a function at the top level",
    "raise ValueError('one\\ntwo')": "bad.py:1: the recipe raised ValueError: one two",
    "x = 1\0": "null bytes",
}


@pytest.mark.parametrize(("text", "said"), BAD_RECIPES.items())
def test_a_bad_recipe_is_one_line_that_says_where(tmp_path, text, said):
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load(str(path), [], laptop=True)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_imports_torch_is_refused(tmp_path):
    path = tmp_path / "heavy.py"
    path.write_text("import torch\n" + OWN)
    code = f"from launcher.loading import load\nload({str(path)!r}, [], laptop=False)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "heavy.py imports torch at its top level" in result.stderr.splitlines()[-1]


def test_a_recipe_that_imports_torch_is_refused_without_importing_it(tmp_path):
    path = tmp_path / "heavy.py"
    path.write_text("import torch.nn\n")
    code = f"""
import sys
from launcher.errors import UsageError
from launcher.loading import load
try:
    load({str(path)!r}, [], laptop=False)
except UsageError:
    print([name for name in sys.modules if name.partition('.')[0] == 'torch'])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_a_syntax_error_in_a_module_of_the_recipes_names_that_module(own):
    (own.parent / "beside.py").write_text("x = (\n")
    own.write_text("import beside\n" + OWN)
    with pytest.raises(UsageError, match=r"beside.py:1: "):
        load(str(own), [], laptop=False)


def test_a_recipe_may_hold_dataclasses_and_import_what_lies_beside_it(own, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (own.parent / "sizes_beside.py").write_text("STEPS = 4\n")
    own.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom sizes_beside import STEPS\n"
        "@dataclass\nclass Point:\n    x: int = 1\n" + OWN.replace("steps=10", "steps=STEPS")
    )
    assert load(str(own), [], laptop=False).recipe.steps == 4


def test_a_recipe_that_was_edited_within_a_second_is_read_again(own):
    for steps in range(10, 20):
        own.write_text(OWN.replace("steps=10", f"steps={steps}"))
        assert load(str(own), [], laptop=False).recipe.steps == steps


def test_a_recipe_that_hangs_is_stopped_even_if_it_catches_everything(own, monkeypatch):
    monkeypatch.setattr("launcher.loading.IMPORT_SECONDS", 0.05)
    own.write_text("import time\ntry:\n    time.sleep(60)\nexcept Exception:\n    time.sleep(60)\n")
    with pytest.raises(UsageError, match=r"own.py:\d+: importing it took more than 0.05 s"):
        load(str(own), [], laptop=False)


def test_a_recipe_can_be_loaded_in_another_thread(own):
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(load, str(own), [], laptop=False).result().recipe.steps == 10


@pytest.mark.parametrize("source", ["a" * 300, "a" * 300 + ".py", "", ":", "nope.yaml", "a\0b.py", "recipes"])
def test_a_source_that_is_nowhere_is_one_line(source):
    with pytest.raises(UsageError) as caught:
        load(source, [], laptop=False)
    assert "\n" not in str(caught.value)


def test_what_a_recipe_prints_goes_to_stderr(own, capfd):
    own.write_text("print('hello')\n" + OWN)
    load(str(own), [], laptop=False)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")


def test_a_recipe_of_several_is_chosen_by_name(own):
    own.write_text(OWN + "\nfrom launcher import replace\nSHORT = replace(RECIPE, steps=2)\n")
    assert load(str(own), [], laptop=False).recipe.steps == 10
    assert load(f"{own}:SHORT", [], laptop=False).recipe.steps == 2


def test_an_unknown_recipe_names_the_nearest_one():
    with pytest.raises(UsageError, match="there is no recipe gpt_tinny; did you mean gpt_tiny"):
        load("gpt_tinny", [], laptop=False)


def test_a_frozen_recipe_finds_its_functions_in_the_snapshot(own, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    resolved = load(str(own), [], laptop=False)
    freeze(resolved, own.parent, run / "config.yaml")
    assert "build: code/own.py:build" in (run / "config.yaml").read_text()
    assert load_frozen(run / "config.yaml").recipe.model.build == f"{run}/code/own.py:build"


def test_relocating_leaves_installed_functions_alone(own):
    resolved = load("gpt_tiny", [], laptop=False)
    assert relocated(resolved, Path("/"), Path("/elsewhere")).recipe.model.build == "launcher.train.gpt:byte_gpt"


def test_flattened_leaves_are_what_can_be_set(own):
    recipe = load(str(own), [], laptop=False).recipe
    for key, value in flatten(recipe).items():
        if value is not None and not isinstance(value, str | list):
            assert apply(recipe, {key: str(value)}) == recipe, key


def test_a_batch_of_the_recipe_is_kept_by_replace():
    assert replace(Batch(size=4), micro=2) == Batch(size=4, micro=2)
