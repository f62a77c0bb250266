"""linear_cross_entropy against logits and autograd, with and without the weight's gradient, and Liger; the yardstick is
the two products alone.
"""

import functools
import importlib.util
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from pyprune.bench.ops import DTYPES, Case, normal, on_gpu
from pyprune.ops.linear_cross_entropy import TARGETS

# (rows, words, d): BERT-base's head, twice; a small decoder's
CPU_SHAPES = ((1024, 30522, 768), (2048, 30522, 768), (1024, 32000, 512))
# BERT-base's, LLaMA-2-7B's, LLaMA-3-8B's
GPU_SHAPES = ((4096, 30522, 768), (4096, 32000, 4096), (4096, 128256, 4096))
TEMPERATURE = 2.0


def cases(device: str, tiny: bool) -> Iterator[Case]:
    if tiny:
        yield case((24, 100, 16), "labels", "fp32", device, compiled=False)
        return
    shapes = GPU_SHAPES if on_gpu(device) else CPU_SHAPES
    for dtype in DTYPES:
        for shape in shapes:
            yield case(shape, "labels", dtype, device)
    for target in TARGETS[1:]:
        yield case(shapes[-1], target, "bf16" if on_gpu(device) else "fp32", device)


def objective(target: str, x: Tensor, weight: Tensor, labels: Tensor | None, teacher_x, teacher_weight) -> Tensor:
    """What a user writes, with all logits at once."""
    z = F.linear(x, weight).float()
    if target == "max_logit":
        return z.max(1).values.sum()
    if target == "kl":
        q = (F.linear(teacher_x, teacher_weight).float() / TEMPERATURE).log_softmax(1)
        return TEMPERATURE**2 * F.kl_div((z / TEMPERATURE).log_softmax(1), q, log_target=True, reduction="sum")
    if target == "probe":
        p = z.detach().softmax(1)
        signed = p.sqrt() * torch.randint(0, 2, p.shape, device=p.device).mul_(2).sub_(1)
        return ((signed - p * signed.sum(1, keepdim=True)) * z).sum()
    if target == "sampled":
        labels = torch.multinomial(z.detach().softmax(1), 1)[:, 0]
    return F.cross_entropy(z, labels, reduction="sum")


def case(shape: tuple[int, int, int], target: str, dtype: str, device: str, compiled: bool = True) -> Case:
    rows, words, d = shape

    def hidden_and_weight():
        return normal(rows, d, dtype=dtype, device=device), normal(words, d, dtype=dtype, device=device) / math.sqrt(d)

    def arguments():
        labels = torch.randint(words, (rows,), device=device) if target == "labels" else None
        teacher = (*hidden_and_weight(), None, TEMPERATURE) if target == "kl" else (None, None, None, 1.0)
        x, weight = hidden_and_weight()
        return x, weight, None, labels, target, *teacher

    def through_autograd(loss: Callable, weight_too: bool = False) -> Callable:
        def run(x, weight, bias, labels, target, teacher_x, teacher_weight, *_):
            x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_(weight_too)
            wanted = [x, weight] if weight_too else [x]
            return torch.autograd.grad(loss(target, x, weight, labels, teacher_x, teacher_weight), wanted)

        return run

    def products(x, weight, *_):
        return (x @ weight.T) @ weight

    peers = {
        "eager": through_autograd(objective),
        "weight gradient too": through_autograd(objective, weight_too=True),
    }
    if compiled:
        # The loss alone: autograd inside a compiled function breaks the graph.
        peers["compiled loss"] = through_autograd(torch.compile(objective, dynamic=False))
    if target == "labels" and on_gpu(device) and importlib.util.find_spec("liger_kernel"):
        peers["liger"] = through_autograd(_liger)
    name = f"{rows}x{words} d={d}" + ("" if target == "labels" else f" {target}")
    return Case(name, dtype, arguments, peers, {"products": products}, compiled=False)


def _liger(target, x, weight, labels, *_):
    return _liger_function()(x, weight, labels, reduction="sum")


@functools.cache
def _liger_function() -> Callable:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy
