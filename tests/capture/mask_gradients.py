"""The slow truth: mask tensors in the graph, eager attention, one sample at a time, losses in float64."""

import torch
import torch.nn.functional as F

from pyprune.capture.collect import collect
from pyprune.core.batches import Samples
from pyprune.models.adapter import adapter_for
from pyprune.testing import numerics
from pyprune.testing.models import tiny_model

PAD = 1


def anatomy_of(model):
    return adapter_for(model).anatomy(model)


def samples_of(head, lengths=(7, 3, 9, 5, 7), seed=0, labels=2):
    """Random tokens, none of them the padding token, with labels that fit the head."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high, *shape):
        return torch.randint(low, high, shape, generator=generator)

    inputs = [{"input_ids": draw(3, 99, n)} for n in lengths]
    if head.endswith("QuestionAnswering"):
        made = [draw(0, n, 2) for n in lengths]
    elif head.endswith("MaskedLM"):
        made = [torch.where(draw(0, 2, n) > 0, draw(3, 99, n), -100) for n in lengths]
    elif head.endswith("TokenClassification"):
        made = [draw(0, labels, n) for n in lengths]
    elif head.endswith("SequenceClassification"):
        made = [draw(0, labels, 1)[0] for _ in lengths]
    else:
        made = None
    return Samples(inputs, made, {"input_ids": PAD})


def task_loss(head, outputs, ids, label):
    """The loss of one unpadded sample, tokens summed, written out."""
    if head.endswith("QuestionAnswering"):
        start, end = label.tolist()
        return -outputs.start_logits[0].log_softmax(-1)[start] - outputs.end_logits[0].log_softmax(-1)[end]
    logits = outputs.logits[0]
    if head.endswith("CausalLM"):
        return -sum(logits[t].log_softmax(-1)[ids[t + 1]] for t in range(len(ids) - 1))
    if logits.dim() == 1:
        return -logits.log_softmax(-1)[label]
    return F.cross_entropy(logits, label, reduction="sum", ignore_index=-100)


def reference(model, samples, loss):
    """`[S, size]` float64 a group: autograd through explicit masks; `loss(outputs, s)` is sample s's own."""
    anatomy = anatomy_of(model)
    masks = {g.name: torch.ones(g.size, dtype=torch.float64, requires_grad=True) for g in anatomy.groups}
    handles = []
    for block in anatomy.blocks:

        def multiply(_, args, mask=masks[block.units.name], width=block.units.width):
            return (args[0] * mask.repeat_interleave(width).to(args[0].dtype), *args[1:])

        handles.append(model.get_submodule(block.projection).register_forward_pre_hook(multiply))
    rows = []
    for s, row in enumerate(samples.inputs):
        value = loss(model(**{key: value[None] for key, value in row.items()}), s)
        rows.append(torch.autograd.grad(value, list(masks.values())))
    for handle in handles:
        handle.remove()
    return {name: torch.stack(column) for name, column in zip(masks, zip(*rows, strict=True), strict=True)}


def pair(variant, head, **overrides):
    """The model as users run it, and its twin with eager attention; both in float64."""
    return tuple(tiny_model(variant, head, torch.float64, attention, **overrides) for attention in ("sdpa", "eager"))


def gather(model, samples, cotangent, draws=1, **batching):
    """`collect` over the samples in batches made with `batching`."""
    return collect(model, anatomy_of(model), samples.batches(**batching), cotangent, samples.lengths, draws)


def close(actual, truth):
    """Both are kept or computed through float32 somewhere; the models are float64."""
    assert actual.keys() == truth.keys()
    for name in truth:
        numerics.ratio(actual[name], truth[name].double(), torch.float32)
