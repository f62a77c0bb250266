"""LLaMA checkpoints whose layers differ in width, in a layout that serving engines read: DeciLM's `block_configs`.

The layout (model type `nemotron-nas`) lists for every layer how many query heads share a key/value head, and the width
of the feed-forward block as a multiple of the hidden width; either block may be absent (`no_op`). It cannot say all:

- every layer has the same number of query heads, which divides the hidden width (configs are refused otherwise), and
  which the number of key/value heads divides, each of which has as many readers;
- feed-forward widths are multiples of 256;
- engines begin the residual stream in the attention of the first layer, so that is never absent.

What is missing to that is filled with zeros, which change no output: added query heads have zero queries and zero
columns in the output projection, added neurons zero weights.
"""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pyprune.core.errors import InputError
from pyprune.models import configuration_decilm
from pyprune.models.narrow import KV_MAP

_CONFIG_CLASS = Path(configuration_decilm.__file__)
_WIDTH_STEP = 256
# Values of a config with which a layer is no longer LLaMA's, as engines run this layout.
_PLAIN = {"sliding_window": None, "attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}
_COPIED = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "hidden_act", "max_position_embeddings", "rms_norm_eps"),
    *("tie_word_embeddings", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id"),
)


@dataclass(frozen=True)
class Layout:
    """Sizes of the layers as the layout has them: `query_heads` in every layer, `kv_heads` and `neurons` in each.

    0 stands for a block that is absent.
    """

    query_heads: int
    kv_heads: tuple[int, ...]
    neurons: tuple[int, ...]


def check_layers(model: nn.Module) -> None:
    """InputError unless `model` is a causal language model whose layers are exactly LLaMA's."""
    from transformers import LlamaForCausalLM, MistralForCausalLM

    if not isinstance(model, (LlamaForCausalLM, MistralForCausalLM)):
        raise InputError(
            f"{type(model).__name__} cannot be written with block_configs: "
            "that layout is for LlamaForCausalLM, and for MistralForCausalLM without a sliding window"
        )
    for name, plain in _PLAIN.items():
        found = getattr(model.config, name, plain)
        if found != plain:
            raise InputError(f"{type(model).__name__} with {name}={found!r} cannot be written with block_configs")
    for layer in model.model.layers:
        if hasattr(layer.self_attn, "qk_dim") or hasattr(layer.self_attn, "vo_dim"):
            raise InputError("block_configs: the layout knows one size of heads, and these lost dimensions")


