"""Offsets of ragged batches: what every op that takes them refuses."""

import pytest
import torch

import pyprune.ops as ops
from pyprune.core.errors import InputError
from pyprune.testing.cases import complete


def arguments_of(op):
    return [a.name for a in op.overload._schema.arguments]


RAGGED = [op for op in ops.OPS.values() if "cu_seqlens" in arguments_of(op)]


def test_the_ops_are_found():
    assert len(RAGGED) >= 6


@pytest.mark.parametrize("op", RAGGED, ids=lambda op: op.name)
@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        (torch.tensor([0, 99]), "must stay within"),
        (torch.tensor([-1, 2]), "must stay within"),
        (torch.tensor([0, 2, 1]), "must not decrease"),
        # Of the right type the differences wrap round to positive numbers.
        (torch.tensor([0, 2**31 - 1, -2, 5], dtype=torch.int32), "must not decrease"),
        (torch.tensor([0, 2**63 - 1, -2, 5]), "must not decrease"),
        (torch.tensor([0.0, 1.0]), r"int32 or int64 \[B \+ 1\]"),
        (torch.tensor([[0, 1]]), r"int32 or int64 \[B \+ 1\]"),
        (torch.tensor([], dtype=torch.int64), r"int32 or int64 \[B \+ 1\]"),
    ],
)
def test_bad_offsets(op, offsets, message):
    place = arguments_of(op).index("cu_seqlens")
    ragged = [list(args) for args in (complete(op, s) for s in op.samples()) if args[place] is not None]
    assert ragged
    for args in ragged:
        if "mask" in arguments_of(op):
            args[arguments_of(op).index("mask")] = None
        args[place] = offsets
        with pytest.raises(InputError, match=f"{op.name}: cu_seqlens .*{message}"):
            op.overload(*args)
