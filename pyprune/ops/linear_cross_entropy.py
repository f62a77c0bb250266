"""linear_cross_entropy: a language model's head and its loss, with the gradient of the hidden states alone.

The `[N, V]` logits exist a few rows at a time, and the weight's gradient is never formed: scores, sensitivities and
distillation of a decoder need no more of its head.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, library

from pyprune.core.errors import InputError
from pyprune.ops import _native
from pyprune.ops._dispatch import Candidate, Op, Support, triton_missing

SCHEMA = (
    "(Tensor x, Tensor weight, Tensor? bias=None, Tensor? labels=None, str target='labels', Tensor? teacher_x=None, "
    "Tensor? teacher_weight=None, Tensor? teacher_bias=None, float temperature=1.0, int seed=0, Tensor? row_ids=None)"
    " -> (Tensor loss, Tensor dx, Tensor picked)"
)
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TARGETS = ("labels", "sampled", "max_logit", "kl", "probe")
IGNORED = -100
# Logits that exist at once, and the fewest rows of a product: (elements, rows). On 2 cores 2^22, 2^23, 2^24 and 2^25
# take the same time (448, 444, 453, 447 ms for 1,024 rows of 30,522 words), so the least is taken: 16 MB.
CHUNK = {"cpu": (1 << 22, 128), "cuda": (1 << 27, 1024)}


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    labels: Tensor | None = None,
    target: str = "labels",
    teacher_x: Tensor | None = None,
    teacher_weight: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    row_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """A loss of every row of logits `z = x weight^T + bias`, its gradient in x, and the word it was taken at.

    x: `[N, d]` hidden states; weight: `[V, d]`; bias: `[V]`, where -inf masks a word. float32, bfloat16, float16 or
        float64 (torch backend only), the same dtype and device for all. With p = softmax(z), `target` is one of

        "labels"     loss = -log p[label], dx = W^T (p - e_label). labels: int64 `[N]`; rows with -100 give 0.
        "sampled"    the same with a label drawn from p: true Fisher information, without labels.
        "max_logit"  loss = max z (the value itself), dx = W[argmax]; the lowest word wins ties.
        "kl"         loss = tau^2 KL(q || p') with p' = softmax(z / tau), q = softmax(z_teacher / tau), tau the
                     temperature (Hinton et al. 2015, §2.1: the factor keeps the gradient's size),
                     dx = tau W^T (p' - q). teacher_x: `[N, d_teacher]`, teacher_weight: `[V, d_teacher]`,
                     teacher_bias: `[V]`.
        "probe"      loss = <g, z>, dx = W^T g for g = sqrt(p) eps - p <sqrt(p), eps> with random signs eps, held
                     constant: E[g g^T] = diag(p) - p p^T, the Fisher information of the logits.
    seed, row_ids: the noise of "sampled" and "probe" is a function of the seed, the row's id (int64 `[N]`, its
        position unless given) and the word: it depends neither on the batch nor on the backend. Give ids that belong to
        the token to draw the same in any batch.

    Returns loss float32 `[N]` (float64 for float64), dx in x's dtype `[N, d]`, picked int64 `[N]` (label, drawn label
    or argmax; -100 for kl and probe). Logits and sums are fp32. Differentiable in x only, through loss, with dx as
    computed here: dx has no gradient of its own. A row's last bits may depend on N, because the library's products do;
    on CPU they do not depend on the number of threads.

    Raises: InputError for arguments that do not fit, or when weight, bias or a teacher's tensors require a gradient.

    >>> x, weight = torch.zeros(1, 2), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> loss, dx, picked = linear_cross_entropy(x, weight, labels=torch.tensor([1]))
    >>> loss, dx
    (tensor([0.6931]), tensor([[ 0.5000, -0.5000]]))
    """
    return torch.ops.pyprune.linear_cross_entropy.default(
        x, weight, bias, labels, target, teacher_x, teacher_weight, teacher_bias, temperature, seed, row_ids
    )


def check(
    x: Tensor, weight: Tensor, bias, labels, target, teacher_x, teacher_weight, teacher_bias, temperature, seed, row_ids
) -> None:
    """Everything that can be told without reading data; shared by the op and its fake."""
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1] or 0 in weight.shape:
        raise InputError(
            f"linear_cross_entropy: x must be [N, d] and weight [V, d], not empty, got {list(x.shape)} and "
            f"{list(weight.shape)}"
        )
    if target not in TARGETS:
        raise InputError(f"linear_cross_entropy: target={target!r} must be one of {', '.join(TARGETS)}")
    (rows, _), words = x.shape, weight.shape[0]
    _wanted("labels", labels, target == "labels", "labels", (rows,))
    _wanted("teacher_x", teacher_x, target == "kl", "kl", (rows, None))
    width = teacher_x.shape[1] if target == "kl" else 0
    _wanted("teacher_weight", teacher_weight, target == "kl", "kl", (words, width))
    for name, given, allowed, shape in (
        ("bias", bias, True, (words,)),
        ("teacher_bias", teacher_bias, target == "kl", (words,)),
        ("row_ids", row_ids, target in ("sampled", "probe"), (rows,)),
    ):
        _wanted(name, given, allowed and given is not None, target, shape)
    for name, given in (("labels", labels), ("row_ids", row_ids)):
        if given is not None and given.dtype != torch.int64:
            raise InputError(f"linear_cross_entropy: {name} must be int64, got {given.dtype}")
    real = [t for t in (x, weight, bias, teacher_x, teacher_weight, teacher_bias) if t is not None]
    if x.dtype not in (*KERNEL_DTYPES, torch.float64) or any(t.dtype != x.dtype for t in real):
        raise InputError(f"linear_cross_entropy: one floating dtype for all, got {[str(t.dtype) for t in real]}")
    if any(t is not None and t.device != x.device for t in (*real, labels, row_ids)):
        raise InputError("linear_cross_entropy: all tensors must be on one device")
    if not 0 < temperature < math.inf or (temperature != 1 and target != "kl"):
        raise InputError(f"linear_cross_entropy: temperature={temperature} must be positive, and 1 unless target='kl'")


def _wanted(name: str, given: Tensor | None, wanted: bool, target: str, shape: tuple[int | None, ...]) -> None:
    if wanted and given is None:
        raise InputError(f"linear_cross_entropy: target={target!r} needs {name}")
    if given is None:
        return
    if not wanted:
        raise InputError(f"linear_cross_entropy: {name} is not used with this target: leave it out")
    if given.dim() != len(shape) or any(n not in (None, m) for n, m in zip(shape, given.shape, strict=True)):
        raise InputError(f"linear_cross_entropy: {name} must be {list(shape)}, got {list(given.shape)}")


def check_values(x: Tensor, weight: Tensor, bias, labels, *rest) -> None:
    """`check` and, on CPU, the labels. On CUDA reading them would wait for the device: one outside gives a NaN loss."""
    check(x, weight, bias, labels, *rest)
    if labels is not None and labels.device.type == "cpu":
        odd = (labels != IGNORED) & ((labels < 0) | (labels >= weight.shape[0]))
        if odd.any():
            raise InputError(
                f"linear_cross_entropy: label {int(labels[odd][0])} must be below {weight.shape[0]} words, or {IGNORED}"
            )


def _wrapped(value: int) -> int:
    """A 64-bit pattern as the int64 that torch takes."""
    return (value & (2**64 - 1)) - (value >> 63 & 1) * 2**64


def _mixed(z: Tensor) -> Tensor:
    """splitmix64 of int64 numbers (Steele, Lea and Flood 2014): every bit depends on all bits."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> shift & (1 << (64 - shift)) - 1)) * _wrapped(factor)
    return z ^ (z >> 31 & (1 << 33) - 1)


def row_keys(seed: int, row_ids: Tensor | None, like: Tensor) -> Tensor:
    """The key of every row's noise, int64 `[N]`, where `like` is `[N, ...]`."""
    if row_ids is None:
        row_ids = torch.arange(like.shape[0], device=like.device)
    start = torch.full((), _wrapped(seed), dtype=torch.int64, device=like.device)
    return _mixed(_mixed(start) + row_ids * _wrapped(0x9E3779B97F4A7C15))


def noise(keys: Tensor, words: int) -> Tensor:
    """32 bits for every row and word, int64 `[N, V]`; why these steps is told in csrc/cpu/linear_cross_entropy.cpp."""
    low, high = (half[:, None] & 0xFFFFFFFF for half in (keys, keys >> 32))
    h = torch.arange(words, device=keys.device) ^ low
    h = (h ^ h >> 16) * 0x21F0AAAD & 0xFFFFFFFF
    h = ((h ^ h >> 15) + high) * 0x735A2D97 & 0xFFFFFFFF
    h = (h ^ h >> 15) * 0x31848BAB & 0xFFFFFFFF
    return h ^ h >> 16


def reference(
    x, weight, bias, labels, target, teacher_x, teacher_weight, teacher_bias, temperature, seed, row_ids
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition in torch; exact to float64 for float64 inputs. loss is differentiable in x, dx is a constant."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    w = weight.to(wide)

    def logits(hidden, w, b):
        z = hidden.to(wide) @ w.T
        return z if b is None else z + b.to(wide)

    z = logits(x, w, bias)
    p = z.detach().softmax(1)
    picked = torch.full((x.shape[0],), IGNORED, device=x.device)
    if target == "max_logit":
        picked = z.detach().argmax(1)
        loss, g = z.gather(1, picked[:, None])[:, 0], F.one_hot(picked, z.shape[1])
    elif target == "kl":
        log_q = (logits(teacher_x, teacher_weight.to(wide), teacher_bias) / temperature).log_softmax(1)
        log_p = (z / temperature).log_softmax(1)
        # Where the teacher's probability is 0 the logarithm is -inf, and both models may mask a word.
        terms = torch.where(log_q.exp() == 0, 0, log_q.exp() * (log_q - log_p))
        loss, g = temperature**2 * terms.sum(1), temperature * (log_p.detach().exp() - log_q.exp())
    elif target == "probe":
        signs = 1 - 2 * (noise(row_keys(seed, row_ids, x), z.shape[1]) >> 31)
        g = p.sqrt() * signs - p * (p.sqrt() * signs).sum(1, keepdim=True)
        loss = torch.where(p == 0, 0, g * (z - z.detach().amax(1, keepdim=True))).sum(1)
    else:
        if target == "sampled":
            u = ((noise(row_keys(seed, row_ids, x), z.shape[1]) >> 1).to(wide) + 0.5) * 2**-31
            picked = (p / -torch.log1p(-u)).argmax(1)
        else:
            picked = labels.clone()
        loss = F.cross_entropy(z, picked, ignore_index=IGNORED, reduction="none")
        g = p - F.one_hot(picked.clamp(min=0), z.shape[1])
        g = torch.where((picked == IGNORED)[:, None], 0, g)
    return loss, (g.to(wide) @ w).detach().to(x.dtype), picked


def chunk_rows(rows: int, words: int, device: str) -> int:
    """Rows whose logits exist at once: even parts, multiples of 64."""
    elements, least = CHUNK[device]
    parts = -(-rows // max(least, elements // words))
    return min(rows, -(-rows // parts // 64) * 64)


@dataclass(frozen=True)
class _Steps:
    """How a backend does the three steps of some rows.

    logits: (x, weight, out float32), out = x weight^T
    rows: (logits, gradient, bias, teacher, teacher_bias, keys, target, temperature, scale, loss, picked): gradient,
        which may be `logits` itself, becomes scale times the loss's; labels stand in `picked`
    product: (gradient, weight, out, factor), out = factor gradient weight
    narrow: whether the gradient of the logits is in x's dtype
    """

    logits: Callable
    rows: Callable
    product: Callable
    narrow: bool


def _run(steps: _Steps, *args) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, bias, labels, target, teacher_x, teacher_weight, teacher_bias, temperature, seed, row_ids = args
    loss, dx, picked = fake(*args)
    rows, words = x.shape[0], weight.shape[0]
    if rows == 0:
        return loss, dx, picked
    # For max_logit a word from the beginning: the kernel that finds the right one may only be compiled.
    nothing = 0 if target == "max_logit" else IGNORED
    picked = picked.fill_(nothing) if labels is None else picked.copy_(labels)
    keys = row_keys(seed, row_ids, x) if target in ("sampled", "probe") else None
    step = chunk_rows(rows, words, x.device.type)
    # Rows of a multiple of 64 elements, for the vector loads of the kernels and of the products.
    pad = -words % 64

    def buffer(dtype: torch.dtype) -> Tensor:
        wide = x.new_empty((step, words + pad), dtype=dtype)
        wide[:, words:].zero_()  # kernels read the padding, though they use nothing of it
        return wide[:, :words]

    bias, teacher_bias = (b if b is None else F.pad(b.float(), (0, pad)) for b in (bias, teacher_bias))
    logits = buffer(torch.float32)
    gradients = buffer(x.dtype) if steps.narrow and x.dtype != torch.float32 else logits
    teacher = buffer(torch.float32) if target == "kl" else None
    # Most probabilities of a large vocabulary are no normal float16 numbers (below 6e-5), but 4,096 times them are.
    scale = 4096.0 if gradients.dtype == torch.float16 else 1.0
    for first in range(0, rows, step):
        now = slice(first, min(first + step, rows))
        z, g, t = (b if b is None else b[: now.stop - first] for b in (logits, gradients, teacher))
        steps.logits(x[now], weight, z)
        if t is not None:
            steps.logits(teacher_x[now], teacher_weight, t)
        key = keys if keys is None else keys[now]
        steps.rows(z, g, bias, t, teacher_bias, key, target, temperature, scale, loss[now], picked[now])
        if target == "max_logit":
            dx[now] = weight[picked[now]]
        else:
            steps.product(g, weight, dx[now], 1 / scale)
    return loss, dx, picked


def word_block(words: int) -> int:
    """Words of one block of a product on the CPU; of the vocabulary alone, so that neither threads nor rows decide over
    the order in which dx is added up. At most 16 parts of dx exist at once.
    """
    blocks = min(16, -(-words // 4096))
    return -(-words // blocks // 64) * 64


def _cpp_logits(x: Tensor, weight: Tensor, out: Tensor) -> None:
    _native.op("cpp", "logits_")(x.float().contiguous(), _rows(weight), word_block(len(weight)), out)


def _cpp_product(g: Tensor, weight: Tensor, out: Tensor, factor: float) -> None:
    block = word_block(len(weight))
    parts = g.new_empty((-(-len(weight) // block), *out.shape))
    _native.op("cpp", "logits_gradient_")(g, _rows(weight), block, parts)
    for part in parts[1:]:
        parts[0].add_(part)
    out.copy_(parts[0])


def _rows(weight: Tensor) -> Tensor:
    return weight if weight.dtype == torch.float32 or weight.stride(1) == 1 else weight.contiguous()


def _cpp_rows(z, g, bias, teacher, teacher_bias, keys, target, temperature, scale, loss, picked) -> None:
    call = _native.op("cpp", "cross_entropy_rows_")
    call(z, bias, teacher, teacher_bias, keys, TARGETS.index(target), temperature, loss, picked)


def run_cpp(x: Tensor, weight: Tensor, bias, labels, *rest) -> tuple[Tensor, Tensor, Tensor]:
    steps = _Steps(_cpp_logits, _cpp_rows, _cpp_product, narrow=False)
    if labels is None or bool((labels != IGNORED).all()):
        return _run(steps, x, weight, bias, labels, *rest)
    # Rows without a label cost nothing: a masked language model labels 15 % of them, an instruction's answer a part.
    live = (labels != IGNORED).nonzero()[:, 0]
    outputs = fake(x, weight, bias, labels, *rest)
    found = _run(steps, x[live], weight, bias, labels[live], *rest)
    fills = 0, 0, IGNORED
    return tuple(o.fill_(f).index_copy_(0, live, r) for o, f, r in zip(outputs, fills, found, strict=True))


def _library_logits(x: Tensor, weight: Tensor, out: Tensor) -> None:
    if x.dtype == out.dtype:
        torch.mm(x, weight.T, out=out)
    elif x.is_cuda:
        torch.mm(x, weight.T, out_dtype=out.dtype, out=out)
    else:
        torch.mm(x.float(), weight.T.float(), out=out)


def _library_product(g: Tensor, weight: Tensor, out: Tensor, factor: float) -> None:
    if g.is_cuda:
        out.addmm_(g, weight, beta=0, alpha=factor)
    else:
        out.copy_(g.float() @ weight.float() * factor)


def run_triton(*args) -> tuple[Tensor, Tensor, Tensor]:
    """The CPU's branches of the products serve Triton's interpreter."""
    from pyprune.triton_kernels.linear_cross_entropy import cross_entropy_rows_

    return _run(_Steps(_library_logits, cross_entropy_rows_, _library_product, narrow=True), *args)


def supports(x: Tensor, weight: Tensor, *_) -> Support:
    if x.dtype not in KERNEL_DTYPES:
        return False, f"no kernel for {x.dtype}"
    if weight.shape[0] >= 2**31 - 2**16:
        return False, f"{weight.shape[0]} words are more than 32 bits count"
    return True, ""


def fake(
    x, weight, bias=None, labels=None, target="labels", teacher_x=None, teacher_weight=None, teacher_bias=None,
    temperature=1.0, seed=0, row_ids=None,
):  # fmt: skip
    check(
        x, weight, bias, labels, target, teacher_x, teacher_weight, teacher_bias, temperature, seed, row_ids
    )  # fmt: skip
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows = x.shape[0]
    return x.new_empty((rows,), dtype=wide), x.new_empty(x.shape), x.new_empty((rows,), dtype=torch.int64)


def setup_context(ctx, inputs, output) -> None:
    # ctx.needs_input_grad ends where the caller's arguments do; `inputs` has the defaults too.
    for i, name in ((1, "weight"), (2, "bias"), (5, "teacher_x"), (6, "teacher_weight"), (7, "teacher_bias")):
        if inputs[i] is not None and inputs[i].requires_grad:
            raise InputError(f"linear_cross_entropy: {name} requires grad, but only x gets one: pass {name}.detach()")
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def backward(ctx, grad: Tensor, *_):
    (dx,) = ctx.saved_tensors
    return ((grad[:, None] * dx).to(dx.dtype), *(None,) * 10)


def samples() -> Iterator[tuple]:
    generator = torch.Generator().manual_seed(0)
    make = lambda *shape, dtype=torch.float32: torch.randn(*shape, generator=generator).to(dtype)  # noqa: E731
    none = None, None, None
    for dtype in KERNEL_DTYPES:
        x, w, b = make(5, 12, dtype=dtype), make(37, 12, dtype=dtype), make(37, dtype=dtype)
        labels = torch.tensor([3, IGNORED, 0, 36, 3])
        yield x, w, b, labels
        yield x, w, b, None, "sampled", *none, 1.0, 7
        yield x, w, None, None, "max_logit"
        yield x, w, b, None, "kl", make(5, 8, dtype=dtype), make(37, 8, dtype=dtype), make(37, dtype=dtype), 2.0
        yield x, w, b, None, "probe", *none, 1.0, 3, torch.tensor([4, 4, -1, 2**40, 0])
    yield make(0, 12), make(37, 12), None, torch.zeros(0, dtype=torch.int64)
    x, w, b = make(5, 12).requires_grad_(), make(37, 12), make(37)
    yield x, w, b, labels
    yield x, w, b, None, "sampled", *none, 1.0, 7
    yield x, w, b, None, "max_logit"
    yield x, w, b, None, "kl", make(5, 8), make(37, 8), None, 2.0


def bytes_moved(x: Tensor, weight: Tensor, bias, labels, target, teacher_x=None, teacher_weight=None, *_) -> int:
    """Inputs once, the weight once for each product, and the outputs."""
    given = [x, x, weight, *([] if target == "max_logit" else [weight]), teacher_x, teacher_weight]
    return sum(t.numel() * t.element_size() for t in given if t is not None) + 12 * x.shape[0]


def flops(x: Tensor, weight: Tensor, bias, labels, target, teacher_x=None, teacher_weight=None, *_) -> int:
    """The products: of the logits and of dx, which max_logit spares, and of the teacher's logits."""
    own = (2 if target == "max_logit" else 4) * x.numel() * weight.shape[0]
    return own + (2 * teacher_x.numel() * weight.shape[0] if teacher_x is not None else 0)


OP = Op(
    name="linear_cross_entropy",
    schema=SCHEMA,
    candidates=(
        Candidate("triton", ("cuda",), run_triton, triton_missing, supports),
        Candidate("cpp", ("cpu",), run_cpp, lambda: _native.missing("cpp"), supports),
        Candidate("torch", ("cpu", "cuda"), reference),
    ),
    check=check_values,
    samples=samples,
    bytes_moved=bytes_moved,
    flops=flops,
)
library.register_fake("pyprune::linear_cross_entropy", fake)
library.register_autograd("pyprune::linear_cross_entropy", backward, setup_context=setup_context)