def layout(units: list[int], queries_per_unit: int, neurons: list[int], hidden: int) -> Layout:
    """The sizes that hold `units` key/value heads, with their query heads, and `neurons` in each layer.

    As few query heads as the widest attention has and as divide `hidden`, of key/value heads as few as divide these and
    hold the layer's, and neurons to the next multiple of 256. InputError when no number of query heads will do.

    >>> layout([4, 3, 0], 2, [300, 0, 256], 64)
    Layout(query_heads=8, kv_heads=(4, 4, 0), neurons=(512, 0, 256))
    """
    wanted = [max(1, units[0]), *units[1:]]
    widths = tuple(-(-count // _WIDTH_STEP) * _WIDTH_STEP for count in neurons)
    for heads in range(max(wanted) * queries_per_unit, hidden + 1):
        # A unit's query heads stay together: there are at least as many in every group.
        fitting = [n for n in range(1, heads // queries_per_unit + 1) if heads % n == 0]
        if hidden % heads == 0 and fitting[-1] >= max(wanted):
            kv_heads = tuple(min(n for n in fitting if n >= count) if count else 0 for count in wanted)
            return Layout(heads, kv_heads, widths)
    raise InputError(f"block_configs: no number of query heads divides the hidden width {hidden} and holds {units}")


def write_block_configs(model: Any, tokenizer: Any, folder: Path) -> str:
    """Fill `folder` with weights, config, config class and tokenizer, and say how much was padded.

    InputError for models that the layout cannot hold.
    """
    from huggingface_hub import save_torch_state_dict

    check_layers(model)
    layers = model.model.layers
    head_dim = layers[0].self_attn.head_dim
    repeats = max((len(group) for layer in layers for group in _groups(layer.self_attn)), default=1)
    units = [layer.self_attn.k_proj.weight.shape[0] // head_dim for layer in layers]
    neurons = [layer.mlp.down_proj.weight.shape[1] for layer in layers]
    sizes = layout(units, repeats, neurons, model.config.hidden_size)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("model.layers.")}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    for index, layer in enumerate(layers):
        state |= _padded_layer(f"model.layers.{index}.", layer, sizes, index, units[index], head_dim)
    save_torch_state_dict({k: v.contiguous() for k, v in state.items()}, folder)
    (folder / "config.json").write_text(json.dumps(_config(model, sizes, head_dim), indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(_CONFIG_CLASS, folder / _CONFIG_CLASS.name)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return _padding(model, state, sizes, units)


def _padded_layer(
    prefix: str, layer: nn.Module, sizes: Layout, index: int, units: int, head_dim: int
) -> dict[str, Tensor]:
    """The tensors of one layer, in the sizes of the layout and without absent blocks."""
    found: dict[str, Tensor] = {}
    heads = sizes.kv_heads[index]
    if heads:
        attention, hidden = layer.self_attn, layer.self_attn.o_proj.weight.shape[0]
        readers = sizes.query_heads // heads
        places = torch.tensor(
            [g * readers + i for g, group in enumerate(_groups(attention)) for i in group], dtype=torch.int64
        )
        projections = {
            "q_proj": (attention.q_proj.weight, places, sizes.query_heads),
            "k_proj": (attention.k_proj.weight, torch.arange(units), heads),
            "v_proj": (attention.v_proj.weight, torch.arange(units), heads),
            "o_proj": (attention.o_proj.weight.T, places, sizes.query_heads),
        }
        for name, (weight, taken, size) in projections.items():
            padded = weight.new_zeros(size, head_dim, hidden)
            padded[taken] = weight.detach().reshape(-1, head_dim, hidden)
            rows = padded.flatten(0, 1)
            found[f"{prefix}self_attn.{name}.weight"] = rows.T if name == "o_proj" else rows
        found[f"{prefix}input_layernorm.weight"] = layer.input_layernorm.weight
    if sizes.neurons[index]:
        for name in ("gate_proj", "up_proj", "down_proj"):
            weight = layer.mlp.get_submodule(name).weight
            rows = weight.T if name == "down_proj" else weight
            rows = _padded(rows, (sizes.neurons[index], rows.shape[1]))
            found[f"{prefix}mlp.{name}.weight"] = rows.T if name == "down_proj" else rows
        found[f"{prefix}post_attention_layernorm.weight"] = layer.post_attention_layernorm.weight
    return found


def _groups(attention: Any) -> list[range]:
    """For every key/value head its query heads, counted within it."""
    if (readers := getattr(attention, KV_MAP, None)) is not None:
        return [range(count) for count in readers.bincount().tolist()]
    heads = attention.k_proj.weight.shape[0] // attention.head_dim
    return [range(attention.num_key_value_groups)] * heads


def _padded(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`tensor` in the first corner of zeros of `shape`."""
    zeros = tensor.new_zeros(shape)
    zeros[tuple(slice(n) for n in tensor.shape)] = tensor.detach()
    return zeros


def _config(model: Any, sizes: Layout, head_dim: int) -> dict[str, Any]:
    rope = dict(model.config.rope_parameters)
    theta = rope.pop("rope_theta")
    return {
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {"AutoConfig": f"{_CONFIG_CLASS.stem}.{configuration_decilm.DeciLMConfig.__name__}"},
        "model_type": configuration_decilm.DeciLMConfig.model_type,
        **{name: getattr(model.config, name) for name in _COPIED},
        "torch_dtype": str(model.dtype).removeprefix("torch."),
        "head_dim": head_dim,
        "num_attention_heads": sizes.query_heads,
        # What engines read layer by layer; the largest of all where one number has to be there.
        "num_key_value_heads": max(sizes.kv_heads),
        "intermediate_size": max(_WIDTH_STEP, *sizes.neurons),
        "attention_bias": False,
        "mlp_bias": False,
        "rope_theta": theta,
        "rope_scaling": None if rope.get("rope_type", "default") == "default" else rope,
        "block_configs": [
            {
                "attention": {
                    "n_heads_in_group": sizes.query_heads // heads if heads else None,
                    "no_op": not heads,
                    "num_sink_tokens": None,
                    "replace_with_linear": False,
                    "sparsify": None,
                    "unshifted_sink": False,
                    "use_prefill_window_in_sink_attention": False,
                    "window_length": None,
                },
                "ffn": {
                    "ffn_mult": 3 * neurons / (2 * model.config.hidden_size) if neurons else None,
                    "no_op": not neurons,
                    "replace_with_linear": False,
                    "sparsify": None,
                },
            }
            for heads, neurons in zip(sizes.kv_heads, sizes.neurons, strict=True)
        ],
    }


def _padding(model: nn.Module, state: dict[str, Tensor], sizes: Layout, units: list[int]) -> str:
    blocks = sum(v.numel() for k, v in state.items() if k.startswith("model.layers.") and v.dim() > 1)
    own = sum(p.numel() for p in model.model.layers.parameters() if p.dim() > 1)
    padded = blocks - own
    heads = sum(sizes.kv_heads) - sum(units)
    neurons = sum(sizes.neurons) - sum(layer.mlp.down_proj.weight.shape[1] for layer in model.model.layers)
    return (
        f"padded with zeros: {padded:,} of {blocks:,} weights of the blocks ({padded / max(blocks, 1):.1%}), for "
        f"{sizes.query_heads} query heads in every layer, {heads} more key/value heads and {neurons:,} more neurons"
    )


def read_block_configs(folder: str | Path) -> Any:
    """The model of a checkpoint in this layout, built from its config alone with the layers of LLaMA.

    For checking: engines have their own. Raises as `load_state_dict` when weights and config disagree.
    """
    from transformers import LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    written = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    config = configuration_decilm.DeciLMConfig(**{k: v for k, v in written.items() if k != "model_type"})
    empty = copy.deepcopy(config)
    empty.num_hidden_layers = 0
    model: Any = LlamaForCausalLM(empty)
    model.config.num_hidden_layers = config.num_hidden_layers
    for index, block in enumerate(config.block_configs):
        own = copy.deepcopy(model.config)
        if not block.attention.no_op:
            own.num_key_value_heads = config.num_attention_heads // block.attention.n_heads_in_group
        if not block.ffn.no_op:
            width = int(2 * block.ffn.ffn_mult * config.hidden_size / 3)
            own.intermediate_size = -(-width // _WIDTH_STEP) * _WIDTH_STEP
        layer: Any = LlamaDecoderLayer(own, index)
        if block.attention.no_op:
            layer.self_attn, layer.input_layernorm = _NoAttention(), nn.Identity()
        if block.ffn.no_op:
            layer.mlp, layer.post_attention_layernorm = _NoFeedForward(), nn.Identity()
        model.model.layers.append(layer)
    state: dict[str, Tensor] = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        state |= load_file(file)
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.to(getattr(torch, written["torch_dtype"])).load_state_dict(state)
    return model.eval()


class _NoFeedForward(nn.Module):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.zeros_like(hidden_states)


class _NoAttention(nn.Module):
    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden_states), None
