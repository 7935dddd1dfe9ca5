"""The loop that the particle family shares. A method is this loop with other verbs.

    for each step:  predict ─▶ [value ─▶ weigh ─▶ select] ─▶ propose        resample="before_step"
                    predict ─▶ [value] ─▶ propose ─▶ [weigh ─▶ select]      resample="after_step"     (brackets: at scoring steps)
    at the end:     reward of x_0 ─▶ finish

The weights are right by construction. `weigh` adds log-potentials to `log_w` and remembers their sum along each lineage as `path`; `finish`
adds λ r(x_0) − path; so along every surviving path the product of all potentials is exp(λ r(x_0)), whatever they were. `select` replaces
log_w by log_w − log(K m) at the ancestors, whatever the masses m. Neither can be dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .. import resample, weights
from ..guidance import Guidance, as_guidance, prior_std, still
from ..kernel import Bias, shifted
from ..model import Prediction
from ..particles import Selection, State, dated
from ..problem import Aside, DeadPopulation, Problem
from ..reward import name_of
from ..value import Tweedie, Value, as_value, scored_by
from ..weights import NEG_INF
from .method import Method

#: Scoring steps as fractions of T, from the papers' indices at T = 50.
EVERY_FIFTH = tuple(j / 50 for j in range(5, 50, 5))
EVERY_TENTH = tuple(j / 50 for j in range(10, 50, 10))

Schedule = Sequence[float] | int | Literal["every"]


def scoring_steps(schedule: Schedule, steps: int) -> list[int]:
    """The steps at which a run of `steps` scores: fractions of T, every n-th step, or "every".

    Never the last one: no noise follows it, so a selection there only makes exact duplicates, and the terminal reward is applied anyway.
    """
    if isinstance(schedule, str):
        if schedule != "every":
            raise ValueError(f'schedule takes fractions of T, a stride, or "every", not {schedule!r}')
        schedule = 1
    if isinstance(schedule, int):
        if schedule < 1:
            raise ValueError(f"a stride of scoring steps must be ≥ 1, not {schedule}")
        found = range(0 if schedule == 1 else schedule, steps - 1, schedule)
    else:
        if any(not 0 <= f < 1 for f in schedule):
            raise ValueError(f"a schedule holds fractions of T in [0, 1), not {tuple(schedule)}")
        found = (math.floor(f * steps + 0.5) for f in schedule)
    return sorted({j for j in found if 0 <= j < steps - 1})


@dataclass(frozen=True)
class SMC(Method):
    """The loop, and what every particle method can be told.

    schedule        scoring steps: fractions of T, every n-th step, or "every"
    value           what a noisy state is worth: "tweedie", "rollout", "x0_samples", "smoothed", an object of `viot.value`, or a callable
    guide           a drift of your own for the proposal, a function (x_t, t, prediction) -> drift (`viot.guidance.Own`), another model
                    (`viot.guidance.Toward`), or a learned twist (`viot.twists`). The weights of a method that has weights make up for it
    """

    schedule: Schedule = EVERY_FIFTH
    value: str | dict | Value = Tweedie()
    guide: Any = None

    resample: ClassVar[Literal["before_step", "after_step"]] = "before_step"

    def __post_init__(self) -> None:
        as_value(self.value)
        guide = as_guidance(self.guide)
        if isinstance(self.guide, (str, Path, dict)):
            # A file is read once: what it holds later is another twist.
            object.__setattr__(self, "guide", guide)
        scoring_steps(self.schedule, 1000)

    @property
    def guiding(self) -> Guidance | None:
        """What moves the mean of the proposal beside the method itself."""
        return as_guidance(self.guide)

    def guided_by(self, problem: Problem) -> Guidance | None:
        """The same, where it depends on the problem."""
        return self.guiding

    def looks(self, steps: int) -> int:
        """Predictions per particle that a run makes."""
        return steps

    def cost(self, steps: int) -> int:
        own = self.guiding.rows if self.guiding else 0
        return self.looks(steps) * (1 + own) + as_value(self.value).rows(steps, self.scoring(steps))

    def grads(self, steps: int) -> int:
        # The last step of a chain with gradients has no noise, and so no drift.
        return self.looks(steps) - 1 if self.guiding and self.guiding.needs_grad else 0

    def scored(self, steps: int) -> int:
        return 1 + len(self.scoring(steps)) * scored_by(as_value(self.value))

    def scoring(self, steps: int) -> list[int]:
        """The steps at which this method scores."""
        return scoring_steps(self.schedule, steps)

    # -- the loop -----------------------------------------------------------------------------------------------------------------

    def run(self, problem: Problem, state: State | None = None) -> Iterator[State]:
        scoring = set(self.scoring(problem.T))
        state = self.prepare(problem, problem.start()) if state is None else state
        while state.step < problem.T:
            score = state.step in scoring
            state = self.look(problem, state)
            if score:
                state = self.assess(problem, state)
                state = state.but(rewards=weights.floored(state.rewards, problem.lam))
                if self.resample == "before_step":
                    state = self.choose(problem, state)
            state = self.propose(problem, state)
            if score and self.resample == "after_step":
                state = self.choose(problem, state)
            state = state.but(step=state.step + 1, cost=problem.evaluate.cost.record())
            yield state
        yield self.end(problem, state)

    def choose(self, problem: Problem, state: State) -> State:
        """Weigh, then select."""
        with problem.evaluate.cost.timed("selection"):
            return self.select(problem, self.weigh(problem, state))

    def end(self, problem: Problem, state: State) -> State:
        """Score x_0 and correct the weights: the final state of the run."""
        scored = problem.evaluate.score(problem.rows(state.x), problem.group_rows(state.x.shape[1]), keep=True)
        parts = {name: problem.fold(value) for name, value in scored.parts.items()}
        state = state.but(rewards=problem.fold(scored.rewards), parts=parts, samples=scored.samples, prediction=None)
        state = self.finish(problem, state)
        require_life(problem, state.log_w)
        return state.but(done=True, cost=problem.evaluate.cost.record())

    # -- the verbs ----------------------------------------------------------------------------------------------------------------

    def prepare(self, problem: Problem, state: State) -> State:
        """What the method keeps beside the particles, before the first step."""
        if guide := self.guided_by(problem):
            # FVD's noise has two names, and one of them is enough; consistency models have noise whatever η.
            noiseless = not any(getattr(self, name, 0.0) for name in ("eta", "eta_base", "eta_rebirth"))
            if noiseless and state.x.is_floating_point() and not getattr(problem.kernel, "fresh", False):
                raise ValueError(
                    f"a guidance moves the mean of noisy steps, and eta=0 has none: give {self.name} eta > 0 (1 is ancestral sampling)"
                )
            guide.check(problem)
            state = begin(problem, state, guide)
        mask = getattr(problem.kernel, "mask_id", None)
        state = state if mask is None else dated(state, mask, 0)
        return state.with_extra(path=torch.zeros_like(state.log_w))

    def look(self, problem: Problem, state: State) -> State:
        """One network call per particle, unless the state holds its prediction already."""
        if state.prediction is not None:
            return state
        t, group = problem.grid.times[state.step], problem.group_rows(state.x.shape[1])
        prediction: Prediction = problem.evaluate(problem.rows(state.x), t, group, guide=self.aside(problem, state))[0]
        return state.but(prediction=prediction.map(problem.fold))

    def aside(self, problem: Problem, state: State) -> Aside | None:
        """What is computed beside the prediction of this state, for the drift of its step."""
        guide = self.guided_by(problem)
        return guide.aside(problem, state) if guide and not still(problem, state.step) else None

    def assess(self, problem: Problem, state: State) -> State:
        """What the states are worth, as `state.rewards`: the intermediate value."""
        return as_value(self.value)(problem, state)

    def weigh(self, problem: Problem, state: State) -> State:
        """Rewards -> log-potential: add it to log_w and to the path. None by default."""
        return state

    @staticmethod
    def reach(state: State, log_value: Tensor) -> State:
        """The difference potential: weigh by what is missing for the potentials of each path to multiply to exp(log_value)."""
        missing = weights.subtract(log_value, state.extra["path"])
        return state.but(log_w=state.log_w + missing).with_extra(path=log_value)

    def select(self, problem: Problem, state: State) -> State:
        """Weights -> ancestors and new weights."""
        raise NotImplementedError

    def etas(self, state: State) -> float | Tensor:
        """η of the next step, 0 deterministic (DDIM) to 1 ancestral (DDPM): a number, or one per particle (G, K)."""
        raise NotImplementedError

    def drift(self, problem: Problem, state: State) -> Tensor | Bias | None:
        """What is added to the score of the proposal, (G, K, *event_shape), before every step with noise: the guidance, if there is one."""
        guide = self.guided_by(problem)
        drift = guide.drift(problem, state, self.etas(state)) if guide else None
        # Where there is no number there is no drift: the weights then have nothing to make up for.
        return torch.where(drift.isfinite(), drift, 0.0) if isinstance(drift, Tensor) else drift  # type: ignore[union-attr]

    def spread(self, problem: Problem, state: State) -> Tensor | None:
        """What multiplies the standard deviation of the proposal, (G, K, *event_shape)."""
        guide = self.guided_by(problem)
        spread = guide.spread(problem, state) if guide else None
        return None if spread is None else torch.where(spread.isfinite(), spread, 1.0)

    def propose(self, problem: Problem, state: State) -> State:
        """Move every particle by the kernel; log p − log q of the draw joins the weights at every step."""
        assert state.prediction is not None
        # The chain ends without noise, also where the grid ends at σ > 0 (Stable Diffusion's .03).
        eta = 0.0 if state.step == problem.T - 1 else self.etas(state)
        pushes = {} if still(problem, state.step) else {"drift": self.drift(problem, state), "spread": self.spread(problem, state)}
        x, log_ratio = problem.kernel.step(
            problem.rows(state.x),
            state.prediction.map(problem.rows),
            problem.grid.coeffs(state.step),
            problem.rows(eta) if isinstance(eta, Tensor) else eta,
            problem.draw(state.step, "propose"),
            # A kernel of a stranger's need not know the words.
            **{name: problem.rows(v) if isinstance(v, Tensor) else v for name, v in pushes.items() if v is not None},
        )
        after = state.but(x=problem.fold(x), log_w=state.log_w + problem.fold(log_ratio), prediction=None)
        if (mask := getattr(problem.kernel, "mask_id", None)) is not None:
            after = dated(after, mask, state.step + 1)
        return self.moved(problem, state, after, pushes.get("drift"))

    def moved(self, problem: Problem, before: State, after: State, drift: Any) -> State:
        """What is kept of a step that `drift` moved. Nothing by default."""
        return after

    def finish(self, problem: Problem, state: State) -> State:
        """The terminal correction: the potentials of every path multiply to exp(λ r(x_0))."""
        target = weights.tilt(state.rewards, self.final_lam(problem, state))
        return state.but(log_w=state.log_w + weights.subtract(target, state.extra["path"]))

    def final_lam(self, problem: Problem, state: State) -> float | Tensor:
        """λ of the target: the user's."""
        return problem.lam

    # -- the record ---------------------------------------------------------------------------------------------------------------

    def record(self, problem: Problem, after: State, before: State, log_m: Tensor, ancestors: Tensor) -> State:
        """Append what happened at a selection to the history. `ess` is that of the masses, from which the ancestors were drawn."""
        k = before.log_w.shape[1]
        n = resample.counts(ancestors)
        parents = (n > 0).sum(-1)
        m = log_m.exp().nan_to_num_(nan=0.0)
        spread = torch.where(weights.alive(log_m), (n - k * m).square_().mean(-1), 0.0)
        # V_cont of arXiv 2604.06779 with the plug-in s_i = exp(λ r_i), in units of its minimum over all masses: 1 is the optimum. Of the tilt
        # that is left to come: what weights carry of it already, the path, is divided out. Weights and rewards are shifted to a maximum of 1,
        # which the ratio does not notice.
        log_s = weights.subtract(problem.lam * before.rewards, before.extra["path"])
        log_ws = before.log_w + (log_s - log_s.amax(-1, keepdim=True))
        ws = torch.exp(log_ws - log_ws.amax(-1, keepdim=True))
        cont = torch.where(ws > 0, ws * ws / m, 0.0).sum(-1) / ws.sum(-1).square()
        stats = {
            "ess": weights.ess(log_m.nan_to_num(nan=NEG_INF)),
            "distinct_parents": parents.double(),
            "deaths": (k - parents).double(),
            "lam": torch.full((len(n),), float(problem.lam), dtype=torch.float64),
            "temperature": torch.full((len(n),), torch.nan, dtype=torch.float64),
            "reward_mean": before.rewards.mean(-1),
            "reward_max": before.rewards.amax(-1),
            "offspring_variance": spread,
            "v_cont": cont,
        }
        selection = Selection(before.step, ancestors.to(torch.int32), stats | self.stats(problem, before))
        return after.but(history=(*after.history, selection))

    def stats(self, problem: Problem, state: State) -> dict[str, Tensor]:
        """Statistics (G,) of a selection that only the method knows: a λ or temperature of its own."""
        return {}


