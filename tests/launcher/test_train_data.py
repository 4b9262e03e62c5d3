from __future__ import annotations

import json
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cluster.topology import Topology
from launcher import Batch, Data, Model, Recipe
from launcher.errors import UsageError
from launcher.plan import Plan, make_plan
from launcher.train.data import (
    NO_LOSS,
    ByteWindows,
    Questions,
    collate,
    is_held_out,
    load_examples,
    micro_batches,
    sample_order,
)
from launcher.train.digests import sample_digest


def plan_of(size: int, ranks: int, micro: int = 3) -> Plan:
    topology = Topology(nodes=1, ranks_per_node=ranks, has_gpus=False)
    return Plan(topology=topology, batch_size=size, micro=micro, threads_per_rank=1)


EXAMPLES = [{"id": str(i), "input_ids": [i], "labels": [i]} for i in range(10)]


@given(count=st.integers(1, 50), seed=st.integers(0, 5), position=st.integers(0, 200), length=st.integers(1, 120))
def test_a_piece_of_the_sample_order_does_not_depend_on_how_it_is_cut(count, seed, position, length):
    whole = sample_order(count, seed, 0, position + length)
    assert sample_order(count, seed, position, position + length) == whole[position:]
    epochs = [whole[start : start + count] for start in range(0, len(whole) - count + 1, count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)


@given(size=st.integers(1, 40), ranks=st.integers(1, 8))
def test_the_shares_of_the_ranks_tile_the_batch(size, ranks):
    plan = plan_of(max(size, ranks), ranks)
    shares = [plan.share(rank) for rank in range(ranks)]
    assert [first for first, _ in shares] == [0, *(last for _, last in shares[:-1])]
    assert shares[-1][1] == plan.batch_size
    assert all(last > first for first, last in shares)


def test_loading_the_first_step_after_a_start_draws_none_of_its_random_numbers():
    before = torch.get_rng_state()
    next(micro_batches(EXAMPLES, plan_of(4, 1), seed=3, samples=8, rank=0, workers=0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("workers", [0, 1])
def test_each_step_has_the_same_samples_at_any_world_size(ranks, workers, tmp_path, monkeypatch):
    monkeypatch.setenv("LAUNCH_NOTICE", str(tmp_path / "notice"))
    steps = 5
    seen = []
    for rank in range(ranks):
        stream = micro_batches(EXAMPLES, plan_of(4, ranks), seed=3, samples=8, rank=rank, workers=workers)
        seen.append([[i for batch in step for i in batch["ids"]] for step in islice(stream, steps)])
    together = [sorted(i for ids in step for i in ids) for step in zip(*seen, strict=True)]
    expected = sample_order(10, 3, 8, 8 + 4 * steps)
    assert together == [sorted(str(i) for i in expected[s * 4 : s * 4 + 4]) for s in range(steps)]


def test_the_samples_digest_does_not_depend_on_the_order_within_a_step():
    parts = sample_digest(1, ["a"]) + sample_digest(1, ["b", "c"])
    assert sample_digest(1, ["c", "a", "b"]) == parts % 2**63
    assert sample_digest(2, ["a", "b", "c"]) != parts % 2**63


def test_padding_is_masked_and_has_no_loss():
    batch = collate(
        [{"id": "a", "input_ids": [1, 2, 3], "labels": [2, 3, 4]}, {"id": "b", "input_ids": [5], "labels": [6]}]
    )
    assert batch["input_ids"].tolist() == [[1, 2, 3], [5, 0, 0]]
    assert batch["labels"].tolist() == [[2, 3, 4], [6, NO_LOSS, NO_LOSS]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["ids"] == ["a", "b"]


def test_byte_windows_predict_the_next_byte_and_split_by_hash(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(bytes(range(250)) * 20)
    train, held_out = ByteWindows(path, "train", 10), ByteWindows(path, "held_out", 10)
    assert len(train) + len(held_out) == (5000 - 1) // 10
    example = train[0]
    assert example["labels"][:-1] == example["input_ids"][1:]
    assert not is_held_out(example["id"])
    assert is_held_out(held_out[0]["id"])


class Words:
    """A tokenizer of one number per word."""

    chat_template = None
    eos_token_id = 1

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [len(word) + 10 for word in text.split()]}


def test_the_loss_of_a_question_is_on_its_answer_and_the_end_of_it(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"id": "x", "question": "what is it", "answer": "a thing"}) + "\n")
    split = "held_out" if is_held_out("x") else "train"
    (example,) = Questions(path, split, 100, Words())
    learned = [label for label in example["labels"] if label != NO_LOSS]
    assert learned == [11, 15, 1]
    assert len(example["input_ids"]) == len(example["labels"])


def test_a_question_that_leaves_no_room_for_its_answer_is_left_out(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"id": "x", "question": "very " * 50, "answer": "a"}) + "\n")
    split = "held_out" if is_held_out("x") else "train"
    assert len(Questions(path, split, 10, Words())) == 0


def test_data_that_is_too_short_is_refused(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("abc")
    recipe = Recipe(model=Model(build="m:f"), data=Data(path=str(path), sequence_length=16), steps=1)
    with pytest.raises(UsageError, match="holds no training sample of 16 tokens"):
        load_examples(recipe, "train", None)


def test_a_function_that_gives_no_example_is_named(tmp_path):
    (tmp_path / "none.py").write_text("def none(split): return []\n")
    name = f"{tmp_path / 'none.py'}:none"
    recipe = Recipe(model=Model(build="m:f"), data=Data(build=name), steps=1)
    with pytest.raises(UsageError, match=f"data.build={name} gives no training sample"):
        load_examples(recipe, "train", None)


def test_a_batch_in_tokens_is_so_many_samples_at_any_number_of_ranks():
    recipe = Recipe(model=Model(build="m:f"), data=Data(path="x.txt"), steps=1, batch=Batch(tokens=16 * 256, micro=2))
    plan = make_plan(recipe, Topology(nodes=1, ranks_per_node=4, has_gpus=False), cores_per_node=4)
    assert plan.describe_batch(4096) == "16 samples (4096 tokens) = 2 micro x 2 accumulation x 4 ranks"
    with pytest.raises(UsageError, match=r"batch\.tokens=4096 cannot .* use at most 16 ranks, or batch\.tokens=4352"):
        make_plan(recipe, Topology(nodes=1, ranks_per_node=17, has_gpus=False), cores_per_node=4)


def test_more_ranks_than_samples_are_refused_with_the_nearest_that_fit():
    recipe = Recipe(model=Model(build="m:f"), data=Data(path="x.txt"), steps=1, batch=Batch(size=4))
    with pytest.raises(UsageError, match=r"use at most 4 ranks, or batch\.size=8"):
        make_plan(recipe, Topology(nodes=1, ranks_per_node=8, has_gpus=False), cores_per_node=2)
