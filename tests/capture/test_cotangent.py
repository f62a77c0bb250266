"""Cotangents: exact expectations of the random ones, sums whatever the loss reduces by, and what is refused."""

import math
from types import SimpleNamespace

import pytest
import torch
from mask_gradients import anatomy_of, close, gather, reference, samples_of

from pyprune.capture import cotangent
from pyprune.capture.cotangent import EmbeddingProbe, NegativeLogLikelihood, UserLoss
from pyprune.capture.outputs import embedding_of, pooled_embedding
from pyprune.core.batches import Batch, Samples
from pyprune.core.errors import InputError
from pyprune.testing import numerics
from pyprune.testing.models import tiny_model

DRAWS = 400
SIGMAS = 4


def second_moments(statistics, draws):
    """Mean over draws of the squared gradients, `[S, size]` a group."""
    return {n: g.double().square().view(-1, draws, g.shape[1]).mean(1) for n, g in statistics.gradients.items()}


def test_sampled_labels_give_the_exact_fisher_over_classes():
    head = "AutoModelForSequenceClassification"
    model = tiny_model("bert", head, torch.float64, num_labels=3)
    samples = samples_of("", lengths=(6, 3))
    second, fourth = None, None
    for label in range(3):
        g = reference(model, samples, lambda outputs, s, y=label: -outputs.logits[0].log_softmax(-1)[y])
        with torch.no_grad():
            rows = [model(row["input_ids"][None]).logits[0].softmax(-1)[label] for row in samples.inputs]
        p = torch.stack(rows)[:, None]
        second = {n: (0 if second is None else second[n]) + p * g[n] ** 2 for n in g}
        fourth = {n: (0 if fourth is None else fourth[n]) + p * g[n] ** 4 for n in g}
    statistics = gather(model, samples, NegativeLogLikelihood("sampled", False, model.config), DRAWS, max_padding=1.0)
    for name, mean in second_moments(statistics, DRAWS).items():
        sigma = ((fourth[name] - second[name] ** 2).clamp(min=0) / DRAWS).sqrt()
        assert ((mean - second[name]).abs() <= SIGMAS * sigma).all()
        assert sigma.sum() > 0


def test_probes_give_the_exact_squared_jacobian():
    model = tiny_model("distilbert", dtype=torch.float64)
    samples = samples_of("", lengths=(6, 3))
    exact = {g.name: 0 for g in anatomy_of(model).groups}
    for k in range(model.config.dim):
        # Mean over tokens, norm 1, written out; one component at a time.
        g = reference(
            model, samples, lambda out, s, k=k: (lambda e: (e / e.norm())[k])(out.last_hidden_state[0].mean(0))
        )
        exact = {n: exact[n] + g[n] ** 2 for n in g}
    statistics = gather(model, samples, EmbeddingProbe(0), DRAWS, max_padding=1.0)
    for name, mean in second_moments(statistics, DRAWS).items():
        # <de, z> is normal with variance |de|^2, whose square has variance 2 |de|^4.
        assert ((mean - exact[name]).abs() <= SIGMAS * exact[name] * math.sqrt(2 / DRAWS)).all()


def outputs_for(**logits):
    return SimpleNamespace(**{name: value.requires_grad_() for name, value in logits.items()})


def batch_of(lengths, width=None, labels=None):
    lengths = torch.tensor(lengths)
    width = width or int(lengths.max())
    ids = torch.ones(len(lengths), width, dtype=torch.int64)
    mask = (torch.arange(width) < lengths[:, None]).long()
    return Batch({"input_ids": ids, "attention_mask": mask}, torch.arange(len(lengths)), lengths, labels)


def frequencies(logits_of, batch, gradient_of, draws=3000):
    """How often every class is drawn, read from the gradient p - onehot of the negative log-likelihood."""
    cotangent = NegativeLogLikelihood("sampled", False, SimpleNamespace())
    outputs = logits_of()
    counts = 0
    for draw in range(draws):
        (g,) = torch.autograd.grad(cotangent(outputs, batch, draw), gradient_of(outputs))
        counts = counts + (g < 0)
    return counts / draws, draws


def within(share, p, draws):
    assert ((share - p).abs() <= SIGMAS * (p * (1 - p) / draws).sqrt() + 1e-12).all()


def test_classes_are_drawn_by_their_probability():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.05, 0.05, 0.9]])
    share, draws = frequencies(lambda: outputs_for(logits=p.log()), batch_of([2, 2]), lambda o: o.logits)
    within(share, p, draws)


