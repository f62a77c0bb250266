"""The axis `vocab` through the public functions and the command line: usage, budgets, tokenizer and model together."""

import pytest
import torch
from fresh import fresh, logits
from tokenizers import models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer, GPT2Tokenizer

import pyprune
from pyprune.core.errors import BudgetError, InputError
from pyprune.core.plan import Plan
from pyprune.data.vocabulary import with_tokenizer
from pyprune.models.adapter import adapter_for
from pyprune.testing.models import tiny_model
from pyprune.testing.tokenizers import LINES, trained

DATA, OTHERS = LINES[:40], LINES[40:]
WIDTH = 32


@pytest.fixture(scope="module")
def bert():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    model = models.WordPiece(unk_token="[UNK]")
    made = trained(model, trainer, pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer())
    return BertTokenizer(vocab=made["vocab"], model_max_length=40)


@pytest.fixture(scope="module")
def gpt2():
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    made = trained(models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=False))
    merges = [tuple(pair) for pair in made["merges"]]
    return GPT2Tokenizer(vocab=made["vocab"], merges=merges, model_max_length=40)


def model_for(tokenizer, variant, head, rows=12, **options):
    """A table with rows to spare."""
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    ids = ends | {"pad_token_id": tokenizer.pad_token_id}
    return tiny_model(variant, head, vocab_size=len(tokenizer) + rows, **ids, **options)


def used(model, tokenizer):
    """Tokens of the calibration data and what stays along with them."""
    vocabulary = with_tokenizer(adapter_for(model).anatomy(model, ["vocab"]), tokenizer).vocabulary
    return set(vocabulary.closed({token for line in DATA for token in tokenizer(line, truncation=True).input_ids}))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return tmp_path_factory.mktemp("tokens")


@pytest.mark.parametrize(
    ("kind", "variant", "head"),
    [
        ("bert", "bert", "AutoModelForMaskedLM"),
        ("bert", "bert", "AutoModelForSequenceClassification"),
        ("gpt2", "gpt2", "AutoModelForCausalLM"),
        ("gpt2", "llama", "AutoModelForCausalLM"),
    ],
)
def test_pruned_equals_dense_on_kept_tokens(kind, variant, head, request, checkpoints):
    tokenizer = request.getfixturevalue(kind)
    dense = model_for(tokenizer, variant, head, dtype=torch.float64)
    out = checkpoints / f"{variant}-{head}"
    anatomy = adapter_for(dense).anatomy(dense, ["vocab"])
    units = anatomy.vocabulary.units
    budget = {"params": 1 - units.cost.params * (units.size - len(used(dense, tokenizer))) / anatomy.params()}
    result = pyprune.prune(dense, budget, DATA, tokenizer=tokenizer, axes=["vocab"], out=out)
    kept = result.plan.kept["vocab"].tolist()
    assert set(kept) == used(dense, tokenizer)
    assert result.pruned.config.vocab_size == len(result.pruned_tokenizer) == len(kept)
    assert all(check.equal for check in pyprune.verify_model(dense, result.plan, result.pruned))
    assert all(check.equal for check in pyprune.verify_checkpoint(out))
    assert f"- {len(kept)} of {dense.config.vocab_size} of `vocab`" in (out / "README.md").read_text()
    new = {token: number for number, token in enumerate(kept)}
    texts = [line for line in LINES if all(t in new for t in tokenizer(line).input_ids) and len(line) < 100][:60]
    assert len(texts) > 30
    assert set(texts) - set(DATA), "some texts were not calibrated on"
    ids, logits = [], []
    for text in texts:
        whole = tokenizer(text).input_ids
        ids.append([new[token] for token in whole])
        with torch.no_grad():
            found = dense(input_ids=torch.tensor([whole])).logits[0]
        logits.append(found if head == "AutoModelForSequenceClassification" else found[:, kept])
    torch.save((type(dense).__name__, texts), out / "texts.pt")
    torch.save((ids, logits), out / "expected.pt")


