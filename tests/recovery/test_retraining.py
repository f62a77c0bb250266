"""Retraining: students get closer to their teachers, each method trains what it says, and bad runs end well."""

import re

import pytest
import torch

import pyprune
from pyprune.capture.outputs import run
from pyprune.core.batches import Samples
from pyprune.core.errors import InputError, MismatchError
from pyprune.models.adapter import adapter_for
from pyprune.recovery.answers import agreement, with_answers
from pyprune.recovery.distillation import distillation_loss
from pyprune.testing.models import tiny_model

FIXED = {"share": 1.0, "layers": 1}


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


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(
    ("variant", "head"),
    [
        ("bert", "AutoModel"),
        ("bert", "AutoModelForSequenceClassification"),
        ("bert", "AutoModelForQuestionAnswering"),
        ("llama", "AutoModelForCausalLM"),
    ],
)
def test_the_student_gets_closer_and_the_teacher_stays(variant, head, method):
    data = samples()
    teacher = tiny_model(variant, head)
    before = {name: p.clone() for name, p in teacher.named_parameters()}
    student = pruned(teacher, data)
    shapes = {name: p.shape for name, p in student.named_parameters()}
    settings = {"targets": "soft", "epochs": 8, "learning_rate": 4e-3 if method == "full" else 2e-2, "batch_size": 8}
    trained, done = pyprune.retrain(student, teacher, data, method=method, **settings)
    assert done.steps == 32
    assert not done.stopped
    assert loss(trained, teacher, data) < 0.8 * loss(student, teacher, data)
    assert {name: p.shape for name, p in trained.named_parameters()} == shapes
    assert all(torch.equal(p, before[name]) for name, p in teacher.named_parameters())
    assert not trained.training


@pytest.mark.parametrize("targets", ["hard", "soft"])
def test_rest_trains_masks_heads_and_the_last_layers_alone(targets):
    data = samples()
    teacher = tiny_model("bert", "AutoModelForSequenceClassification")
    student = pruned(teacher, data)
    settings = {**FIXED, "targets": targets, "epochs": 8, "batch_size": 8, "learning_rate": 1e-3}
    trained, done = pyprune.retrain(student, teacher, data, mask_learning_rate=1e-2, **settings)
    assert (done.share, done.layers, done.steps) == (1.0, 1, 32)
    if targets == "soft":
        assert loss(trained, teacher, data) < loss(student, teacher, data)
    layers = adapter_for(student).anatomy(student).layers
    before = dict(student.named_parameters())
    projections = tuple(block.projection for block in adapter_for(student).anatomy(student).blocks)
    for name, parameter in trained.named_parameters():
        moves = name.startswith((layers[-1], "classifier", "bert.pooler")) or name in {
            f"{p}.weight" for p in projections
        }
        assert torch.equal(parameter, before[name]) == (not moves), name


def test_answers_of_the_dense_model_are_learned():
    data = samples()
    teacher = tiny_model("llama", "AutoModelForCausalLM")
    student = pruned(teacher, data)
    settings = {**FIXED, "epochs": 20, "batch_size": 8, "learning_rate": 2e-3}
    trained, _ = pyprune.retrain(student, teacher, data, **settings)
    answered = with_answers(teacher, data)
    assert agreement(trained, answered) > agreement(student, answered) + 0.1


def test_the_break_point_is_searched_where_masks_do_not_suffice():
    data = samples(64)
    teacher = tiny_model("bert", "AutoModelForSequenceClassification")
    student = pruned(teacher, data)
    _, enough = pyprune.retrain(student, teacher, data, tolerance=1e-9)
    assert (enough.share, enough.layers, enough.break_point) == (0.1, 0, None)
    _, more = pyprune.retrain(student, teacher, data, tolerance=1.0)
    assert more.break_point > 0.6
    assert more.layers >= 1
    assert more.share >= 0.6
    assert 0 <= more.agreement <= 1
    _, given = pyprune.retrain(student, teacher, data, break_point=0.9)
    assert given.agreement is None