def test_tokens_are_drawn_one_by_one_and_padding_never():
    p = torch.tensor([[[0.8, 0.2], [0.3, 0.7], [0.5, 0.5]], [[0.1, 0.9], [0.5, 0.5], [0.5, 0.5]]])
    share, draws = frequencies(lambda: outputs_for(logits=p.log()), batch_of([3, 1]), lambda o: o.logits)
    within(share[0], p[0], draws)
    within(share[1, 0], p[1, 0], draws)
    assert (share[1, 1:] == 0).all()


@pytest.mark.parametrize("part", ["start_logits", "end_logits"])
def test_answers_are_drawn_from_real_tokens(part):
    logits = {
        "start_logits": torch.tensor([[1.0, 0, 9], [0, 0, 0]]),
        "end_logits": torch.tensor([[0, 2.0, 9], [1, 0, 0]]),
    }
    real = torch.tensor([[True, True, False], [True, True, True]])
    p = logits[part].masked_fill(~real, -torch.inf).softmax(-1)
    share, draws = frequencies(lambda: outputs_for(**logits), batch_of([2, 3]), lambda o: getattr(o, part))
    within(share, p, draws)


def test_draws_of_samples_are_independent():
    p = torch.full((2, 2), 0.5)
    cotangent, outputs = NegativeLogLikelihood("sampled", False, SimpleNamespace()), outputs_for(logits=p.log())
    grads = [torch.autograd.grad(cotangent(outputs, batch_of([2, 2]), d), outputs.logits)[0] for d in range(1000)]
    drawn = torch.stack(grads)[:, :, 0] < 0
    agree = (drawn[:, 0] == drawn[:, 1]).double().mean()
    following = (drawn[1:] == drawn[:-1]).double().mean()
    for share in (agree, following):
        assert abs(share - 0.5) <= SIGMAS * 0.5 / math.sqrt(1000)


def test_another_seed_is_another_draw():
    model, samples = tiny_model("bert"), samples_of("")
    first, second, again = (gather(model, samples, EmbeddingProbe(seed)).gradients for seed in (0, 1, 0))
    for name in first:
        numerics.exact(first[name], again[name])
        assert not torch.equal(first[name], second[name])


def test_pooled_embedding_by_hand():
    hidden = torch.tensor([[[3.0, 0.0], [3.0, 8.0], [9.0, 9.0]], [[0.0, 2.0], [9.0, 9.0], [9.0, 9.0]]])
    numerics.exact(pooled_embedding(hidden, batch_of([2, 1], 3)), torch.tensor([[0.6, 0.8], [0.0, 1.0]]))


def user_losses(head, causal):
    """The task's own loss in its three reductions, from torch's one-line forms."""

    def loss(reduction):
        def value(outputs, batch):
            logits, labels = outputs.logits.double(), batch.labels
            if causal:
                logits, labels = logits[:, :-1], labels[:, 1:]
            if logits.dim() == 3:
                logits, labels = logits.flatten(0, 1), labels.flatten()
                if reduction == "mean":
                    return torch.nn.functional.cross_entropy(logits, labels, reduction="sum") / len(batch.index)
            return torch.nn.functional.cross_entropy(logits, labels, reduction="sum" if reduction == "sum" else "mean")

        return value

    return [UserLoss(loss(reduction), reduction, causal) for reduction in ("sum", "mean", "token_mean")]


@pytest.mark.parametrize(
    ("variant", "head"),
    [
        ("roberta", "AutoModelForMaskedLM"),
        ("bert", "AutoModelForTokenClassification"),
        ("llama", "AutoModelForCausalLM"),
    ],
)
def test_a_users_loss_may_reduce_as_it_likes(variant, head):
    model, samples, causal = tiny_model(variant, head, torch.float64), samples_of(head), head.endswith("CausalLM")
    if causal:
        samples = Samples(samples.inputs, [row["input_ids"].clone() for row in samples.inputs], samples.pad)
    truth = gather(model, samples, NegativeLogLikelihood("given", causal, model.config), max_tokens=1).gradients
    for loss in user_losses(head, causal):
        for batching in ({}, {"max_padding": 1.0}, {"max_tokens": 18, "max_padding": 0.5}):
            close(gather(model, samples, loss, **batching).gradients, truth)


def test_a_users_mean_over_samples():
    head = "AutoModelForSequenceClassification"
    model, samples = tiny_model("bert", head, torch.float64), samples_of(head)
    truth = gather(model, samples, NegativeLogLikelihood("given", False, model.config)).gradients
    for loss in user_losses(head, False)[:2]:
        close(gather(model, samples, loss, max_padding=1.0).gradients, truth)


