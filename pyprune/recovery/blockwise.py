"""The walk that mask tuning and refit share: block after block, the student's projection is fitted to the teacher.

Student (pruned) and teacher read the same data. Only the residual streams at the current block are kept, one `[N, d]`
pair for all tokens, with the student's kept activations of the one block in hand; every batch crosses every block
once for the teacher and once for the student. A fitted block is what the next block's statistics see. What exceeds a
bound on memory is not kept but computed anew, from the inputs on, whenever it is needed: the results are the same.

Where a family does more between two blocks than add to the residual stream (parallel blocks, norms behind projections,
several stacks), each block is reached by a forward pass of its own, which ends there: dearer by half the number of
blocks. The projection is then fitted to the teacher's projection alone, not to its residual stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from pyprune.capture.collect import frozen
from pyprune.capture.replay import Call, SettledLayers, advance, context, reach, resumed, start, tensors_in
from pyprune.core.anatomy import Anatomy, Block
from pyprune.core.batches import Batch
from pyprune.core.errors import MismatchError
from pyprune.core.layers import matrix
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
    """One batch in one model: `hidden` `[B, T, d]` enters block `at`, and `entered` did the layer that holds it."""

    at: int
    hidden: torch.Tensor
    entered: torch.Tensor
    calls: dict[str, Call]

    @property
    def bytes(self) -> int:
        held = {t.data_ptr(): t.nbytes for call in self.calls.values() for t in tensors_in((call.args, call.kwargs))}
        return 2 * self.hidden.nbytes + sum(held.values())


@dataclass
class Room:
    """Bytes that may still be kept."""

    bytes: float

    def take(self, wanted: int) -> bool:
        """Whether there is room; it is taken then."""
        if wanted > self.bytes:
            return False
        self.bytes -= wanted
        return True


class _Streams:
    """The hidden states of `batches` in one model, which go from block to block; kept as far as there is room."""

    def __init__(self, model: nn.Module, anatomy: Anatomy, batches: Sequence[Batch], room: Room) -> None:
        self.model, self.anatomy, self.batches, self.room = model, anatomy, batches, room
        self.kept: dict[int, _Stream] = {}

    @property
    def width(self) -> int:
        """Entries of a hidden state."""
        return matrix(self.model.get_submodule(self.anatomy.blocks[0].projection)).shape[0]

    def at(self, index: int, block: int) -> _Stream:
        """Batch `index` in front of `block`, with what the blocks before it are now."""
        stream = self.kept.get(index)
        if stream is None or stream.at > block:
            hidden, calls = start(self.model, self.anatomy, self.batches[index])
            stream = _Stream(0, hidden, hidden, calls)
            if index in self.kept or self.room.take(stream.bytes):
                self.kept[index] = stream
        while stream.at < block:
            self.behind(stream, self.context(stream))
        return stream

    def context(self, stream: _Stream) -> torch.Tensor:
        """What the output projection of the stream's block reads."""
        block = self.anatomy.blocks[stream.at]
        return context(self.model, block, stream.hidden, stream.calls[block.layer_path])

    def behind(self, stream: _Stream, x: torch.Tensor) -> torch.Tensor:
        """The residual stream behind the block whose projection reads `x`; `stream` goes on to the next block."""
        block = self.anatomy.blocks[stream.at]
        left, stream.hidden = advance(self.model, block, stream.hidden, x)
        stream.at += 1
        following = self.anatomy.blocks[stream.at : stream.at + 1]
        if following and following[0].layer_path != block.layer_path:
            stream.entered = stream.hidden
        return left


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


