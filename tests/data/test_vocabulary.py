"""Tokenizers that lose tokens: on text of kept tokens they give what they gave, by new numbers, also reloaded."""

from functools import cache
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    T5Tokenizer,
    XLMRobertaTokenizer,
)

from pyprune.core.anatomy import Anatomy, VocabularyGroup
from pyprune.core.errors import InputError
from pyprune.core.plan import Plan
from pyprune.core.units import UnitCost, UnitGroup
from pyprune.data.vocabulary import cut_tokenizer, with_tokenizer
from pyprune.testing.tokenizers import LINES, trained

EXTRA_ROWS = 7  # of a table that was padded to a round number


@cache
def bert():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    words = pre_tokenizers.BertPreTokenizer()
    model = trained(models.WordPiece(unk_token="[UNK]"), trainer, words, normalizers.BertNormalizer())
    return BertTokenizer(vocab=model["vocab"])


def byte_level():
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    return trained(models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=False))


def merges(model):
    return [tuple(pair) for pair in model["merges"]]


@cache
def gpt2():
    model = byte_level()
    return GPT2Tokenizer(vocab=model["vocab"], merges=merges(model))


@cache
def roberta():
    model = byte_level()
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(model["vocab"], key=model["vocab"].get), "<mask>"]
    return RobertaTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges(model))


@cache
def llama():
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    model = models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    made = trained(model, trainer, pre_tokenizers.Metaspace())
    # As in what was converted from sentencepiece, single characters come last, after what is merged from them.
    tokens = sorted(made["vocab"], key=lambda token: (token not in special, len(token) == 1, made["vocab"][token]))
    return LlamaTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges(made))


def unigram(kind, special):
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>", show_progress=False)
    made = trained(models.Unigram(), trainer, pre_tokenizers.Metaspace())
    return kind(vocab=[tuple(piece) for piece in made["vocab"]])


@cache
def t5():
    return unigram(T5Tokenizer, ["<pad>", "</s>", "<unk>"])


@cache
def xlm_roberta():
    return unigram(XLMRobertaTokenizer, ["<s>", "<pad>", "</s>", "<unk>"])


def plain(model, trainer, special, processor=None):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(LINES, trainer)
    if processor:
        tokenizer.post_processor = processor(tokenizer)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id("<pad>"), pad_token="<pad>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@cache
def word_level():
    trainer = trainers.WordLevelTrainer(vocab_size=500, special_tokens=["<unk>", "<pad>"], show_progress=False)
    return plain(models.WordLevel(unk_token="<unk>"), trainer, {"unk_token": "<unk>", "pad_token": "<pad>"})


@cache
def suffixed():
    """BPE of characters with a mark at the end of words, and BERT's own post-processor."""
    special = ["<unk>", "<pad>", "<cls>", "<sep>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, end_of_word_suffix="</w>", show_progress=False
    )

    def ends(tokenizer):
        return processors.BertProcessing(
            ("<sep>", tokenizer.token_to_id("<sep>")), ("<cls>", tokenizer.token_to_id("<cls>"))
        )

    names = {"unk_token": "<unk>", "pad_token": "<pad>", "cls_token": "<cls>", "sep_token": "<sep>"}
    return plain(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"), trainer, names, ends)


@cache
def prefixed():
    """BPE whose merges drop the mark of what continues a word; added tokens stand behind the vocabulary."""
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<unk>", "<pad>"], continuing_subword_prefix="##", show_progress=False
    )
    model = models.BPE(unk_token="<unk>", continuing_subword_prefix="##")
    tokenizer = plain(model, trainer, {"unk_token": "<unk>", "pad_token": "<pad>"})
    tokenizer.add_tokens(["<tool>", "<image>"])
    return tokenizer


MAKERS = [bert, gpt2, roberta, llama, t5, xlm_roberta, word_level, suffixed, prefixed]


def anatomy(tokenizer, needed=()):
    size = max(tokenizer.get_vocab().values()) + 1 + EXTRA_ROWS
    units = UnitGroup("vocab", "vocab", 0, size, 1, (), UnitCost(8), least=1)
    bare = Anatomy("any", (), (), vocabulary=VocabularyGroup(units, (), frozenset(needed)))
    return with_tokenizer(bare, tokenizer)


def plan_of(vocabulary, tokens):
    kept = torch.tensor(sorted(vocabulary.closed(tokens)))
    return Plan({"vocab": kept}, {"vocab": vocabulary.units.size}, 1.0)


