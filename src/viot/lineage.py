"""Genealogy: who descended from whom, and what is left of the first generation.

`ancestors` (S, G, K) holds, for each of S selections, the parent of every particle among those before it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def roots(ancestors: Tensor) -> Tensor:
    """(S+1, G, K): the initial index of every particle's lineage, before the first selection and after each."""
    _, g, k = ancestors.shape
    found = [torch.arange(k).expand(g, k)]
    for parents in ancestors.long():
        found.append(found[-1].gather(-1, parents))
    return torch.stack(found)


def distinct(index: Tensor) -> Tensor:
    """How many different values the last dimension of an index tensor holds."""
    ordered = index.sort(-1).values
    return 1 + (ordered.diff(dim=-1) != 0).sum(-1)


def distinct_parents(ancestors: Tensor) -> Tensor:
    """(S, G): particles with at least one child at each selection (the lineage diversity L_j of arXiv 2604.06779)."""
    return distinct(ancestors)


def surviving(ancestors: Tensor) -> Tensor:
    """(S+1, G): initial particles with a living descendant after each selection; the last entry is what survived."""
    return distinct(roots(ancestors))


def paths(ancestors: Tensor) -> Tensor:
    """(S+1, G, K): where in each generation the line of every *final* particle stood, the final generation last."""
    _, g, k = ancestors.shape
    line = [torch.arange(k).expand(g, k)]
    for parents in ancestors.long().flip(0):
        line.append(parents.gather(-1, line[-1]))
    return torch.stack(line[::-1])


def coalescence(ancestors: Tensor) -> Tensor:
    """(S+1, G): the share of pairs of final particles whose lines have met by each generation, counted backwards; the last entry is 0."""
    line = paths(ancestors)
    k = line.shape[-1]
    if k < 2:
        return torch.zeros(line.shape[:2], dtype=torch.float64)
    n = torch.zeros(*line.shape[:2], k, dtype=torch.float64).scatter_add_(-1, line, torch.ones_like(line, dtype=torch.float64))
    return (n * (n - 1)).sum(-1) / (k * (k - 1))
