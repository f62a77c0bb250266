"""How changes go through each operation, without a difference of nearly equal numbers (`capture.deltas`).

linear          W dx                    product         da b + a db + da db
normalisation   with dv = mean(2 c dc + dc^2) and i = rsqrt(variance), gamma (dc i1 + c (i1 - i0)),
                i1 - i0 = - dv i0 i1 / (1/i0 + 1/i1)
softmax         P (e^ds - 1 - z) / (1 + z),  z = sum P (e^ds - 1)
smooth f        dx times the mean of f' between x and x + dx, by Gauss and Legendre's rule where dx is small
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from pyprune.capture.deltas import Delta, NoRule, base_of, parts, plainly, rule
from pyprune.capture.outputs import wide

# Where |dx| is larger, a plain difference has most of its digits.
_QUADRATURE_BELOW = 0.1


def _named(*names: str) -> list[Any]:
    """The functions of these names, of `torch` and of tensors."""
    places = (torch, torch.Tensor, F)
    return [getattr(place, name) for name in names for place in places if hasattr(place, name)]


# --- What is linear in its one changing argument, and hands nothing else on: the change goes the same way.
@rule(
    *_named("reshape", "view", "transpose", "permute", "flatten", "unflatten", "squeeze", "unsqueeze", "expand"),
    *_named("expand_as", "contiguous", "clone", "detach", "movedim", "swapaxes", "narrow", "select", "chunk", "split"),
    *_named("unbind", "neg", "__neg__", "mean", "sum", "roll", "flip", "repeat", "repeat_interleave", "index_select"),
    *_named("__getitem__", "type_as", "to", "float", "double", "half", "bfloat16", "t", "view_as", "reshape_as"),
    *_named("tensor_split", "gather", "tile", "cumsum", "broadcast_to"),
    torch.Tensor.T.__get__,
    torch.Tensor.mT.__get__,
)
def _along(func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    if any(isinstance(t, Delta) for t in (*args, *kwargs.values())):
        if not isinstance(x, Delta):  # what is asked of the other is its type or shape
            return func(x, *base_of(args), **base_of(kwargs))
        args, kwargs = base_of(args), base_of(kwargs)
    base, change = parts(x)
    # What is contiguous in the one need not be in the other.
    same = torch.Tensor.reshape if func is torch.Tensor.view else func
    before, after = func(base, *args, **kwargs), same(change, *args, **kwargs)
    if isinstance(before, torch.Tensor):
        return Delta.of(before, after)
    return tuple(Delta.of(b, a) for b, a in zip(before, after, strict=True))


@rule(*_named("dropout"))
def _dropout(func: Any, x: Delta, *args: Any, **kwargs: Any) -> Any:
    training = kwargs.get("training", args[1] if len(args) > 1 else True)
    if training:
        raise NoRule("dropout is on")
    return x


@rule(*_named("cat", "concat", "stack"))
def _joined(func: Any, tensors: Any, *args: Any, **kwargs: Any) -> Any:
    pairs = [parts(t) for t in tensors]
    changes = [torch.zeros_like(b) if c is None else c for b, c in pairs]
    return Delta.of(func([b for b, _ in pairs], *args, **kwargs), func(changes, *args, **kwargs))


# --- Sums.
@rule("add_", *_named("add", "__add__", "__radd__", "__iadd__"))
def _add(func: Any, a: Any, b: Any, alpha: float = 1) -> Any:
    return _sum(a, b, alpha)


@rule("sub_", *_named("sub", "__sub__", "__isub__"))
def _sub(func: Any, a: Any, b: Any, alpha: float = 1) -> Any:
    return _sum(a, b, -alpha)


@rule(*_named("rsub", "__rsub__"))
def _rsub(func: Any, a: Any, b: Any) -> Any:
    return _sum(b, a, -1)


def _sum(a: Any, b: Any, alpha: float) -> Any:
    (a, da), (b, db) = parts(a), parts(b)
    base = a + (b if alpha == 1 else b * alpha)
    if db is not None and alpha != 1:
        db = db * alpha
    change = da if db is None else db if da is None else da + db
    return Delta.of(base, change.expand_as(base))


# --- Products.
@rule("mul_", *_named("mul", "__mul__", "__rmul__", "__imul__", "multiply"))
def _mul(func: Any, a: Any, b: Any) -> Any:
    return _bilinear(torch.mul, a, b)


@rule(*_named("matmul", "__matmul__", "bmm", "mm"))
def _matmul(func: Any, a: Any, b: Any) -> Any:
    return _bilinear(torch.matmul, a, b)


@rule(*_named("einsum"))
def _einsum(func: Any, equation: str, *operands: Any) -> Any:
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    if len(operands) != 2:
        return plainly(func, (equation, *operands), {})
    return _bilinear(lambda a, b: torch.einsum(equation, a, b), *operands)


def _bilinear(product: Callable[[Any, Any], torch.Tensor], a: Any, b: Any) -> Any:
    (a, da), (b, db) = parts(a), parts(b)
    if db is None:
        change = product(da, b)
    else:
        change = product(a, db) if da is None else product(da, b) + product(a + da, db)
    return Delta.of(product(a, b), change)


@rule(F.linear)
def _linear(func: Any, x: Any, weight: Any, bias: Any = None) -> Any:
    if isinstance(weight, Delta) or isinstance(bias, Delta):
        return plainly(func, (x, weight, bias), {})
    base, change = parts(x)
    return Delta.of(F.linear(base, weight, bias), F.linear(change, weight))


@rule(torch.addmm)
def _addmm(func: Any, bias: Any, x: Any, weight: Any, **kwargs: Any) -> Any:
    if isinstance(bias, Delta) or isinstance(weight, Delta) or kwargs:
        return plainly(func, (bias, x, weight), kwargs)
    base, change = parts(x)
    return Delta.of(torch.addmm(bias, base, weight), change @ weight)


@rule("div_", *_named("div", "true_divide", "__truediv__", "__itruediv__"))
def _div(func: Any, a: Any, b: Any, **kwargs: Any) -> Any:
    (base, change), (b, db) = parts(a), parts(b)
    if kwargs:
        return plainly(func, (a, b), kwargs)
    if db is None:
        return Delta.of(base / b, change / b)
    after = b + db  # a1 / b1 - a0 / b0 = (da - (a0 / b0) db) / b1
    quotient = base / b
    return Delta.of(quotient, ((0.0 if change is None else change) - quotient * db) / after)


@rule(*_named("pow", "__pow__", "square"))
def _pow(func: Any, x: Any, exponent: Any = 2) -> Any:
    if not isinstance(x, Delta) or not isinstance(exponent, (int, float)) or exponent not in (2, 3):
        return plainly(func, (x, exponent), {})
    base, d = parts(x)
    if exponent == 2:
        return Delta.of(base * base, d * (2 * base + d))
    return Delta.of(base**3, d * (3 * base * base + d * (3 * base + d)))


# --- Choices that do not look at what changes.
@rule(*_named("where"))
def _where(func: Any, condition: Any, a: Any = None, b: Any = None) -> Any:
    if isinstance(condition, Delta):
        raise NoRule("where decides by value")
    (a, da), (b, db) = parts(a), parts(b)
    base = torch.where(condition, a, b)
    return Delta.of(base, torch.where(condition, _or_zero(da), _or_zero(db)).expand_as(base))


def _or_zero(change: Any) -> Any:
    return 0.0 if change is None else change


@rule(*_named("masked_fill"))
def _masked_fill(func: Any, x: Any, mask: Any, value: Any) -> Any:
    if isinstance(mask, Delta) or isinstance(value, Delta):
        raise NoRule("masked_fill decides by value")
    base, change = parts(x)
    return Delta.of(base.masked_fill(mask, value), change.masked_fill(mask, 0.0))


# --- Normalisation.
def _rsqrt_change(v: torch.Tensor, dv: torch.Tensor, after: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(rsqrt of `after` = v + dv, its change)."""
    i0, i1 = v.rsqrt(), after.rsqrt()
    return i1, -dv * i0 * i1 / (1 / i0 + 1 / i1)


