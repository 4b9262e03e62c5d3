"""The shape of a decoder-only transformer of Llama's kind, from its configuration alone."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import UsageError
from launcher.recipe import Model

_MODEL_TYPES = ("llama", "mistral")

_LLAMA_3: Mapping[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
}
_LLAMA_1B = {
    **_LLAMA_3,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "tie_word_embeddings": True,
}
_LLAMA_8B = {
    **_LLAMA_3,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
_LLAMA_70B = {
    **_LLAMA_3,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}
# Of the published config.json files, as far as sizes go: the plan of a run needs no network.
SHIPPED: Mapping[str, Mapping[str, Any]] = {
    f"meta-llama/{name}{variant}": config
    for name, config in (("Llama-3.2-1B", _LLAMA_1B), ("Llama-3.1-8B", _LLAMA_8B), ("Llama-3.1-70B", _LLAMA_70B))
    for variant in ("", "-Instruct")
}


class NoShape(UsageError):
    """There is no configuration to compute from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of the layers. `head_width` is that of one attention head, `is_tied`: the output layer is the embedding."""

    layers: int
    width: int
    feed_forward: int
    heads: int
    key_value_heads: int
    head_width: int
    vocabulary: int
    is_tied: bool

    @property
    def linears(self) -> Mapping[str, tuple[int, int]]:
        """(inputs, outputs) of the matrices of one block, by the names that adapters target."""
        attended, shared = self.heads * self.head_width, self.key_value_heads * self.head_width
        return {
            "q_proj": (self.width, attended),
            "k_proj": (self.width, shared),
            "v_proj": (self.width, shared),
            "o_proj": (attended, self.width),
            "gate_proj": (self.width, self.feed_forward),
            "up_proj": (self.width, self.feed_forward),
            "down_proj": (self.feed_forward, self.width),
        }

    @property
    def block_matrices(self) -> int:
        """Parameters of the matrices of one block."""
        return sum(inputs * outputs for inputs, outputs in self.linears.values())

    @property
    def block(self) -> int:
        """Parameters of one block: its matrices and two norms."""
        return self.block_matrices + 2 * self.width

    @property
    def embedding(self) -> int:
        return self.vocabulary * self.width

    @property
    def root(self) -> int:
        """Parameters outside the blocks: embedding, output layer if it is another one, and the last norm."""
        return self.embedding * (1 if self.is_tied else 2) + self.width

    @property
    def parameters(self) -> int:
        return self.layers * self.block + self.root


def shape_of(model: Model) -> Shape:
    """The shape of the recipe's model. Raises NoShape where there is no configuration, or one of another kind."""
    return read_shape(config_of(model), str(model.name))


def config_of(model: Model) -> Mapping[str, Any]:
    """From a local folder's config.json, or one that ships. Raises NoShape where there is neither."""
    if model.name is None:
        raise NoShape(f"model.build={model.build} has no configuration to compute from; trace it with --trace")
    if model.name in SHIPPED:
        return SHIPPED[model.name]
    path = Path(model.name).expanduser() / "config.json"
    if not os.path.isfile(path):  # unlike Path's, also for a name that can be none
        raise NoShape(f"model.name={model.name} is no folder with a config.json, and its shape does not ship")
    try:
        config: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NoShape(f"{path} cannot be read: {error}") from error
    return config


def read_shape(config: Mapping[str, Any], source: str) -> Shape:
    """The shape in the content of a config.json. Raises NoShape for a model of another kind, or a damaged file."""
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in _MODEL_TYPES:
        raise NoShape(f"{source}: model_type={kind} has no closed formula; {' and '.join(_MODEL_TYPES)} have")
    if config.get("attention_bias") or config.get("mlp_bias"):
        raise NoShape(f"{source}: a model with biases has no closed formula")
    try:
        width, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
        return Shape(
            layers=_size(config, "num_hidden_layers"),
            width=width,
            feed_forward=_size(config, "intermediate_size"),
            heads=heads,
            key_value_heads=_size(config, "num_key_value_heads", heads),
            head_width=_size(config, "head_dim", width // heads),
            vocabulary=_size(config, "vocab_size"),
            is_tied=bool(config.get("tie_word_embeddings", False)),
        )
    except ValueError as error:
        raise NoShape(f"{source}: {error}") from error


def _size(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
        raise ValueError(f"{name}={value} is not a size")
    return value
