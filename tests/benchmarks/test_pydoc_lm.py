"""The documents of CPython, their split and tokens, and a small language model that is trained and pruned."""

import math
from dataclasses import replace

import pytest
import torch

import pyprune
from benchmarks.tasks import run
from benchmarks.tasks.pydoc_lm import text
from benchmarks.tasks.pydoc_lm.task import BLOCK, END, RECIPE, PydocLM
from benchmarks.tasks.task import Dense

SHAPE = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """The help topics alone: an empty library has no modules."""
    return text.documents(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def task(texts):
    return PydocLM(texts[:40], replace(RECIPE, epochs=0.2, batch=8), vocabulary=400, **SHAPE)


def test_documents_are_topics_and_docstrings_of_modules(tmp_path, texts):
    (tmp_path / "one.py").write_text('"""The module."""\nclass A:\n    """A class."""\n    def f(self): pass\n')
    (tmp_path / "broken.py").write_text("def")
    (tmp_path / "bare.py").write_text("x = 1\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "two.py").write_text('"""A test."""\n')
    found = text.documents(tmp_path)
    assert found[:-1] == texts
    assert found[-1] == ("module one.py", "The module.\n\nA:\nA class.")
    assert "topic assert" in dict(texts)


def test_a_document_is_in_one_split_by_its_name(task, texts):
    assert {text.split_of(name) for name, _ in texts} == {"train", "dev", "test"}
    assert sum(len(own) for own in task.texts.values()) == 40
    assert set(task.texts["test"]) == {body for name, body in texts[:40] if text.split_of(name) == "test"}


def test_tokens_spell_the_documents(task):
    own = task.texts["dev"]
    blocks = task._blocks(own)
    assert blocks.shape[1] == BLOCK
    whole = END.join(own) + END
    spelled = task.codec.decode(blocks.flatten().tolist(), skip_special_tokens=False)
    assert whole.startswith(spelled[:-4])
    assert len(whole) - len(spelled) < 10 * BLOCK
    assert task.codec.get_vocab_size() == 400


def test_the_same_texts_give_the_same_tokens(task, texts):
    again = PydocLM(texts[:40], task.recipe, vocabulary=400, **SHAPE)
    assert again.settings == task.settings
    assert PydocLM(texts[1:40], task.recipe, vocabulary=400, **SHAPE).settings != task.settings


def test_perplexity_is_that_of_a_token(task):
    model = task.fresh(0)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert task.evaluate(model) == pytest.approx(400, rel=1e-4)
    logits = model(input_ids=task.blocks["test"][:1]).logits
    assert logits.shape == (1, BLOCK, 400)


def test_a_little_training_helps_and_repeats(task):
    first, second = task.fresh(1), task.fresh(1)
    before = task.evaluate(first, "dev")
    task.train(first, seed=1)
    task.train(second, seed=1)
    assert task.evaluate(first, "dev") < 0.9 * before
    weights = second.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in first.state_dict().items())


@pytest.mark.parametrize("recipe", [pyprune.Surgeon(), pyprune.Flap()])
def test_the_runner_prunes_groups_of_queries(task, recipe):
    dense = Dense(task.fresh(0).eval(), {"key": "tiny", "test": 0.5})
    (row,) = run.measure(task, dense, recipe, "params", 0.5, samples=8, repeats=1)
    assert 0.35 < row.achieved <= 0.5
    assert math.isfinite(row.pruned)
    assert row.metric == "perplexity"
