"""hadamard_gram against the same formula in eager torch and torch.compile; the yardstick is `h^T h` alone."""

from collections.abc import Iterator

from pyprune.bench.ops import DTYPES, Case, normal
from pyprune.ops.hadamard_gram import reference

# (tokens, channels, width, group)
SHAPES = ((4096, 3072, 768, 1), (4096, 768, 768, 64), (1248, 1536, 384, 1))


def cases(device: str, tiny: bool) -> Iterator[Case]:
    if tiny:
        yield case((16, 24, 8, 4), "fp32", device)
        return
    for dtype in DTYPES:
        for shape in SHAPES:
            yield case(shape, dtype, device)


def case(shape: tuple[int, int, int, int], dtype: str, device: str) -> Case:
    tokens, channels, width, group = shape

    def arguments():
        parts = (tokens, channels), (channels, width), (tokens, width)
        return *(normal(*part, dtype=dtype, device=device) for part in parts), group

    def gram(h, *_):
        wide = h.float()
        return wide.T @ wide

    name = f"{tokens}x{channels} d={width}" + (f" group={group}" if group > 1 else "")
    return Case(name, dtype, arguments, {"eager": reference}, {"h^T h in fp32": gram})
