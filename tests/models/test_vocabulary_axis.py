"""The vocabulary over the whole zoo: masked = sliced = reloaded by another process that has no pyprune."""

import copy

import pytest
import torch
from matrix import ROUNDING, check_reload, inputs_of, run, save

from pyprune.capture.masking import masked
from pyprune.core.errors import InputError
from pyprune.core.plan import Plan
from pyprune.models.adapter import adapter_for
from pyprune.slicing.check import max_difference
from pyprune.slicing.slice import slice_
from pyprune.testing.models import random_plan, tiny_model
from pyprune.testing.zoo import ZOO
from pyprune.verification import dense_tokens, verify_model

NONE, SEVERAL = "the model has ", "it is made of several models"
REFUSED = {
    "pix2struct": SEVERAL,
    "encoder-decoder": SEVERAL,
    "siglip": SEVERAL,
    "git": SEVERAL,
    "blip": SEVERAL,
    "blip-caption": SEVERAL,
    "vit-gpt2": SEVERAL,
    "vit-bert": SEVERAL,
    "clip-text": "the end of a text by the numbers of its tokens",
    **dict.fromkeys(
        ("resnet", "resnet-basic", "resnet-early", "convnext", "convnext-unscaled", "pix2struct-vision"), NONE
    ),
    **dict.fromkeys(("vit", "vit-oblong", "deit", "dinov2", "dinov2-swiglu", "swin", "swin-padded", "segformer"), NONE),
    **dict.fromkeys(("mask2former", "mask2former-pre-norm", "clip", "clip-vision", "siglip-vision"), NONE),
    **dict.fromkeys(("siglip-headless", "git-vision", "blip-vision"), NONE),
}
READERS = [variant for variant in ZOO if variant not in REFUSED]
LANGUAGE = (
    "AutoModelForMaskedLM",
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSequenceClassification",
)
HEADS = [(v, h) for v in READERS for i, h in enumerate(ZOO[v].heads) if (i == 0 or h in LANGUAGE) and "Audio" not in h]
# Far from the first numbers, so that all of them change. RoBERTa counts positions from the padding token on.
SPECIAL = {"pad_token_id": 30, "bos_token_id": 50, "eos_token_id": 61}
POSITIONS_FROM_PADDING = ("roberta", "roberta-cross", "xlm-roberta", "camembert", "data2vec-text")


def dense_and_anatomy(variant, head=None, dtype=torch.float64, axes=("vocab",), **options):
    known = variant not in POSITIONS_FROM_PADDING and variant != "whisper"
    model = tiny_model(variant, head or ZOO[variant].heads[0], dtype, **((SPECIAL if known else {}) | options))
    return model, adapter_for(model), adapter_for(model).anatomy(model, axes=axes)


def half(anatomy, seed=3):
    """Every second token or so, and what is needed."""
    units = torch.randperm(anatomy.vocabulary.units.size, generator=torch.Generator().manual_seed(seed))[:50]
    plan = Plan.keep_all(anatomy)
    plan.kept["vocab"] = torch.tensor(anatomy.vocabulary.closed(units.tolist())).sort().values
    return plan


def numbers(model):
    """Shapes of tensors and numbers that modules remember."""
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for path, module in model.named_modules():
        found |= {f"{path} {name}": value for name, value in vars(module).items() if type(value) in (int, float)}
    return found


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return tmp_path_factory.mktemp("vocabulary")


@pytest.mark.parametrize(("variant", "head"), HEADS)
def test_masked_equals_sliced(variant, head, checkpoints):
    dense, adapter, anatomy = dense_and_anatomy(variant, head)
    plan = half(anatomy)
    model = slice_(copy.deepcopy(dense), adapter, plan)
    inputs = inputs_of(model)
    with masked(dense, anatomy, plan):
        expected = run(dense, dense_tokens(inputs, plan))
    found = run(model, inputs)
    assert max_difference(expected, found, plan) < ROUNDING
    whole = run(dense, dense_tokens(inputs, plan))  # a text of kept tokens: masks change nothing but the logits
    assert max_difference(whole, found, plan) < ROUNDING
    assert model.config.vocab_size == len(plan.kept["vocab"]) < dense.config.vocab_size
    assert numbers(model) == numbers(type(model)(copy.deepcopy(model.config)))
    for name, token in SPECIAL.items():
        if token in plan.kept["vocab"]:
            was, now = getattr(dense.config, name, None), getattr(model.config, name, None)
            assert was is None or plan.kept["vocab"][now] == was, name
    assert adapter.anatomy(model, axes=["vocab"]).vocabulary.units.size == model.config.vocab_size
    save(model, inputs, found, checkpoints / f"{variant}-{head}")


def test_another_process_reloads_all_of_them(checkpoints):
    check_reload(alone=checkpoints)


