"""How many die: the cap on deaths per selection, and the strength that meets a wanted share of them (FVD)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import weights
from ..weights import NEG_INF

if TYPE_CHECKING:
    from ..model import Model


def capped_deaths(log_p: Tensor, u: Tensor, tie: Tensor, rewards: Tensor, cap: float, policy: str) -> tuple[Tensor, Tensor, Tensor]:
    """Independent deaths with survival probabilities exp(log_p), of which at most ⌊cap·K⌋ per group; everything (G, K).

    Returns log_p (tempered or not), who is dead, and the log-potential to carry. Sparing a uniform subset of the dead, a share s of them, makes
    the survival probability p + s(1 − p): that is carried, or the bias would not vanish however large K is. Sparing the best has no such
    correction. The cap binds on deaths by chance; a particle whose reward is −inf always dies.
    """
    most = math.floor(cap * log_p.shape[1])
    doomed = rewards == NEG_INF
    if policy == "temper":
        finite = torch.where(doomed, 0.0, log_p)
        zero = torch.zeros_like(log_p[:, :1])
        log_p = finite * weights.solve_monotone(lambda b: 1 - (b * finite).exp().mean(-1, keepdim=True), cap, zero, zero + 1)
        log_p = torch.where(doomed, NEG_INF, log_p)
    p = log_p.exp()
    dead = (u >= p) & ~doomed
    n = dead.sum(-1, keepdim=True)
    stays_dead = dead
    if bool((n > most).any()):
        # The `most` smallest keys stay dead: a uniform subset, or the worst (by rank, so that ties cannot exceed the cap).
        key = rewards.argsort(dim=-1, stable=True).argsort(dim=-1).double() if policy == "spare_best" else tie
        key = torch.where(dead, key, torch.inf)
        stays_dead = dead & (key <= key.kthvalue(most, dim=-1, keepdim=True).values) if most else torch.zeros_like(dead)
    if policy == "spare_best":
        return log_p, stays_dead | doomed, log_p
    spared = (n - most).clamp_min(0) / n.clamp_min(1)
    carried = torch.where(spared > 0, (p + spared * (1 - p)).log(), log_p)
    return log_p, stays_dead | doomed, torch.where(doomed, NEG_INF, carried)


def robbins_monro(lam: Tensor, absorbed: Tensor, wanted: float, gain: float, multiplicative: bool, bounds: tuple[float, float]) -> Tensor:
    """One step of λ (G,) towards the share of deaths wanted: λ exp(ρ_k (α* − α)), or the additive form λ + ρ_k (α* − α)."""
    step = gain * (wanted - absorbed)
    return (lam * step.exp() if multiplicative else lam + step).clamp(*bounds)


def solve_strength(rewards: Tensor, share: float, wanted: float, bounds: tuple[float, float]) -> Tensor:
    """The λ (G,) at which the mean survival exp(λ a (r − max r)) leaves exactly the wanted share of deaths: a monotone equation."""
    gap = rewards - rewards.amax(-1, keepdim=True)

    def absorbed(lam: Tensor) -> Tensor:
        return 1 - weights.tilt(gap, lam[:, None] * share).nan_to_num(nan=NEG_INF).exp().mean(-1)

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
    """The λ_0 at which whole pilot runs of `method(λ_0)` absorb the wanted share on average, each with a seed of its own."""
    from ..sample import prepare

    lam = float(run.get("lam", 1.0))
    weak, strong = bounds
    for i in range(runs):
        *_, last = prepare(model, reward, method(lam), **{**run, "seed": run.get("seed", 0) + i}).states()
        absorbed = torch.stack([s.stats["absorption"] for s in last.history]).mean().item()
        weak, strong = (lam, strong) if absorbed < wanted else (weak, lam)
        # Factors of two until the target is bracketed, then bisection in log λ.
        lam = 2 * lam if strong == bounds[1] else lam / 2 if weak == bounds[0] else math.sqrt(weak * strong)
    return lam
