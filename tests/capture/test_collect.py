"""collect: the mask gradients of the slow truth, however the samples travel, and a model that is as it was."""

import copy
import functools

import pytest
import torch
from mask_gradients import anatomy_of, close, gather, pair, reference, samples_of, task_loss

from pyprune.capture.collect import collect
from pyprune.capture.cotangent import EmbeddingProbe, NegativeLogLikelihood
from pyprune.core.batches import batching
from pyprune.core.errors import InputError, NumericsError
from pyprune.core.plan import Plan
from pyprune.models.adapter import adapter_for
from pyprune.slicing.slice import slice_
from pyprune.testing import numerics
from pyprune.testing.models import VARIANTS, heads, random_plan, tiny_model

TASKS = [(variant, head) for variant in VARIANTS for head in heads(variant) if head != "AutoModel"]
UNPADDED, PADDED, SINGLE = {}, {"max_padding": 1.0}, {"max_tokens": 1}


def labels_given(model, head, **kwargs):
    return NegativeLogLikelihood("given", head.endswith("CausalLM"), model.config, **kwargs)


@pytest.mark.parametrize(("variant", "head"), TASKS)
def test_labels_given(variant, head):
    model, eager = pair(variant, head)
    samples = samples_of(head)
    labels = samples.labels or [None] * len(samples)
    truth = reference(
        eager, samples, lambda outputs, s: task_loss(head, outputs, samples.inputs[s]["input_ids"], labels[s])
    )
    for how in (UNPADDED, PADDED):
        statistics = gather(model, samples, labels_given(model, head), **how)
        close(statistics.gradients, truth)
    assert statistics.draws == 1
    numerics.exact(statistics.lengths, samples.lengths)


@pytest.mark.parametrize("variant", VARIANTS)
def test_embedding_probes(variant):
    model, eager = pair(variant, "AutoModel")
    samples, probe = samples_of("AutoModel"), EmbeddingProbe(seed=3)
    singles = {int(batch.index): batch for batch in samples.batches(**SINGLE)}
    statistics = gather(model, samples, probe, draws=2, **PADDED)
    for draw in (0, 1):
        truth = reference(eager, samples, lambda outputs, s, draw=draw: probe(outputs, singles[s], draw))
        close({name: g[draw::2] for name, g in statistics.gradients.items()}, truth)


@pytest.mark.parametrize("head", ["AutoModelForSequenceClassification", "AutoModelForTokenClassification"])
def test_a_pruned_model_with_emptied_blocks(head):
    model, eager = (copy.deepcopy(m) for m in pair("bert", head))
    for m in (model, eager):
        slice_(m, adapter_for(m), random_plan(anatomy_of(m)))
    samples = samples_of(head)
    truth = reference(eager, samples, lambda outputs, s: task_loss(head, outputs, None, samples.labels[s]))
    statistics = gather(model, samples, labels_given(model, head), **PADDED)
    assert statistics.gradients["layers.0.heads"].shape == (5, 0)
    close({n: g for n, g in statistics.gradients.items() if g.numel()}, {n: t for n, t in truth.items() if t.numel()})


CUSTOM = {
    "regression": ({"num_labels": 1}, lambda x, y: 0.5 * (x - y).square().sum(), torch.randn),
    "multi_label_classification": (
        {"num_labels": 3, "problem_type": "multi_label_classification"},
        lambda x, y: -(y * x.sigmoid().log() + (1 - y) * (1 - x.sigmoid()).log()).sum(),
        lambda n, **kwargs: (torch.rand(n, **kwargs) < 0.5).double(),
    ),
}


@pytest.mark.parametrize("problem", CUSTOM)
def test_other_problems(problem):
    overrides, loss, draw = CUSTOM[problem]
    model, eager = pair("roberta", "AutoModelForSequenceClassification", **overrides)
    samples = samples_of("AutoModel")
    samples.labels = list(draw((5, overrides["num_labels"]), generator=torch.Generator().manual_seed(1)))
    truth = reference(eager, samples, lambda outputs, s: loss(outputs.logits[0], samples.labels[s]))
    close(gather(model, samples, labels_given(model, ""), **PADDED).gradients, truth)


@pytest.mark.parametrize("tokens", ["sum", "mean"])
def test_tokens_of_a_sample_are_summed_or_averaged(tokens):
    model, eager = pair("llama", "AutoModelForCausalLM")
    samples = samples_of("AutoModelForCausalLM")

    def loss(outputs, s):
        ids = samples.inputs[s]["input_ids"]
        value = task_loss("AutoModelForCausalLM", outputs, ids, None)
        return value / (len(ids) - 1) if tokens == "mean" else value

    cotangent = NegativeLogLikelihood("given", True, model.config, tokens=tokens)
    close(gather(model, samples, cotangent, **PADDED).gradients, reference(eager, samples, loss))


COTANGENTS = {
    "probe": ("AutoModel", lambda config: EmbeddingProbe(0)),
    **{
        head: (head, functools.partial(NegativeLogLikelihood, "sampled", head.endswith("CausalLM")))
        for head in (*heads("bert")[1:], "AutoModelForCausalLM")
    },
}


