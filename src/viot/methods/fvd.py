r"""FVD: Fleming–Viot diffusion (arXiv 2604.06779 v1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from .. import resample, weights
from ..model import Grid
from ..particles import State
from ..problem import Problem
from .absorption import capped_deaths, pilot_strength, robbins_monro, solve_strength
from .method import methods
from .smc import SMC

if TYPE_CHECKING:
    from ..model import Model

Split = Literal["equal", "snr"] | Callable[[Grid, list[int]], Any]


@methods.add(
    "fvd", "Fleming–Viot: low rewards die, survivors donate, the reborn get fresh noise", cost="K·T network calls, rewards at 9 steps + end"
)
@dataclass(frozen=True)
class FVD(SMC):
    r"""Fleming–Viot diffusion, arXiv 2604.06779 v1. At scoring step k with potential G_k = exp(λ_k a_k r), Σ a_k = 1:

        survive   with probability p_i = G_k(x_i) / max_j G_k(x_j)           (norm="upper_bound": / exp(λ_k a_k r_sup))
        dead      copy a uniformly chosen survivor, and take the next step with noise η_rebirth, the others with η_base
        end       weights G_0 = exp(λ r(x_0) − Σ_k λ_k a_k r̂_k), with the *user's* λ: the path strength λ_k never changes the target

    Consistent as K → ∞, not unbiased at finite K. Most constants of the paper's text were not published; each is a keyword here.

    split        how the strength is spread over the scoring steps: "equal" 1/n, "snr" in proportion to α²/(α²+σ²), or a callable
                 (grid, steps) -> shares, normalised to sum 1
    cap          at most ⌊cap·K⌋ deaths by chance per selection. cap_policy "random" spares a uniform subset and carries the corrected
                 potential log(p + s(1−p)), s = spared/dead; "temper" shrinks the exponent first; "spare_best" has no correction: biased
    alpha_star   target share of deaths; None leaves λ_k alone. controller: "multiplicative" or "additive" Robbins–Monro with gain
                 rho/k^kappa, or "bisection", which solves for the λ_k of each selection. Keep alpha_star below 0.38
    lam0         first λ_k; None = the user's λ. `calibrate` finds one by pilot runs
    rebirth_noise  "next_step", or "all_later_steps"
    target       "user", or "effective": weights exp(λ_eff r) with λ_eff = Σ a_k λ_k of the path (recorded in the trace)
    """

    name: ClassVar[str] = "fvd"
    reference: ClassVar[str] = "arXiv 2604.06779v1"

    eta_base: float = 0.0
    eta_rebirth: float = 1.0
    split: Split = "equal"
    norm: Literal["batch_max", "upper_bound"] = "batch_max"
    upper_bound: float = 0.0
    cap: float = 0.5
    cap_policy: Literal["random", "temper", "spare_best"] = "random"
    alpha_star: float | None = None
    controller: Literal["multiplicative", "additive", "bisection"] = "multiplicative"
    rho: float = 3.0
    kappa: float = 0.6
    lam0: float | None = None
    lam_bounds: tuple[float, float] = (1e-3, 1e4)
    rebirth_noise: Literal["next_step", "all_later_steps"] = "next_step"
    target: Literal["user", "effective"] = "user"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("eta_base", "eta_rebirth", "rho", "kappa"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be ≥ 0 and finite, not {getattr(self, name)}")
        if len(self.lam_bounds) != 2 or not 0 < self.lam_bounds[0] < self.lam_bounds[1]:
            raise ValueError(f"lam_bounds are two numbers 0 < low < high, not {self.lam_bounds}")
        if not 0 < self.cap <= 1:
            raise ValueError(f"cap is the largest share of deaths per selection, in (0, 1], not {self.cap}")
        if self.alpha_star is not None and not 0 < self.alpha_star < 1:
            raise ValueError(f"alpha_star is a share of deaths in (0, 1), not {self.alpha_star}")
        if not callable(self.split) and self.split not in ("equal", "snr"):
            raise ValueError(f"split must be 'equal', 'snr' or a callable (grid, steps) -> shares, not {self.split!r}")
        for name, allowed in _CHOICES.items():
            if (chosen := getattr(self, name)) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {chosen!r}")

    @property
    def exact(self) -> bool:
        return self.target == "user" and self.cap_policy != "spare_best"

    def shares(self, problem: Problem) -> dict[int, float]:
        """The share a_k of the strength that each scoring step applies; they sum to 1."""
        steps = self.scoring(problem.T)
        if callable(self.split):
            share = [float(a) for a in self.split(problem.grid, steps)]
        elif self.split == "snr":
            share = problem.grid.signal[steps].tolist()
        else:
            share = [1.0] * len(steps)
        if len(share) != len(steps) or any(not a >= 0 for a in share) or (steps and not sum(share) > 0):
            raise ValueError(f"split must give {len(steps)} shares ≥ 0 that are not all 0, one per scoring step, not {share}")
        return {j: a / sum(share) for j, a in zip(steps, share, strict=True)}

    def prepare(self, problem: Problem, state: State) -> State:
        if problem.lam < 0 and self.alpha_star is not None:
            raise ValueError("a controlled strength is positive: negate the reward instead of λ, or leave alpha_star=None")
        self.shares(problem)
        lam = torch.full((len(state.log_w),), float(problem.lam if self.lam0 is None else self.lam0), dtype=torch.float64)
        state = super().prepare(problem, state).with_extra(reborn=torch.zeros_like(state.log_w, dtype=torch.bool))
        return state.with_group(lam=lam, lam_effective=torch.zeros_like(lam))

    def select(self, problem: Problem, state: State) -> State:
        g, k = state.log_w.shape
        share = self.shares(problem)[state.step]
        lam = self.lam_now(state, share)
        log_g = state.log_w + weights.tilt(state.rewards, lam[:, None] * share)
        top = log_g.amax(-1, keepdim=True)
        if self.norm == "upper_bound":
            top = torch.maximum(top, state.log_w.amax(-1, keepdim=True) + (lam * share * self.upper_bound)[:, None])
        log_p = log_g - top
        u = problem.draw(state.step, "select").uniform((g * 3 * k,)).view(g, 3, k)
        log_p, dead, carried = self.deaths(log_p, u[:, 0], u[:, 1])
        absorption = 1 - log_p.exp().mean(-1)
        nobody = dead.all(-1, keepdim=True)
        dead = torch.where(nobody & (log_p == log_p.amax(-1, keepdim=True)), False, dead)
        ancestors = torch.where(dead, resample.donors_among(~dead, u[:, 2]), resample.identity(g, k))
        log_z = weights.log_mean_exp(carried) + top[:, 0]
        path = state.extra["path"] + carried + top - state.log_w
        after = state.but(log_w=log_z[:, None].expand(g, k).clone()).with_extra(path=path)[ancestors]
        after = after.with_extra(reborn=dead if self.rebirth_noise == "next_step" else after.extra["reborn"] | dead)
        effective = state.group["lam_effective"] + lam * share
        after = after.with_group(lam=self.lam_next(lam, absorption, len(state.history) + 1), lam_effective=effective)
        seen = state.with_group(lam_used=lam, absorption=absorption)
        return self.record(problem, after, seen, weights.normalize(log_g), ancestors)

    def deaths(self, log_p: Tensor, u: Tensor, tie: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The survival log-probabilities (tempered or not), who dies, and the log-potential that is carried for it; all (G, K)."""
        return capped_deaths(log_p, u, tie, self.cap, self.cap_policy)

    def lam_now(self, state: State, share: float) -> Tensor:
        """λ_k (G,) of this selection."""
        if self.alpha_star is None or self.controller != "bisection":
            return state.group["lam"]
        return solve_strength(state.rewards, share, self.alpha_star, self.lam_bounds)

    def lam_next(self, lam: Tensor, absorbed: Tensor, k: int) -> Tensor:
        """λ_{k+1} (G,), after selection k absorbed this share."""
        if self.alpha_star is None or self.controller == "bisection":
            return lam
        gain = self.rho / k**self.kappa
        return robbins_monro(lam, absorbed, self.alpha_star, gain, self.controller == "multiplicative", self.lam_bounds)

    def etas(self, state: State) -> float | Tensor:
        reborn = state.extra["reborn"].double()
        return reborn * self.eta_rebirth + (1 - reborn) * self.eta_base

    def propose(self, problem: Problem, state: State) -> State:
        after = super().propose(problem, state)
        if self.rebirth_noise == "next_step":
            after = after.with_extra(reborn=torch.zeros_like(after.extra["reborn"]))
        return after

    def final_lam(self, problem: Problem, state: State) -> float | Tensor:
        return problem.lam if self.target == "user" else state.group["lam_effective"][:, None]

    def stats(self, problem: Problem, state: State) -> dict[str, Tensor]:
        return {"lam": state.group["lam_used"], "absorption": state.group["absorption"]}

    def calibrate(self, model: Model | str, reward: Callable | str, *, runs: int = 8, **run: Any) -> FVD:
        """Pilot runs that find the λ_0 whose absorption meets `alpha_star`: the same method, frozen, with `lam0` filled in.

        The controller alone moves only part of the way within one run. Keywords are those of `viot.prepare` (particles, steps, lam, …).
        """
        if self.alpha_star is None:
            raise ValueError("calibrate needs a target share of deaths: FVD(alpha_star=0.15).calibrate(…)")
        pilot = replace(self, alpha_star=None)
        lam = pilot_strength(lambda lam: replace(pilot, lam0=lam), self.alpha_star, self.lam_bounds, model, reward, runs, **run)
        return replace(pilot, lam0=lam)


_CHOICES = {
    "norm": ("batch_max", "upper_bound"),
    "cap_policy": ("random", "temper", "spare_best"),
    "controller": ("multiplicative", "additive", "bisection"),
    "rebirth_noise": ("next_step", "all_later_steps"),
    "target": ("user", "effective"),
}