def test_another_process_finds_the_same(checkpoints):
    """Without pyprune: ids and logits of the reloaded tokenizers and models are those of the dense ones."""
    folders = list(checkpoints.iterdir())
    assert len(folders) == 4, "the test before leaves checkpoints: run the whole file"
    for folder, (found_ids, found) in zip(folders, fresh(logits, folders), strict=True):
        ids, expected = torch.load(folder / "expected.pt")
        assert found_ids == ids
        assert max(abs(a.numpy() - b).max() for a, b in zip(expected, found, strict=True)) < 1e-10


def test_tokens_go_in_the_order_of_their_usage(bert):
    model = model_for(bert, "bert", "AutoModelForMaskedLM")
    anatomy = with_tokenizer(adapter_for(model).anatomy(model, ["vocab"]), bert)
    scores = pyprune.score(model, DATA, tokenizer=bert, axes=["vocab"])
    assert set(scores.values) == {"vocab"}
    ids = torch.tensor([token for line in DATA for token in bert(line, truncation=True).input_ids])
    counts = torch.bincount(ids, minlength=model.config.vocab_size)
    assert torch.equal(scores.values["vocab"], counts.double())
    spared = anatomy.vocabulary.units.size - anatomy.vocabulary.units.least
    last = set(range(model.config.vocab_size))
    for gone in range(0, spared, 61):
        share = 1 - gone * WIDTH / anatomy.params()
        plan = pyprune.plan(model, scores, {"params": share}, axes=["vocab"], tokenizer=bert, length=9)
        kept = set(plan.kept["vocab"].tolist())
        assert len(kept) == model.config.vocab_size - gone
        assert kept < last or gone == 0
        assert anatomy.vocabulary.needed <= kept
        lost = set(range(model.config.vocab_size)) - kept
        free = kept - set(anatomy.vocabulary.closed(sorted(used(model, bert)))) if gone else set()
        if free and lost:  # an unused token is there: nothing that was used went, and what went has higher numbers
            assert not counts[sorted(lost)].any()
        last = kept
    for rows in (1, 64):
        plan = pyprune.plan(model, scores, {"params": 0.99}, axes=["vocab"], tokenizer=bert, length=9, multiple_of=rows)
        assert len(plan.kept["vocab"]) % rows == 0


def test_units_of_blocks_go_before_tokens_that_were_used(gpt2):
    """At a loose budget unused tokens alone; then, with them, neurons; used tokens where that is not enough."""
    model = model_for(gpt2, "llama", "AutoModelForCausalLM")
    axes = ["neurons", "vocab"]
    options = {"recipe": "kwon", "axes": axes, "tokenizer": gpt2}
    scores = pyprune.score(model, DATA, criterion="magnitude", **options)
    anatomy = with_tokenizer(adapter_for(model).anatomy(model, axes), gpt2)
    wanted, seen = model.config.vocab_size, len(used(model, gpt2))
    neurons = sum(group.size for group in anatomy.groups if group.axis == "neurons")

    def counts(share, **more):
        plan = pyprune.plan(model, scores, {"params": share}, length=9, **options, **more)
        assert plan.cost(anatomy, "params") <= share * anatomy.params() * (1 + 1e-9)
        left = sum(n for name, n in plan.counts.items() if name.endswith("neurons"))
        return len(plan.kept["vocab"]), left

    assert counts(1.0) == (wanted, neurons)
    unused_gone = 1 - (wanted - seen) * 2 * WIDTH / anatomy.params()
    assert counts(unused_gone) == (seen, neurons)
    tokens, left = counts(unused_gone - 0.05)
    assert tokens == seen
    assert left < neurons
    floor = sum(g.cost.params * g.size for g in anatomy.groups if g.axis == "neurons")
    tokens, left = counts(unused_gone - floor / anatomy.params() - 0.05)
    assert anatomy.vocabulary.units.least <= tokens < seen
    tokens, left = counts(unused_gone, multiple_of=8)
    assert (tokens % 8, tokens >= seen) == (0, True) or tokens == wanted


