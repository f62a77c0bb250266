"""What users do with a pruned checkpoint, for a family of each kind: it is loaded, tuned and shared like any other."""

import copy
import inspect
import json

import peft
import pytest
import torch
import transformers

import pyprune
from pyprune.capture.masking import masked
from pyprune.models.adapter import adapter_for
from pyprune.models.inputs import example_inputs
from pyprune.slicing.check import max_difference
from pyprune.testing.checkpoints import word_tokenizer
from pyprune.testing.models import random_plan, tiny_model
from pyprune.testing.numerics import ratio

FAMILIES = {
    "bert": "AutoModelForMaskedLM",
    "llama": "AutoModelForCausalLM",  # grouped queries
    "gpt2": "AutoModelForCausalLM",
    "vit": "AutoModelForImageClassification",
    "t5": "AutoModelForSeq2SeqLM",
    "bart": "AutoModelForSeq2SeqLM",
    "clip": "AutoModel",
}
GENERATING = ("llama", "gpt2", "t5", "bart")
# Names of projections whose widths pruning has changed.
PROJECTIONS = {
    "bert": ["query", "value"],
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj"],
    "vit": ["q_proj", "o_proj"],
    "t5": ["q", "v", "wo"],
    "bart": ["q_proj", "v_proj", "fc2"],
    "clip": ["q_proj", "v_proj", "fc2"],
}
families = pytest.mark.parametrize("variant", FAMILIES)


def pruned(variant, seed=0, head=None):
    model = tiny_model(variant, head or FAMILIES[variant])
    plan = random_plan(adapter_for(model).anatomy(model), seed, emptied=False)
    plan.meta["seed"] = seed
    return pyprune.apply(model, plan, inplace=True), plan


def loaded(variant, folder, **options):
    return getattr(transformers, FAMILIES[variant]).from_pretrained(folder, **options).eval()


@torch.no_grad()
def run(model):
    own = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    inputs = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in example_inputs(own).items()}
    return model(**inputs, **({"use_cache": False} if "use_cache" in vars(model.config) else {}))


@pytest.fixture(scope="module", params=FAMILIES)
def shards(request, tmp_path_factory):
    """A family's name, its pruned model, and the folder that holds it in many small files."""
    folder = tmp_path_factory.mktemp(request.param)
    model, _ = pruned(request.param)
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return request.param, model, folder


@pytest.mark.parametrize(
    "options",
    [{}, {"device_map": "auto"}, {"device_map": "cpu"}, {"low_cpu_mem_usage": True}, {"dtype": torch.float32}],
    ids=str,
)
def test_every_way_of_loading_gives_the_same(shards, options):
    variant, model, folder = shards
    assert max_difference(run(model), run(loaded(variant, folder, **options))) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_loading_in_another_dtype_is_casting(shards, dtype):
    variant, model, folder = shards
    reloaded = loaded(variant, folder, dtype=dtype)
    assert reloaded.dtype == dtype
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():  # and no buffers: rotary frequencies stay as exact as they are
        parameter.data = parameter.data.to(dtype)
    assert max_difference(run(twin), run(reloaded)) == 0


def test_layers_that_wait_on_disk(shards, tmp_path):
    variant, model, folder = shards
    if variant == "clip":
        pytest.skip("its parts share no list of layers that accelerate could place")
    half = sum(parameter.nbytes for parameter in model.parameters()) // 2
    options = {"device_map": "auto", "max_memory": {"cpu": half}, "offload_folder": tmp_path}
    reloaded = loaded(variant, folder, **options)
    assert "disk" in reloaded.hf_device_map.values()
    assert max_difference(run(model), run(reloaded)) == 0


@families
def test_lora_is_trained_saved_loaded_and_merged(variant, tmp_path):
    pyprune.save(pruned(variant)[0], tmp_path / "base")
    base = loaded(variant, tmp_path / "base")
    before = run(base)
    settings = peft.LoraConfig(target_modules=PROJECTIONS[variant], r=2, fan_in_fan_out=variant == "gpt2")
    tuned = peft.get_peft_model(base, settings)
    train(tuned)
    expected = run(tuned.eval())
    assert max_difference(before, expected) > 1e-6
    tuned.save_pretrained(tmp_path / "lora")
    again = peft.PeftModel.from_pretrained(loaded(variant, tmp_path / "base"), tmp_path / "lora").eval()
    assert max_difference(expected, run(again)) == 0
    merged = again.merge_and_unload()
    pyprune.save(merged, tmp_path / "merged")
    assert max_difference(run(merged), run(loaded(variant, tmp_path / "merged"))) == 0
    assert max_difference(before, run(merged)) > 1e-6


def train(model):
    """Three steps on the mean square of the first output of a model with adapters."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    inputs = example_inputs(model.get_base_model())
    for _ in range(3):
        output = model(**inputs)
        first = next(value for value in output.values() if isinstance(value, torch.Tensor) and value.requires_grad)
        first.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


class Rows(torch.utils.data.Dataset):
    """The rows of a model's example inputs, with labels where the model computes a loss from them."""

    def __init__(self, model):
        self.inputs = example_inputs(model, batch=4)
        self.contrastive = "return_loss" in inspect.signature(model.forward).parameters
        if "decoder_input_ids" in self.inputs:
            self.inputs["labels"] = self.inputs.pop("decoder_input_ids")
        elif "input_ids" in self.inputs:
            self.inputs["labels"] = self.inputs["input_ids"]
        else:
            self.inputs["labels"] = torch.tensor([0, 1, 0, 1])
        if self.contrastive:
            del self.inputs["labels"]

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {name: tensor[index] for name, tensor in self.inputs.items()}

    def batch(self, rows):
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        return batch | ({"return_loss": True} if self.contrastive else {})


