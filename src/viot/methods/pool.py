"""Paths of several samplers as one population: the balance heuristic."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import weights
from ..particles import State
from ..problem import Problem
from ..twists import THETA, Twist

POOL = "pool."


def pooled(
    group: dict[str, Tensor], x: Tensor, rewards: Tensor, parts: dict[str, Tensor], theta: Tensor, statistics: dict[str, Tensor]
) -> dict[str, Tensor]:
    """A population's own values with the finished paths of a round appended to those of earlier ones.

    x (G, N, *event_shape), rewards and their parts (G, N), the θ (G, P) that drew them, and what its family knows of the paths (G, N, …).
    """
    found = {"x": x, "rewards": rewards, "theta": theta[:, None], **{f"part.{k}": v for k, v in parts.items()}}
    found |= {f"statistic.{k}": v for k, v in statistics.items()}
    before = {name: group.get(POOL + name) for name in found}
    return group | {POOL + k: v if before[k] is None else torch.cat([before[k], v], 1) for k, v in found.items()}


def balanced(problem: Problem, state: State, twist: Twist, rounds: int) -> State:
    """The final state of a run with all paths of all rounds, weighed by exp(λ r) p / Σ_j (N_j / N) q_j."""
    group = pooled(state.group, state.x, state.rewards, state.parts, state.group[THETA], twist.held(state))
    pool = {name[len(POOL) :]: value for name, value in group.items() if name.startswith(POOL)}
    statistics, parts = ({k[len(room) :]: v for k, v in pool.items() if k.startswith(room)} for room in ("statistic.", "part."))
    rewards, n = pool["rewards"], pool["rewards"].shape[1]
    drawn = [*[(n - problem.K) // max(1, rounds)] * rounds, problem.K]
    each = zip(pool["theta"].unbind(1), drawn, strict=True)
    log_q = torch.stack([twist.log_ratio(statistics, theta) + math.log(k / n) for theta, k in each])
    return state.but(
        x=pool["x"],
        rewards=rewards,
        parts=parts,
        log_w=weights.tilt(rewards, problem.lam) - log_q.logsumexp(0),
        samples=problem.evaluate.decode(problem.rows(pool["x"]), problem.group_rows(n)),
        roots=torch.arange(n).repeat(problem.G, 1),
        group={name: value for name, value in group.items() if not name.startswith(POOL)},
        extra={},
        cost=problem.evaluate.cost.record(),
    )