class Walk:
    """The student's blocks, fitted one by one and in order, each when its caller says so.

    In between the caller may cut the blocks that are still to come, and then says what the student is like by
    `student_anatomy`. At most `memory` bytes of streams and activations are kept. Both models have to be `frozen`
    meanwhile: dropout would be fitted too.
    """

    def __init__(
        self,
        student: nn.Module,
        student_anatomy: Anatomy,
        teacher: nn.Module,
        teacher_anatomy: Anatomy,
        batches: Sequence[Batch],
        memory: float = math.inf,
    ) -> None:
        if len(student_anatomy.blocks) != len(teacher_anatomy.blocks):
            raise MismatchError("student and teacher have different numbers of blocks")
        self.batches = [batch.on(student) for batch in batches]
        self.room = Room(memory)
        self.by_passes = any(block.exit is None for block in teacher_anatomy.blocks)
        self.resumes = not self.by_passes
        self.teacher = _Streams(teacher, teacher_anatomy, self.batches, self.room)
        self.student = _Streams(student, student_anatomy, self.batches, self.room)
        # What all layers put out for all tokens is kept only under a bound.
        bounded = math.isfinite(memory)
        self.settled = [SettledLayers(m, teacher_anatomy, self.room.take) for m in (teacher, student) if bounded]

    @property
    def student_anatomy(self) -> Anatomy:
        return self.student.anatomy

    @student_anatomy.setter
    def student_anatomy(self, anatomy: Anatomy) -> None:
        self.student.anatomy = anatomy

    @torch.no_grad()
    def fit(self, index: int, fit: Callable[[nn.Module, Block], Fit | Outcome]) -> Outcome:
        """Fit block `index`; `fit(projection, block)` starts its statistics, or returns an `Outcome` to skip it."""
        block = self.student_anatomy.blocks[index]
        started = fit(self.student.model.get_submodule(block.projection), block)
        rows = _Rows(started)
        if self.by_passes:
            return started if isinstance(started, Outcome) else self._fit_by_passes(index, rows)
        held = {}
        for i, batch in enumerate(self.batches):
            wanted = self.teacher.at(i, index)
            target = self.teacher.behind(wanted, self.teacher.context(wanted))
            stream = self.student.at(i, index)
            x = self.student.context(stream)
            if i in self.student.kept and self.room.take(x.nbytes):
                held[i] = x
            rows.add(batch.real(x), batch.real(target - stream.hidden))
        outcome = rows.solve()
        for i, stream in self.student.kept.items():
            x = held.get(i)
            self.student.behind(stream, self.student.context(stream) if x is None else x)
        self.room.bytes += sum(x.nbytes for x in held.values())
        return outcome

    def _fit_by_passes(self, index: int, rows: _Rows) -> Outcome:
        blocks = [one.anatomy.blocks[index] for one in (self.teacher, self.student)]
        with self.resumed(index) as enter:
            for i, batch in enumerate(self.batches):
                enter(i)
                dense = reach(self.teacher.model, blocks[0].projection, batch)
                pruned = reach(self.student.model, blocks[1].projection, batch)
                if dense is None or pruned is None:
                    return Outcome(blocks[1].units.name, False, "the data never passes it")
                rows.add(batch.real(pruned[0]), batch.real(dense[1]))
        return rows.solve()

    @contextmanager
    def resumed(self, index: int) -> Iterator[Callable[[int], None]]:
        """While it lasts, forward passes of both models leave out the layers before the one that holds block `index`.

        What it gives is called with the number of a batch before its passes. Where models cannot be run block by block,
        or `resumes` was set to False, what those layers put out is kept as far as there is room for it.
        """
        layer = self.teacher.anatomy.blocks[index].layer_path
        with ExitStack() as stack:
            if not self.resumes:
                for one in self.settled:
                    stack.enter_context(one.before(index))
            given_to = []
            if self.resumes and layer != self.teacher.anatomy.layers[0]:
                for one in (self.teacher, self.student):
                    given_to.append((one, stack.enter_context(resumed(one.model, one.anatomy, layer))))

            def enter(batch: int) -> None:
                for one in self.settled:
                    one.enter(batch)
                for streams, given in given_to:
                    given.hidden = None
                    given.hidden = streams.at(batch, index).entered

            yield enter


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
    memory: float = math.inf,
) -> list[Outcome]:
    """Fit the student's blocks in order; `fit(projection, block)` starts one, or returns an `Outcome` to skip it.

    At most `memory` bytes of streams and activations are kept.
    """
    student_anatomy.need_projections(description)
    walk = Walk(student, student_anatomy, teacher, teacher_anatomy, batches, memory)
    with frozen(student), frozen(teacher):  # dropout would be fitted too
        return [walk.fit(index, fit) for index in stages.progress(range(len(walk.student_anatomy.blocks)), description)]
