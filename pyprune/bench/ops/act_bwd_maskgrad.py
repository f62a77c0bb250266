"""act_bwd_maskgrad against eager masks, torch.compile and Liger; yardsticks: the backward without masks, a copy."""

import importlib
from collections.abc import Callable, Iterator

import torch

from pyprune.bench.ops import DTYPES, Case, normal, on_gpu

CPU_SHAPES = ((32, 128, 3072),)
GPU_SHAPES = ((32, 128, 3072), (64, 197, 3072), (8, 2048, 14336))
# (act, gated): GELU, SwiGLU
BLOCKS = (("gelu", False), ("silu", True))


def cases(device: str, tiny: bool) -> Iterator[Case]:
    if tiny:
        yield case((2, 64, 96), "fp32", device, "silu", True)
        return
    for shape in GPU_SHAPES if on_gpu(device) else CPU_SHAPES:
        for act, gated in BLOCKS:
            for dtype in DTYPES:
                yield case(shape, dtype, device, act, gated)


def plain(grad, pre, up, act, *_):
    """The backward with no mask, of torch's fused kernels."""
    if act == "gelu":
        return torch.ops.aten.gelu_backward(grad, pre)
    return torch.ops.aten.silu_backward(grad * up, pre), grad * torch.nn.functional.silu(pre)


def eager(grad, pre, up, act, mask, *_):
    """A mask on the activation's output, as one writes it: recomputes the activation, which is not stored."""
    m = mask[:, None, :]
    masked = grad * m
    if act == "gelu":
        a = torch.nn.functional.gelu(pre)
        return torch.ops.aten.gelu_backward(masked, pre), (a * grad).sum(1)
    s = torch.nn.functional.silu(pre)
    return torch.ops.aten.silu_backward(masked * up, pre), masked * s, (s * up * grad).sum(1)


def copying(grad, pre, up, *_):
    """Reads and writes as many bytes: three tensors for a plain activation, five with a gate; a copy moves two."""
    pairs = (grad, pre[: len(pre) // 2]) if up is None else (grad, pre, up[: len(up) // 2])
    return [t.clone() for t in pairs]


def liger() -> dict[str, Callable]:
    """Liger's backward of SwiGLU, which has no mask gradients."""
    try:
        backward = importlib.import_module("liger_kernel.ops.swiglu").swiglu_backward
    except (ImportError, AttributeError):
        return {}
    # It overwrites its inputs.
    return {"liger (no mask)": lambda grad, pre, up, *_: backward(pre.clone(), up.clone(), grad)}


def case(shape: tuple[int, ...], dtype: str, device: str, act: str, gated: bool) -> Case:
    def arguments():
        grad, pre, up = (normal(*shape, dtype=dtype, device=device) for _ in range(3))
        mask = normal(shape[0], shape[2], dtype=dtype, device=device)
        return grad, pre, up if gated else None, act, mask, False, None

    name = "x".join(map(str, shape)) + (" swiglu" if gated else f" {act}")
    yardsticks = {"plain backward": plain, "copying": copying, **(liger() if gated and on_gpu(device) else {})}
    return Case(name, dtype, arguments, {"eager": eager}, yardsticks)
