"""linear_cross_entropy: a table by hand, the distribution of what is drawn, and what the ladder does not ask."""

import importlib
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chi2

import pyprune.ops as ops
from pyprune.bench.memory import peak_memory
from pyprune.core.errors import InputError
from pyprune.ops.linear_cross_entropy import (
    CHUNK,
    IGNORED,
    TARGETS,
    bytes_moved,
    chunk_rows,
    flops,
    noise,
    reference,
    row_keys,
)
from pyprune.testing import numerics
from pyprune.testing.cases import normal
from pyprune.testing.cases.linear_cross_entropy import arguments

AVAILABLE = [row.backend for row in ops.table() if row.op == "linear_cross_entropy" and row.available]
BACKENDS = pytest.mark.parametrize("backend", [b for b in AVAILABLE if b in ("cpp", "torch")])
# One table in a million that are filled by chance lies further from its expectation.
CHANCE = 1e-6


def fits(counts, expected):
    """Pearson's test of counts against expected counts."""
    distance = ((counts.double() - expected) ** 2 / expected).sum()
    return float(distance) < chi2.isf(CHANCE, counts.numel() - 1)


LN3, THIRD = math.log(3), 1 / 3
# With p = (3/4, 1/4) and the identity as weight.
TABLE = [
    ({"labels": torch.tensor([0])}, math.log(4 / 3), [-0.25, 0.25], 0),
    ({"labels": torch.tensor([1])}, math.log(4), [0.75, -0.75], 1),
    ({"labels": torch.tensor([IGNORED])}, 0.0, [0.0, 0.0], IGNORED),
    ({"target": "max_logit"}, LN3, [1.0, 0.0], 0),
    # KL((1/2, 1/2) || p) = ln(4/3) / 2
    ({"target": "kl", "teacher_x": torch.zeros(1, 1)}, math.log(4 / 3) / 2, [0.25, -0.25], IGNORED),
    # At temperature 2 logits of 2 ln 3 give the same distributions: 4 KL and twice the gradient.
    ({"target": "kl", "teacher_x": torch.zeros(1, 1), "temperature": 2.0}, 2 * math.log(4 / 3), [0.5, -0.5], IGNORED),
]


@BACKENDS
@pytest.mark.parametrize(("kwargs", "loss", "dx", "picked"), TABLE)
def test_table(backend, kwargs, loss, dx, picked):
    x = torch.tensor([[LN3, 0.0]]) * kwargs.get("temperature", 1.0)
    if "teacher_x" in kwargs:
        kwargs = {**kwargs, "teacher_weight": torch.ones(2, 1)}
    with ops.backend(backend):
        found = ops.linear_cross_entropy(x, torch.eye(2), **kwargs)
    numerics.ratio(found[0], torch.tensor([loss], dtype=torch.float64))
    numerics.ratio(found[1], torch.tensor([dx], dtype=torch.float64))
    assert found[2].tolist() == [picked]


@BACKENDS
def test_weight_and_bias(backend):
    """Logits (2 + 1, 6 - 3) are equal: p = (1/2, 1/2), and dx = (w_1 - w_0) / 2 for label 0."""
    x, weight, bias = torch.tensor([[2.0]]), torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, -3.0])
    with ops.backend(backend):
        loss, dx, _ = ops.linear_cross_entropy(x, weight, bias, torch.tensor([0]))
        value, row, picked = ops.linear_cross_entropy(x, weight, bias, target="max_logit")
    numerics.ratio(loss, torch.tensor([math.log(2)], dtype=torch.float64))
    numerics.exact(dx, torch.tensor([[1.0]]))
    # The lowest of equal words.
    assert (value.tolist(), row.tolist(), picked.tolist()) == ([3.0], [[1.0]], [0])


@BACKENDS
def test_drawn_labels_have_the_distribution_of_the_model(backend):
    p, rows = torch.tensor([0.5, 0.3, 0.19, 0.0099, 0.0001], dtype=torch.float64), 100_000
    x = p.log().float().expand(rows, 5)
    with ops.backend(backend):
        loss, dx, picked = ops.linear_cross_entropy(x, torch.eye(5), target="sampled", seed=5)
        again = ops.linear_cross_entropy(x, torch.eye(5), labels=picked)
        other = ops.linear_cross_entropy(x, torch.eye(5), target="sampled", seed=6)[2]
    assert fits(picked.bincount(minlength=5), p * rows)
    # Two seeds agree as often as independent draws do.
    agreed = (picked == other).sum()
    expected = p.square().sum() * rows
    assert fits(torch.stack([agreed, rows - agreed]), torch.stack([expected, rows - expected]))
    numerics.budget(loss, again[0].double(), again[0])
    numerics.budget(dx, again[1].double(), again[1])


def test_noise_is_uniform_and_neighbours_are_independent():
    h = noise(row_keys(3, None, torch.empty(1000)), 300)
    high, low = h >> 29, h & 7
    for pairs in (
        8 * high[:, 1:] + high[:, :-1],
        8 * high[1:] + high[:-1],
        8 * high + low,
        8 * high[:, 64:] + high[:, :-64],
        8 * (noise(row_keys(4, None, torch.empty(1000)), 300) >> 29) + high,
    ):
        cells = pairs.flatten().bincount(minlength=64)
        assert fits(cells, torch.full((64,), pairs.numel() / 64, dtype=torch.float64))


@BACKENDS
def test_probes_have_the_fisher_information_as_covariance(backend):
    p = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    rows = 200
    x = p.log().float().expand(rows, 3)
    with ops.backend(backend):
        value, g, _ = ops.linear_cross_entropy(x, torch.eye(3), target="probe")
    signs = 1 - 2 * (noise(row_keys(0, None, x), 3) >> 31)
    patterns = {tuple(s): g[i].double() for i, s in enumerate(signs.tolist())}
    assert patterns.keys() == set(itertools.product((-1, 1), repeat=3))
    covariance = sum(torch.outer(v, v) for v in patterns.values()) / 8
    numerics.ratio(covariance, p.diag() - torch.outer(p, p), torch.float32)
    numerics.budget(value, (g.double() * p.log()).sum(1), (g * p.log().float()).sum(1))


@BACKENDS
@pytest.mark.parametrize("target", ["sampled", "probe"])
def test_noise_belongs_to_the_row_id(backend, target):
    x, weight, *_ = arguments("cpu", 40, 50, 8, target)
    ids = torch.arange(40) * 2**33 - 7
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    with ops.backend(backend):
        found = ops.linear_cross_entropy(x, weight, target=target, seed=-1, row_ids=ids)
        moved = ops.linear_cross_entropy(x[order], weight, target=target, seed=-1, row_ids=ids[order])
        by_position = ops.linear_cross_entropy(x, weight, target=target, seed=-1)
        counted = ops.linear_cross_entropy(x, weight, target=target, seed=-1, row_ids=torch.arange(40))
    numerics.exact(moved[2], found[2][order])
    numerics.budget(moved[1], found[1][order].double(), found[1][order])
    for a, b in zip(by_position, counted, strict=True):
        numerics.exact(a, b)
    assert not torch.equal(by_position[1], found[1])


@pytest.mark.parametrize("target", TARGETS)
def test_chunks_do_not_show(target, monkeypatch):
    args = arguments("cpu", 200, 90, 8, target, bias=True)
    whole = ops.linear_cross_entropy(*args)
    monkeypatch.setitem(CHUNK, "cpu", (1, 64))
    assert chunk_rows(200, 90, "cpu") == 64
    truth = reference(*(a.double() if torch.is_tensor(a) and a.is_floating_point() else a for a in args))
    for found, expected, t in zip(ops.linear_cross_entropy(*args), whole, truth, strict=True):
        if found.is_floating_point():
            numerics.budget(found, t, expected, numerics.RUNNING_SUM)
        else:
            numerics.exact(found, expected)


def test_the_logits_never_exist():
    rows, words = 600, 20_000
    x, weight, labels = normal("cpu", rows, 16), normal("cpu", words, 16), torch.arange(rows)
    assert peak_memory(lambda: ops.linear_cross_entropy(x, weight, labels=labels)) < rows * words * 4 / 2


