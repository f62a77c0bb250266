"""The public functions on tiny models of both families, as a user of the library calls them."""

import copy

import pytest
import torch

import pyprune
from pyprune.core.batches import Samples
from pyprune.core.errors import BudgetError, InputError, MismatchError, NumericsError
from pyprune.models.adapter import adapter_for
from pyprune.models.inputs import example_inputs
from pyprune.slicing.check import max_difference
from pyprune.testing.checkpoints import passages, tiny_checkpoint, word_tokenizer
from pyprune.testing.models import tiny_model
from pyprune.testing.numerics import exact

FAMILIES = [
    ("bert", "AutoModel"),
    ("roberta", "AutoModelForSequenceClassification"),
    ("distilbert", "AutoModelForTokenClassification"),
    ("deberta-v2-relative", "AutoModel"),
    ("modernbert", "AutoModelForMaskedLM"),
    ("llama", "AutoModelForCausalLM"),
    ("mistral", "AutoModel"),
    ("qwen2", "AutoModelForCausalLM"),
    ("qwen3", "AutoModelForSequenceClassification"),
]


def samples(count=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 20, (count,), generator=generator).tolist()
    return Samples([{"input_ids": torch.randint(3, 99, (n,), generator=generator)} for n in lengths], None, {})


@pytest.mark.parametrize(("variant", "head"), FAMILIES)
@pytest.mark.parametrize("recipe", ["surgeon", "kwon", "kprune"])
def test_prune_every_family_with_every_recipe(variant, head, recipe, tmp_path):
    model = tiny_model(variant, head)
    before = copy.deepcopy(model.state_dict())
    result = pyprune.prune(model, {"flops": 0.6}, samples(), recipe=recipe, out=tmp_path / "small")
    anatomy = result.anatomy
    length = samples().lengths.double().mean().item()
    assert result.plan.length == pytest.approx(length)
    limit = 0.6 * anatomy.flops(length)
    dearest = max(g.cost.flops(length) for g in anatomy.groups)
    assert limit - dearest < result.plan.cost(anatomy, "flops") <= limit
    for name, value in model.state_dict().items():
        exact(value, before[name])
    assert all(check.equal for check in pyprune.verify_model(model, result.plan, result.pruned))
    assert all(check.equal for check in pyprune.verify_checkpoint(tmp_path / "small"))
    reloaded = type(model).from_pretrained(tmp_path / "small").eval()
    inputs = example_inputs(model)
    with torch.no_grad():
        assert max_difference(result.pruned(**inputs), reloaded(**inputs)) == 0


def test_the_stages_alone_make_what_prune_makes():
    model, data = tiny_model("bert"), samples()
    whole = pyprune.prune(model, {"flops": 0.5}, data)
    scores = pyprune.score(model, data)
    plan = pyprune.plan(model, scores, {"flops": 0.5})
    small = pyprune.apply(model, plan)
    tuned, outcomes = pyprune.tune(small, model, plan, data)
    assert plan.counts == whole.plan.counts
    assert [o.block for o in outcomes] == [o.block for o in whole.outcomes]
    for name, value in tuned.state_dict().items():
        exact(value, whole.pruned.state_dict()[name])
    assert any(not torch.equal(v, small.state_dict()[k]) for k, v in tuned.state_dict().items())


def test_apply_and_tune_in_place_or_on_a_copy():
    model, data = tiny_model("bert"), samples()
    dense = copy.deepcopy(model)
    plan = pyprune.plan(model, pyprune.score(model, data), {"params": 0.5})
    small = pyprune.apply(model, plan)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in dense.parameters())
    assert pyprune.apply(model, plan, inplace=True) is model
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in small.parameters())
    tuned, _ = pyprune.tune(model, dense, plan, data, inplace=True)
    assert tuned is model


def test_several_budgets_hold_at_once():
    model, data = tiny_model("llama", "AutoModelForCausalLM"), samples()
    scores = pyprune.score(model, data)
    anatomy = adapter_for(model).anatomy(model)
    plan = pyprune.plan(model, scores, {"flops": 0.9, "params": 0.4})
    assert plan.cost(anatomy, "params") <= 0.4 * anatomy.params()
    assert plan.cost(anatomy, "flops") <= 0.9 * anatomy.flops(plan.length)
    amount = pyprune.plan(model, scores, {"params": f"{0.4 * anatomy.params() / 1e6}M"})
    assert amount.counts == pyprune.plan(model, scores, {"params": 0.4}).counts


def test_floors_keep_units_everywhere():
    model = tiny_model("bert")
    plan = pyprune.prune(model, {"flops": 0.5}, samples(), floor=2).plan
    assert min(plan.counts.values()) >= 2


def test_blocks_axes_and_widths_are_bound():
    model, data = tiny_model("bert"), samples()
    plan = pyprune.prune(model, {"flops": 0.6}, data, keep=["encoder.layer.1.*"], multiple_of=8).plan
    assert (plan.counts["layers.1.heads"], plan.counts["layers.1.neurons"]) == (4, 24)
    assert all(count % 8 == 0 for name, count in plan.counts.items() if name.endswith("neurons"))
    scores = pyprune.score(model, data)
    plan = pyprune.plan(model, scores, {"flops": 0.8}, axes=["neurons"])
    assert {count for name, count in plan.counts.items() if name.endswith("heads")} == {4}
    with pytest.raises(InputError, match=r"keep, axes, multiple_of: of no account with a plan"):
        pyprune.prune(model, None, data, plan=plan, keep=["*.heads"], axes=["heads"], multiple_of=8)