@families
def test_the_trainer_tunes_it_and_its_checkpoint_loads(variant, tmp_path):
    pyprune.save(pruned(variant)[0], tmp_path / "small")
    model = loaded(variant, tmp_path / "small")
    before, config = run(model), model.config.to_dict()
    rows = Rows(model)
    arguments = transformers.TrainingArguments(
        tmp_path / "runs",
        max_steps=2,
        save_steps=1,
        per_device_train_batch_size=2,
        learning_rate=0.01,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, data_collator=rows.batch)
    trainer.train()
    tuned = run(model.eval())
    assert max_difference(before, tuned) > 1e-6
    reloaded = loaded(variant, tmp_path / "runs/checkpoint-2")
    assert max_difference(tuned, run(reloaded)) == 0
    widths = ("per_layer_config", "pruned_groups")
    assert {key: reloaded.config.to_dict().get(key) for key in widths} == {key: config.get(key) for key in widths}
    if variant == "vit":
        return  # transformers itself resumes no model whose weights are called otherwise in files, dense or not
    resumed = transformers.Trainer(
        loaded(variant, tmp_path / "small"), arguments, train_dataset=rows, data_collator=rows.batch
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "runs/checkpoint-1"))
    assert max_difference(tuned, run(resumed.model.eval())) == 0


@pytest.mark.parametrize("variant", GENERATING)
def test_generation_from_a_checkpoint(variant, tmp_path):
    model, _ = pruned(variant)
    pyprune.save(model, tmp_path / "small")
    reloaded = loaded(variant, tmp_path / "small")
    inputs = {k: v for k, v in example_inputs(model, padding="left").items() if not k.startswith("decoder_")}
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    expected = model.generate(**inputs, **options, use_cache=False)
    assert torch.equal(reloaded.generate(**inputs, **options), expected)
    static = {"cache_implementation": "static", "disable_compile": True}
    assert torch.equal(reloaded.generate(**inputs, **options, **static), expected)


@families
def test_a_checkpoint_is_pruned_again(variant, tmp_path):
    pyprune.save(pruned(variant)[0], tmp_path / "once")
    once = loaded(variant, tmp_path / "once")
    anatomy = adapter_for(once).anatomy(once)
    plan = random_plan(anatomy, seed=7, emptied=False)
    with masked(once, anatomy, plan):
        expected = run(once)
    pyprune.save(pyprune.apply(once, plan), tmp_path / "twice", plan=plan)
    twice = loaded(variant, tmp_path / "twice")
    assert {g.name: g.size for g in adapter_for(twice).anatomy(twice).groups} == plan.counts
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            ratio(twice_output := run(twice)[name], value.double())
            assert twice_output.shape == value.shape


@families
def test_models_of_several_shapes_live_side_by_side(variant, tmp_path):
    dense = tiny_model(variant, FAMILIES[variant])
    dense.save_pretrained(tmp_path / "dense")
    models = {"dense": dense, "first": pruned(variant, 1)[0], "second": pruned(variant, 2)[0]}
    expected = {name: run(model) for name, model in models.items()}
    for name in ("first", "second"):
        models[name].save_pretrained(tmp_path / name)
    classes = [type(module) for module in dense.modules()]
    order = ("dense", "first", "second", "dense", "second", "first", "dense")
    held = [(name, loaded(variant, tmp_path / name)) for name in order]
    for name, model in held:  # all are loaded before the first runs
        assert max_difference(expected[name], run(model)) == 0, name
        if name == "dense":
            assert [type(module) for module in model.modules()] == classes
    assert max_difference(expected["dense"], run(dense)) == 0


@families
def test_everything_that_the_hub_shows_is_there(variant, tmp_path):
    source = tmp_path / "dense"
    model = tiny_model(variant, FAMILIES[variant])
    model.save_pretrained(source)
    if variant in ("vit", "clip"):
        (source / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "ViTImageProcessor"}))
    small, plan = pruned(variant)
    tokenizer = None if variant == "vit" else word_tokenizer("a few words")
    folder = pyprune.save(small, tmp_path / "small", tokenizer=tokenizer, source=source, plan=plan)
    names = {path.name for path in folder.iterdir()}
    expected = {"config.json", "model.safetensors", "README.md", "pyprune_plan.json", "pyprune_reference.st"}
    if tokenizer is not None:
        expected |= {"tokenizer.json", "tokenizer_config.json"}
        assert transformers.AutoTokenizer.from_pretrained(folder)("few words").input_ids == [5, 6]
    if variant in GENERATING:
        expected |= {"generation_config.json"}
    if (source / "preprocessor_config.json").exists():
        expected |= {"preprocessor_config.json"}
    assert names == expected
    card = (folder / "README.md").read_text()
    assert "import pyprune" in card
    assert type(small).__name__ in card
    assert all(check.equal for check in pyprune.verify_checkpoint(folder))
