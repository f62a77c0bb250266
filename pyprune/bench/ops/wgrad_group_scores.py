"""wgrad_group_scores against its formula in eager torch and materialised gradients of every sample. The yardstick
is one plain weight-gradient product.
"""

from collections.abc import Iterator

import torch

from pyprune.bench.ops import DTYPES, Case, normal, on_gpu
from pyprune.ops.wgrad_group_scores import MODES

# p, d of BERT's layers
LAYERS = ((3072, 768), (768, 3072), (768, 768))


def cases(device: str, tiny: bool) -> Iterator[Case]:
    if tiny:
        yield case(2, 16, (24, 40), "sq", "fp32", device)
        return
    for dtype in DTYPES:
        for layer in LAYERS:
            for mode in MODES:
                yield case(32, 128, layer, mode, dtype, device)
        if on_gpu(device):
            # LLaMA-3-8B's down projection on LLM-Pruner's 10 samples of 64 tokens.
            yield case(10, 64, (4096, 14336), "sq", dtype, device)


def score(mode: str, w, total, squares):
    if mode == "sq":
        return w * w * squares
    first = w * total
    return (first if mode == "abs" else first - 0.5 * w * w * squares).abs()


def case(batch: int, tokens: int, layer: tuple[int, int], mode: str, dtype: str, device: str) -> Case:
    p, d = layer

    def product(dy, x, *_):
        return dy.flatten(0, 1).T @ x.flatten(0, 1)

    def eager(dy, x, w, *_):
        total = squares = None
        if mode == "abs":
            total = product(dy, x)
        else:
            total, squares = torch.zeros_like(w), torch.zeros_like(w)
            for dy_b, x_b in zip(dy, x, strict=True):
                gradient = dy_b.T @ x_b
                squares.addcmul_(gradient, gradient)
                total += gradient
        element = score(mode, w, total, squares)
        return element.sum(1), element.sum(0)

    def materialised(dy, x, w, *_):
        gradients = torch.einsum("bti,btj->bij", dy, x)
        element = score(mode, w, gradients.sum(0), gradients.square().sum(0))
        return element.sum(1), element.sum(0)

    def arguments():
        shapes = (batch, tokens, p), (batch, tokens, d), (p, d)
        return *(normal(*shape, dtype=dtype, device=device) for shape in shapes), None, mode

    # Torch's gradients of one batch need no samples: nobody would make them for "abs".
    peers = {"eager": eager, **({} if mode == "abs" else {"per-sample gradients": materialised})}
    name = f"{batch}x{tokens} {p}x{d} {mode}"
    return Case(name, dtype, arguments, peers, {"plain wgrad GEMM": product}, compiled=mode == "abs")
