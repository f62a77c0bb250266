"""Distillation: the student gets closer to its teacher, and everything else stays as it was."""

import pytest
import torch

import pyprune
from pyprune.capture.outputs import run
from pyprune.core.batches import Samples
from pyprune.core.errors import InputError
from pyprune.recovery.distill import distillation_loss
from pyprune.testing.models import tiny_model


def samples(count: int = 32) -> Samples:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 20, (count,), generator=generator).tolist()
    rows = [{"input_ids": torch.randint(3, 99, (n,), generator=generator)} for n in lengths]
    return Samples(rows, None, {"input_ids": 1})


def pruned(model: torch.nn.Module, data: Samples) -> torch.nn.Module:
    scores = pyprune.score(model, data, recipe="kwon")
    return pyprune.apply(model, pyprune.plan(model, scores, {"flops": 0.6}, recipe="kwon"))


@torch.no_grad()
def loss(student: torch.nn.Module, teacher: torch.nn.Module, data: Samples) -> float:
    batches = data.batches(max_tokens=1 << 30, max_padding=1.0)
    return sum(float(distillation_loss(student(**b.inputs), teacher(**b.inputs), b)) for b in batches)


@pytest.mark.parametrize(
    ("variant", "head"),
    [
        ("bert", "AutoModel"),
        ("bert", "AutoModelForSequenceClassification"),
        ("bert", "AutoModelForQuestionAnswering"),
        ("llama", "AutoModelForCausalLM"),
    ],
)
def test_the_student_gets_closer_and_the_teacher_stays(variant, head):
    data = samples()
    teacher = tiny_model(variant, head)
    before = {name: p.clone() for name, p in teacher.named_parameters()}
    student = pruned(teacher, data)
    shapes = [p.shape for p in student.parameters()]
    trained, done = pyprune.retrain(student, teacher, data, epochs=6, learning_rate=1e-3, batch_size=8)
    assert done.steps == 24
    assert loss(trained, teacher, data) < 0.8 * loss(student, teacher, data)
    assert [p.shape for p in trained.parameters()] == shapes
    assert all(torch.equal(p, before[name]) for name, p in teacher.named_parameters())
    assert not trained.training


def test_in_place_keeps_which_weights_train():
    data = samples(8)
    teacher = tiny_model("bert")
    student = pruned(teacher, data).requires_grad_(False)
    trained, _ = pyprune.retrain(student, teacher, data, batch_size=4, inplace=True)
    assert trained is student
    assert not any(p.requires_grad for p in student.parameters())


def test_loss_of_equal_outputs_is_zero_and_padding_does_not_count():
    data = samples(4)
    teacher = tiny_model("bert")
    assert loss(teacher, teacher, data) == pytest.approx(0.0, abs=1e-6)
    (batch,) = data.batches(max_tokens=1 << 30, max_padding=1.0)
    outputs, other = teacher(**batch.inputs), teacher(**batch.inputs)
    other.last_hidden_state = torch.where(batch.token_mask[..., None], other.last_hidden_state, 7.0)
    assert distillation_loss(other, outputs, batch).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("setting", [{"epochs": 0}, {"learning_rate": -1.0}, {"batch_size": 0}])
def test_settings_that_make_no_sense(setting):
    teacher = tiny_model("bert")
    with pytest.raises(InputError, match=next(iter(setting))):
        pyprune.retrain(teacher, teacher, samples(4), **setting)


def test_every_step_drops_other_units():
    """Evaluation draws alike each time; training must not."""
    model = tiny_model("bert").train()
    ids = torch.arange(3, 9)[None]
    first, second = (run(model, {"input_ids": ids}).last_hidden_state for _ in range(2))
    assert not torch.equal(first, second)
    model.eval()
    state = torch.random.get_rng_state()
    run(model, {"input_ids": ids})
    assert torch.equal(state, torch.random.get_rng_state())