@dataclass(frozen=True)
class ResamplingSMC(SMC):
    """The loop with selection by masses: draw ancestors from masses m, divide the weights by K m.

    eta             noise of the proposal: 0 deterministic (DDIM), 1 ancestral (DDPM)
    resampling      the scheme's name, see `viot.resample`
    ess_threshold   select only in groups where the ESS of the masses is below this share of K; None = at every scoring step
    """

    eta: float = 1.0
    resampling: str = "systematic"
    ess_threshold: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta < math.inf:
            raise ValueError(f"eta must be ≥ 0 and finite, not {self.eta}")
        if self.ess_threshold is not None and not 0 <= self.ess_threshold <= 1:
            raise ValueError(f"ess_threshold is a share of K in [0, 1] or None, not {self.ess_threshold}")
        resample.get(self.resampling)

    @property
    def exact(self) -> bool:
        return resample.get(self.resampling).name in {*resample.UNBIASED, "fleming_viot"}

    def etas(self, state: State) -> float | Tensor:
        return self.eta

    def log_masses(self, problem: Problem, state: State) -> Tensor:
        """Normalised log-masses (G, K) from which ancestors are drawn: the weights themselves by default."""
        return weights.normalize(state.log_w)

    def select(self, problem: Problem, state: State) -> State:
        """Draw ancestors from the masses, gather everything, divide the weights by K m."""
        log_m = self.log_masses(problem, state)
        chosen = weights.alive(log_m) & self.due(problem, state, log_m)
        ancestors = self.ancestors(problem, state, torch.where(chosen[:, None], log_m, 0.0).exp())
        ancestors = torch.where(chosen[:, None], ancestors, resample.identity(*log_m.shape))
        corrected = state.log_w - math.log(state.log_w.shape[1]) - log_m
        after = state.but(log_w=torch.where(chosen[:, None], corrected, state.log_w))
        return self.record(problem, after[ancestors], state, log_m, ancestors)

    def due(self, problem: Problem, state: State, log_m: Tensor) -> Tensor:
        """(G,) bool: in which groups is it time to select, by the ESS of the masses."""
        if self.ess_threshold is None:
            return torch.ones(len(log_m), dtype=torch.bool)
        return weights.ess(log_m) < self.ess_threshold * log_m.shape[1]

    def ancestors(self, problem: Problem, state: State, masses: Tensor) -> Tensor:
        """Ancestors (G, K) from masses (G, K)."""
        return draw_ancestors(problem, self.resampling, state.step, masses)