@BACKENDS
def test_a_teacher_that_is_the_student_asks_for_nothing(backend):
    x, weight, b, *_ = arguments("cpu", 6, 80, 8, "labels", bias=True)
    with ops.backend(backend):
        loss, dx, _ = ops.linear_cross_entropy(x, weight, b, None, "kl", x, weight, b, 3.0)
    # Up to a rounding of the sums' logarithms and of the probabilities: nothing else is left of either.
    for found in (loss, dx):
        rounding = torch.full_like(found, torch.finfo(torch.float32).eps)
        numerics.budget(found, torch.zeros_like(found).double(), rounding, numerics.RUNNING_SUM)


@BACKENDS
def test_an_infinite_divergence(backend):
    """The student masks a word that the teacher may say."""
    bias = torch.tensor([0.0, -torch.inf])
    with ops.backend(backend):
        loss, dx, _ = ops.linear_cross_entropy(
            torch.zeros(1, 2), torch.eye(2), bias, None, "kl", torch.zeros(1, 2), torch.eye(2)
        )
    assert loss.tolist() == [math.inf]
    numerics.exact(dx, torch.tensor([[0.5, -0.5]]))


@BACKENDS
def test_gradient_is_that_of_the_loss_and_of_x_alone(backend):
    x, weight, b, labels, *_ = arguments("cpu", 5, 30, 8, "labels", bias=True)
    x.requires_grad_()
    with ops.backend(backend):
        loss, dx, _ = ops.linear_cross_entropy(x, weight, b, labels)
        assert not dx.requires_grad
        (loss * torch.arange(5)).sum().backward()
    numerics.exact(x.grad, dx * torch.arange(5)[:, None])
    y = x.detach().requires_grad_()
    (F.cross_entropy(y @ weight.T + b, labels, reduction="none") * torch.arange(5)).sum().backward()
    numerics.ratio(x.grad, y.grad.double())


@pytest.mark.parametrize("name", ["weight", "bias", "teacher_x", "teacher_weight", "teacher_bias"])
def test_nothing_else_may_require_a_gradient(name):
    names = ("x", "weight", "bias", "labels", "target", "teacher_x", "teacher_weight", "teacher_bias", "temperature")
    kwargs = dict(zip(names, arguments("cpu", 3, 20, 4, "kl", bias=True), strict=False))
    kwargs[name] = kwargs[name].detach().requires_grad_()
    with pytest.raises(InputError, match=rf"{name} requires grad.*{name}\.detach\(\)"):
        ops.linear_cross_entropy(**kwargs)
    with torch.no_grad():
        assert ops.linear_cross_entropy(**kwargs)[0].shape == (3,)


@BACKENDS
def test_inference_mode(backend):
    """Its tensors may not be written to by other threads, unless those are given plain ones."""
    args = arguments("cpu", 70, 9000, 8, "labels", torch.bfloat16)
    with ops.backend(backend):
        plain = ops.linear_cross_entropy(*args)
        with torch.inference_mode():
            threads = torch.get_num_threads()
            torch.set_num_threads(3)
            found = ops.linear_cross_entropy(*args[:3], args[3].clone())
            torch.set_num_threads(threads)
    for a, b in zip(found, plain, strict=True):
        numerics.budget(a, b.double(), b) if a.is_floating_point() else numerics.exact(a, b)


@BACKENDS
@pytest.mark.parametrize("where", [[0], [77], [2, 77], list(range(90))])
def test_the_largest_logit_is_nan_if_one_is(backend, where):
    x, weight = torch.ones(2, 4), torch.ones(90, 4)
    weight[5] = 2
    weight[where] = torch.nan
    with ops.backend(backend):
        loss, _, picked = ops.linear_cross_entropy(x, weight, target="max_logit")
    assert loss.isnan().all()
    assert picked.tolist() == [where[0]] * 2


