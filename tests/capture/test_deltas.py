"""Changes of every operation against plain differences in float64, and in types that plain differences are lost in."""

import math

import pytest
import torch
import torch.nn.functional as F

import pyprune.capture.delta_rules  # noqa: F401
from pyprune.capture.deltas import Delta, NoRule, base_of, parts
from pyprune.testing import numerics


def make(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


W, OTHER = make(7, 6, seed=3), make(4, 6, seed=4)
MASK = torch.tensor([[True, True, False, True]]).expand(4, 4)


def attention(x, **options):
    q, k, v = (x.view(1, 4, 2, 3).transpose(1, 2) * scale for scale in (1.0, 0.7, -1.3))
    return F.scaled_dot_product_attention(q, k, v, **options)


OPERATIONS = {
    "linear": lambda x: F.linear(x, W, W[:, 0]),
    "addmm": lambda x: torch.addmm(W[:, 0], x, W.T),
    "sum": lambda x: 2.0 + x - OTHER + x * 0.5 - (1 - x),
    "in place": lambda x: (x * 1).add_(OTHER).mul_(x),
    "augmented": lambda x: _augmented(x),
    "product": lambda x: x * x.flip(0) * OTHER,
    "quotient": lambda x: x / 3 + OTHER / (x.square() + 1) + x / (x.square() + 1),
    "powers": lambda x: x.pow(2) + x**3 + x.abs().pow(1.5),
    "matmul": lambda x: x @ x.mT + x @ OTHER.T,
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x),
    "shapes": lambda x: torch.cat([x.view(2, 2, 6).permute(1, 0, 2).reshape(4, 6).contiguous()[1:, ::2], x[:2, :3]]),
    "chunks": lambda x: torch.stack([a * b for a, b in zip(x.chunk(2, -1), x.split(3, -1), strict=True)]),
    "sums": lambda x: x.mean(-1, keepdim=True) * x.sum(0) + x.to(torch.float64).mean(),
    "choice": lambda x: torch.where(MASK[:, :1], x, OTHER) + x.masked_fill(MASK[:, 2:3], 5.0),
    "layer norm": lambda x: F.layer_norm(x, (6,), OTHER[0], OTHER[1], 1e-12) + F.layer_norm(x, (6,)),
    "rms norm": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) + F.rms_norm(x, (6,), OTHER[0]),
    "normalize": lambda x: F.normalize(x, dim=-1) + F.normalize(x * 2, dim=0),
    "softmax": lambda x: x.softmax(-1) + F.softmax(x.masked_fill(MASK[:, 2:3], -torch.inf), 0, dtype=torch.float64),
    "moving softmax": lambda x: (1000 * x).softmax(-1),
    "attention": lambda x: attention(x),
    "masked attention": lambda x: attention(x, attn_mask=MASK.tril(), scale=2.0),
    "biased attention": lambda x: attention(x, attn_mask=OTHER[:, :4]),
    "causal attention": lambda x: attention(x, is_causal=True),
    "grouped attention": lambda x: F.scaled_dot_product_attention(
        x.view(1, 4, 2, 3), OTHER[:2].view(1, 2, 2, 3), x[1:3].view(1, 2, 2, 3), enable_gqa=True
    ),
    "attention without a key": lambda x: attention(x, attn_mask=torch.zeros(4, 4, dtype=torch.bool)),
    "gelu": lambda x: F.gelu(3 * x),
    "gelu by tanh": lambda x: F.gelu(3 * x, approximate="tanh"),
    "silu": lambda x: F.silu(3 * x),
    "tanh, sigmoid, exp": lambda x: torch.tanh(x) * torch.sigmoid(x) + x.exp(),
    "relu": lambda x: F.relu(x) + torch.relu(x - 1),
    "no rule": lambda x: F.elu(x) + torch.cos(x) + F.group_norm(x[None].mT, 2)[0].mT,
}


def _augmented(x):
    y = x * 2
    y += OTHER
    y *= x
    y -= 1
    return y


