"""Criteria on what channels carry: by hand, and against the definitions on a model's own activations."""

import pytest
import torch
from torch import nn

from pyprune.capture.channels import collect_channels
from pyprune.core.anatomy import Anatomy, Block
from pyprune.core.batches import Samples
from pyprune.core.errors import NumericsError
from pyprune.core.statistics import ChannelTotals, Statistics
from pyprune.core.units import UnitCost, UnitGroup
from pyprune.importance import CRITERIA
from pyprune.importance.comparable import ranked, standardised
from pyprune.importance.registry import Evidence
from pyprune.models.adapter import adapter_for
from pyprune.testing import numerics
from pyprune.testing.models import VARIANTS, tiny_model

F64 = torch.float64


def group(name, size, width=1, params=1):
    return UnitGroup(name, "neurons", 0, size, width, (), UnitCost(params))


def one_block(weight, width=1):
    """A model of one projection and its anatomy."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=F64)
    linear.weight.data.copy_(weight)
    units = group("a", weight.shape[1] // width, width, params=10)
    return nn.Sequential(linear), Anatomy("none", (), (Block("", "0", (), (), units),))


def totals(rows, lengths):
    """ChannelTotals of tokens `[N, C]` that belong to samples of these lengths."""
    found = ChannelTotals.zeros(rows.shape[1])
    parts = rows.split(lengths)
    stats = [(p.mean(0), (p - p.mean(0)).square().sum(0), p.abs().sum(0)) for p in parts]
    found.add(torch.tensor(lengths), *(torch.stack(s) for s in zip(*stats, strict=True)))
    return found


# Three tokens in two samples, four channels.
ROWS = torch.tensor([[1.0, 0.0, 3.0, -2.0], [3.0, 0.0, 3.0, 2.0], [2.0, 6.0, 3.0, 0.0]], dtype=F64)
WEIGHT = torch.tensor([[1.0, -2.0, 1.0, 0.0], [1.0, 0.0, 1.0, 3.0]], dtype=F64)


def scores(name, width=1):
    model, anatomy = one_block(WEIGHT, width)
    statistics = Statistics({}, torch.tensor([2, 1]), channels={"a": totals(ROWS, [2, 1])})
    return CRITERIA[name].values(Evidence(model, anatomy, statistics))["a"]


def test_wanda_sp_by_hand():
    # |W| summed: 2 2 2 3; norms: sqrt 14, 6, sqrt 27, sqrt 8 -> 7.48, 12, 10.39, 8.49: ranks 1 4 3 2 of 4, cost 10
    numerics.exact(scores("wanda_sp"), torch.tensor([2.5, 10, 7.5, 5], dtype=F64))
    numerics.exact(scores("wanda_sp", width=2), torch.tensor([10.0, 5.0], dtype=F64))


def test_minitron_by_hand():
    # means of |x|: (2, 0, 3, 2) and (2, 6, 3, 0) -> squares added 8, 36, 18, 4: ranks 2 4 3 1
    numerics.exact(scores("minitron"), torch.tensor([5.0, 10, 7.5, 2.5], dtype=F64))


def test_flap_by_hand():
    # variances 1, 12, 0, 4; squared column norms 2, 4, 2, 9 -> 2, 48, 0, 36, standardised, the least moved to 0
    raw = torch.tensor([2.0, 48, 0, 36], dtype=F64)
    z = (raw - raw.mean()) / raw.std()
    numerics.ratio(scores("flap"), (z - z.min()) * 10)
    assert scores("flap")[2] == 0


def test_flap_standardises_channels_before_it_takes_a_units_mean():
    raw = torch.tensor([2.0, 48, 0, 36], dtype=F64)
    z = ((raw - raw.mean()) / raw.std()).view(2, 2).mean(1)
    numerics.ratio(scores("flap", width=2), (z - z.min()) * 10)


def test_totals_do_not_depend_on_how_samples_come():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 5, generator=generator, dtype=F64) * 1e-2 + 1e3
    whole = totals(rows, [7, 13, 20])
    parts = ChannelTotals.zeros(5)
    for first, lengths in ((0, [7]), (7, [13, 20])):
        other = totals(rows[first : first + sum(lengths)], lengths)
        samples = rows[first : first + sum(lengths)].split(lengths)
        stats = [(p.mean(0), (p - p.mean(0)).square().sum(0), p.abs().sum(0)) for p in samples]
        parts.add(torch.tensor(lengths), *(torch.stack(s) for s in zip(*stats, strict=True)))
        assert other.count == sum(lengths)
    for field in ("mean", "m2", "energy", "squares"):
        numerics.ratio(getattr(parts, field), getattr(whole, field), torch.float32)
    numerics.ratio(whole.m2, (rows - rows.mean(0)).square().sum(0), torch.float32)


def test_empty_samples_change_nothing():
    found = totals(ROWS, [2, 1])
    before = found.mean.clone(), found.m2.clone()
    found.add(torch.tensor([0]), *(torch.zeros(1, 4) for _ in range(3)))
    numerics.exact(found.mean, before[0])
    numerics.exact(found.m2, before[1])
    assert ChannelTotals.zeros(3).add(torch.tensor([0]), *(torch.zeros(1, 3) for _ in range(3))) is None


@pytest.mark.parametrize("variant", VARIANTS)
def test_collected_from_a_model(variant):
    """Padded batches and others: what is counted are the real tokens of every projection's input."""
    model = tiny_model(variant, dtype=F64)
    anatomy = adapter_for(model).anatomy(model)
    generator = torch.Generator().manual_seed(0)
    samples = Samples([{"input_ids": torch.randint(3, 99, (n,), generator=generator)} for n in (9, 4, 9, 6)])
    seen = {block.units.name: [] for block in anatomy.blocks}
    handles = [
        model.get_submodule(block.projection).register_forward_pre_hook(
            lambda _, args, name=block.units.name: seen[name].append(args[0][0])
        )
        for block in anatomy.blocks
    ]
    with torch.no_grad():
        for row in samples.inputs:
            model(row["input_ids"][None])
    for handle in handles:
        handle.remove()
    for padding in (0.0, 1.0):
        found = collect_channels(model, anatomy, samples.batches(max_padding=padding))
        for name, parts in seen.items():
            rows = torch.cat(parts)
            assert found[name].count == 28
            numerics.ratio(found[name].mean, rows.mean(0), torch.float32)
            numerics.ratio(found[name].m2, (rows - rows.mean(0)).square().sum(0), torch.float32)
            numerics.ratio(found[name].energy, sum(p.abs().mean(0).square() for p in parts), torch.float32)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_activations_that_overflow_are_named():
    model = tiny_model("bert")
    anatomy = adapter_for(model).anatomy(model)
    with torch.no_grad():
        model.get_submodule(anatomy.blocks[1].projection.replace("output", "intermediate")).bias[0] = torch.inf
    samples = Samples([{"input_ids": torch.arange(5, 9)}])
    with pytest.raises(NumericsError, match=anatomy.blocks[1].units.name):
        collect_channels(model, anatomy, samples.batches())


def test_ranks_take_the_same_share_of_every_block():
    anatomy = Anatomy(
        "none", (), tuple(Block("", "", (), (), group(n, s, params=p)) for n, s, p in (("a", 4, 7), ("b", 8, 1)))
    )
    values = {"a": torch.tensor([4.0, 1, 3, 2]), "b": torch.arange(8.0) * 100}
    found = ranked(values, anatomy)
    per_cost = {"a": found["a"] / 7, "b": found["b"]}
    for share in (0.25, 0.5, 0.75):
        assert [int((v > share).sum()) / len(v) for v in per_cost.values()] == [1 - share] * 2


def test_standardising_equal_scores_prefers_none():
    anatomy = Anatomy("none", (), (Block("", "", (), (), group("a", 3)), Block("", "", (), (), group("b", 3))))
    found = standardised({"a": torch.ones(3), "b": torch.tensor([0.0, 1, 2])}, anatomy)
    numerics.exact(found["a"], torch.ones(3, dtype=F64))
    numerics.exact(found["b"], torch.tensor([0.0, 1, 2], dtype=F64))
