"""gram_probe_grad against the same formula with signs in memory, in eager torch and torch.compile."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from pyprune.bench.ops import DTYPES, Case, normal
from pyprune.ops.gram_probe_grad import reference

# (samples, tokens, width): samples for themselves as in MNLI and as images, and 1,024 tokens as one Gram matrix.
SHAPES = ((128, 40, 768), (64, 197, 768), (1, 1024, 768), (1, 1024, 4096))


def cases(device: str, tiny: bool) -> Iterator[Case]:
    if tiny:
        yield case((2, 8, 16), "fp32", device)
        return
    for dtype in DTYPES:
        for shape in SHAPES:
            yield case(shape, dtype, device)


def case(shape: tuple[int, int, int], dtype: str, device: str) -> Case:
    samples, tokens, width = shape

    def arguments():
        return normal(*shape, dtype=dtype, device=device), torch.arange(samples, device=device), None

    def autograd(f, *_):
        """What a user would write: a random matrix, and autograd through the normalised rows."""
        leaf = f.detach().requires_grad_()
        with torch.enable_grad():
            rows = F.normalize(leaf.float(), dim=-1)
            z = torch.randint(0, 2, (samples, tokens, tokens), device=f.device).float() * 2 - 1
            value = (z * (rows @ rows.mT)).sum()
        return torch.autograd.grad(value, leaf)[0]

    name = f"{samples}x{tokens}x{width}"
    return Case(name, dtype, arguments, {"eager": reference, "autograd": autograd})