@pytest.mark.parametrize("kind", COTANGENTS)
def test_how_samples_travel_changes_nothing(kind):
    head, make = COTANGENTS[kind]
    model = tiny_model("qwen3" if head.endswith("CausalLM") else "distilbert", head, torch.float64)
    samples, cotangent = samples_of(head), make(model.config)
    truth = gather(model, samples, cotangent, draws=2, **SINGLE).gradients
    close(gather(model, samples, cotangent, draws=2, **PADDED).gradients, truth)
    close(gather(model, samples, cotangent, draws=2, max_tokens=18, max_padding=0.3).gradients, truth)
    batches = samples.batches()[::-1]
    close(collect(model, anatomy_of(model), batches, cotangent, samples.lengths, 2).gradients, truth)


def test_a_decoder_that_classifies_finds_the_end_of_padded_samples():
    model = tiny_model("llama", "AutoModelForSequenceClassification", torch.float64)
    samples, cotangent = samples_of(""), NegativeLogLikelihood("sampled", False, model.config)
    truth = gather(model, samples, cotangent).gradients
    samples.pad["input_ids"] = 0  # of a tokenizer that pads with another token than the model
    close(gather(model, samples, cotangent, **{**batching(model), **PADDED}).gradients, truth)


def test_draws_share_the_forward_and_keep_their_rows():
    model = tiny_model("bert", "AutoModelForTokenClassification", torch.float64)
    samples = samples_of("AutoModelForTokenClassification")
    cotangent = NegativeLogLikelihood("sampled", False, model.config)
    forwards = []
    handle = model.register_forward_hook(lambda *_: forwards.append(1))
    three = gather(model, samples, cotangent, draws=3)
    assert len(forwards) == len(samples.batches())
    handle.remove()
    one = gather(model, samples, cotangent, draws=1)
    for name, g in three.gradients.items():
        assert g.shape == (15, one.gradients[name].shape[1])
        numerics.exact(g[0::3], one.gradients[name])
        assert not torch.equal(g[0::3], g[1::3])
        assert not torch.equal(g[1::3], g[2::3])


def test_half_precision_gradients_do_not_vanish():
    model = tiny_model("bert").half()
    half = gather(model, samples_of(""), EmbeddingProbe(0)).gradients
    truth = gather(model.double(), samples_of(""), EmbeddingProbe(0)).gradients
    for name in truth:
        numerics.ratio(half[name], truth[name].double(), torch.float16)


def state(model):
    return {
        "training": [m.training for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "gradients": [p.grad for p in model.parameters()],
        "hooks": sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()),
        "use_cache": model.config.use_cache,
        "weights": [p._version for p in model.parameters()],
    }


def in_use():
    """A model in the middle of training, with something frozen and something in evaluation mode."""
    model = tiny_model("llama", "AutoModelForCausalLM").train()
    model.model.layers[1].eval()
    model.model.embed_tokens.weight.requires_grad_(False)
    model.config.use_cache = True
    return model


def test_the_model_is_as_it_was():
    model = in_use()
    before = state(model)
    samples = samples_of("AutoModelForCausalLM")
    seen = []

    def watch(outputs, batch, draw):
        seen.append((model.training, outputs.past_key_values, any(p.requires_grad for p in model.parameters())))
        return NegativeLogLikelihood("given", True, model.config)(outputs, batch, draw)

    gather(model, samples, watch)
    assert set(seen) == {(False, None, False)}
    assert state(model) == before


def failing(outputs, batch, draw):
    raise RuntimeError("mid-way")


@pytest.mark.parametrize(
    ("cotangent", "lengths", "error"),
    [(failing, 5, RuntimeError), (lambda outputs, *_: outputs.logits, 5, RuntimeError), (None, 2, IndexError)],
)
def test_the_model_is_as_it_was_after_a_failure(cotangent, lengths, error):
    model = in_use()
    before = state(model)
    cotangent = cotangent or NegativeLogLikelihood("given", True, model.config)
    with pytest.raises(error):
        collect(model, anatomy_of(model), samples_of("").batches(), cotangent, torch.ones(lengths))
    assert state(model) == before


def test_not_a_number_is_named():
    model = tiny_model("bert")
    with torch.no_grad():
        model.encoder.layer[1].output.dense.weight[3, 4] = torch.nan
    with pytest.raises(NumericsError, match=r"mask gradients of layers\.\d\.\w+ hold NaN or Inf"):
        gather(model, samples_of(""), EmbeddingProbe(0))


def test_a_loss_without_the_model_is_refused():
    with pytest.raises(InputError, match="does not depend on the model"):
        gather(tiny_model("bert"), samples_of(""), lambda *_: torch.ones(()))


def test_draws_are_checked():
    with pytest.raises(InputError, match="draws=0"):
        gather(tiny_model("bert"), samples_of(""), EmbeddingProbe(0), draws=0)


def test_a_plan_that_keeps_all_has_gradients_for_all():
    model = tiny_model("mistral")
    statistics = gather(model, samples_of(""), EmbeddingProbe(0), draws=2)
    assert {n: g.shape for n, g in statistics.gradients.items()} == {
        name: (10, count) for name, count in Plan.keep_all(anatomy_of(model)).counts.items()
    }
    assert all(g.dtype == torch.float32 and (g != 0).any(0).all() for g in statistics.gradients.values())
