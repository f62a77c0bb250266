"""Pseudo-labels: what the dense model answers on unlabelled data, learned by its pruned student as if it were true."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pyprune.capture.collect import frozen
from pyprune.capture.outputs import logits_of, run
from pyprune.core.batches import Batch, Samples, batching
from pyprune.core.errors import InputError

# The input of a sample that holds its answer; no model has an argument of this name.
ANSWER = "answer"
_NOTHING = -100


@torch.no_grad()
def with_answers(teacher: nn.Module, samples: Samples) -> Samples:
    """`samples`, each with one more input: what `teacher` answers.

    - logits of a sample: its class, int64; of several labels which of them hold, `[C]` fp32; of a single output its
      value, `[1]` fp32;
    - logits of tokens: the top token that follows each, `[T]` int64; where the model wrote the text itself that is what
      it wrote, and -100 behind its end; of image parts their classes;
    - the start and the end of a span, `[2]` int64.

    InputError for a model that puts out hidden states, which hold no answer.
    """
    written = samples.decoded
    if written:
        rows = [{**row, ANSWER: F.pad(row[written][1:], (0, 1), value=_NOTHING)} for row in samples.inputs]
        return _answered(samples, rows)
    found: dict[int, torch.Tensor] = {}
    with frozen(teacher):
        for batch in samples.batches(**batching(teacher)):
            outputs = run(teacher, batch.on(teacher).inputs)
            for s, answer in zip(batch.index.tolist(), _answers(teacher, outputs, batch), strict=True):
                found[s] = answer.cpu()
    return _answered(samples, [{**row, ANSWER: found[s]} for s, row in enumerate(samples.inputs)])


def answer_loss(outputs: Any, batch: Batch, answer: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of a student's outputs against answers, a scalar: the mean over labelled tokens or samples.

    Binary for several labels, squared error for a single output.
    """
    if hasattr(outputs, "start_logits"):
        ends = outputs.start_logits, outputs.end_logits
        return sum(F.cross_entropy(x.float(), answer[:, i]) for i, x in enumerate(ends)) / 2
    logits = _logits(outputs, answer).float()
    if logits.dim() == 3:
        return F.cross_entropy(logits.flatten(0, 1), answer.flatten(), ignore_index=_NOTHING)
    if answer.is_floating_point():
        return (F.mse_loss if logits.shape[1] == 1 else F.binary_cross_entropy_with_logits)(logits, answer)
    return F.cross_entropy(logits, answer)


@torch.no_grad()
def agreement(student: nn.Module, answered: Samples) -> float:
    """The share of answers (of tokens or samples) that `student` gives, too; `answered` comes from `with_answers`.

    Of single outputs 1 minus the missing share of their variance, at least 0.
    """
    right = total = missing = 0.0
    values: list[torch.Tensor] = []
    with frozen(student):
        for batch in answered.batches(**batching(student)):
            moved = batch.on(student)
            answer = moved.inputs.pop(ANSWER)
            outputs = run(student, moved.inputs)
            if hasattr(outputs, "start_logits"):
                said = torch.stack([outputs.start_logits.argmax(-1), outputs.end_logits.argmax(-1)], 1)
            else:
                logits = _logits(outputs, answer)
                if answer.is_floating_point() and logits.shape[1] == 1:
                    missing += float((logits.float() - answer).square().sum())
                    values.append(answer.flatten())
                    continue
                said = (logits > 0).to(answer) if answer.is_floating_point() else logits.argmax(-1)
            real = answer != _NOTHING
            right += float(((said == answer) & real).sum())
            total += float(real.sum())
    if values:
        spread = torch.cat(values)
        return max(0.0, 1 - missing / float((spread - spread.mean()).square().sum().clamp(min=1e-30)))
    return right / max(total, 1)


def _answers(teacher: Any, outputs: Any, batch: Batch) -> list[torch.Tensor]:
    if hasattr(outputs, "start_logits"):
        ends = outputs.start_logits, outputs.end_logits
        mask = batch.mask(ends[0].shape[1]).to(ends[0].device)
        return list(torch.stack([x.masked_fill(~mask, -torch.inf).argmax(-1) for x in ends], 1))
    logits = logits_of(outputs)
    if logits is None:
        raise InputError(
            f"a {type(outputs).__name__} holds no answer to compare or to label data with: train on what the dense "
            'model puts out, targets="soft", and give share and layers'
        )
    if logits.dim() == 3:
        text = next((batch.inputs[n] for n in ("decoder_input_ids", "input_ids") if n in batch.inputs), None)
        # Of one sequence with an image, the text comes last.
        top = logits.argmax(-1)
        top = top if text is None else top[:, -text.shape[1] :]
        return [row[mask] for row, mask in zip(top, batch.mask(top.shape[1]).to(top.device), strict=True)]
    if logits.shape[1] == 1:
        return list(logits.float())
    if getattr(teacher.config, "problem_type", None) == "multi_label_classification":
        return list((logits > 0).float())
    return list(logits.argmax(-1))


def _logits(outputs: Any, answer: torch.Tensor) -> torch.Tensor:
    logits = logits_of(outputs)
    assert logits is not None, "a student puts out what its teacher does"
    return logits[:, -answer.shape[1] :] if logits.dim() == 3 else logits


def _answered(samples: Samples, rows: list[dict[str, torch.Tensor]]) -> Samples:
    return replace(samples, inputs=rows, labels=None, pad={**samples.pad, ANSWER: _NOTHING})
