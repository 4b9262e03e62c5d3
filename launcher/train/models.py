"""Models: pre-trained ones by name, with 4-bit base and LoRA adapters where the recipe says so, or a recipe's own."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.checkpoint import checkpoint

from launcher.errors import UsageError
from launcher.recipe import Lora, Recipe
from launcher.strategies import STRATEGIES
from launcher.train.base_weights import BaseWeights
from launcher.train.cache import cache_folder, locked
from launcher.train.digests import digest_files
from launcher.train.functions import find_function
from launcher.train.initial_weights import InitialWeights, build_without_memory
from launcher.train.precision import COMPUTE_DTYPES

_WEIGHTS_AND_TOKENIZER = ("*.safetensors", "config.json", "tokenizer.json", "tokenizer.model")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model on its device. `tokenizer` and `source` (where its base lies) are None for a recipe's own model.

    unread: what its parameters, which have no memory as yet, are to be filled from.
    """

    module: torch.nn.Module
    tokenizer: Any | None = None
    source: str | None = None
    unread: BaseWeights | InitialWeights | None = None

    def count(self) -> tuple[int, int]:
        """(trainable, total) parameters; 4-bit ones are counted one by one, not as the bytes that hold them."""
        sizes = {id(p): (p.requires_grad, _elements(p)) for p in self.module.parameters()}
        return sum(n for grad, n in sizes.values() if grad), sum(n for _, n in sizes.values())


def saved_buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The buffers that belong to the model's state, such as running means; not those that are made anew."""
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return {name: tensor for name, tensor in module.state_dict().items() if name not in parameters}


def _elements(parameter: torch.nn.Parameter) -> int:
    quantised = getattr(parameter, "quant_state", None)
    return parameter.numel() if quantised is None else int(quantised.shape.numel())


def load_model(recipe: Recipe, device: torch.device, precision: str, *, restores: bool = False) -> LoadedModel:
    """Build the recipe's model; the same on every rank, because each seeds itself before what it initialises.

    A model to be sharded is built on the CPU: no device needs room for all of it. Where a checkpoint `restores` its
    values, or each rank can read its part of the files of a base or draw what a recipe's own model starts with, its
    parameters have shapes and no memory (they are on the meta device), so that no host does either. The base under an
    adapter is in no checkpoint, and loaded whole.
    """
    shards = STRATEGIES[recipe.parallel.strategy].shards
    place = torch.device("cpu") if shards and recipe.quantize == "none" else device
    loads_parts = shards and recipe.adapter is None
    if recipe.model.build is not None:
        return _build(recipe, place, shards=shards, restores=restores)
    source = locate(str(recipe.model.name))
    from transformers import AutoTokenizer

    try:
        base, unread = _hollow_base(source, restores=restores) if loads_parts else (None, None)
        if base is None:
            base = _load_base(source, recipe, place, precision)
    except OSError as error:
        raise UsageError(
            f"model.name={recipe.model.name} cannot be loaded ({str(error).splitlines()[0]}); "
            "give a local folder, or a hub id that this machine can reach"
        ) from error
    torch.manual_seed(recipe.seed)  # only now: loading draws random numbers, more of them when it has to convert
    # transformers loads for inference: until the next evaluation there would be no dropout.
    prepared = prepare_model(base, recipe).train()
    return LoadedModel(module=prepared, tokenizer=AutoTokenizer.from_pretrained(source), source=source, unread=unread)


def _build(recipe: Recipe, place: torch.device, *, shards: bool, restores: bool) -> LoadedModel:
    build = partial(find_function(str(recipe.model.build)), **recipe.model.arguments)
    torch.manual_seed(recipe.seed)
    if not shards:
        return LoadedModel(module=prepare_model(build().to(place), recipe).train())
    module, unread = build_without_memory(build)
    if not all(parameter.requires_grad for parameter in module.parameters()):
        return _build(recipe, place, shards=False, restores=restores)  # what it froze is in no checkpoint
    return LoadedModel(module=prepare_model(module, recipe).train(), unread=None if restores else unread)


