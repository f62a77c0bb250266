"""Models' own code in float64 throughout: many families take norms and softmax in fp32 whatever they are given."""

import torch
from torch.overrides import TorchFunctionMode


class Unrounded(TorchFunctionMode):
    """While it lasts nothing that is float64 becomes fp32."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if getattr(func, "__name__", "") in ("to", "float", "softmax") and args[0].dtype == torch.float64:
            if func is torch.Tensor.float:
                return args[0]
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
            kwargs = {name: torch.float64 if a is torch.float32 else a for name, a in kwargs.items()}
        return func(*args, **kwargs)
