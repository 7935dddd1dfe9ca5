r"""TRI-TSMC: trust-region iterative twisted sequential Monte Carlo (arXiv 2605.25123)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .. import trust, weights
from ..guidance import Guidance
from ..particles import State
from ..problem import DeadPopulation, Problem
from ..reward import name_of
from ..twists import STATISTICS, THETA, Twist, as_twist
from ..value import as_value
from .method import methods
from .pool import balanced, pooled
from .smc import EVERY_TENTH, ResamplingSMC, Schedule

if TYPE_CHECKING:
    from ..model import Model

#: What is known of every round of training, (G, rounds) each.
ROUND = ("tau", "beta", "ess", "log_z", "variance", "kl", "step", "moved")


@methods.add(
    "tri-tsmc",
    "learns a twisted proposal in a few trust-region rounds, then samples with it",
    cost="K·T network calls, half of them training; rewards at its ends + 4 steps",
)
@dataclass(frozen=True)
class TriTSMC(ResamplingSMC):
    r"""Trust-region iterative twisted SMC. Each of `rounds` rounds draws independent paths from the twisted sampler q_θ and weighs them,

        f = λ r(x_0) + log p − log q_θ        along the whole path: exp(f) has the mean Z whatever θ is;

    tempers the weights, W ∝ exp(τ f) with the largest τ ≤ 1 whose KL from uniform is at most `nats`, which is the law nearest to the target
    within that distance of q_θ (equation 4.7); projects it on the family, θ = argmax Σ W log q_θ(path) with a ridge around the old θ; and
    goes only so far that KL(q_new ‖ q_old) stays within `cap`. Then q_θ proposes for a particle population with potentials λ r(x̂0).

    twist     the family, a name or an object of `viot.twists`: "slope" ("auto" for small states), "direction" ("auto" for others), "vjp",
              "shift", "affine", "neural"; for tokens "tokens" ("auto") or "feature". A fitted one (`learn`, or a file) is where training
              starts from: with rounds=0 it stays
    rounds    3 in the published experiments
    train     share of the budget that trains, in equal rounds
    nats      the KL budget ε of a round; it must be below log of a round's particles to have an effect
    cap       the most that a projection may move the sampler, in nats; None = `nats`
    solver    "bisection" of the KL or "dual" minimisation: the same τ
    reuse     return the training paths too, all weighed against the mixture of the samplers that drew them (balance heuristic); then
              nothing is selected at the end. Consistent only, where the default is unbiased at every K: each sampler was fitted to paths whose
              weights it enters, so that Z comes out too small, with `affine` by half at a dozen particles and a sixth at 300, else by a tenth
              and a hundredth

    Each group learns a θ of its own. The families, the defaults and the use of the training paths are reconstructions: the paper's were not
    to be had. `population.training` tells of the rounds.
    """

    name: ClassVar[str] = "tri-tsmc"
    reference: ClassVar[str] = "arXiv 2605.25123"

    schedule: Schedule = EVERY_TENTH
    ess_threshold: float | None = 0.5
    guide: Any = field(init=False, default=None)
    twist: Any = "auto"
    rounds: int = 3
    train: float = 0.5
    nats: float = 1.0
    cap: float | None = None
    solver: trust.Solver = "bisection"
    reuse: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eta == 0:
            raise ValueError("tri-tsmc learns to shift noise: it needs eta > 0 (1 is the default)")
        if self.rounds < 0 or not 0 <= self.train < 1:
            raise ValueError(f"rounds must be ≥ 0 and train a share of the budget in [0, 1), not {self.rounds} and {self.train}")
        if not self.nats > 0 or (self.cap is not None and not self.cap > 0):
            raise ValueError(f"nats and cap are distances > 0, not {self.nats} and {self.cap}")
        if self.solver not in ("bisection", "dual"):
            raise ValueError(f"solver must be 'bisection' or 'dual', not {self.solver!r}")
        twist = as_twist(self.twist)
        if self.twist != "auto":
            # A file is read once: what it holds later is another twist.
            object.__setattr__(self, "twist", twist)

    # -- the budget ---------------------------------------------------------------------------------------------------------------

    @property
    def least(self) -> int:
        """Two particles in every round of training, and one at the end."""
        return 2 * self.rounds + 1

    def shares(self, k: int) -> tuple[int, int]:
        """Particles of each training round, and of the end, out of K."""
        if not self.rounds:
            return 0, k
        each = min(max(2, math.floor(self.train * k / self.rounds)), (k - 1) // self.rounds)
        return each, k - self.rounds * each

    def spent(self, k: int, steps: int) -> tuple[int, int, int, int]:
        """Rows of a group with K particles in all: through network, decoder, reward and gradient. What a twist scores for itself comes on top."""
        each, last = self.shares(k)
        value = as_value(self.value).rows(steps, self.scoring(steps))
        scored = self.rounds * each + last * self.scored(steps)
        # Those that are returned from the rounds are decoded once more.
        return k * steps + last * value, scored + (k if self.reuse else 0), scored, k * self.grads(steps)

    def scoring(self, steps: int) -> list[int]:
        return [] if self.reuse else super().scoring(steps)

    def progress(self, problem: Problem, state: State) -> int:
        """How many of T steps the work done so far amounts to."""
        done = int(state.group["round"][0]) * self.shares(problem.K)[0] * problem.T + state.x.shape[1] * state.step
        return min(problem.T, done // problem.K)

    # -- the twist ----------------------------------------------------------------------------------------------------------------

    @property
    def guiding(self) -> Guidance | None:
        return self._moving(as_twist(self.twist))

    def family(self, problem: Problem) -> Twist:
        return as_twist(self.twist, problem.evaluate.model)

    def guided_by(self, problem: Problem) -> Guidance | None:
        return self._moving(self.family(problem))

    def _moving(self, twist: Twist) -> Twist | None:
        # A family that is never fitted leaves the model alone.
        return twist if self.rounds or twist.theta is not None else None

    def moved(self, problem: Problem, before: State, after: State, drift: Any) -> State:
        if self.guided_by(problem) is None or not any(name.startswith(STATISTICS) for name in after.extra):
            return after
        return Twist.keep(after, self.family(problem).note(problem, before, after, self.eta, drift))

    def look(self, problem: Problem, state: State) -> State:
        return self.family(problem).ready(problem, super().look(problem, state), self.shared)

    @property
    def shared(self) -> bool:
        """Do all groups learn one θ? Never inside a run."""
        return False

    # -- the rounds ---------------------------------------------------------------------------------------------------------------

    def run(self, problem: Problem, state: State | None = None) -> Iterator[State]:
        state = self.open(problem, None) if state is None else state
        while (now := int(state.group["round"][0])) < self.rounds:
            inner = self.inner(problem, now)
            while state.step < problem.T:
                state = self.propose(inner, self.look(inner, state))
                yield (state := state.but(step=state.step + 1, cost=problem.evaluate.cost.record()))
            state = self.open(problem, self.learned(inner, state))
        yield from super().run(self.inner(problem, self.rounds), state)

    def inner(self, problem: Problem, now: int) -> Problem:
        """The problem of one round: its particles, with random numbers of its own."""
        each, last = self.shares(problem.K)
        return replace(problem, K=each, round=now + 1) if now < self.rounds else replace(problem, K=last, round=0)

    def open(self, problem: Problem, state: State | None) -> State:
        """The start of the next round, with what has been learned by `state`."""
        twist, none = self.family(problem), torch.full((problem.G, self.rounds), torch.nan, dtype=torch.float64)
        group = state.group if state is not None else {f"rounds.{name}": none for name in ROUND}
        if state is None:
            group |= {THETA: twist.start(problem).clone(), "round": torch.zeros(problem.G, dtype=torch.long)}
        now = int(group["round"][0])
        inner = self.inner(problem, now)
        twist.check(inner)
        fresh = super().prepare(inner, inner.start().but(group=group))
        if now == self.rounds and not self.reuse:
            return fresh
        return Twist.keep(fresh, twist.note_prior(inner, Twist.keep(fresh, twist.blank(inner, inner.K))))

    def learned(self, problem: Problem, state: State) -> State:
        """Score the paths of a round, and θ after it."""
        twist, group, now = self.family(problem), dict(state.group), int(state.group["round"][0])
        rows, which = problem.rows(state.x), problem.group_rows(problem.K)
        scored = problem.evaluate.score(rows, which, purpose=f"reward of round {problem.round}")
        rewards = problem.fold(scored.rewards)
        f = weights.tilt(rewards, problem.lam) + state.log_w
        tau = trust.tempered(f, self.nats, self.solver)
        alive, old = weights.alive(f), group[THETA]
        # A group all of whose paths are impossible has learned nothing.
        w = torch.where(alive[:, None], weights.normalize(weights.tilt(f, tau[:, None])).exp(), 1 / problem.K)
        new, share = self.fitted(twist, twist.held(state), w, old, alive)
        finite = torch.where(f > weights.NEG_INF, f, torch.nan)
        known = {
            "tau": torch.where(alive, tau, torch.nan),
            "beta": (before := group["rounds.beta"][:, now - 1] if now else torch.zeros_like(tau))
            + torch.where(alive, tau, 0.0) * (1 - before),
            "ess": weights.ess(f) / problem.K,
            "log_z": weights.log_mean_exp(f),
            "variance": (finite - finite.nanmean(-1, keepdim=True)).square().nanmean(-1),
            "kl": trust.spent(f, torch.ones_like(tau)),
            "step": share,
            "moved": twist.kl(twist.held(state), w, new, old),
        }
        for name, value in known.items():
            group[f"rounds.{name}"] = group[f"rounds.{name}"].clone()
            group[f"rounds.{name}"][:, now] = value
        if self.reuse:
            parts = {name: problem.fold(part) for name, part in scored.parts.items()}
            group = pooled(group, state.x, rewards, parts, old, twist.held(state))
        return state.but(group=group | {THETA: new, "round": group["round"] + 1})

    def fitted(self, twist: Twist, statistics: dict[str, Tensor], w: Tensor, old: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
        """θ after weighted maximum likelihood and the cap, and the share of the way that the cap allowed."""
        aim = twist.fit(statistics, w, old)
        new, share = trust.capped(lambda theta: twist.kl(statistics, w, theta, old), old, aim, self.cap or self.nats)
        return torch.where(alive[:, None], new, old), share

    def weigh(self, problem: Problem, state: State) -> State:
        return self.reach(state, weights.tilt(state.rewards, problem.lam))

    def due(self, problem: Problem, state: State, log_m: Tensor) -> Tensor:
        """Not in groups whose last round had even weights without any selection: guesses of the reward could only spoil them."""
        found = super().due(problem, state, log_m)
        if not self.rounds or self.ess_threshold is None:
            return found
        return found & ~(state.group["rounds.ess"][:, -1] >= self.ess_threshold)

    # -- the end ------------------------------------------------------------------------------------------------------------------

    def finish(self, problem: Problem, state: State) -> State:
        state = super().finish(problem, state)
        return state if not self.reuse else balanced(problem, state, self.family(problem), self.rounds)

    def learn(self, model: Model | str, reward: Callable | str, **run: Any) -> Twist:
        """A twist that all groups of a run share, fitted apart from any run: to be saved, given to `tri-tsmc` or, as `guide=`, to another method.

        All `particles` train in every round. Keywords are those of `viot.prepare` (particles, groups, steps, lam, seed, …).
        """
        from ..sample import prepare
        from .amortised import Amortised

        if not self.rounds:
            raise ValueError("learn needs rounds ≥ 1")
        if "budget" in run:
            raise TypeError("learn takes particles and no budget: it spends rounds · particles · steps network rows of each group")
        ready = prepare(model, reward, Amortised(**{**self.given(), "reuse": False}), **run)
        *_, last = ready.states()
        if not bool((last.group["rounds.ess"] > 0).any()):
            raise DeadPopulation(
                f"nothing was learned: the reward {name_of(ready.problem.evaluate.reward)} was −inf for every path of every round. Use more "
                f"particles, or a reward that says by how much a sample misses"
            )
        return self.family(ready.problem).fitted(last.group[THETA][:1], last)

    def given(self) -> dict[str, Any]:
        """The settings as they were given, objects and all."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}