def _power(c: torch.Tensor, dims: tuple[int, ...], eps: float) -> torch.Tensor:
    return c.square().mean(dims, keepdim=True) + eps


@rule(*_named("rsqrt"))
def _rsqrt(func: Any, v: Delta) -> Any:
    base, change = parts(v)
    return Delta.of(base.rsqrt(), _rsqrt_change(base, change, base + change)[1])


@rule(F.layer_norm)
def _layer_norm(func: Any, x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    base, change = parts(x)
    dims = tuple(range(-len(shape), 0))
    s, ds = wide(base), wide(change)
    c, dc = s - s.mean(dims, keepdim=True), ds - ds.mean(dims, keepdim=True)
    dv = (dc * (2 * c + dc)).mean(dims, keepdim=True)
    i1, di = _rsqrt_change(_power(c, dims, eps), dv, _power(c + dc, dims, eps))
    moved = dc * i1 + c * di
    return Delta.of(F.layer_norm(base, shape, weight, bias, eps), moved if weight is None else moved * weight)


@rule(getattr(F, "rms_norm", None))
def _rms_norm(func: Any, x: Any, shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    base, change = parts(x)
    dims = tuple(range(-len(shape), 0))
    c, dc = wide(base), wide(change)
    dv = (dc * (2 * c + dc)).mean(dims, keepdim=True)
    least = torch.finfo(c.dtype).eps if eps is None else eps
    i1, di = _rsqrt_change(_power(c, dims, least), dv, _power(c + dc, dims, least))
    moved = dc * i1 + c * di
    return Delta.of(F.rms_norm(base, shape, weight, eps), moved if weight is None else moved * weight)


@rule(F.normalize)
def _normalize(func: Any, x: Any, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Any = None) -> Any:
    if p != 2 or out is not None:
        return plainly(func, (x,), {"p": p, "dim": dim, "eps": eps, "out": out})
    base, change = parts(x)
    square, moved = base.square().sum(dim, keepdim=True), (change * (2 * base + change)).sum(dim, keepdim=True)
    before, after = F.normalize(base, dim=dim, eps=eps), F.normalize(base + change, dim=dim, eps=eps)
    left = (base + change).square().sum(dim, keepdim=True).clamp(min=eps**2)
    i1, di = _rsqrt_change(square.clamp(min=eps**2), moved, left)
    # Where little is left of a vector, or there was none, a plain difference has all digits.
    return Delta.of(
        before, torch.where((left < square / 4) | (square < eps**2), after - before, change * i1 + base * di)
    )


# --- Attention.
def _softmax_change(scores: torch.Tensor, p: torch.Tensor, ds: torch.Tensor, dim: int) -> torch.Tensor:
    """The change of `p`, the softmax of `scores` that change by `ds`."""
    e = torch.expm1(ds)
    z = (p * e).sum(dim, keepdim=True)
    # Where much of the weight moves, 1 + z loses its digits or overflows, and a plain difference keeps its own.
    return torch.where(z.abs() < 0.5, p * (e - z) / (1 + z), (scores + ds).softmax(dim) - p)


@rule(*_named("softmax"))
def _softmax(func: Any, x: Any, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    dtype = kwargs.get("dtype", args[-1] if args and isinstance(args[-1], torch.dtype) else None)
    base, change = parts(x)
    dim = -1 if dim is None else dim
    scores = wide(base if dtype is None else base.to(dtype))
    p = scores.softmax(dim)
    moved = _softmax_change(scores, p, wide(change), dim)
    kept = dtype or base.dtype
    return Delta.of(p.to(kept), moved.to(kept))


@rule(F.scaled_dot_product_attention)
def _attention(
    func: Any,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    if dropout_p or isinstance(attn_mask, Delta):
        return plainly(
            func,
            (query, key, value, attn_mask, dropout_p, is_causal),
            {"scale": scale, "enable_gqa": enable_gqa},
        )
    (q, dq), (k, dk), (v, dv) = parts(query), parts(key), parts(value)
    if enable_gqa and (times := q.shape[-3] // k.shape[-3]) > 1:
        k, dk, v, dv = (t if t is None else t.repeat_interleave(times, -3) for t in (k, dk, v, dv))
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    scores = wide(q @ k.mT) * scale
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    p = scores.softmax(-1)
    dead = scores.amax(-1, keepdim=True) == -torch.inf  # rows that see nothing are 0, as torch makes them
    p = torch.where(dead, 0.0, p)
    scores = torch.where(dead, 0.0, scores)
    base = p.to(v.dtype) @ v
    if dq is None and dk is None:
        return Delta.of(base, p.to(v.dtype) @ dv)
    ds = wide(_both(q, dq, k, dk)) * scale
    dp = _softmax_change(scores, p, ds, -1)
    change = dp.to(v.dtype) @ v
    return Delta.of(base, change if dv is None else change + (p + dp).to(v.dtype) @ dv)


def _both(q: Any, dq: Any, k: Any, dk: Any) -> torch.Tensor:
    """The change of q k^T."""
    if dq is None:
        return q @ dk.mT
    return dq @ k.mT if dk is None else dq @ (k + dk).mT + q @ dk.mT


# --- Smooth functions and their derivatives.
_NODES = (
    (0.06943184420297371, 0.17392742256872692),
    (0.33000947820757187, 0.3260725774312731),
    (0.6699905217924281, 0.3260725774312731),
    (0.9305681557970263, 0.17392742256872692),
)


def _smooth(f: Callable[[Any], Any], derivative: Callable[[Any], Any], x: Delta) -> Delta:
    base, change = parts(x)
    if base.dtype != torch.float64:
        # A difference in float64 has digits to spare, and costs a fifth of the quadrature.
        b = base.double()
        return Delta.of(f(base), f(b + change) - f(b))
    near = change.clamp(-_QUADRATURE_BELOW, _QUADRATURE_BELOW)
    slope = sum(weight * derivative(base + at * near) for at, weight in _NODES)
    far = change.abs() > _QUADRATURE_BELOW
    return Delta.of(f(base), torch.where(far, f(base + change) - f(base), near * slope))


def _gelu_slope(x: torch.Tensor) -> torch.Tensor:
    return torch.erfc(-x * math.sqrt(0.5)) / 2 + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _gelu_tanh_slope(x: torch.Tensor) -> torch.Tensor:
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    th = torch.tanh(inner)
    return (1 + th) / 2 + x / 2 * (1 - th * th) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)


@rule(*_named("gelu"))
def _gelu(func: Any, x: Delta, approximate: str = "none") -> Any:
    slope = _gelu_slope if approximate == "none" else _gelu_tanh_slope
    return _smooth(lambda t: F.gelu(t, approximate=approximate), slope, x)


@rule(*_named("silu"))
def _silu(func: Any, x: Delta, inplace: bool = False) -> Any:
    def slope(t: torch.Tensor) -> torch.Tensor:
        s = t.sigmoid()
        return s * (1 + t * (1 - s))

    return _smooth(F.silu, slope, x)


@rule(*_named("tanh"))
def _tanh(func: Any, x: Delta) -> Any:
    return _smooth(torch.tanh, lambda t: 1 - torch.tanh(t).square(), x)


@rule(*_named("sigmoid"))
def _sigmoid(func: Any, x: Delta) -> Any:
    return _smooth(torch.sigmoid, lambda t: t.sigmoid() * (-t).sigmoid(), x)


@rule(*_named("exp"))
def _exp(func: Any, x: Delta) -> Any:
    base, change = parts(x)
    return Delta.of(base.exp(), base.exp() * torch.expm1(change))


@rule(*_named("relu"))
def _relu(func: Any, x: Delta, inplace: bool = False) -> Any:
    base, change = parts(x)
    return Delta.of(F.relu(base), torch.where(base > 0, torch.maximum(change, -base), F.relu(base + change)))


# What is asked by its shape alone.
@rule(*_named("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "new_zeros", "new_ones", "new_empty"))
def _like(func: Any, x: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    return func(base_of(x), *args, **kwargs)


@rule(*_named("new_full", "new_tensor"))
def _new(func: Any, x: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    if any(isinstance(t, Delta) for t in (*args, *kwargs.values())):
        raise NoRule("new_full takes a value")
    return func(base_of(x), *args, **kwargs)
