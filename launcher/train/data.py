"""Training data: which samples make up a step is a function of the seed and the number of samples consumed so far.

An example is a dictionary with `id`, and either `input_ids` and `labels` (lists of the same length; a label stands at
the position that predicts it, -100 is no loss) or any tensors that can be stacked.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from cluster.preemption import Notice, handle_signals
from cluster.processes import die_with_parent
from launcher.errors import UsageError
from launcher.places import is_object
from launcher.plan import Plan
from launcher.recipe import Recipe
from launcher.train.bucket_data import local_copy
from launcher.train.digests import digest_files
from launcher.train.engines import Batch
from launcher.train.functions import find_function

Example = dict[str, Any]
NO_LOSS = -100


def load_examples(recipe: Recipe, split: str, tokenizer: Any | None) -> Sequence[Example]:
    """The examples of `split` (`train` or `held_out`). Raises UsageError when there are none to train on."""
    examples = _open(recipe, split, tokenizer)
    if split == "train" and len(examples) == 0:
        if recipe.data.path is None:
            raise UsageError(f"data.build={recipe.data.build} gives no training sample; see docs/recipes.md")
        raise UsageError(
            f"data.path={recipe.data.path} holds no training sample of {recipe.data.sequence_length} tokens"
        )
    return examples


def data_digest(recipe: Recipe) -> str | None:
    """Identifies the data file; None for a recipe's own data, which has none."""
    return None if recipe.data.path is None else digest_files([_file(recipe.data.path)])


def _file(path: str) -> Path:
    """The file itself, or the copy that this machine has of an object."""
    return local_copy(path) if is_object(path) else Path(path)


def is_held_out(sample_id: str) -> bool:
    """One sample in 20, by a hash of its id: adding samples never moves another one between splits."""
    return int(hashlib.sha256(sample_id.encode()).hexdigest()[:8], 16) % 20 == 0


def _open(recipe: Recipe, split: str, tokenizer: Any | None) -> Sequence[Example]:
    data = recipe.data
    if data.build is not None:
        examples: Sequence[Example] = find_function(data.build)(split, **data.arguments)
        return examples
    path = _file(str(data.path))
    if path.suffix == ".txt":
        return ByteWindows(path, split, data.sequence_length)
    if path.suffix == ".jsonl" and tokenizer is not None:
        return Questions(path, split, data.sequence_length, tokenizer)
    raise UsageError(f"data.path={data.path} is not .txt, nor .jsonl with a model that has a tokenizer; use data.build")


class ByteWindows(Sequence[Example]):
    """A text file as consecutive windows of `length` bytes, each predicting its next byte."""

    def __init__(self, path: Path, split: str, length: int) -> None:
        self._bytes = path.read_bytes()
        self._length = length
        windows = range((len(self._bytes) - 1) // length)
        self._windows = [w for w in windows if is_held_out(f"{path.name}:{w}") == (split == "held_out")]
        self._name = path.name

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        window = self._windows[index]
        piece = self._bytes[window * self._length : (window + 1) * self._length + 1]
        return {"id": f"{self._name}:{window}", "input_ids": list(piece[:-1]), "labels": list(piece[1:])}


class Questions(Sequence[Example]):
    """JSON lines with `id`, `question` and `answer`, in the tokenizer's chat format; the loss is on the answer."""

    def __init__(self, path: Path, split: str, length: int, tokenizer: Any) -> None:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        wanted = [line for line in lines if is_held_out(line["id"]) == (split == "held_out")]
        tokenized = (self._tokenize(line, length, tokenizer) for line in wanted)
        self._examples = [example for example in tokenized if any(label != NO_LOSS for label in example["labels"])]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: Any) -> Any:
        return self._examples[index]

    @staticmethod
    def _tokenize(line: dict[str, str], length: int, tokenizer: Any) -> Example:
        question = prompt_ids(line["question"], tokenizer)
        answer = tokenizer(line["answer"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        tokens = (question + answer)[: length + 1]
        labels = ([NO_LOSS] * len(question) + answer)[: length + 1]
        return {"id": line["id"], "input_ids": tokens[:-1], "labels": labels[1:]}


def prompt_ids(question: str, tokenizer: Any) -> list[int]:
    """The tokens that ask `question`, up to where the answer starts."""
    if tokenizer.chat_template is None:
        return list(tokenizer(f"Question: {question}\nAnswer: ")["input_ids"])
    messages = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def sample_order(count: int, seed: int, first: int, last: int) -> list[int]:
    """The indices of samples [first, last) of the endless stream: each epoch is a permutation from (seed, epoch)."""
    indices: list[int] = []
    for epoch in range(first // count, -(-last // count)):
        start, stop = max(first - epoch * count, 0), min(last - epoch * count, count)
        indices += _permutation(count, seed, epoch)[start:stop].tolist()
    return indices


_last_permutation: tuple[tuple[int, int, int], np.ndarray[Any, Any]] | None = None


def _permutation(count: int, seed: int, epoch: int) -> np.ndarray[Any, Any]:
    global _last_permutation
    key = (count, seed, epoch)
    if _last_permutation is None or _last_permutation[0] != key:
        _last_permutation = key, np.random.Generator(np.random.PCG64([seed, epoch])).permutation(count)
    return _last_permutation[1]


def micro_batches(
    examples: Sequence[Example], plan: Plan, seed: int, samples: int, rank: int, workers: int
) -> Iterator[list[Batch]]:
    """For ever: the micro-batches of this rank for each next step, after `samples` samples were consumed."""
    first, last = plan.share(rank)
    share = last - first
    per_step = -(-share // plan.micro)

    def indices() -> Iterator[list[int]]:
        position = samples
        while True:
            mine = sample_order(len(examples), seed, position + first, position + last)
            yield from (mine[start : start + plan.micro] for start in range(0, share, plan.micro))
            position += plan.batch_size

    loader = DataLoader(
        _Indexed(examples),
        batch_sampler=indices(),
        collate_fn=collate,
        num_workers=workers,
        # Of its own: the loader draws a number when it starts, and a resumed run starts one in another step.
        generator=torch.Generator().manual_seed(seed + rank),
        worker_init_fn=functools.partial(_start_worker, rank=os.getpid()) if workers else None,
        multiprocessing_context="fork" if workers else None,  # a rank is a fork itself; data need not be picklable
    )
    stream = iter(loader)
    while True:
        yield [next(stream) for _ in range(per_step)]


class _Indexed(Dataset[Example]):
    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]


def _start_worker(_worker: int, *, rank: int) -> None:
    die_with_parent(signal.SIGKILL, rank)
    handle_signals(Notice.from_environment())


def collate(examples: list[Example]) -> Batch:
    """Pad `input_ids` and `labels` to the longest of the micro-batch; stack everything else."""
    batch: Batch = {"ids": [example["id"] for example in examples]}
    for name in examples[0]:
        values = [example[name] for example in examples]
        if name in ("input_ids", "labels"):
            padding = NO_LOSS if name == "labels" else 0
            tensors = [torch.as_tensor(value) for value in values]
            batch[name] = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=padding)
        elif name != "id":
            batch[name] = torch.stack([torch.as_tensor(value) for value in values])
    if "input_ids" in batch and len({len(example["input_ids"]) for example in examples}) > 1:
        lengths = torch.tensor([len(example["input_ids"]) for example in examples])
        batch["attention_mask"] = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    return batch


def to_device(batch: Batch, device: torch.device) -> Batch:
    return {name: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for name, v in batch.items()}
