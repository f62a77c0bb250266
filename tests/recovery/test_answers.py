"""Pseudo-labels of everything that a model may put out, their loss and the agreement with them."""

import pytest
import torch

from pyprune.calibration import calibration_data
from pyprune.capture.outputs import run
from pyprune.core.batches import Samples
from pyprune.core.errors import InputError
from pyprune.models.inputs import example_inputs
from pyprune.recovery.answers import ANSWER, agreement, answer_loss, with_answers
from pyprune.testing.models import tiny_model


def texts(count: int = 6) -> Samples:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 20, (count,), generator=generator).tolist()
    rows = [{"input_ids": torch.randint(3, 99, (n,), generator=generator)} for n in lengths]
    return Samples(rows, None, {"input_ids": 1})


def loss_of(model, answered: Samples) -> torch.Tensor:
    batch = answered.collate(answered.lengths.argsort(descending=True, stable=True).tolist(), 1)
    answer = batch.inputs.pop(ANSWER)
    return answer_loss(run(model, batch.inputs), batch, answer)


HEADS = {
    "AutoModelForSequenceClassification": (),
    "AutoModelForTokenClassification": None,
    "AutoModelForQuestionAnswering": (2,),
}


@pytest.mark.parametrize("head", HEADS)
def test_a_model_agrees_with_its_own_answers_and_another_does_not(head):
    model, other = tiny_model("bert", head), tiny_model("bert", head)
    with torch.no_grad():
        for parameter in (other.qa_outputs if head.endswith("Answering") else other.classifier).parameters():
            parameter.neg_()
    data = texts(24)
    answered = with_answers(model, data)
    for row in answered.inputs:
        assert row[ANSWER].shape == (row["input_ids"].shape if HEADS[head] is None else HEADS[head])
    assert agreement(model, answered) == 1
    assert agreement(other, answered) < 1
    with torch.no_grad():
        assert loss_of(model, answered) < loss_of(other, answered)


def test_answers_do_not_depend_on_padding():
    model = tiny_model("bert", "AutoModelForTokenClassification").eval()
    data = texts()
    together = with_answers(model, data)
    for s in range(len(data)):
        (alone,) = with_answers(model, Samples([data.inputs[s]])).inputs
        assert torch.equal(alone[ANSWER], together.inputs[s][ANSWER])


def test_a_language_model_labels_every_token_of_a_text_with_the_next():
    model = tiny_model("llama", "AutoModelForCausalLM").eval()
    data = texts()
    for row, given in zip(with_answers(model, data).inputs, data.inputs, strict=True):
        logits = model(input_ids=given["input_ids"][None]).logits[0]
        assert torch.equal(row[ANSWER], logits.argmax(-1))


def test_what_a_model_writes_itself_is_its_answer():
    model = tiny_model("t5", "AutoModelForSeq2SeqLM").eval()
    data, _ = calibration_data(model, None, texts().inputs)
    answered = with_answers(model, data)
    for row in answered.inputs:
        written = row["decoder_input_ids"]
        assert row[ANSWER].tolist() == [*written[1:].tolist(), -100]
    assert agreement(model, answered) == 1  # what it writes is what it would write again


def test_several_labels_and_single_outputs():
    data = texts(16)
    model = tiny_model("bert", "AutoModelForSequenceClassification").eval()
    model.config.problem_type = "multi_label_classification"
    answered = with_answers(model, data)
    assert answered.inputs[0][ANSWER].dtype == torch.float32
    assert agreement(model, answered) == 1
    with torch.no_grad():
        model.classifier.bias += 10
        assert agreement(model, answered) < 1
        before = float(loss_of(model, answered))
        model.classifier.bias -= 10
        assert float(loss_of(model, answered)) < before
    model = tiny_model("bert", "AutoModelForSequenceClassification", num_labels=1).eval()
    answered = with_answers(model, data)
    assert agreement(model, answered) == pytest.approx(1)
    with torch.no_grad():
        assert float(loss_of(model, answered)) == pytest.approx(0, abs=1e-9)
        model.classifier.bias += 1
        assert float(loss_of(model, answered)) == pytest.approx(1, rel=1e-4)
    assert agreement(model, answered) == 0


def test_text_behind_an_image_is_what_is_labelled():
    model = tiny_model("git", "AutoModelForCausalLM").eval()
    inputs = example_inputs(model, 1, 5)
    data = Samples([{name: inputs[name][0] for name in ("input_ids", "pixel_values")}])
    (row,) = with_answers(model, data).inputs
    logits = model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"]).logits[0]
    assert torch.equal(row[ANSWER], logits[-5:].argmax(-1))


def test_hidden_states_hold_no_answer():
    with pytest.raises(InputError, match='targets="soft"'):
        with_answers(tiny_model("bert"), texts(2))
