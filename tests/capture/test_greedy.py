"""What a model decodes where the data has no text for its decoder."""

from types import SimpleNamespace

import pytest
import torch

from pyprune.capture.greedy import decode, with_greedy_outputs
from pyprune.core.batches import Samples
from pyprune.testing.models import tiny_model


@torch.no_grad()
def step_by_step(model, start, inputs, name, end, most=32):
    """The most likely token after what there is, again and again, without a cache."""
    tokens = torch.tensor([[start]])
    while tokens.shape[1] == 1 or (tokens.shape[1] <= most and int(tokens[0, -1]) != end):
        logits = model(**inputs, **{name: tokens}).logits[:, -1]
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], 1)
    return tokens[0].tolist()


@pytest.mark.parametrize("variant", ["t5", "bart"])
def test_decoders_read_their_own_greedy_output(variant):
    model = tiny_model(variant, "AutoModelForSeq2SeqLM", dtype=torch.float64)
    model.generation_config.forced_bos_token_id = model.generation_config.forced_eos_token_id = None
    model.generation_config.return_dict_in_generate = True
    model.generation_config.num_beams = model.generation_config.num_return_sequences = 2
    generator = torch.Generator().manual_seed(0)
    rows = [{"input_ids": torch.randint(3, 99, (n,), generator=generator)} for n in (4, 6, 4)]
    written = with_greedy_outputs(model, Samples(rows), "decoder_input_ids")
    assert len(rows[0]) == 1
    config = model.config
    for given, row in zip(rows, written.inputs, strict=True):
        alone = {"input_ids": given["input_ids"][None]}
        expected = step_by_step(model, config.decoder_start_token_id, alone, "decoder_input_ids", config.eos_token_id)
        assert row["decoder_input_ids"].tolist() == expected
        assert torch.equal(row["input_ids"], given["input_ids"])


def test_a_text_ends_in_its_first_end_token():
    class Model(torch.nn.Linear):
        def __init__(self):
            super().__init__(1, 1)
            self.config = self.generation_config = type("Config", (), {"eos_token_id": [2, 9]})

        def can_generate(self):
            return True

        def generate(self, pixel_values, **_):
            texts = torch.tensor([[2, 5, 2, 1, 1], [2, 5, 6, 7, 8], [2, 9, 1, 1, 1]])[pixel_values[:, 0].long()]
            logits = [torch.nn.functional.one_hot(step, 10) * 3.0 for step in texts[:, 1:].T]
            return SimpleNamespace(sequences=texts, logits=logits)

    rows = [{"pixel_values": torch.tensor([float(s)])} for s in range(3)]
    written = with_greedy_outputs(Model(), Samples(rows), "input_ids")
    assert [row["input_ids"].tolist() for row in written.inputs] == [[2, 5, 2], [2, 5, 6, 7, 8], [2, 9]]
    assert [found.peaks.tolist() for found in decode(Model(), Samples(rows), 4)] == [[3.0] * n for n in (2, 4, 1)]
