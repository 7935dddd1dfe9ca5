"""How many die: the cap on deaths per selection, and the strength that meets a wanted share of them (FVD)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import weights

if TYPE_CHECKING:
    from ..model import Model


def capped_deaths(log_p: Tensor, u: Tensor, tie: Tensor, cap: float, policy: str) -> tuple[Tensor, Tensor, Tensor]:
    """Independent deaths with survival probabilities exp(log_p), of which at most ⌊cap·K⌋ per group; everything (G, K).

    Returns log_p (tempered or not), who is dead, and the log-potential to carry. Sparing a uniform subset of the dead, a share s of them, makes
    the survival probability p + s(1 − p): that is carried, or the bias would not vanish however large K is. Sparing the best has no such
    correction.
    """
    most = math.floor(cap * log_p.shape[1])
    if policy == "temper":
        zero = torch.zeros_like(log_p[:, :1])
        exponent = weights.solve_monotone(lambda b: 1 - (b * log_p).exp().mean(-1, keepdim=True), cap, zero, zero + 1)
        log_p = exponent * log_p
    p = log_p.exp()
    dead = u >= p
    n = dead.sum(-1, keepdim=True)
    spared = (n - most).clamp_min(0) / n.clamp_min(1)
    if bool((spared > 0).any()):
        # The `most` smallest keys stay dead: a uniform subset, or the worst (by rank, so that ties cannot exceed the cap).
        key = log_p.argsort(dim=-1, stable=True).argsort(dim=-1).double() if policy == "spare_best" else tie
        key = torch.where(dead, key, torch.inf)
        dead = dead & (key <= key.kthvalue(most, dim=-1, keepdim=True).values) if most else torch.zeros_like(dead)
    if policy == "spare_best":
        return log_p, dead, log_p
    return log_p, dead, torch.where(spared > 0, (p + spared * (1 - p)).log(), log_p)


def robbins_monro(lam: Tensor, absorbed: Tensor, wanted: float, gain: float, multiplicative: bool, bounds: tuple[float, float]) -> Tensor:
    """One step of λ (G,) towards the share of deaths wanted: λ exp(ρ_k (α* − α)), or the additive form λ + ρ_k (α* − α)."""
    step = gain * (wanted - absorbed)
    return (lam * step.exp() if multiplicative else lam + step).clamp(*bounds)


def solve_strength(rewards: Tensor, share: float, wanted: float, bounds: tuple[float, float]) -> Tensor:
    """The λ (G,) at which the mean survival exp(λ a (r − max r)) leaves exactly the wanted share of deaths: a monotone equation."""
    gap = rewards - rewards.amax(-1, keepdim=True)

    def absorbed(lam: Tensor) -> Tensor:
        return 1 - (lam[:, None] * share * gap).exp().mean(-1)

    low, high = (torch.full((len(rewards),), b, dtype=torch.float64) for b in bounds)
    return weights.solve_monotone(absorbed, wanted, low, high)


def pilot_strength(
    method: Callable[[float], Any],
    wanted: float,
    bounds: tuple[float, float],
    model: Model | str,
    reward: Callable | str,
    runs: int,
    **run: Any,
) -> float:
    """The λ_0 at which whole pilot runs of `method(λ_0)` absorb the wanted share on average, each with a seed that is not the run's own."""
    from ..sample import prepare

    start = prepare(model, reward, method(1.0), **run)
    if not start.method.scoring(start.problem.T):
        raise ValueError(f"a run of {start.problem.T} steps makes no selection, so no strength can be found for it; use more steps")
    lam, (weak, strong), seen = abs(start.problem.lam) or 1.0, bounds, []
    for i in range(runs):
        *_, last = prepare(model, reward, method(lam), **{**run, "seed": ~run.get("seed", 0) - i}).states()
        absorbed = torch.stack([s.stats["absorption"] for s in last.history]).mean().item()
        seen.append((lam, absorbed))
        weak, strong = (lam, strong) if absorbed < wanted else (weak, lam)
        # Factors of four until the target is bracketed, then bisection in log λ.
        lam = min(4 * lam, strong) if strong == bounds[1] else max(lam / 4, weak) if weak == bounds[0] else math.sqrt(weak * strong)
    if strong == bounds[1] or weak == bounds[0]:
        tried = ", ".join(f"{a:.3g} at λ = {strength:.3g}" for strength, a in seen)
        raise ValueError(f"no strength absorbs {wanted:g} of the particles within {runs} pilot runs (found {tried}); try more runs")
    return lam