def test_length_moves_the_balance_between_heads_and_neurons():
    model, data = tiny_model("bert"), samples()
    scores = pyprune.score(model, data)
    short, long = (pyprune.plan(model, scores, {"flops": 0.55}, length=n) for n in (1, 4000))
    assert (short.length, long.length) == (1, 4000)

    def neurons(plan):
        return sum(count for name, count in plan.counts.items() if name.endswith("neurons"))

    # Attention costs the square of the length: at 4,000 tokens neurons are next to free.
    assert neurons(short) < neurons(long)


def test_a_pruned_model_can_be_pruned_again(tmp_path):
    model, data = tiny_model("qwen3", "AutoModelForCausalLM"), samples()
    once = pyprune.prune(model, {"flops": 0.8}, data).pruned
    twice = pyprune.prune(once, {"flops": 0.7}, data, out=tmp_path / "twice")
    assert all(check.equal for check in pyprune.verify_checkpoint(tmp_path / "twice"))
    assert twice.plan.cost(twice.anatomy, "flops") <= 0.7 * twice.anatomy.flops(twice.plan.length)


def test_texts_pairs_and_files_are_data(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "dense", head="AutoModelForSequenceClassification")
    texts = passages(12)
    for data in (texts, tmp_path / "passages.txt", [{"text": t} for t in texts]):
        result = pyprune.prune(checkpoint, {"flops": 0.7}, data, samples=8)
        assert result.tokenizer is not None
    pairs = [(text, i % 2) for i, text in enumerate(texts)]
    labelled = pyprune.score(checkpoint, pairs, recipe="kwon", cotangent="labels")
    sampled = pyprune.score(checkpoint, pairs, recipe="kwon")
    assert labelled.meta["cotangent"] == "labels"
    assert sampled.meta["cotangent"] == "sampled"
    model = tiny_model("bert")
    with pytest.raises(InputError, match="tokenizer"):
        pyprune.score(model, texts)
    assert pyprune.score(model, texts, tokenizer=word_tokenizer(" ".join(texts))).values


def test_bfloat16_models_and_bfloat16_scoring(tmp_path):
    model = tiny_model("bert", dtype=torch.bfloat16)
    result = pyprune.prune(model, {"flops": 0.6}, samples(), out=tmp_path / "small")
    assert {p.dtype for p in result.pruned.parameters()} == {torch.bfloat16}
    assert all(check.equal for check in pyprune.verify_checkpoint(tmp_path / "small"))
    wide = tiny_model("bert")
    full, narrow = (pyprune.score(wide, samples(), recipe="kwon", score_dtype=d) for d in (None, torch.bfloat16))
    assert wide.dtype == torch.float32
    name = "layers.1.neurons"
    assert torch.corrcoef(torch.stack([full.values[name], narrow.values[name]]))[0, 1] > 0.99


@pytest.mark.parametrize("recipe", ["surgeon", "kwon"])
def test_a_loss_of_ones_own_in_any_reduction(recipe):
    model, data = tiny_model("bert", "AutoModelForSequenceClassification"), samples()

    def summed(outputs, batch):
        return outputs.logits.square().sum()

    def mean(outputs, batch):
        return outputs.logits.square().sum(1).mean()

    losses = (pyprune.UserLoss(summed, "sum"), pyprune.UserLoss(mean, "mean"))
    first, second = (pyprune.score(model, data, recipe=recipe, cotangent=loss) for loss in losses)
    assert first.meta["cotangent"] == "user"
    for name, value in first.values.items():
        assert torch.allclose(value, second.values[name], rtol=1e-3)


def test_retraining_pads_with_the_models_own_token():
    student, teacher = (tiny_model("qwen3", "AutoModelForSequenceClassification", seed=s) for s in (0, 1))
    padding = []

    def look(_, args, kwargs):
        if "attention_mask" in kwargs:
            padding.append(kwargs["input_ids"][kwargs["attention_mask"] == 0])

    teacher.register_forward_pre_hook(look, with_kwargs=True)
    pyprune.retrain(student, teacher, samples(8), method="full", targets="soft")
    assert torch.cat(padding).unique().tolist() == [teacher.config.pad_token_id]


def test_saving_leaves_what_is_there_alone(tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "mine.txt").write_text("x")
    model = tiny_model("bert")
    with pytest.raises(InputError, match="not empty"):
        pyprune.prune(model, {"flops": 0.6}, samples(), out=tmp_path / "small")
    assert [p.name for p in tmp_path.rglob("*")] == ["small", "mine.txt"]