def repeated_blocks(module: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers that a model repeats: the items of its outermost lists of modules of one class."""
    found: list[torch.nn.Module] = []
    for child in module.children():
        items = list(child.children()) if isinstance(child, torch.nn.ModuleList | torch.nn.Sequential) else []
        is_list = isinstance(child, torch.nn.ModuleList) or len(items) > 1
        if is_list and len({type(item) for item in items}) == 1 and any(True for _ in child.parameters()):
            found += items
        else:
            found += repeated_blocks(child)
    return found


def base_digest(source: str) -> str:
    """Identifies weights, configuration and tokenizer, whatever folder they lie in."""
    folder = _folder_of(source, local_files_only=True)
    return digest_files(sorted({path for pattern in _WEIGHTS_AND_TOKENIZER for path in folder.glob(pattern)}))


def _folder_of(source: str, *, local_files_only: bool) -> Path:
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    patterns = list(_WEIGHTS_AND_TOKENIZER)
    return Path(snapshot_download(source, allow_patterns=patterns, local_files_only=local_files_only))


def locate(name: str) -> str:
    """A folder or hub id that transformers can load. Raises UsageError for a model that is not where `name` says."""
    if name.startswith("package:"):
        return str(_unpack(name))
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise UsageError(f"model.name={name} is not a folder; give a local folder, a hub id, or package:NAME/FILE.gguf")
    return str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name


def _load_base(source: str, recipe: Recipe, device: torch.device, precision: str) -> Any:
    from transformers import AutoModelForCausalLM

    dtype = (COMPUTE_DTYPES[precision] if recipe.adapter else None) or torch.float32
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": "sdpa"}
    if recipe.quantize == "nf4":
        from transformers import BitsAndBytesConfig

        # Shards are gathered as they are stored, and bytes have lost their gradients on GPUs.
        storage = dtype if STRATEGIES[recipe.parallel.strategy].shards else torch.uint8
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_storage=storage,
        )
        options["device_map"] = {"": device}
    module = AutoModelForCausalLM.from_pretrained(source, **options)
    if recipe.quantize == "nf4":
        _keep_gradients_after_evaluation(module)
        return module
    return module.to(device)


def _hollow_base(source: str, *, restores: bool) -> tuple[Any, BaseWeights | None]:
    """What `_load_base` loads in full precision, without memory, and where its values are if no checkpoint brings them.

    (None, None) where the files have them under other names, such as those of an older transformers.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    with _parameters_without_memory():
        module = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(source), dtype=torch.float32, attn_implementation="sdpa"
        )
    with suppress(OSError):  # a model need not have one
        module.generation_config = GenerationConfig.from_pretrained(source)
    if restores:
        return module, None
    weights = BaseWeights(_folder_of(source, local_files_only=False))
    return (module, weights) if weights.have(dict(module.named_parameters()) | saved_buffers(module)) else (None, None)


@contextmanager
def _parameters_without_memory() -> Iterator[None]:
    """Parameters that are registered meanwhile keep their shape alone; those that are shared stay shared."""

    def hollow(_module: torch.nn.Module, _name: str, parameter: torch.nn.Parameter) -> torch.nn.Parameter | None:
        if parameter.is_meta:
            return None
        return torch.nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    hook = register_module_parameter_registration_hook(hollow)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()


def _keep_gradients_after_evaluation(module: Any) -> None:
    # On a CPU with avx512_bf16, bitsandbytes repacks a 4-bit layer at its first forward without gradients, and from
    # then on no gradient passes through it, in silence.
    for layer in module.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def prepare_model(module: Any, recipe: Recipe) -> torch.nn.Module:
    """The module with activation checkpointing and adapters, where the recipe asks for them. Raises UsageError."""
    if recipe.model.activation_checkpointing:
        _checkpoint_activations(module)
    plain: torch.nn.Module = module
    return plain if recipe.adapter is None else _with_adapters(plain, recipe.adapter)


def _checkpoint_activations(module: Any) -> None:
    """Each block keeps its inputs, and computes the rest again in the backward pass."""
    if hasattr(module, "gradient_checkpointing_enable"):
        module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return
    blocks = repeated_blocks(module)
    if not blocks:
        raise UsageError("model.activation_checkpointing=true needs a model with a list of layers; set it to false")
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def _with_adapters(module: torch.nn.Module, lora: Lora) -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        task_type="CAUSAL_LM",
    )
    try:
        adapted: torch.nn.Module = get_peft_model(module, config)
    except ValueError as error:
        raise UsageError(f"adapter.targets={list(lora.targets)} match no layer of the model: {error}") from error
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # adapters train in fp32, whatever the base computes in
    return adapted


def _unpack(name: str) -> Path:
    """Weights inside an installed package, converted once to a folder that transformers loads in a second."""
    package, _, file = name.removeprefix("package:").partition("/")
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise UsageError(f"model.name={name} needs the package {package}, which is not installed")
    source = Path(found.submodule_search_locations[0])
    if not (source / file).is_file():
        raise UsageError(f"model.name={name}: the package {package} has no file {file}")
    cache = cache_folder("models")
    folder = cache / f"{Path(file).stem}-{digest_files([source / file])[:16]}"
    with locked(cache / "lock"):
        if not folder.is_dir():
            _convert(source, file, folder)
    return folder


def _convert(source: Path, file: str, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    staging = folder.with_suffix(".partial")
    shutil.rmtree(staging, ignore_errors=True)
    AutoTokenizer.from_pretrained(str(source), gguf_file=file).save_pretrained(staging)
    loaded = AutoModelForCausalLM.from_pretrained(str(source), gguf_file=file, dtype=torch.float32)
    del loaded.config.quantization_config  # transformers will not save a model that says it is GGUF
    plain = type(loaded)(loaded.config)
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(staging)
    os.rename(staging, folder)
