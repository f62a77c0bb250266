"""The walk that mask tuning and refit share: block after block, the student's projection is fitted to the teacher.

Student (pruned) and teacher read the same data. Only the residual streams at the current block are kept, one `[N, d]`
pair for all tokens, with the student's kept activations of the one block in hand; every batch crosses every block
once for the teacher and once for the student. A fitted block is what the next block's statistics see.

Where a family does more between two blocks than add to the residual stream (parallel blocks, norms behind projections,
several stacks), each block is reached by a forward pass of its own, which ends there: dearer by half the number of
blocks. The projection is then fitted to the teacher's projection alone, not to its residual stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from pyprune.capture.collect import frozen
from pyprune.capture.replay import Call, advance, context, reach, start
from pyprune.core.anatomy import Anatomy, Block
from pyprune.core.batches import Batch
from pyprune.core.errors import MismatchError
from pyprune.core.stages import Stages


@dataclass(frozen=True)
class Outcome:
    """What became of one block: `fitted`, and the share of the target's energy missing `before` and `after`, or why."""

    block: str
    fitted: bool
    reason: str = ""
    before: float = float("nan")
    after: float = float("nan")


class Fit(Protocol):
    """Statistics of one block and their solution."""

    def add(self, x: torch.Tensor, target: torch.Tensor) -> None:
        """`x` `[N, size * width]`: projection inputs at real tokens; `target` `[N, d]`: what it should put out."""
        ...

    def solve(self) -> Outcome:
        """Write the solution into the projection, or leave it alone and say why."""
        ...


@dataclass
class _Stream:
    batch: Batch
    teacher: torch.Tensor
    student: torch.Tensor
    teacher_calls: dict[str, Call]
    student_calls: dict[str, Call]


class _Rows:
    """Hands rows to a fit by the thousands: a Gram matrix of few rows costs as much to add up as to compute."""

    _AT_LEAST = 8192

    def __init__(self, fit: Fit | Outcome) -> None:
        self.fit = fit
        self.pending: list[tuple[torch.Tensor, torch.Tensor]] = []

    def add(self, x: torch.Tensor, target: torch.Tensor) -> None:
        self.pending.append((x, target))
        if sum(len(x) for x, _ in self.pending) >= self._AT_LEAST:
            self._flush()

    def solve(self) -> Outcome:
        self._flush()
        return self.fit if isinstance(self.fit, Outcome) else self.fit.solve()

    def _flush(self) -> None:
        if self.pending and not isinstance(self.fit, Outcome):
            xs, targets = zip(*self.pending, strict=True)
            self.fit.add(torch.cat(xs), torch.cat(targets))
        self.pending.clear()


@torch.no_grad()
def fit_blocks(
    student: nn.Module,
    student_anatomy: Anatomy,
    teacher: nn.Module,
    teacher_anatomy: Anatomy,
    batches: Sequence[Batch],
    fit: Callable[[nn.Module, Block], Fit | Outcome],
    stages: Stages,
    description: str,
) -> list[Outcome]:
    """Fit the student's blocks in order; `fit(projection, block)` starts one, or returns an `Outcome` to skip it."""
    if len(student_anatomy.blocks) != len(teacher_anatomy.blocks):
        raise MismatchError("student and teacher have different numbers of blocks")
    student_anatomy.need_projections(description)
    pairs = list(zip(student_anatomy.blocks, teacher_anatomy.blocks, strict=True))
    if any(block.exit is None for block in teacher_anatomy.blocks):
        return _fit_by_passes(student, teacher, pairs, batches, fit, stages, description)
    with frozen(student), frozen(teacher):  # dropout would be fitted too
        streams = []
        for batch in batches:
            moved = batch.on(student)
            hidden_t, calls_t = start(teacher, teacher_anatomy, moved)
            hidden_s, calls_s = start(student, student_anatomy, moved)
            streams.append(_Stream(moved, hidden_t, hidden_s, calls_t, calls_s))

        outcomes = []
        for block, teacher_block in stages.progress(pairs, description):
            started = fit(student.get_submodule(block.projection), block)
            rows = _Rows(started)
            activations = []
            for stream in streams:
                x_t = context(teacher, teacher_block, stream.teacher, stream.teacher_calls[teacher_block.layer_path])
                target, stream.teacher = advance(teacher, teacher_block, stream.teacher, x_t)
                x = context(student, block, stream.student, stream.student_calls[block.layer_path])
                activations.append(x)
                rows.add(stream.batch.real(x), stream.batch.real(target - stream.student))
            outcomes.append(rows.solve())
            for stream, x in zip(streams, activations, strict=True):
                _, stream.student = advance(student, block, stream.student, x)
        return outcomes


def _fit_by_passes(
    student: nn.Module,
    teacher: nn.Module,
    pairs: Sequence[tuple[Block, Block]],
    batches: Sequence[Batch],
    fit: Callable[[nn.Module, Block], Fit | Outcome],
    stages: Stages,
    description: str,
) -> list[Outcome]:
    """`fit_blocks` for models that cannot be run block by block: a forward pass of both for every block and batch."""
    outcomes = []
    moved = [batch.on(student) for batch in batches]
    with frozen(student), frozen(teacher):
        for block, teacher_block in stages.progress(pairs, description):
            started = fit(student.get_submodule(block.projection), block)
            rows = _Rows(started)
            for batch in moved if not isinstance(started, Outcome) else ():
                dense, pruned = reach(teacher, teacher_block.projection, batch), reach(student, block.projection, batch)
                if dense is None or pruned is None:
                    rows = _Rows(Outcome(block.units.name, False, "the data never passes it"))
                    break
                rows.add(batch.real(pruned[0]), batch.real(dense[1]))
            outcomes.append(rows.solve())
    return outcomes