def test_wrong_calls_say_what_to_do():
    model, data = tiny_model("bert"), samples()
    with pytest.raises(InputError, match="one of the two"):
        pyprune.prune(model, data=data)
    with pytest.raises(BudgetError, match="flops, params"):
        pyprune.prune(model, {"latency": 0.5}, data)
    with pytest.raises(InputError, match="no setting 'criterion'"):
        pyprune.score(model, data, criterion="fisher")
    with pytest.raises(InputError, match="needs a model with logits"):
        pyprune.score(model, data, recipe="kwon", cotangent="labels")
    with pytest.raises(InputError, match="set pad_token_id"):
        pyprune.score(tiny_model("llama", "AutoModelForSequenceClassification", pad_token_id=None), data)
    plan = pyprune.plan(model, pyprune.score(model, data), {"flops": 0.5})
    small = pyprune.apply(model, plan)
    with pytest.raises(MismatchError, match="another model"):
        pyprune.apply(tiny_model("bert", num_hidden_layers=2), plan)
    with pytest.raises(InputError, match="scores"):
        pyprune.tune(small, model, plan, data, recipe="kwon", tuning="mask")
    with pytest.raises(AttributeError, match="nothing"):
        _ = pyprune.nothing


def score_by_labels(variant, head, labels, **options):
    data = Samples(samples(4).inputs, [torch.tensor(label) for label in labels], {})
    return pyprune.score(tiny_model(variant, head, **options), data, recipe="kwon", cotangent="labels")


@pytest.mark.parametrize(
    ("variant", "head", "labels", "says"),
    [
        ("bert", "AutoModelForTokenClassification", [0, 1, 0, 1], r"needs labels \[\d+\] a sample, found \[\]"),
        ("llama", "AutoModelForCausalLM", [0, 1, 0, 1], r"found \[\]"),
        ("bert", "AutoModelForQuestionAnswering", [0, 1, 0, 1], r"needs labels \[2\] a sample"),
        ("bert", "AutoModelForQuestionAnswering", [[0, 1], [0, 99], [1, 2], [0, 0]], "label 99 is none"),
        ("bert", "AutoModelForSequenceClassification", [[0, 1], [1, 0], [1, 1], [0, 0]], r"found \[2\]"),
        ("bert", "AutoModelForSequenceClassification", [0, 1, 2, 0], "label 2 is none of the 2 classes"),
        ("bert", "AutoModelForSequenceClassification", [0.0, 0.5, 1.0, 0.0], "label 0.5 is none"),
    ],
)
def test_labels_that_do_not_fit_the_model(variant, head, labels, says):
    with pytest.raises(InputError, match=says):
        score_by_labels(variant, head, labels)


def test_labels_that_fit():
    classes = score_by_labels("bert", "AutoModelForSequenceClassification", [0, 1, 1, 0])
    floats = score_by_labels("bert", "AutoModelForSequenceClassification", [0.0, 1.0, 1.0, 0.0])
    for name, value in classes.values.items():
        exact(value, floats.values[name])
    assert score_by_labels("bert", "AutoModelForSequenceClassification", [0.3, 1, -2, 0], num_labels=1).values


def test_heads_that_no_cotangent_fits():
    from transformers import BertForPreTraining

    model = tiny_model("bert", "AutoModelForMaskedLM")
    with pytest.raises(InputError, match="use 'sampled'"):
        pyprune.score(model, samples(4), cotangent="embedding")
    with pytest.raises(InputError, match="BertForPreTrainingOutput, which has no logits"):
        pyprune.score(BertForPreTraining(model.config), samples(4))


def test_scores_do_not_depend_on_how_the_caller_runs_models():
    data, expected = samples(6), pyprune.score(tiny_model("bert"), samples(6)).values
    with torch.no_grad():
        found = [pyprune.score(tiny_model("bert"), data).values]
    model = tiny_model("bert", return_dict=False).train()
    found.append(pyprune.score(model, data).values)
    assert model.training
    assert not model.config.return_dict
    for values in found:
        for name, value in values.items():
            exact(value, expected[name])


def test_models_and_data_that_would_give_wrong_scores():
    data = samples(4)
    with pytest.raises(InputError, match=r"unknown model type 'Linear'; known: .*bert"):
        pyprune.score(torch.nn.Linear(2, 2), data)
    with pytest.raises(InputError, match="chunk_size_feed_forward"):
        pyprune.score(tiny_model("bert", chunk_size_feed_forward=2), data)
    damaged = tiny_model("bert")
    with torch.no_grad():
        damaged.encoder.layer[1].output.dense.weight[3] = torch.nan
    with pytest.raises(NumericsError, match=r"encoder\.layer\.1\.output\.dense\.weight holds NaN"):
        pyprune.prune(damaged, {"flops": 0.6}, data, recipe="kwon", criterion="random")
    with pytest.raises(InputError, match="token 99 is beyond the model's 99"):
        pyprune.score(tiny_model("bert"), [{"input_ids": [3, 99]}])
    with pytest.raises(InputError, match="differ in length"):
        pyprune.score(tiny_model("bert"), [{"input_ids": [3, 4, 5], "attention_mask": [1, 1]}])


def test_every_public_name_is_there():
    for name in pyprune.__all__:
        assert getattr(pyprune, name).__doc__, name