def test_features_are_pulled_together():
    data = samples()
    teacher = tiny_model("bert", "AutoModelForSequenceClassification")
    student = pruned(teacher, data)
    settings = {**FIXED, "epochs": 8, "batch_size": 8, "learning_rate": 1e-3}

    def apart(model):
        batch = data.collate(data.lengths.argsort(descending=True).tolist(), 1)
        with torch.no_grad():
            return float((model.bert(**batch.inputs)[0] - teacher.bert(**batch.inputs)[0])[batch.token_mask].norm())

    plain, _ = pyprune.retrain(student, teacher, data, **settings)
    pulled, _ = pyprune.retrain(student, teacher, data, features=10.0, **settings)
    assert apart(pulled) < 0.9 * apart(plain)


def test_in_place_keeps_which_weights_train():
    data = samples(8)
    teacher = tiny_model("bert", "AutoModelForSequenceClassification")
    student = pruned(teacher, data).requires_grad_(False)
    trained, _ = pyprune.retrain(student, teacher, data, batch_size=4, inplace=True, **FIXED)
    assert trained is student
    assert not any(p.requires_grad for p in student.parameters())
    assert all(p.requires_grad for p in teacher.parameters())


class Killed(Exception):
    """Stands for a run that was cut off."""


@pytest.mark.parametrize("method", ["rest", "lora", "full"])
def test_an_interrupted_run_goes_on(method, tmp_path, monkeypatch):
    data = samples(40)
    teacher = tiny_model("bert", "AutoModelForSequenceClassification")
    student = pruned(teacher, data)
    settings = {"method": method, "batch_size": 4, "epochs": 2, "learning_rate": 1e-3}
    settings |= FIXED if method == "rest" else {}
    whole, done = pyprune.retrain(student, teacher, data, **settings)

    from pyprune.recovery import training

    see, seen = training._Guard.see, []

    def counted(self, *args):
        seen.append(args)
        if len(seen) == 12:
            raise Killed
        see(self, *args)

    monkeypatch.setattr(training._Guard, "see", counted)
    with pytest.raises(Killed):
        pyprune.retrain(student, teacher, data, folder=tmp_path / "run", **settings)
    assert len(seen) == 12
    again, resumed = pyprune.retrain(student, teacher, data, folder=tmp_path / "run", **settings)
    assert len(seen) < 12 + 20, "it began anew"
    assert resumed.steps == done.steps == 20
    for (name, a), b in zip(whole.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)
    count = len(seen)
    finished, last = pyprune.retrain(student, teacher, data, folder=tmp_path / "run", **settings)
    assert len(seen) == count, "it trained although it was finished"
    assert last == resumed
    for a, b in zip(finished.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(MismatchError, match="another epochs"):
        pyprune.retrain(student, teacher, data, folder=tmp_path / "run", **{**settings, "epochs": 3})


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    teacher = tiny_model("bert", "AutoModelForSequenceClassification")
    with pytest.raises(InputError, match="holds no retraining"):
        pyprune.retrain(teacher, teacher, samples(4), folder=tmp_path, **FIXED)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("method", ["rest", "full"])
def test_learning_rates_warm_up_and_decay_unless_they_are_constant(method, monkeypatch):
    teacher = tiny_model("bert", "AutoModelForSequenceClassification")
    step, seen = torch.optim.AdamW.step, []

    def spied(self, *args, **kwargs):
        seen.append(max(group["lr"] for group in self.param_groups))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spied)
    settings = {"method": method, "share": 1.0, **({"layers": 1} if method == "rest" else {}), "batch_size": 2}
    pyprune.retrain(teacher, teacher, samples(40), **settings)
    assert seen.index(max(seen)) == 2  # a tenth of 20 steps
    assert seen[0] == 0
    assert seen[-1] < 0.1 * max(seen)
    seen.clear()
    pyprune.retrain(teacher, teacher, samples(40), **settings, schedule="constant")
    assert len(set(seen)) == 1


