"""act_fwd_stats against eager and torch.compile; yardsticks: the activation alone, a copy."""

from collections.abc import Iterator

import torch

from pyprune.bench.ops import DTYPES, Case, normal, on_gpu
from pyprune.bench.ops.act_bwd_maskgrad import BLOCKS, CPU_SHAPES, GPU_SHAPES


def cases(device: str, tiny: bool) -> Iterator[Case]:
    if tiny:
        yield case((2, 64, 96), "fp32", device, "silu", True, True)
        return
    for shape in GPU_SHAPES if on_gpu(device) else CPU_SHAPES:
        for act, gated in BLOCKS:
            for dtype in DTYPES:
                for stats in (False, True):
                    yield case(shape, dtype, device, act, gated, stats)


def plain(pre, up, act, *_):
    return torch.nn.functional.gelu(pre) if act == "gelu" else torch.nn.functional.silu(pre) * up


def eager(pre, up, act, mask, before, cu_seqlens, stats):
    out = plain(pre, up, act) * mask[:, None, :]
    if not stats:
        return out
    variance, mean = torch.var_mean(out.float(), dim=1, correction=0)
    return out, mean, variance * out.shape[1], out.abs().sum(1, dtype=torch.float32)


def copying(pre, up, *_):
    """Reads and writes as many bytes: two tensors, or three with a gate; a copy moves two."""
    return pre.clone(), None if up is None else up[: len(up) // 2].clone()


def case(shape: tuple[int, ...], dtype: str, device: str, act: str, gated: bool, stats: bool) -> Case:
    def arguments():
        pre, up = (normal(*shape, dtype=dtype, device=device) for _ in range(2))
        mask = normal(shape[0], shape[2], dtype=dtype, device=device)
        return pre, up if gated else None, act, mask, False, None, stats

    name = "x".join(map(str, shape)) + (" swiglu" if gated else f" {act}") + (" stats" if stats else "")
    return Case(name, dtype, arguments, {"eager": eager}, {"plain": plain, "copying": copying})
