"""Models without a table, from the command line."""

import pytest
import torch
import transformers
from refusals import refuse

from pyprune.testing.checkpoints import passages, word_tokenizer
from pyprune.testing.zoo.tiny import TOKENS

_TEXT = {**TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}


@pytest.fixture
def checkpoint(tmp_path):
    def write(model_type, head, **config):
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(model_type, **_TEXT, **config)
        getattr(transformers, head)(config).save_pretrained(tmp_path / model_type)
        word_tokenizer(" ".join(f"w{i}" for i in range(90))).save_pretrained(tmp_path / model_type)
        (tmp_path / "passages.txt").write_text("\n\n".join(passages()), encoding="utf-8")
        return tmp_path / model_type

    return write


def test_verify_and_prune_say_what_was_found(run, checkpoint):
    dense = checkpoint("biogpt", "BioGptForCausalLM")
    code, out, err = run("verify", dense)
    assert code == 0, err
    assert out.startswith("discovered: 2 x heads, 2 x neurons; proved on input_ids [2, 12], attention_mask [2, 12]\n")
    prune = ("prune", dense, "--data", "passages.txt", "--samples", "8", "--out", "small")
    code, out, err = run(*prune)
    assert code == 0, err
    assert "discovered: 2 x heads, 2 x neurons" in " ".join(out.split())
    assert run("verify", "small")[0] == 0


def test_shared_layers_are_refused(run, checkpoint):
    dense = checkpoint("albert", "AlbertModel", embedding_size=16)
    for verb in ("verify", "prune"):
        refuse(run, verb, dense, says="its layer is shared")