def test_blocks_are_tuned_before_tokens_go(gpt2, tmp_path):
    model = model_for(gpt2, "gpt2", "AutoModelForCausalLM")
    axes = ["neurons", "heads", "vocab"]
    result = pyprune.prune(model, {"params": 0.6}, DATA, tokenizer=gpt2, axes=axes, out=tmp_path / "small")
    assert any(outcome.fitted for outcome in result.outcomes)
    assert all(check.equal for check in pyprune.verify_model(model, result.plan, result.pruned))
    assert any("of the tokens of the calibration data are kept" in notice for notice in result.notices)
    reloaded, tokenizer = pyprune.load(tmp_path / "small")
    ids = torch.tensor([tokenizer(DATA[0]).input_ids])
    assert torch.isfinite(reloaded(ids).logits).all()
    with pytest.raises(InputError, match=r"tune by plan.without\(\"vocab\"\)"):
        pyprune.tune(result.pruned, model, result.plan, DATA, tokenizer=gpt2)


def test_an_encoder_decoder_needs_no_data_of_its_own(gpt2):
    """Tokens are counted, not run: T5 wants decoder inputs."""
    model = model_for(gpt2, "t5", "AutoModelForSeq2SeqLM")
    result = pyprune.prune(model, {"params": 0.9}, DATA, tokenizer=gpt2, axes=["vocab"])
    assert result.pruned.config.vocab_size < model.config.vocab_size
    assert all(check.equal for check in pyprune.verify_model(model, result.plan, result.pruned))


def test_a_plan_by_hand(gpt2, tmp_path):
    """Tokens seen at least twice; and a model without a tokenizer, whose plan lists the old numbers."""
    model = model_for(gpt2, "gpt2", "AutoModelForCausalLM")
    anatomy = with_tokenizer(adapter_for(model).anatomy(model, ["vocab"]), gpt2)
    counts = pyprune.score(model, DATA, tokenizer=gpt2, axes=["vocab"]).values["vocab"]
    plan = Plan.keep_all(anatomy)
    plan.kept["vocab"] = torch.tensor(sorted(anatomy.vocabulary.closed((counts >= 2).nonzero()[:, 0].tolist())))
    small = pyprune.apply(model, plan)
    pyprune.save(small, tmp_path / "small", tokenizer=gpt2, plan=plan)
    _, tokenizer = pyprune.load(tmp_path / "small")
    assert tokenizer.get_vocab() == pyprune.cut_tokenizer(gpt2, plan).get_vocab()
    assert len(tokenizer) == small.config.vocab_size
    pyprune.save(small, tmp_path / "bare", plan=plan)
    stored = Plan.load(tmp_path / "bare" / "pyprune_plan.json")
    assert torch.equal(stored.kept["vocab"], plan.kept["vocab"])


def test_what_cannot_be_done_is_said(bert, tmp_path):
    model = model_for(bert, "bert", "AutoModel")
    options = {"data": DATA, "tokenizer": bert, "out": tmp_path / "small"}
    with pytest.raises(BudgetError, match="costs no FLOPs: give a budget of parameters"):
        pyprune.prune(model, {"flops": 0.5}, axes=["vocab"], **options)
    with pytest.raises(BudgetError, match=r"cannot be met: 6 of \d+ tokens stay in any case"):
        pyprune.prune(model, {"params": 0.01}, axes=["vocab"], **options)
    with pytest.raises(InputError, match="axis 'vocab': the model has heads, hidden, layers"):
        pyprune.prune(tiny_model("vit"), {"params": 0.5}, axes=["vocab"], **options)
    assert not list(tmp_path.iterdir())
