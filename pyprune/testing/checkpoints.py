"""Tiny checkpoints on disk, with a tokenizer that knows the words of a given text."""

from __future__ import annotations

from pathlib import Path

from pyprune.testing.models import tiny_model

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")


def word_tokenizer(text: str, length: int = 40):
    """A fast tokenizer over the words of `text`.

    Token ids start with bos 0, pad 1, eos 2, unk 3, as the tiny configs say.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = dict.fromkeys(text.split())
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bos, pad, eos, unk = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, pad_token=pad, eos_token=eos, unk_token=unk, model_max_length=length
    )


def passages(count: int = 24, words: int = 90, seed: int = 0) -> list[str]:
    """Distinct passages of 3 to 14 made-up words out of `words`."""
    import random

    draw = random.Random(seed)
    return [" ".join(f"w{draw.randrange(words)}" for _ in range(draw.randint(3, 14))) for _ in range(count)]


def tiny_checkpoint(folder: Path, variant: str = "bert", head: str = "AutoModel") -> Path:
    """Write a tiny random model and its tokenizer to `folder`, and `passages.txt` to calibrate on beside it."""
    model = tiny_model(variant, head)
    model.save_pretrained(folder)
    word_tokenizer(" ".join(f"w{i}" for i in range(90))).save_pretrained(folder)
    (folder.parent / "passages.txt").write_text("\n\n".join(passages()), encoding="utf-8")
    return folder
