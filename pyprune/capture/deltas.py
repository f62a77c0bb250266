"""Tensors that carry a change along: what a forward pass puts out, and by how much it would differ.

Two forward passes whose inputs hardly differ agree in all leading digits, and their difference has only what is left:
in bf16, nothing. A `Delta` is a tensor of the unchanged pass with its `change` beside it, and every operation has a
rule (`capture.delta_rules`) that makes the change of its result from the changes of its inputs, exactly and without a
difference of nearly equal numbers. A model's own code runs on them as on any tensor, whatever its family. What has no
rule is computed twice, in fp32 or wider, and subtracted: that is exact too, with the digits of an ordinary forward
pass. `NoRule` is raised for what cannot be computed so: changes in place, and decisions by value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pyprune.core.errors import InputError

Rule = Callable[..., Any]
_RULES: dict[Any, Rule] = {}


class NoRule(InputError):
    """An operation whose change cannot be computed from the changes of its inputs."""


class Delta(torch.Tensor):
    """The tensor `base` of the unchanged pass, and its `change` of the same shape: what is to be added to it."""

    change: torch.Tensor

    @staticmethod
    def of(base: torch.Tensor, change: torch.Tensor) -> Delta:
        """`base` plus `change`."""
        pair = base.as_subclass(Delta)
        pair.change = change if change.dtype == base.dtype else change.to(base.dtype)
        return pair

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            rule = _RULES.get(func)
            if rule is not None:
                return rule(func, *args, **kwargs)
            return plainly(func, args, kwargs)


def parts(x: Any) -> tuple[Any, Any]:
    """(base, change) of a tensor; the change is None of what does not change."""
    if isinstance(x, Delta):
        return x.as_subclass(torch.Tensor), x.change
    return x, None


def base_of(x: Any) -> Any:
    """`x` without its change, in lists and dicts too."""
    return _mapped(x, lambda d: d.as_subclass(torch.Tensor))


def _mapped(x: Any, change: Callable[[Delta], Any]) -> Any:
    if isinstance(x, Delta):
        return change(x)
    if isinstance(x, (list, tuple)) and not isinstance(x, torch.Size):
        return type(x)(_mapped(item, change) for item in x)
    if isinstance(x, dict):
        return {name: _mapped(item, change) for name, item in x.items()}
    return x


def plainly(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Anything else: a question about shape or type is answered, other functions are computed twice."""
    name = getattr(func, "__name__", str(func))
    plain_args, plain_kwargs = base_of(args), base_of(kwargs)
    if (out_of_place := _RULES.get(name)) and isinstance(args[0], Delta):
        return _changed_in_place(args[0], out_of_place(func, *args, **kwargs))
    if (name.endswith("_") and not name.endswith("__")) or name == "__setitem__" or kwargs.get("out") is not None:
        raise NoRule(f"{name} changes a tensor in place")
    before = func(*plain_args, **plain_kwargs)
    if not isinstance(before, (torch.Tensor, tuple, list)) or isinstance(before, torch.Size):
        if name in ("item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__", "equal"):
            raise NoRule(f"{name} decides by value")
        return before
    results = before if isinstance(before, (tuple, list)) else (before,)
    if not all(isinstance(r, torch.Tensor) for r in results):
        return before
    if any(not r.is_floating_point() for r in results):
        raise NoRule(f"{name} decides by value")
    wider = (lambda t: t.float() if t.dtype in (torch.bfloat16, torch.float16) else t) if _narrow(results) else None

    def moved(x: Delta, by: float) -> torch.Tensor:
        base, change = parts(x)
        if wider:
            base, change = wider(base), wider(change)
        return base + by * change

    def computed(by: float) -> Any:
        given = [_mapped(part, lambda x: moved(x, by)) for part in (args, kwargs)]
        if wider:
            given = [_widened(part, wider) for part in given]
        return func(*given[0], **given[1])

    first, second = computed(0.0) if wider else before, computed(1.0)
    if isinstance(before, torch.Tensor):
        return Delta.of(before, second - first)
    pairs = [Delta.of(b, t - s) for b, s, t in zip(before, first, second, strict=True)]
    return type(before)(pairs) if type(before) in (tuple, list) else tuple(pairs)


def _changed_in_place(target: Delta, result: Delta) -> Delta:
    """`target`, and whatever else holds it, becomes `result`."""
    target.as_subclass(torch.Tensor).copy_(result.as_subclass(torch.Tensor))
    target.change = result.change
    return target


def _narrow(results: Any) -> bool:
    return any(r.dtype in (torch.bfloat16, torch.float16) for r in results)


def _widened(x: Any, wider: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(x, torch.Tensor):
        return wider(x)
    if isinstance(x, (list, tuple)) and not isinstance(x, torch.Size):
        return type(x)(_widened(item, wider) for item in x)
    return {name: _widened(item, wider) for name, item in x.items()} if isinstance(x, dict) else x


def rule(*functions: Any) -> Callable[[Rule], Rule]:
    """Register a rule, which is called with the function and its arguments; for what works in place, by its name."""

    def register(made: Rule) -> Rule:
        _RULES.update(dict.fromkeys((f for f in functions if f is not None), made))
        return made

    return register