def test_tokens_count_where_there_are_no_labels():
    loss = UserLoss(lambda outputs, batch: outputs, "token_mean")
    assert loss(torch.tensor(1.0), batch_of([4, 2]), 0) == 6
    causal = UserLoss(lambda outputs, batch: outputs, "token_mean", causal=True)
    assert causal(torch.tensor(1.0), batch_of([4, 2]), 0) == 4


def test_a_causal_model_labels_its_own_inputs():
    model, samples = tiny_model("mistral", "AutoModelForCausalLM", torch.float64), samples_of("")
    labelled = Samples(samples.inputs, [row["input_ids"].clone() for row in samples.inputs], samples.pad)
    cotangent = NegativeLogLikelihood("given", True, model.config)
    close(gather(model, labelled, cotangent).gradients, gather(model, samples, cotangent).gradients)


def test_a_sample_of_one_token_predicts_nothing():
    model = tiny_model("llama", "AutoModelForCausalLM")
    for labels in ("given", "sampled"):
        statistics = gather(model, samples_of("", lengths=(1, 4)), NegativeLogLikelihood(labels, True, model.config))
        assert all((g[0] == 0).all() and (g[1] != 0).any() for g in statistics.gradients.values())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NegativeLogLikelihood("true", False, None), "labels='true'"),
        (lambda: NegativeLogLikelihood("given", False, None, tokens="max"), "tokens='max'"),
        (lambda: UserLoss(lambda *_: 0, "average"), "loss_reduction='average'"),
        (lambda: UserLoss(lambda *_: torch.ones(2), "sum")(None, batch_of([1]), 0), r"a scalar, found shape \(2,\)"),
        (
            lambda: NegativeLogLikelihood("given", False, None)(outputs_for(logits=torch.ones(1, 2)), batch_of([1]), 0),
            "needs labelled data",
        ),
    ],
)
def test_refusals(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_labels_of_large_vocabularies_are_drawn_in_parts(monkeypatch):
    model, samples = tiny_model("llama", "AutoModelForCausalLM"), samples_of("")
    sampled = NegativeLogLikelihood("sampled", True, model.config)
    whole = gather(model, samples, sampled).gradients
    monkeypatch.setattr(cotangent, "_DRAWN_AT_ONCE", 300)
    for name, g in gather(model, samples, sampled).gradients.items():
        numerics.exact(g, whole[name])


def test_text_behind_an_image_is_what_is_predicted():
    """Logits of an image's tokens in front of the text predict nothing."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 7, 5, generator=generator)
    batch = batch_of([3, 3])
    batch.inputs["input_ids"][:] = torch.tensor([[1, 4, 2], [0, 3, 3]])
    loss = NegativeLogLikelihood("given", True, SimpleNamespace())(SimpleNamespace(logits=logits), batch, 0)
    expected = torch.nn.functional.cross_entropy(
        logits[:, 4:6].flatten(0, 1), batch.inputs["input_ids"][:, 1:].flatten()
    )
    assert float(loss) == pytest.approx(4 * float(expected), rel=1e-5)


def test_decoders_predict_their_own_text():
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    batch = batch_of([3, 3])
    batch.inputs["decoder_input_ids"] = torch.tensor([[1, 4, 2, 0], [0, 3, 3, 1]])
    loss = NegativeLogLikelihood("given", True, SimpleNamespace())(SimpleNamespace(logits=logits), batch, 0)
    tokens = batch.inputs["decoder_input_ids"][:, 1:]
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens.flatten(), reduction="sum")
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_embeddings_of_text_and_image_count_alike():
    outputs = SimpleNamespace(text_embeds=torch.tensor([[3.0, 0.0]]), image_embeds=torch.tensor([[0.0, 0.0, 9.0]]))
    half = 0.5**0.5
    torch.testing.assert_close(embedding_of(outputs, batch_of([2])), torch.tensor([[half, 0, 0, 0, half]]))
    maps = SimpleNamespace(feature_maps=(torch.zeros(1, 9, 1, 1), torch.tensor([[[[1.0, 3.0]], [[0.0, 0.0]]]])))
    torch.testing.assert_close(embedding_of(maps, batch_of([7])), torch.tensor([[1.0, 0.0]]))
    assert embedding_of(SimpleNamespace(), batch_of([2])) is None