def test_a_run_that_diverges_keeps_its_last_good_state(monkeypatch):
    from pyprune.recovery import retraining

    data = samples(40)
    teacher = tiny_model("bert", "AutoModelForSequenceClassification")
    student = pruned(teacher, data)
    answer_loss, calls = retraining.answer_loss, []

    def poisoned(*args):
        calls.append(1)
        return answer_loss(*args) * (torch.nan if len(calls) == 15 else 1)

    monkeypatch.setattr(retraining, "answer_loss", poisoned)
    settings = {**FIXED, "targets": "hard", "batch_size": 4, "epochs": 2, "learning_rate": 1e-3}
    trained, done = pyprune.retrain(student, teacher, data, **settings)
    assert re.search(r"the loss of step 15 is nan; the state of step 1\d was kept", done.stopped)
    assert len(calls) == 15
    assert all(torch.isfinite(p).all() for p in trained.parameters())
    assert not torch.equal(trained.classifier.weight, student.classifier.weight)
    calls[:] = [1] * 14
    with pytest.raises(InputError, match="the loss of step 1 is nan, the first one: a lower learning rate may help"):
        pyprune.retrain(student, teacher, data, **settings)


def test_loss_of_equal_outputs_is_zero_and_padding_does_not_count():
    data = samples(4)
    teacher = tiny_model("bert")
    assert loss(teacher, teacher, data) == pytest.approx(0.0, abs=1e-6)
    (batch,) = data.batches(max_tokens=1 << 30, max_padding=1.0)
    outputs, other = teacher(**batch.inputs), teacher(**batch.inputs)
    other.last_hidden_state = torch.where(batch.token_mask[..., None], other.last_hidden_state, 7.0)
    assert distillation_loss(other, outputs, batch).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"epochs": 0}, "epochs=0 must be positive"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"batch_size": 0}, "batch_size"),
        ({"method": "magic"}, "choose one of rest, full, lora"),
        ({"targets": "none"}, "choose one of hard, soft"),
        ({"schedule": "cosine"}, "choose one of linear, constant"),
        ({"share": 1.5}, r"share=1.5 must be in \(0, 1\]"),
        ({"layers": 9, "share": 1.0}, "layers=9: the model has 3"),
        ({"method": "full", "layers": 1}, "has no schedule"),
        ({"speed": 1}, "no setting 'speed'; it has method, targets"),
    ],
)
def test_settings_that_make_no_sense(setting, said):
    teacher = tiny_model("bert", "AutoModelForSequenceClassification")
    with pytest.raises(InputError, match=said):
        pyprune.retrain(teacher, teacher, samples(4), **setting)


def test_of_few_samples_half_is_held_out():
    teacher = tiny_model("bert", "AutoModelForSequenceClassification")
    with pytest.raises(InputError, match="1 sample: none to hold out; give more, or share and layers"):
        pyprune.retrain(teacher, teacher, samples(1))
    assert pyprune.retrain(teacher, teacher, samples(2))[1].agreement == 1.0


def test_models_that_put_out_hidden_states_have_soft_targets():
    teacher = tiny_model("bert")
    for settings in ({**FIXED, "targets": "hard"}, {}):  # nor can the answers of held-out samples be compared
        with pytest.raises(InputError, match='targets="soft", and give share and layers'):
            pyprune.retrain(teacher, teacher, samples(4), **settings)
    assert pyprune.retrain(teacher, teacher, samples(4), **FIXED)[1].steps == 1


def test_a_model_that_lost_tokens_is_retrained_before():
    teacher = tiny_model("bert", "AutoModelForSequenceClassification")
    other = tiny_model("bert", "AutoModelForSequenceClassification", vocab_size=50)
    with pytest.raises(InputError, match="cut the vocabulary last"):
        pyprune.retrain(other, teacher, samples(4), **FIXED)


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
