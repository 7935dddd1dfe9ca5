"""A twist learned once, for all groups and for later runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..particles import State
from ..problem import Problem
from ..twists import Twist
from .tri_tsmc import TriTSMC


@dataclass(frozen=True)
class Amortised(TriTSMC):
    """The training rounds of `tri-tsmc` alone, all particles in each of them, with one θ for all groups. `TriTSMC.learn` runs it."""

    @property
    def shared(self) -> bool:
        return True

    @property
    def least(self) -> int:
        return 2

    def shares(self, k: int) -> tuple[int, int]:
        return k, 0

    def cost(self, steps: int) -> int:
        # Of one round: each has the whole budget.
        return steps

    def progress(self, problem: Problem, state: State) -> int:
        return (int(state.group["round"][0]) * problem.T + state.step) // self.rounds

    def run(self, problem: Problem, state: State | None = None) -> Iterator[State]:
        for reached in super().run(problem, state):
            if int(reached.group["round"][0]) == self.rounds - 1 and reached.step == problem.T:
                yield self.learned(self.inner(problem, self.rounds - 1), reached).but(done=True)
                return
            yield reached

    def fitted(self, twist: Twist, statistics: dict[str, Tensor], w: Tensor, old: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
        # The groups' particles as those of one, each group with the same say.
        together = {name: value.flatten(0, 1)[None] for name, value in statistics.items()}
        w = torch.where(alive[:, None], w, 0.0)
        w = (w / w.sum().clamp_min(1e-300)).flatten()[None]
        new, share = super().fitted(twist, together, w, old[:1], alive.any()[None])
        return new.expand_as(old).clone(), share.expand(len(old))
