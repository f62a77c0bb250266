"""gemm_dact_maskgrad against the product and act_bwd_maskgrad one after the other, and eager masks; yardstick: the
product alone.

The first of the peers decides about the Triton kernel: see docs/ops/gemm_dact_maskgrad.md.
"""

from collections.abc import Iterator

from pyprune import ops
from pyprune.bench.ops import DTYPES, Case, normal, on_gpu
from pyprune.bench.ops.act_bwd_maskgrad import BLOCKS
from pyprune.bench.ops.act_bwd_maskgrad import eager as eager_activation

# Shapes of pre, and d: BERT-base, DeiT-B, LLaMA-8B.
CPU_SHAPES = (((32, 128, 3072), 768),)
GPU_SHAPES = (((32, 128, 3072), 768), ((64, 197, 3072), 768), ((8, 2048, 14336), 4096))


def cases(device: str, tiny: bool) -> Iterator[Case]:
    if tiny:
        yield case((2, 64, 96), 32, "fp32", device, "silu", True)
        return
    for shape, d in GPU_SHAPES if on_gpu(device) else CPU_SHAPES:
        for act, gated in BLOCKS:
            for dtype in DTYPES:
                yield case(shape, d, dtype, device, act, gated)


def product(dy, w2, *_):
    return dy @ w2


def unfused(dy, w2, pre, up, act, cu_seqlens):
    return ops.act_bwd_maskgrad(dy @ w2, pre, up, act, cu_seqlens=cu_seqlens)


def eager(dy, w2, pre, up, act, _):
    """With a mask of ones on the activation's output, as one writes it."""
    return eager_activation(dy @ w2, pre, up, act, pre.new_ones(pre.shape[0], pre.shape[2]))


def case(shape: tuple[int, ...], d: int, dtype: str, device: str, act: str, gated: bool) -> Case:
    def arguments():
        dy, w2 = (normal(*s, dtype=dtype, device=device) for s in ((*shape[:2], d), (d, shape[2])))
        pre, up = (normal(*shape, dtype=dtype, device=device) for _ in range(2))
        return dy, w2, pre, up if gated else None, act, None

    name = "x".join(map(str, shape)) + f" d={d}" + (" swiglu" if gated else f" {act}")
    peers = {"mm + act_bwd_maskgrad": unfused, "eager": eager}
    return Case(name, dtype, arguments, peers, {"mm alone": product})