@BACKENDS
def test_rows_of_nan_stay_in_their_rows(backend):
    for target in ("labels", "sampled", "kl", "probe"):
        x, *rest = arguments("cpu", 4, 70, 8, target)
        x[1] = torch.nan
        with ops.backend(backend):
            loss, dx, _ = ops.linear_cross_entropy(x, *rest)
        assert loss.isnan().tolist() == dx.isnan().any(1).tolist() == [False, True, False, False]


X, W, L = torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((X[0], W), {"labels": L}, r"x must be \[N, d\] and weight \[V, d\]"),
        ((X, W[:, :3]), {"labels": L}, "x must be"),
        ((X, W[:0]), {"labels": L}, "not empty"),
        ((X, W), {"target": "topk"}, "'topk' must be one of labels, sampled"),
        ((X, W), {}, "target='labels' needs labels"),
        ((X, W), {"labels": L[:2]}, r"labels must be \[3\], got \[2\]"),
        ((X, W), {"labels": L.int()}, "labels must be int64"),
        ((X, W), {"labels": L + 5}, "label 5 must be below 5 words, or -100"),
        ((X, W), {"labels": L - 1}, "label -1 must be below"),
        ((X, W), {"labels": L, "target": "sampled"}, "labels is not used"),
        ((X, W, W[:, 0].half()), {"labels": L}, "one floating dtype"),
        ((X, W, W[0]), {"labels": L}, r"bias must be \[5\], got \[4\]"),
        ((X.int(), W.int()), {"labels": L}, "one floating dtype"),
        ((X, W.to("meta")), {"labels": L}, "on one device"),
        ((X, W), {"target": "kl", "teacher_x": X}, "needs teacher_weight"),
        ((X, W), {"target": "kl", "teacher_x": X, "teacher_weight": W[:4]}, r"teacher_weight must be \[5, 4\]"),
        ((X, W), {"labels": L, "teacher_x": X}, "teacher_x is not used"),
        ((X, W), {"labels": L, "teacher_bias": W[:, 0]}, "teacher_bias is not used"),
        ((X, W), {"labels": L, "row_ids": L}, "row_ids is not used"),
        ((X, W), {"target": "probe", "row_ids": L[:1]}, r"row_ids must be \[3\]"),
        ((X, W), {"labels": L, "temperature": 2.0}, "1 unless target='kl'"),
        ((X, W), {"target": "kl", "teacher_x": X, "teacher_weight": W, "temperature": 0.0}, "must be positive"),
    ],
)
def test_bad_arguments(args, kwargs, message):
    with pytest.raises(InputError, match=message):
        ops.linear_cross_entropy(*args, **kwargs)


def test_bytes_and_flops():
    x, w = torch.zeros(3, 4, dtype=torch.bfloat16), torch.zeros(5, 4, dtype=torch.bfloat16)
    assert flops(x, w, None, None, "labels") == 4 * 3 * 4 * 5
    assert flops(x, w, None, None, "max_logit") == 2 * 3 * 4 * 5
    assert flops(x, w, None, None, "kl", x[:, :2], w[:, :2]) == 4 * 3 * 4 * 5 + 2 * 3 * 2 * 5
    assert bytes_moved(x, w, None, None, "labels") == 2 * (3 * 4 + 3 * 4 + 2 * 5 * 4) + 3 * 12


def test_the_padding_that_kernels_read_is_set():
    """compute-sanitizer's initcheck would report it."""
    module, seen = importlib.import_module("pyprune.ops.linear_cross_entropy"), []

    def rows(z, gradient, bias, teacher, *_):
        seen.extend(t.as_strided((len(t), t.stride(0) - t.shape[1]), t.stride(), t.shape[1]) for t in (z, teacher))

    nothing = lambda *_: None  # noqa: E731
    x, weight = torch.ones(3, 4), torch.ones(70, 4)
    with numerics.poisoned():
        module._run(
            module._Steps(nothing, rows, nothing, narrow=True),
            x,
            weight,
            None,
            None,
            "kl",
            x,
            weight,
            None,
            1.0,
            0,
            None,
        )
    assert [t.shape for t in seen] == [(3, 58)] * 2
    assert not any(t.any() for t in seen)
