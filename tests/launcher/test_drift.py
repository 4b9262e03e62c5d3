from __future__ import annotations

import pytest

from launcher.drift import (
    check,
    compare_code,
    compare_environments,
    compare_identities,
    compare_places,
    compare_settings,
    refuse_unknown_fields,
)
from launcher.errors import DriftError, UsageError

MACHINE = {"python": "3.11.7", "cpu": "a", "gpus": [], "packages": {"torch": "2.13.0", "rich": "15"}}


def test_a_changed_learning_rate_is_refused_by_name():
    changes = compare_settings({"optimizer.lr": 1e-3}, {"optimizer.lr": 1e-4})
    with pytest.raises(DriftError, match=r"optimizer.lr changed: 0.001 -> 0.0001; .* --allow-change optimizer.lr"):
        check(changes, [])
    assert check(changes, ["optimizer.lr"]) == ["optimizer.lr changed: 0.001 -> 0.0001"]


@pytest.mark.parametrize(
    "key", ["stop_after", "checkpoint.every", "checkpoint.keep", "evaluation.samples", "data.workers"]
)
def test_settings_that_compute_nothing_may_change(key):
    assert check(compare_settings({key: 1}, {key: 2}), []) == [f"{key} changed: 1 -> 2"]


@pytest.mark.parametrize(
    "key",
    ["parallel.strategy", "parallel.cpu_offload", "batch.micro", "model.activation_checkpointing", "deterministic"],
)
def test_how_the_same_sums_are_cut_may_change_as_the_number_of_ranks_may(key):
    assert check(compare_settings({key: 1}, {key: 2}), []) == [f"{key} changed: 1 -> 2"]


def test_another_torch_is_refused_and_another_processor_is_said():
    newer = {**MACHINE, "cpu": "b", "packages": {"torch": "2.14.0", "rich": "16"}}
    changes = compare_environments(MACHINE, newer)
    with pytest.raises(DriftError, match=r"torch changed: 2\.13\.0 -> 2\.14\.0"):
        check(changes, [])
    assert check(changes, ["torch"]) == ["torch changed: 2.13.0 -> 2.14.0", "cpu changed: a -> b"]


def test_another_build_of_the_same_torch_is_said_and_not_refused():
    before = {**MACHINE, "packages": {"torch": "2.13.0+cpu"}}
    after = {**MACHINE, "packages": {"torch": "2.13.0+cu130"}}
    assert check(compare_environments(before, after), []) == ["torch changed: 2.13.0+cpu -> 2.13.0+cu130"]


def test_another_place_is_said_and_not_refused():
    before = {"nodes": 1, "ranks_per_node": 2, "has_gpus": False, "precision": "fp32", "started": 1.0}
    after = {**before, "ranks_per_node": 4, "started": 2.0}
    assert check(compare_places(before, after), []) == ["ranks_per_node changed: 2 -> 4"]


def test_a_change_of_text_with_line_breaks_is_one_line():
    assert check(compare_settings({"evaluation.prompt": "a\nb"}, {"evaluation.prompt": None}), []) == [
        "evaluation.prompt changed: a b -> None"
    ]


def test_a_field_that_cannot_change_is_refused_with_the_nearest_one():
    refuse_unknown_fields(["optimizer.lr", "torch", "data", "base_model", "precision"], ["optimizer.lr"])
    with pytest.raises(UsageError, match=r"--allow-change optimizer.lrr: .* did you mean optimizer.lr\?"):
        refuse_unknown_fields(["optimizer.lrr"], ["optimizer.lr"])


def test_changed_code_is_said_and_names_the_files():
    (change,) = compare_code({"a.py": "1", "b.py": "2"}, {"a.py": "1", "b.py": "3", "c.py": "4"})
    assert not change.decides_result
    assert "b.py, c.py differ now; the run goes on with its snapshot" in str(change)


def test_another_base_model_is_refused_by_name():
    with pytest.raises(DriftError, match="base_model changed"):
        check(compare_identities({"base_model": "a" * 64}, {"base_model": "b" * 64}), [])


def test_nothing_changed_says_nothing():
    assert check([*compare_environments(MACHINE, MACHINE), *compare_code({"a": "1"}, {"a": "1"})], []) == []