@pytest.mark.parametrize("make", MAKERS)
def test_text_of_kept_tokens_is_cut_as_before(make, tmp_path):
    tokenizer = make()
    vocabulary = anatomy(tokenizer).vocabulary
    seen = {token for line in LINES[:30] for token in tokenizer(line).input_ids}
    plan = plan_of(vocabulary, seen)
    new = {token: number for number, token in enumerate(plan.kept["vocab"].tolist())}
    assert len(new) < vocabulary.units.size - EXTRA_ROWS
    small = cut_tokenizer(tokenizer, plan)
    small.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    checked = 0
    for line in LINES:
        ids = tokenizer(line).input_ids
        if all(token in new for token in ids):
            checked += 1
            expected = [new[token] for token in ids]
            assert small(line).input_ids == reloaded(line).input_ids == expected, line
            assert small.decode(expected) == tokenizer.decode(ids)
    assert checked >= 30
    assert small.special_tokens_map == tokenizer.special_tokens_map
    batch = LINES[:3]
    if tokenizer.pad_token is not None:
        padded, expected = (t(batch, padding=True).input_ids for t in (reloaded, tokenizer))
        assert padded == [[new[token] for token in row] for row in expected]


@pytest.mark.parametrize("make", MAKERS)
def test_only_what_is_needed(make):
    """The smallest that is left still reads any text, and gives nothing beyond what it has."""
    tokenizer = make()
    vocabulary = anatomy(tokenizer).vocabulary
    plan = plan_of(vocabulary, [])
    assert vocabulary.units.least == len(plan.kept["vocab"]) < len(tokenizer)
    small = cut_tokenizer(tokenizer, plan)
    assert set(tokenizer.all_special_ids) <= set(plan.kept["vocab"].tolist())
    for line in LINES[:20]:
        assert max(small(line).input_ids) < len(small) == len(plan.kept["vocab"])
    if make in (gpt2, roberta):
        assert small.decode(small(LINES[0]).input_ids, skip_special_tokens=True) == LINES[0]


def test_every_prefix_of_the_order_is_closed_under_merges():
    tokenizer = llama()
    vocabulary = anatomy(tokenizer).vocabulary
    order = vocabulary.closed(range(vocabulary.units.size))
    assert sorted(order) == list(range(vocabulary.units.size))
    for count in range(vocabulary.units.least, len(order), 37):
        plan = Plan({"vocab": torch.tensor(order[:count])}, {"vocab": vocabulary.units.size}, 1.0)
        cut_tokenizer(tokenizer, plan)


def test_tokens_without_a_row_stay_without_one():
    tokenizer = prefixed()
    size = tokenizer.convert_tokens_to_ids("<image>")  # the table ends before it
    units = UnitGroup("vocab", "vocab", 0, size, 1, (), UnitCost(8), least=1)
    bare = Anatomy("any", (), (), vocabulary=VocabularyGroup(units, (), frozenset()))
    plan = plan_of(with_tokenizer(bare, tokenizer).vocabulary, [])
    small = cut_tokenizer(tokenizer, plan)
    assert small.convert_tokens_to_ids("<image>") == len(plan.kept["vocab"])


def test_what_cannot_be_cut_is_refused():
    tokenizer = gpt2()
    vocabulary = anatomy(tokenizer).vocabulary
    longest = max(vocabulary.parts, key=lambda token: len(vocabulary.parts[token]))
    whole = plan_of(vocabulary, [longest])
    part = next(token for token in vocabulary.parts[longest] if token not in vocabulary.needed)
    lost = {"vocab": whole.kept["vocab"][whole.kept["vocab"] != part]}
    with pytest.raises(InputError, match=r"vocab keeps token \d+ .* and not .*, which it is merged from"):
        cut_tokenizer(tokenizer, Plan(lost, whole.sizes, 1.0))
    byte = min(vocabulary.needed)
    with pytest.raises(InputError, match=rf"must keep token {byte} .*which the tokenizer needs"):
        cut_tokenizer(tokenizer, Plan({"vocab": whole.kept["vocab"][whole.kept["vocab"] != byte]}, whole.sizes, 1.0))
    with pytest.raises(InputError, match="lost its tokens already"):
        cut_tokenizer(cut_tokenizer(tokenizer, whole), whole)
    with pytest.raises(InputError, match="SimpleNamespace is no fast tokenizer"):
        anatomy_with(SimpleNamespace(is_fast=False))


def anatomy_with(tokenizer):
    units = UnitGroup("vocab", "vocab", 0, 9, 1, (), UnitCost(8), least=1)
    return with_tokenizer(Anatomy("any", (), (), vocabulary=VocabularyGroup(units, (), frozenset())), tokenizer)


def test_without_a_vocabulary_nothing_happens():
    tokenizer = gpt2()
    plan = Plan({"layers.0.heads": torch.arange(2)}, {"layers.0.heads": 4}, 1.0)
    assert cut_tokenizer(tokenizer, plan) is tokenizer
    assert with_tokenizer(Anatomy("any", (), ()), tokenizer).vocabulary is None
