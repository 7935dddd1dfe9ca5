"""How strong should λ be? Targets that are solved for it from a pilot run of the unsteered model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import weights


@dataclass(frozen=True)
class Strength:
    """A wish that stands where λ goes: how far the target may be from the model. Made by `ess` and `kl`."""

    kind: str
    value: float
    #: What an interrupted run had found already: the entries "lam" and "lam_pilot" of its record.
    found: dict[str, Any] | None = None

    def __str__(self) -> str:
        return f"{self.kind}({self.value:g})"

    def solve(self, rewards: Tensor) -> float:
        """The λ > 0 at which base draws with these rewards (G, N) meet the wish on average over groups."""
        usable = torch.where(rewards.isinf().all(-1, keepdim=True), torch.nan, rewards.double())
        usable = usable[~usable.isnan().any(-1)]
        spread = torch.where(usable.isinf(), torch.nan, usable)
        scale = (spread - spread.nanmean(-1, keepdim=True)).square().nanmean().sqrt().item() if len(usable) else 0.0
        if not scale > 0:
            raise ValueError(
                f"λ = {self} cannot be solved: all {rewards.numel()} pilot rewards are equal, or dead. Does the reward look at the sample?"
            )
        n = rewards.shape[-1]
        feasible = (usable > weights.NEG_INF).sum(-1)
        if self.kind == "kl" and self.value >= math.log(n):
            raise ValueError(f"{self} exceeds log({n}) = {math.log(n):.2f}, the most that {n} pilot particles can show; use more particles")

        def distance(log_lam: Tensor) -> Tensor:
            log_w = weights.tilt(usable, log_lam.exp())
            measured = weights.kl_from_uniform(log_w) if self.kind == "kl" else -weights.ess(log_w) / feasible
            return measured.mean()

        target = self.value if self.kind == "kl" else -self.value
        low, high = (torch.tensor(math.log(f / scale), dtype=torch.float64) for f in (1e-4, 1e4))
        nearest, furthest = distance(low).item(), distance(high).item()
        if not nearest <= target <= furthest:
            reach = f"between {abs(nearest):.3g} and {abs(furthest):.3g}"
            unit = "nats of KL" if self.kind == "kl" else "of the feasible particles"
            raise ValueError(
                f"λ = {self} cannot be met: with these {n} pilot rewards per group every strength leaves {reach} {unit} (a reward with few "
                f"values saturates). Choose a wish in that range, or more particles."
            )
        return weights.solve_monotone(distance, target, low, high).exp().item()


def ess(share: float) -> Strength:
    """λ at which importance weights exp(λ r) of base draws keep an effective sample size of `share` · N, 0 < share < 1."""
    if not 0 < share < 1:
        raise ValueError(f"ess takes a share of the particles in (0, 1), not {share}")
    return Strength("ess", float(share))


def kl(nats: float) -> Strength:
    """λ at which the target is `nats` away from the model, KL(π_λ ‖ p) > 0."""
    if not 0 < nats < math.inf:
        raise ValueError(f"kl takes a positive number of nats, not {nats}")
    return Strength("kl", float(nats))


def calibrate(model: Any, reward: str | Callable, *, kl: float | None = None, ess: float | None = None, **run: Any) -> float:
    """The λ that meets a target: `calibrate(model, reward, kl=1.0)` or `ess=0.3`. Keywords are those of `viot.sample`.

    Costs one run of the unsteered model (256 particles unless told otherwise).
    """
    from .sample import sample

    if (kl is None) == (ess is None):
        raise ValueError("calibrate takes one target: kl= (nats) or ess= (share of the particles)")
    wish = globals()["kl"](kl) if kl is not None else globals()["ess"](ess)
    pilot = sample(model, reward, "base", **{"particles": 256, "progress": False, **run, "lam": 0.0})
    return wish.solve(pilot.rewards)
