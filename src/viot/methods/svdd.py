r"""SVDD and SVDD-R: soft value-based decoding (arXiv 2408.08252)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .. import resample, weights
from ..particles import State
from ..problem import Problem
from ..value import as_value, scored_by
from ..weights import NEG_INF
from .independent import best_distinct
from .method import methods
from .smc import SMC, Schedule, draw_ancestors


@methods.add(
    "svdd",
    "soft value-based decoding: each chain chooses among M candidates at every step",
    cost="K·T network calls and rewards, by fewer chains",
)
@dataclass(frozen=True)
class SVDD(SMC):
    r"""Algorithm 1 of arXiv 2408.08252. At every step each chain draws M candidates x_s ~ p(·|x_t) and goes on with one of them,

        P(m) ∝ exp(λ v(x_s^m)),      v(x_s) = r(x̂0(x_s)) or another intermediate value

    (times p/q where a guidance `guide` moved the candidates).

    Nothing crosses chains. As M → ∞ a step has the optimal kernel of v; with finite M, and with v for the true soft value, the law of the
    answer is not π, and there are no weights to correct it. The last step, without noise, has one candidate. The network's answer for the
    chosen candidate is that of the next step, so a chain costs M·(T−1)+1 rows.

    m         candidates: 20 for pictures in the paper; the default 4 is affordable at small budgets
    choice    "categorical" as above, or "argmax" as the published code does: a maximiser, which returns the best distinct samples
    eta       noise of the candidates, > 0
    """

    name: ClassVar[str] = "svdd"
    reference: ClassVar[str] = "arXiv 2408.08252"

    schedule: Schedule = field(init=False, default="every")
    m: int = 4
    choice: Literal["categorical", "argmax"] = "categorical"
    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.m < 1:
            raise ValueError(f"svdd chooses among m ≥ 1 candidates, not {self.m}")
        if self.choice not in ("categorical", "argmax"):
            raise ValueError(f"choice must be 'categorical' or 'argmax', not {self.choice!r}")
        if not 0 < self.eta < math.inf:
            raise ValueError(f"candidates differ by their noise: svdd needs eta > 0 and finite, not {self.eta}")

    @property
    def exact(self) -> bool:
        return False

    def scoring(self, steps: int) -> list[int]:
        """The steps whose states are chosen among candidates: all but the first, which the prior draws."""
        return list(range(1, steps))

    def looks(self, steps: int) -> int:
        return 1 + self.m * len(self.scoring(steps))

    def grads(self, steps: int) -> int:
        # The last state's candidates are not moved on by any noise.
        return max(0, self.looks(steps) - self.m) if self.guiding and self.guiding.needs_grad else 0

    def cost(self, steps: int) -> int:
        rows = as_value(self.value).rows(steps, self.scoring(steps))
        return super().cost(steps) + (self.m - 1) * rows

    def scored(self, steps: int) -> int:
        return 1 + self.m * len(self.scoring(steps)) * scored_by(as_value(self.value))

    def run(self, problem: Problem, state: State | None = None) -> Iterator[State]:
        if state is None:
            state = self.look(problem, self.prepare(problem, problem.start()))
            yield (state := state.but(cost=problem.evaluate.cost.record()))
        while state.step < problem.T:
            state = self.propose(problem, state)
            yield (state := state.but(step=state.step + 1, cost=problem.evaluate.cost.record()))
        yield self.end(problem, state)

    def etas(self, state: State) -> float | Tensor:
        return self.eta

    def propose(self, problem: Problem, state: State) -> State:
        """M next states for each particle, of which it keeps one together with its prediction."""
        if state.step == problem.T - 1:
            return super().propose(problem, state)
        candidates = torch.arange(state.log_w.shape[1]).repeat_interleave(self.m).expand(problem.G, -1)
        wide = super().propose(problem, state[candidates])
        wide = self.assess(problem, self.look(problem, wide.but(step=state.step + 1)))
        with problem.evaluate.cost.timed("selection"):
            # What is forbidden on the way is only the last choice, among all of a group's candidates, as in every other method.
            scores = weights.floored(wide.rewards, problem.lam).unflatten(1, (-1, self.m))
            # What a guidance did to the candidates is taken back by the choice.
            ratio = wide.log_w - state.log_w.gather(-1, candidates)
            pick = self.pick(problem, state.step, scores, ratio.unflatten(1, (-1, self.m)))
            kept = wide[pick + torch.arange(pick.shape[1]) * self.m]
            kept = kept.but(rewards=scores.gather(-1, pick[..., None])[..., 0], step=state.step)
        return self.mix(problem, kept)

    def pick(self, problem: Problem, step: int, scores: Tensor, ratio: Tensor | float = 0.0) -> Tensor:
        """(G, K) which of the M candidates, scored and with log p − log q of their draws, (G, K, M) each, a particle goes on with."""
        if self.choice == "argmax":
            return (scores * math.copysign(1.0, problem.lam)).argmax(-1)
        u = problem.draw(step, "choose").uniform((scores.shape[0] * scores.shape[1],))
        return weights.draw(problem.lam * scores + ratio, u.view(scores.shape[:2]))

    def mix(self, problem: Problem, state: State) -> State:
        """What particles have to do with each other after the choice: nothing here."""
        return state

    def finish(self, problem: Problem, state: State) -> State:
        if self.choice == "argmax":
            return best_distinct(state)
        return state.but(log_w=weights.equal(state.rewards > NEG_INF))


@methods.add(
    "svdd-r",
    "SVDD, and after every choice the chains resample each other",
    cost="K·T network calls and rewards, by fewer chains",
)
@dataclass(frozen=True)
class SVDDR(SVDD):
    """Section 5 of arXiv 2408.08252: after each choice the chains are drawn anew with replacement, in proportion to exp(λ v) of what each chose.

    resampling   the scheme, see `viot.resample`
    """

    name: ClassVar[str] = "svdd-r"

    resampling: str = "multinomial"

    def __post_init__(self) -> None:
        super().__post_init__()
        resample.get(self.resampling)

    def mix(self, problem: Problem, state: State) -> State:
        with problem.evaluate.cost.timed("selection"):
            log_m = weights.normalize(problem.lam * state.rewards)
            ancestors = draw_ancestors(problem, self.resampling, state.step, log_m.exp())
            return self.record(problem, state[ancestors], state, log_m, ancestors)