@pytest.mark.parametrize("size", [1e-7, 1e-2, 1.0])
@pytest.mark.parametrize("name", OPERATIONS)
def test_changes_are_differences(name, size):
    operation, x, d = OPERATIONS[name], make(4, 6), size * make(4, 6, seed=1)
    base, change = parts(operation(Delta.of(x, d)))
    torch.testing.assert_close(base, operation(x), rtol=1e-12, atol=1e-12)
    expected = operation(x + d) - operation(x)
    # What the plain difference has lost of a small change, allowed to it.
    torch.testing.assert_close(change, expected, rtol=1e-12 + 1e-14 / size, atol=1e-15)


@pytest.mark.parametrize("name", OPERATIONS)
def test_many_changes_of_one_tensor(name):
    operation, x, d = OPERATIONS[name], make(4, 6), 1e-3 * make(5, 4, 6, seed=1)
    together = torch.vmap(lambda change: parts(operation(Delta.of(x, change)))[1])(d)
    for change, alone in zip(together, d, strict=True):
        torch.testing.assert_close(change, parts(operation(Delta.of(x, alone)))[1], rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["layer norm", "rms norm", "normalize", "softmax", "attention", "gelu", "silu"])
def test_small_changes_keep_their_digits(name, dtype, monkeypatch):
    """Of changes at a rounding's size, where a plain difference is all rounding, relative to the largest."""
    monkeypatch.setitem(globals(), "OTHER", OTHER.to(dtype))
    x, d = make(4, 6, dtype=dtype), (torch.finfo(dtype).eps / 8 * make(4, 6, seed=1)).to(dtype)
    operation = OPERATIONS[name]
    if name == "softmax":
        operation = lambda t: t.softmax(-1)  # noqa: E731
    change = parts(operation(Delta.of(x, d)))[1]
    plain = operation(x + d) - operation(x)
    monkeypatch.setitem(globals(), "OTHER", OTHER.double())
    truth = parts(operation(Delta.of(x.double(), d.double())))[1]
    assert change.dtype == dtype
    numerics.ratio(change, truth)
    assert numerics.relative_rms(plain, truth) > 10 * numerics.relative_rms(change, truth)


def test_relu_crosses_zero_exactly():
    x, d = torch.tensor([1.0, -1.0, 1e-3, -1e-3, 0.0]), torch.tensor([-2.0, 3.0, 1e-4, 1e-4, 0.5])
    numerics.exact(parts(F.relu(Delta.of(x, d)))[1], torch.tensor([-1.0, 2.0, 1e-4, 0.0, 0.5]))


def test_modules_run_and_questions_are_answered():
    x = Delta.of(make(2, 6), make(2, 6, seed=1))
    assert (x.shape, x.dtype, x.dim(), x.size(-1), len(x)) == ((2, 6), torch.float64, 2, 6, 2)
    assert isinstance(torch.nn.Dropout(0.5).eval()(x), Delta)
    assert not isinstance(torch.zeros_like(x), Delta)
    assert not isinstance(base_of([x, {"a": x}])[1]["a"], Delta)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x > 0,
        lambda x: bool((x.sum() + 1).item()),
        lambda x: x.argmax(),
        lambda x: x.topk(2),
        lambda x: x.__setitem__(0, 1.0),
        lambda x: x.clamp_(0, 1),
        lambda x: torch.where(x, 1.0, 0.0),
        lambda x: F.dropout(x, 0.5, training=True),
    ],
)
def test_what_depends_on_values_is_refused(operation):
    with pytest.raises(NoRule, match=r"by value|in place|is on"):
        operation(Delta.of(make(2, 6), make(2, 6, seed=1)))


def test_quadrature_reaches_float64():
    x, d = torch.linspace(-6, 6, 101, dtype=torch.float64), torch.full((101,), 0.0999, dtype=torch.float64)
    change = parts(F.gelu(Delta.of(x, d)))[1]
    torch.testing.assert_close(change, F.gelu(x + d) - F.gelu(x), rtol=1e-10, atol=1e-15)
    assert math.isclose(float(parts(F.silu(Delta.of(x[50], d[50])))[1]), float(F.silu(d[50])), rel_tol=1e-12)