def draw_ancestors(problem: Problem, resampling: str, step: int, masses: Tensor) -> Tensor:
    """Ancestors (G, K) from masses (G, K) by the scheme of that name, with the random numbers of the step."""
    scheme = resample.get(resampling)
    u = problem.draw(step, "select").uniform((len(masses) * max(1, scheme.uniforms(masses.shape[1])),))
    return scheme(masses / masses.sum(-1, keepdim=True), u.view(len(masses), -1))


def begin(problem: Problem, state: State, guidance: Guidance) -> State:
    """The start of a chain as the guidance would have it, and weighed for it."""
    moved = guidance.prior(problem, state)
    if moved is None:
        return state
    std = prior_std(problem)
    shift, spread = (None if v is None else problem.rows(v) for v in moved)
    assert shift is not None
    noise, ratio = shifted(problem.rows(state.x) / std, shift, spread)
    return state.but(x=problem.fold(noise * std), log_w=state.log_w + problem.fold(ratio))


def require_life(problem: Problem, log_w: Tensor) -> None:
    """An error when every group is dead at the end: there is no answer."""
    if not bool(weights.alive(log_w).any()):
        raise DeadPopulation(
            f"every particle of every group is dead at the finished samples, after step {problem.T - 1}: the reward "
            f"{name_of(problem.evaluate.reward)} was −inf, NaN or +inf for all {log_w.numel()} of them. Use more particles, or a reward that "
            f"says by how much a sample misses (a penalty instead of −inf), so that there is something to steer by."
        )
