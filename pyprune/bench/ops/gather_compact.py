"""gather_compact over the weights that a random 50 % plan cuts, against one index_select a tensor.

Yardsticks: `copy` copies as many bytes as are written into memory that is there, `clone` into new memory, which the op
and its peers ask for too: on a CPU most of their time is page faults.
"""

from collections.abc import Iterator

import torch

from pyprune.bench.ops import DTYPES, Case, normal, on_gpu

# hidden width, feed-forward width, heads, KV heads, gate, bias
BERT = (768, 3072, 12, 12, False, True)
LLAMA_3_8B = (4096, 14336, 32, 8, True, False)


def cases(device: str, tiny: bool) -> Iterator[Case]:
    if tiny:
        yield case("tiny", (32, 64, 4, 2, True, True), 1, "fp32", device)
        return
    for dtype in DTYPES:
        yield case("bert-base", BERT, 12, dtype, device)
        yield case("bert-base 1 layer", BERT, 1, dtype, device)
        if on_gpu(device):
            yield case("llama-3-8b 4 layers", LLAMA_3_8B, 4, dtype, device)


def eager(tensors, rows, columns, *_):
    return [
        t.index_select(0, row) if row is not None else t.index_select(1, column)
        for t, row, column in zip(tensors, rows, columns, strict=True)
    ]


def written(tensors, rows, columns, *_) -> torch.Tensor:
    """As many bytes as the op writes, from the weights."""
    count = sum(
        t.numel() // t.shape[0] * len(row) if row is not None else t.shape[0] * len(column)
        for t, row, column in zip(tensors, rows, columns, strict=True)
    )
    return torch.ones(count, dtype=tensors[0].dtype, device=tensors[0].device)


def case(model: str, sizes: tuple, layers: int, dtype: str, device: str) -> Case:
    buffers: dict[str, torch.Tensor] = {}

    def arguments():
        plans = [layer(sizes, dtype, device, seed) for seed in range(layers)]
        tensors, rows, columns = ([x for plan in plans for x in plan[i]] for i in range(3))
        none = [None] * len(tensors)
        return tensors, rows, columns, none, none, 1

    def copy(*args):
        if not buffers:
            buffers["source"] = written(*args)
            buffers["target"] = torch.ones_like(buffers["source"])
        return buffers["target"].copy_(buffers["source"])

    def clone(*args):
        copy_of = buffers.get("source")
        return (written(*args) if copy_of is None else copy_of).clone()

    # torch.compile takes minutes over the 120 tensors of twelve layers.
    return Case(
        f"{model} 50%", dtype, arguments, {"eager": eager}, {"copy": copy, "clone": clone}, compiled=layers == 1
    )


def layer(sizes: tuple, dtype: str, device: str, seed: int) -> tuple[list, list, list]:
    """(tensors, rows, columns) of one layer that loses a random half of its KV groups and neurons."""
    hidden, inner, heads, kv_heads, gate, bias = sizes
    width = hidden // heads
    generator = torch.Generator().manual_seed(seed)

    def half(units: int, wide: int) -> torch.Tensor:
        units_kept = torch.randperm(units, generator=generator)[: units // 2].sort().values
        return (units_kept[:, None] * wide + torch.arange(wide)).flatten().to(device)

    groups = half(kv_heads, 1)
    channels = lambda wide: (groups[:, None] * wide + torch.arange(wide, device=device)).flatten()  # noqa: E731
    query, key, neurons = channels(width * heads // kv_heads), channels(width), half(inner, 1)
    outs = [(hidden, query), (kv_heads * width, key), (kv_heads * width, key), *[(inner, neurons)] * (1 + gate)]
    tensors, rows, columns = [], [], []
    for size, kept in outs:
        for shape in ((size, hidden), (size,))[: 1 + bias]:
            tensors.append(normal(*shape, dtype=dtype, device=device))
            rows.append(kept)
            columns.append(None)
    for size, kept in ((hidden, query), (inner, neurons)):
        tensors.append(normal(hidden, size, dtype=dtype, device=device))
        rows.append(None)
        columns.append(kept)
    return tensors, rows, columns