@pytest.mark.parametrize("variant", ["bert", "llama", "gpt2", "roberta", "mixtral"])
def test_keep_all_changes_nothing(variant):
    dense, adapter, anatomy = dense_and_anatomy(variant)
    kept = slice_(copy.deepcopy(dense), adapter, Plan.keep_all(anatomy))
    inputs = inputs_of(dense)
    assert max_difference(run(dense, inputs), run(kept, inputs)) == 0
    assert kept.config.to_dict() == dense.config.to_dict()


@pytest.mark.parametrize("variant", ["bert", "llama", "opt", "gpt2"])
def test_tokens_along_with_units_layers_and_width(variant):
    dense, adapter, anatomy = dense_and_anatomy(variant, axes=("layers", "hidden", "vocab"))
    plan = random_plan(anatomy, seed=5, emptied=False)
    plan.kept |= {"vocab": half(anatomy).kept["vocab"], "hidden": torch.arange(3, 20)}
    assert all(check.equal for check in verify_model(dense, plan))
    model = slice_(copy.deepcopy(dense), adapter, plan)
    after = adapter.anatomy(model, axes=["layers", "hidden", "vocab"])
    assert anatomy.params(anatomy.counts(plan.kept)) == pytest.approx(
        sum(model.get_parameter(n).numel() for n in matrices(model, after)), abs=len(anatomy.blocks)
    )


def matrices(model, anatomy):
    """Weights that the budget counts, each once."""
    groups = [*(block.units for block in anatomy.blocks), anatomy.vocabulary.units]
    names = {cut.tensor for group in groups for cut in group.cuts}
    return [name for name in names if model.get_parameter(name).dim() > 1]


@pytest.mark.parametrize(
    ("head", "tied"), [("AutoModel", 0), ("AutoModelForCausalLM", True), ("AutoModelForCausalLM", False)]
)
def test_costs_are_those_of_the_tables(head, tied):
    dense, adapter, anatomy = dense_and_anatomy("llama", head, tie_word_embeddings=bool(tied))
    cost = anatomy.vocabulary.units.cost
    blocks = adapter.anatomy(dense)
    tables = 32 if head == "AutoModel" or tied else 64
    assert anatomy.params() - blocks.params() == tables * 99
    head_flops = 0 if head == "AutoModel" else 2 * 7 * 32 * 99  # two for a weight and token; looking up costs none
    assert anatomy.flops(7) - blocks.flops(7) == pytest.approx(head_flops)
    assert cost.params == tables


@pytest.mark.parametrize(
    ("variant", "head"),
    [
        *((variant, "AutoModelForCausalLM") for variant in ("llama-biased", "gpt2", "opt")),
        *((variant, "AutoModelForSeq2SeqLM") for variant in ("t5", "bart")),
        *((variant, "AutoModelForMaskedLM") for variant in ("bert", "roberta", "deberta-v2")),
    ],
)
def test_tied_weights_stay_tied(variant, head):
    model, adapter, anatomy = dense_and_anatomy(variant, head)
    slice_(model, adapter, half(anatomy))
    output = model.get_output_embeddings()
    assert output.weight is model.get_input_embeddings().weight
    assert output.out_features == len(output.weight) == model.config.vocab_size
    assert adapter_for(model) is not None  # nothing that the config ties is two tensors


def test_untied_heads_are_cut_apart():
    model, adapter, anatomy = dense_and_anatomy("llama", "AutoModelForCausalLM")
    plan = half(anatomy)
    before = model.lm_head.weight.detach().clone()
    slice_(model, adapter, plan)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, before[plan.kept["vocab"]])


