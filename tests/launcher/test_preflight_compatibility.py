"""Known-bad combinations: each is refused before anything is queued or made, by a plan and by a launch, or works."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.llamas import TINY
from support.runs_for_tests import REPOSITORY

from launcher.cli import main
from launcher.places import own_disk

DRY_RUN = ["--dry-run", "--no-steps"]
LLAMA = str(REPOSITORY / "recipes/llama_fsdp.py")
QLORA = str(REPOSITORY / "recipes/llama_qlora.py")
TINY_GPT = str(REPOSITORY / "recipes/gpt_tiny.py")


def model(folder: Path, tokens: int = 1024, added: int | None = None, **changed: object) -> str:
    """The word for a model of this folder, whose tokenizer has so many tokens."""
    (folder / "config.json").write_text(json.dumps(TINY | {"max_position_embeddings": 4096} | changed))
    vocabulary = {f"token-{i}": i for i in range(tokens)}
    extra = [] if added is None else [{"id": added, "content": "<pad>"}]
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": extra}))
    return f"model.name={folder}"


# What is wrong, the recipe, changes of the model's folder or None, words, what is said.
REFUSED = [
    ("heads-do-not-divide-the-width", LLAMA, {"num_attention_heads": 7}, [], "7 heads do not divide a hidden_size of"),
    ("key-value-heads-do-not-divide-heads", LLAMA, {"num_key_value_heads": 3}, [], "3 key-value heads do not divide 8"),
    ("a-sequence-that-is-too-long", LLAMA, {}, ["data.sequence_length=5000"], "use data.sequence_length=4096"),
    ("more-tokens-than-columns", LLAMA, {"tokens": 1030}, [], "has token 1029, and the model's vocab_size is 1024"),
    ("an-added-token-without-a-column", LLAMA, {"added": 1024}, [], "has token 1024, and the model's vocab_size is"),
    ("questions-without-a-tokenizer", TINY_GPT, None, ["data.path=q.jsonl"], "a model that has a tokenizer"),
    ("a-paged-optimizer", LLAMA, {}, ["optimizer.kind=paged_adamw"], "unknown setting optimizer.kind=paged_adamw"),
    ("a-format-of-4-bit-storage", QLORA, {}, ["quantize.storage=uint8"], "unknown setting quantize.storage=uint8"),
    ("a-backend-of-collectives", LLAMA, {}, ["parallel.backend=nccl"], "unknown setting parallel.backend=nccl"),
    ("4-bit-without-adapters", LLAMA, {}, ["quantize=nf4"], "give an adapter to train, or quantize=none"),
    ("offload-of-replicas", LLAMA, {}, ["parallel.strategy=ddp", "parallel.cpu_offload=true"], "strategy=fsdp"),
    ("hybrid-shards-under-zero", LLAMA, {}, ["parallel.strategy=zero3", "parallel.shard_within_node=true"], "use"),
]  # fmt: skip


@pytest.mark.parametrize("mode", ["--plan", "--name=run"], ids=["plan", "launch"])
@pytest.mark.parametrize(
    ("recipe", "changes", "words", "said"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_what_cannot_work_is_refused_in_one_line_and_nothing_is_made(
    tmp_path, capsys, monkeypatch, mode, recipe, changes, words, said
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    named = [] if changes is None else [model(tmp_path, **changes)]
    assert main([recipe, mode, "--no-laptop", *named, *words, f"--runs-dir={tmp_path / 'runs'}"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


# Known-bad elsewhere; here they are planned, and run: see docs/strategies.md.
WORKS = [
    ("4-bit-under-fsdp", ["parallel.strategy=fsdp"]),
    ("4-bit-under-zero3", ["parallel.strategy=zero3"]),
    ("4-bit-under-zero3-offloaded", ["parallel.strategy=zero3", "parallel.cpu_offload=true"]),
]


@pytest.mark.parametrize("words", [row[1] for row in WORKS], ids=[row[0] for row in WORKS])
def test_what_works_is_not_refused(tmp_path, capsys, monkeypatch, words):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # gloo, not NCCL
    launch = [QLORA, *DRY_RUN, "--gpus=2", "--no-laptop", model(tmp_path), *words, f"--runs-dir={tmp_path / 'runs'}"]
    assert main(launch) == 0
    assert "warning" not in capsys.readouterr().err


def test_a_4_bit_base_under_zero_on_gpus_is_warned_of(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    words = [QLORA, model(tmp_path), "parallel.strategy=zero3", f"--runs-dir={tmp_path / 'runs'}"]
    for mode in (["--plan"], DRY_RUN):
        assert main([*words, *mode]) == 0
        assert "warning: quantize=nf4 with parallel.strategy=zero3 has not been tried" in capsys.readouterr().err


@pytest.mark.parametrize("mode", [["--plan"], DRY_RUN], ids=["plan", "dry-run"])
def test_bf16_on_a_gpu_that_has_none_is_refused(tmp_path, capsys, monkeypatch, mode):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # the launcher then counts on one GPU
    words = [LLAMA, *mode, model(tmp_path), "--gpu", "t4", f"--runs-dir={tmp_path / 'runs'}"]
    assert main([*words, "precision=bf16"]) == 2
    assert (
        "precision=bf16 needs an NVIDIA GPU of Ampere or later, not t4; use precision=auto" in capsys.readouterr().err
    )
    assert main([*words, "precision=auto"]) == 0


@pytest.mark.parametrize(
    ("config", "tokenizer"),
    [("{}", "{}"), ('{"vocab_size": "many", "hidden_size": []}', "[]"), ("[]", '{"model": {"vocab": {}}}')],
)
def test_files_of_another_kind_are_left_to_those_who_can_read_them(tmp_path, capsys, monkeypatch, config, tokenizer):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "tokenizer.json").write_text(tokenizer)
    words = [LLAMA, *DRY_RUN, "--no-laptop", f"model.name={tmp_path}", f"--runs-dir={tmp_path / 'runs'}"]
    assert main(words) == 0


MOUNTS = """\
overlay / overlay rw 0 0
/dev/sda1 /home ext4 rw 0 0
server:/export /home/shared nfs4 rw 0 0
tmpfs /home/shared/my\\040scratch tmpfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/runs", "overlay"),
        ("/home/me/runs", "ext4"),
        ("/home/shared", None),
        ("/home/shared/me/runs", None),
        ("/home/shared/my scratch/runs", "tmpfs"),
    ],
)
def test_a_disk_that_other_machines_may_not_see_is_known_by_its_kind(path, kind):
    assert own_disk(Path(path), MOUNTS) == kind


def test_runs_of_a_cluster_in_a_folder_of_this_machine_are_warned_of(tmp_path, capsys):
    kind = own_disk(tmp_path, Path("/proc/self/mounts").read_text())
    if kind is None:
        pytest.skip("temporary files are on a file system that machines may share")
    words = [LLAMA, "--plan", model(tmp_path), "--on", "slurm", f"--runs-dir={tmp_path / 'runs'}"]
    assert main(words) == 0
    assert f"warning: --runs-dir {tmp_path / 'runs'} is on {kind} here" in capsys.readouterr().err
