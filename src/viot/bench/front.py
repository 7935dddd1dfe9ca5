"""Two rewards that compete: steered by their weighted sums, a method draws a front between them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..population import Population


@dataclass(frozen=True)
class Front:
    """Two rewards, names of members of the sums that steer, and the point above both of whose coordinates a front's hypervolume is counted."""

    rewards: tuple[str, str]
    point: tuple[float, float]

    @staticmethod
    def key(reward: str, pick: bool = False) -> str:
        """Where a row's metrics have a reward's weighted mean, or what each group's best by the sum has of it."""
        return f"part {reward}" + (" pick" if pick else "")

    def read(self, population: Population) -> dict[str, float | None]:
        """Both rewards of an answer, means over the groups; nothing where something else steered."""
        if not set(self.rewards) <= set(population.parts):
            return {}
        living, best, found = population.ess > 0, population.best(1), {}
        for name in self.rewards:
            weighted, picked = population.mean(population.parts[name].double())[living], best.parts[name].double()[living]
            for pick, values in ((False, weighted), (True, picked)):
                mean = float(values.mean()) if len(values) else math.nan
                found[self.key(name, pick)] = mean if math.isfinite(mean) else None
        return found


def weights(names: tuple[str, str], steps: int) -> tuple[str, ...]:
    """Rewards w·a + (1 − w)·b, w from 0 to 1 in so many equal steps, as the command line writes them."""
    a, b = names
    return tuple(f"sum:{i / steps:g}*{a}+{1 - i / steps:g}*{b}" for i in range(steps + 1))
