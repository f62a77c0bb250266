"""gram_probe_grad: the gradient of a random probe of the Gram matrices of token directions.

With r the rows of f at L2 norm 1 and M = r r^T, a probe is sqrt(2) times the sum over i < j of s_ij M_ij, s_ij
independent signs. Along any change of f, its derivative squared is on average ||dM||_F^2, by how much the Gram matrix
moves: OPTIN's trajectory distance (Khaki and Plataniotis 2024) of every change that the backward pass goes on to.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, library

from pyprune.core.errors import InputError
from pyprune.ops._dispatch import Candidate, Op, Support, detached, triton_missing

SCHEMA = "(Tensor f, Tensor keys, Tensor? token_mask=None) -> Tensor"
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Signs of one word of bits. Rows and words have multipliers of their own, so that no two words share their input.
SIGNS = 32
ROW_LOW, ROW_HIGH = 0x3C6EF35F, 0x5851F42D
_WORD = 0xFFFFFFFF


def gram_probe_grad(f: Tensor, keys: Tensor, token_mask: Tensor | None = None) -> Tensor:
    """Gradient at f of one random probe of each sample's Gram matrix, `[B, T, d]` in f's dtype.

    f: `[B, T, d]`, float32, bfloat16, float16 or float64 (torch backend only); any strides, copied where the last
        dimension is not contiguous. For one Gram matrix of all samples' tokens give them as one sample.
    keys: `[B]` int64, from which each sample's signs follow: the same key and T give the same signs in any batch.
    token_mask: `[B, T]` bool, True is a real token; others are not read, may hold NaN, and have gradient 0.

    With r_i = f_i / |f_i| and symmetric signs S it is sqrt(2) (I - r_i r_i^T) (S r)_i / |f_i|, fp32 inside; rows of
    norm 0 have gradient 0. Deterministic, and on the Triton backend a sample's bits do not depend on its batch. Not
    differentiable.

    Raises: InputError for shapes or dtypes that do not fit; BackendError, see `pyprune.ops.backend`.

    >>> gram_probe_grad(torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]), torch.tensor([3])).abs()
    tensor([[[0.0000, 0.7071],
             [1.4142, 0.0000]]])
    """
    return torch.ops.pyprune.gram_probe_grad.default(*detached(f, keys, token_mask))


def check(f: Tensor, keys: Tensor, token_mask: Tensor | None) -> None:
    if f.dim() != 3:
        raise InputError(f"gram_probe_grad: f must be [B, T, d], got {list(f.shape)}")
    if f.dtype not in (*KERNEL_DTYPES, torch.float64):
        raise InputError(f"gram_probe_grad: f must be float32, bfloat16, float16 or float64, got {f.dtype}")
    if keys.dtype != torch.int64 or keys.shape != f.shape[:1]:
        raise InputError(f"gram_probe_grad: keys must be int64 [{len(f)}], got {keys.dtype} {list(keys.shape)}")
    if token_mask is not None and (token_mask.dtype != torch.bool or token_mask.shape != f.shape[:2]):
        raise InputError(
            f"gram_probe_grad: token_mask must be bool {list(f.shape[:2])}, got {token_mask.dtype} "
            f"{list(token_mask.shape)}"
        )
    if any(t is not None and t.device != f.device for t in (keys, token_mask)):
        raise InputError("gram_probe_grad: f, keys and token_mask must be on one device")


def reference(f: Tensor, keys: Tensor, token_mask: Tensor | None = None) -> Tensor:
    """The definition in torch; float64 for float64 inputs."""
    rows = f if f.dtype == torch.float64 else f.float()
    if token_mask is not None:
        rows = torch.where(token_mask[..., None], rows, 0.0)
    norm = rows.norm(dim=-1, keepdim=True)
    inverse = torch.where(norm > 0, 1 / norm, 0.0)  # which is 0 of padding too
    rows = rows * inverse
    along = signs(keys, f.shape[1]).to(rows.dtype) @ rows
    along = along - rows * (rows * along).sum(-1, keepdim=True)
    return (2**0.5 * inverse * along).to(f.dtype)


def signs(keys: Tensor, tokens: int) -> Tensor:
    """`[B, tokens, tokens]` int8 of 1 and -1, symmetric, 0 where a row meets itself, whose product is 1 in any case.

    Bit `low % 32` of a word that follows from (key, low // 32, high).
    """
    words = -(-tokens // SIGNS)
    high = torch.arange(tokens, device=keys.device)[:, None]
    word = torch.arange(words, device=keys.device)
    low_half, high_half = (keys & _WORD)[:, None, None], (keys >> 32 & _WORD)[:, None, None]
    bits = noise(word, (low_half + high * ROW_LOW) & _WORD, (high_half + high * ROW_HIGH) & _WORD)
    at = torch.arange(SIGNS, device=keys.device)
    drawn = (1 - 2 * (bits[..., None] >> at & 1)).to(torch.int8).flatten(2)[..., :tokens].tril(-1)
    return drawn + drawn.mT


def noise(column: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """32 random bits in int64: the steps of `linear_cross_entropy`, whose kernels tell why."""
    h = column ^ low
    h = (h ^ (h >> 16)) * 0x21F0AAAD & _WORD
    h = (h ^ (h >> 15)) + high & _WORD
    h = h * 0x735A2D97 & _WORD
    h = (h ^ (h >> 15)) * 0x31848BAB & _WORD
    return h ^ (h >> 16)


def _run_triton(*args) -> Tensor:
    from pyprune.triton_kernels.gram_probe_grad import gram_probe_grad as launch

    return launch(*args)


def _supports_triton(f: Tensor, keys: Tensor, token_mask: Tensor | None) -> Support:
    if f.dtype not in KERNEL_DTYPES:
        return False, f"no kernel for {f.dtype}"
    return True, ""


def fake(f: Tensor, keys: Tensor, token_mask: Tensor | None = None) -> Tensor:
    check(f, keys, token_mask)
    return f.new_empty(f.shape)


def samples() -> Iterator[tuple]:
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 5, 12), (1, 37, 100), (3, 1, 24), (2, 0, 3)):
        keys = torch.randint(0, 1 << 62, shape[:1], generator=generator)
        for dtype in KERNEL_DTYPES:
            yield torch.randn(*shape, generator=generator).to(dtype), keys, None
    mask = torch.arange(6) < torch.tensor([[6], [2], [0]])
    yield torch.randn(3, 6, 16, generator=generator), torch.tensor([1, -5, 1 << 40]), mask


def bytes_moved(f: Tensor, *_) -> int:
    return 2 * f.numel() * f.element_size()


def flops(f: Tensor, *_) -> int:
    """The product with the signs; norms and projections on top."""
    samples, tokens, d = f.shape
    return 2 * samples * tokens * tokens * d + 8 * f.numel()


OP = Op(
    name="gram_probe_grad",
    schema=SCHEMA,
    candidates=(
        Candidate("triton", ("cuda",), _run_triton, triton_missing, _supports_triton),
        Candidate("torch", ("cpu", "cuda"), reference),
    ),
    check=check,
    samples=samples,
    bytes_moved=bytes_moved,
    flops=flops,
)
library.register_fake("pyprune::gram_probe_grad", fake)
