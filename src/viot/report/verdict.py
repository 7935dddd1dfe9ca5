"""May one believe the answer? Plain sentences from ESS, the spread of log Z over groups, and the surviving lineages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .. import weights

if TYPE_CHECKING:
    from ..population import Population


def dead_groups(population: Population) -> str | None:
    """Which groups died, if any."""
    dead = [population.config["groups"][i] for i in population.dead_groups]
    if not dead:
        return None
    listed = ", ".join(map(str, dead[:8])) + (" …" if len(dead) > 8 else "")
    return (
        f"group{'s' * (len(dead) > 1)} {listed} died: every particle's reward was −inf, NaN or +inf. They are returned frozen, with NaN "
        f"weights. Use more particles, or a reward that is finite where samples are still rough."
    )


def lam_for_ess(population: Population, share: float = 0.3) -> float | None:
    """The λ at which reweighting this population would keep an ESS of `share` · K: a λ to try when the one used was too strong."""
    lam = float(population.config["lam"])
    log_w, r = population.log_weights, population.rewards
    usable = ~log_w.isnan().any(-1) & r.isfinite().all(-1)
    if lam == 0 or not usable.any():
        return None
    log_w, r = log_w[usable], r[usable]

    def shortfall(factor: torch.Tensor) -> torch.Tensor:
        return -weights.ess(log_w + (factor - 1) * lam * r).mean() / log_w.shape[1]

    grid = torch.linspace(0, 1, 201, dtype=torch.float64)[:-1]
    enough = [f for f in grid if shortfall(f) <= -share]
    return float(lam * enough[-1]) if enough and enough[-1] > 0 else None


def strength_advice(population: Population) -> str | None:
    """λ too strong for these particles (ESS < 2), or too weak to be felt (λ · std(r) < 0.1), with one to try."""
    lam, k = float(population.config.get("lam", 0.0)), population.shape[1]
    rewards = population.rewards[population.rewards.isfinite()]
    if k < 3 or lam == 0 or len(rewards) < 3:
        return None
    if population.exact and bool((population.ess[population.ess > 0] < 2).any()):
        milder = lam_for_ess(population)
        hint = f"lam={milder:.3g} would keep about 30 % of them" if milder else "use a smaller lam"
        return (
            f"fewer than 2 effective particles of {k} are left in a group: the weights rest on a single sample. {hint[0].upper()}{hint[1:]}, "
            f"or use more particles."
        )
    spread = rewards.std().item()
    if abs(lam) * spread < 0.1:
        stronger = f" lam={1 / spread:.3g} makes one standard deviation of reward count e-fold." if spread > 0 else " All rewards are equal."
        return f"λ · std(reward) = {abs(lam) * spread:.2g}: steering this weak is hardly felt.{stronger}"
    return None
