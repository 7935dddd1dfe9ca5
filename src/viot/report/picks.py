"""Which few of many to look at: the best, and good ones that differ from it and from each other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor

from .files import ranked

if TYPE_CHECKING:
    from ..population import Population

#: Diverse picks come from this share of a group, by reward, and from at least so many.
TOP_SHARE, TOP_LEAST = 0.5, 8
#: Pictures are compared at this size: what differs there differs to the eye.
SIDE = 16


def best(population: Population, i: int) -> int:
    """The particle of highest reward in the group at position i."""
    return int(ranked(population)[i, 0])


def diverse(population: Population, i: int, n: int = 4) -> list[int]:
    """Up to n further particles of the group at position i, in order of choice.

    Among the better half the one that is farthest from all chosen so far, the best included (greedy max-min in pixel space), from a first
    ancestor that has none yet wherever one is left: copies of one ancestor share most of their path. Exact copies are not repeated.
    """
    order, rewards = ranked(population)[i], population.rewards[i]
    alive = order[rewards[order].isfinite()]
    if len(alive) < 2 or n < 1:
        return []
    pool = alive[: max(TOP_LEAST, math.ceil(TOP_SHARE * len(alive)))]
    points = small(population.samples[i][pool])
    roots = population.roots[i][pool]
    gap = torch.cdist(points, points[:1], compute_mode="donot_use_mm_for_euclid_dist")[:, 0]
    used, chosen = {int(roots[0])}, []
    while len(chosen) < min(n, len(pool) - 1) and float(gap.max()) > 1e-6:
        fresh = torch.tensor([int(r) not in used for r in roots]) & (gap > 1e-6)
        where = int(torch.where(fresh, gap, -1.0).argmax()) if bool(fresh.any()) else int(gap.argmax())
        chosen.append(int(pool[where]))
        used.add(int(roots[where]))
        nearer = torch.cdist(points, points[where : where + 1], compute_mode="donot_use_mm_for_euclid_dist")[:, 0]
        gap = torch.minimum(gap, nearer)
    return chosen


def small(samples: Tensor) -> Tensor:
    """Pictures (n, C, H, W), or the middle frames of videos (n, F, C, H, W), as points (n, D) of a size that eyes compare."""
    pictures = samples[:, samples.shape[1] // 2] if samples.ndim == 5 else samples
    pictures = pictures.float().nan_to_num(nan=0.0).clamp(0, 1)
    side = [min(SIDE, s) for s in pictures.shape[-2:]]
    return F.adaptive_avg_pool2d(pictures, side).flatten(1)
