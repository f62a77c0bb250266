"""Models without a table: what is found in them is proved, saved and reloaded; what is not proved is refused."""

import copy
from collections import Counter

import matrix
import pytest
import torch
import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

import pyprune
from pyprune.core.errors import InputError, MismatchError
from pyprune.models.adapter import adapter_for, asked_axes
from pyprune.models.discovered import PRUNED_FAMILY
from pyprune.models.inputs import example_inputs
from pyprune.models.registry import FAMILIES
from pyprune.slicing.slice import slice_
from pyprune.testing.models import random_plan
from pyprune.testing.zoo.tiny import TOKENS
from pyprune.verification import verify_model

_TEXT = {**TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
_GROUPED = {**_TEXT, "num_key_value_heads": 2}
_TRANSLATION = {
    **{**TOKENS, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "decoder_start_token_id": 2},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24},
}
_IMAGE = {"image_size": 12, "patch_size": 4, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_SOUND = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24},
    **{"conv_dim": [16, 16], "conv_stride": [5, 2], "conv_kernel": [10, 3]},
    **{"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2},
}
# Entries of the hidden state that are mixed, or normed, in ways that a cut changes.
NO_HIDDEN = ("cohere", "fnet", "mpnet")
# What is found, for each way in which heads and neurons are laid out.
FOUND = {
    "biogpt": (_TEXT, {"heads": 2, "neurons": 2}),
    "starcoder2": (_GROUPED, {"kv_groups": 2, "neurons": 2}),  # grouped queries
    "cohere": ({**_TEXT, "use_qk_norm": True}, {"heads": 2, "neurons": 2}),  # norms with an entry for every head
    "persimmon": (_TEXT, {"heads": 2, "neurons": 2}),  # fused, head by head
    "falcon": ({**_TEXT, "multi_query": False}, {"heads": 2, "neurons": 2}),  # linear layers of a class of its own
    "beit": (_IMAGE, {"heads": 2, "neurons": 2}),
    "marian": (_TRANSLATION, {"heads": 3, "neurons": 2}),
    "fnet": (_TEXT, {"neurons": 2}),  # no attention
    "mpnet": (_TEXT, {"neurons": 2}),  # position biases for heads, made outside
}


def model_of(model_type, head="AutoModel", **config):
    torch.manual_seed(0)
    made = getattr(transformers, head).from_config(AutoConfig.for_model(model_type, **copy.deepcopy(config)))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(float(parameter.dim() == 1) + 0.3 * torch.randn(parameter.shape))
    return made.eval()


@torch.no_grad()
def run(model):
    return model(**example_inputs(model)).last_hidden_state


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return tmp_path_factory.mktemp("discovered")


@pytest.mark.parametrize("model_type", FOUND)
def test_what_is_found_is_proved_and_saved(model_type, checkpoints):
    config, expected = FOUND[model_type]
    assert model_type not in FAMILIES
    model = model_of(model_type, **config)
    line = pyprune.discover(model)
    anatomy = adapter_for(model).anatomy(model)
    assert Counter(group.axis for group in anatomy.groups) == expected
    assert ", ".join(f"{count} x {axis}" for axis, count in expected.items()) in line
    possible = tuple(axis for axis, refusal in asked_axes(model).items() if not refusal)
    assert possible == (() if model_type in NO_HIDDEN else ("hidden",))
    checks = verify_model(model, seed=2)
    assert all(check.equal for check in checks)
    assert checks[0].axes == (*expected, *possible)
    slice_(model, adapter_for(model), random_plan(anatomy, emptied=False))
    inputs = example_inputs(model)
    matrix.save(model, inputs, matrix.run(model, inputs), checkpoints / model_type)


def test_another_process_reloads_all_of_them(checkpoints):
    matrix.check_reload(checkpoints)


def test_a_task_model_is_found_out_below_its_base_and_loads_bare(tmp_path):
    model = model_of("biogpt", "AutoModelForCausalLM", **_TEXT)
    line = pyprune.discover(model)
    assert line == "discovered: 2 x heads, 2 x neurons; proved on input_ids [2, 12], attention_mask [2, 12]"
    slice_(model, adapter_for(model), random_plan(adapter_for(model).anatomy(model), emptied=False))
    model.save_pretrained(tmp_path)
    bare = transformers.AutoModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(run(bare), run(model.biogpt), rtol=0, atol=0)
    prompt = torch.tensor([[5, 6, 7, 8]])
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}
    cached, plain = (model.generate(prompt, use_cache=use, **options) for use in (True, False))
    assert torch.equal(cached, plain)


def test_what_does_not_fit_is_named():
    line = pyprune.discover(model_of("mpnet", **_TEXT))
    assert "2 x neurons; proved on" in line
    assert "left out: encoder.layer.0.attention.attn.o: RuntimeError: The size of tensor" in line


def test_images_tell_how_many_tokens_a_layer_sees():
    model = model_of("beit", **_IMAGE)
    neurons = adapter_for(model).anatomy(model).block("layers.1.neurons").units
    assert neurons.cost.flops(1) == 2 * 10 * neurons.cost.params  # 3 x 3 patches and a class token


def test_inputs_of_the_user_are_asked_for_and_remembered():
    model = model_of("wav2vec2", **_SOUND)
    with pytest.raises(InputError, match=r"give example inputs, pyprune.discover.*its forward takes input_values"):
        adapter_for(model)
    line = pyprune.discover(model, {"input_values": torch.randn(2, 400)})
    assert "2 x heads, 2 x neurons; proved on input_values [2, 400]" in line
    assert all(check.equal for check in verify_model(model))


def test_shared_layers_are_refused():
    with pytest.raises(InputError, match=r"discovery found nothing .*attention.query: called 2 times in one pass"):
        adapter_for(model_of("albert", **_TEXT, embedding_size=16))


def test_a_type_with_a_table_is_not_discovered():
    with pytest.raises(InputError, match="model type 'bert' has a table"):
        pyprune.discover(model_of("bert", **_TEXT))


class HomegrownConfig(PreTrainedConfig):
    model_type = "homegrown"


class Mixing(nn.Module):
    """Neurons that a norm between the layers mixes: cutting one changes all others."""

    def __init__(self, norm):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(8, 12), nn.LayerNorm(12) if norm else nn.Identity(), nn.Linear(12, 8)

    def forward(self, x):
        return x + self.down(self.norm(self.up(x)))


class Homegrown(PreTrainedModel):
    """Code that no library ships."""

    config_class = HomegrownConfig
    _no_split_modules = ()

    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.ModuleList(Mixing(config.norm) for _ in range(2))
        self.post_init()

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return {"x": x}


def test_code_of_the_users_own_is_proved_or_refused():
    torch.manual_seed(0)
    inputs = {"x": torch.randn(2, 5, 8)}
    plain = Homegrown(HomegrownConfig(norm=False)).eval()
    assert "2 x neurons" in pyprune.discover(plain, inputs)
    mixing = Homegrown(HomegrownConfig(norm=True)).eval()
    before = mixing.config.to_dict()
    with pytest.raises(InputError, match=r"nothing to prune \(layers.0.down: "):
        pyprune.discover(mixing, inputs)
    assert mixing.config.to_dict() == before


def test_a_table_that_was_edited_by_hand():
    model = model_of("fnet", **_TEXT)
    pyprune.discover(model)
    part = getattr(model.config, PRUNED_FAMILY)["stacks"][0]["parts"][0]
    part["colour"] = "green"
    with pytest.raises(MismatchError, match=r"pruned_family: not a table of pyprune \(ValueError: no 'colour' in a f"):
        adapter_for(model)