@pytest.mark.parametrize("variant", ["llama", "gpt2", "opt", "gemma3", "qwen2", "t5", "bart"])
def test_generation_is_that_of_the_dense_model_without_removed_tokens(variant):
    head = "AutoModelForSeq2SeqLM" if variant in ("t5", "bart") else "AutoModelForCausalLM"
    dense, adapter, anatomy = dense_and_anatomy(variant, head)
    dense.generation_config.suppress_tokens = [70, 71]
    dense.generation_config.bad_words_ids = [[72, 73]]
    anatomy = adapter.anatomy(dense, axes=["vocab"])
    assert {70, 71, 72, 73} <= anatomy.vocabulary.needed
    plan = half(anatomy)
    model = slice_(copy.deepcopy(dense), adapter, plan)
    old = plan.kept["vocab"]
    assert old[torch.tensor(model.generation_config.suppress_tokens)].tolist() == [70, 71]
    assert old[torch.tensor(model.generation_config.bad_words_ids)].tolist() == [[72, 73]]
    ids = torch.randint(0, len(old), (3, 6), generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    with masked(dense, anatomy, plan):
        expected = dense.generate(old[ids], **options)
    assert torch.equal(old[model.generate(ids, **options)], expected)


def test_every_number_of_a_token_in_a_config_is_renumbered():
    dense, adapter, _ = dense_and_anatomy("bart", "AutoModelForSeq2SeqLM")
    tokens = {
        "image_token_index": 80,
        "mask_token_id": 81,
        "decoder_start_token_id": 82,
        "forced_eos_token_id": [83, 61],
    }
    for name, value in tokens.items():
        setattr(dense.config, name, value)
    dense.config.task_specific_params = {"summarization": {"forced_bos_token_id": 84, "num_beams": 4}}
    settings = {"forced_decoder_ids": [[1, 85], [2, None]], "lang_to_id": {"<de>": 86}, "begin_suppress_tokens": [87]}
    for name, value in (settings | {"sequence_bias": [[[88, 89], -2.0]]}).items():
        setattr(dense.generation_config, name, value)
    anatomy = adapter.anatomy(dense, axes=["vocab"])
    assert set(range(80, 90)) | {30, 50, 61} <= anatomy.vocabulary.needed
    plan = half(anatomy)
    new = {token: number for number, token in enumerate(plan.kept["vocab"].tolist())}
    dense.config.old_pad_token_id, dense.config.missing_token_id = 99 + 3, -1  # beyond the vocabulary
    slice_(dense, adapter, plan)
    config, generation = dense.config, dense.generation_config
    assert (config.image_token_index, config.mask_token_id, config.decoder_start_token_id) == (
        new[80],
        new[81],
        new[82],
    )
    assert config.forced_eos_token_id == [new[83], new[61]]
    assert config.task_specific_params == {"summarization": {"forced_bos_token_id": new[84], "num_beams": 4}}
    assert (config.old_pad_token_id, config.missing_token_id) == (len(new) + 3, -1)
    assert generation.forced_decoder_ids == [[1, new[85]], [2, None]]
    assert (generation.lang_to_id, generation.begin_suppress_tokens) == ({"<de>": new[86]}, [new[87]])
    assert generation.sequence_bias == [[[new[88], new[89]], -2.0]]


def test_positions_that_are_counted_from_the_padding_token_stay():
    model, adapter, anatomy = dense_and_anatomy("roberta", pad_token_id=7)
    assert set(range(8)) <= anatomy.vocabulary.needed
    plan = half(anatomy)
    slice_(model, adapter, plan)
    assert model.config.pad_token_id == model.embeddings.padding_idx == 7


def test_a_cut_vocabulary_is_cut_again(tmp_path):
    model, adapter, anatomy = dense_and_anatomy("bert", "AutoModelForMaskedLM")
    slice_(model, adapter, half(anatomy))
    again = adapter.anatomy(model, axes=["vocab"])
    plan = random_plan(again, seed=1)
    assert all(check.equal for check in verify_model(model, plan))


@pytest.mark.parametrize(("variant", "reason"), REFUSED.items())
def test_what_has_no_vocabulary_of_its_own_is_refused(variant, reason):
    with pytest.raises(InputError, match=f"axis 'vocab'.*{reason}"):
        dense_and_anatomy(variant, dtype=torch.float32)


@pytest.mark.parametrize(("variant", "size"), [("bert", 32), ("bert", 40), ("bert", 5), ("opt", 42), ("gpt2", 96)])
def test_numbers_that_could_be_the_vocabulary_are_refused(variant, size):
    """Hidden width, positions and labels; OPT's table of 40 positions has two rows more, GPT-2's three
    projections are one."""
    options = {"num_labels": 5, "vocab_size": size, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    with pytest.raises(InputError, match=r"number of tokens too|may be another than the vocabulary"):
        dense_and_anatomy(variant, "AutoModelForSequenceClassification", torch.float32, **options)


def test_masks_refuse_removed_tokens_and_leave_no_hooks():
    dense, _, anatomy = dense_and_anatomy("bert", "AutoModelForMaskedLM")
    plan = half(anatomy)
    gone = min(set(range(99)) - set(plan.kept["vocab"].tolist()))
    ids = plan.kept["vocab"][None, :5].clone()
    with masked(dense, anatomy, plan):
        logits = dense(ids).logits
        with pytest.raises(InputError, match=f"token {gone}, which is removed"):
            dense(torch.tensor([[gone]]))
    assert torch.isneginf(logits[..., gone]).all()
    assert torch.isfinite(logits[..., plan.kept["vocab"]]).all()
    assert torch.isfinite(dense(torch.tensor([[gone]])).logits).all()
    with pytest.raises(InputError, match="must be 0 or 1"), masked(dense, anatomy, {"vocab": torch.full((99,), 0.5)}):
        pass


def test_a_plan_that_loses_what_the_config_needs_is_refused():
    model, adapter, anatomy = dense_and_anatomy("bert")
    plan = half(anatomy)
    plan.kept["vocab"] = plan.kept["vocab"][plan.kept["vocab"] != 30]
    with pytest.raises(InputError, match="vocab must keep token 30, which the model's config"):
        slice_(model, adapter, plan)
