"""What a beam over masked sequences is made of: children that reveal tokens, their ranks within a beam, and the times at which tokens appear.

Rows below are nodes or children of all beams together; `beam` (rows,) says of which.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernel import certainty, double
from ..model import Grid, Prediction


@dataclass(frozen=True)
class Brood:
    """The children of all nodes of a level, in the order of their parents.

    parent (n,) row of the node; x (n, length) with its new tokens; fill (n, length), every mask that is left filled with the token likeliest
    to the *parent*; log_p (n,) of the new tokens, by the parent's logits.
    """

    parent: Tensor
    x: Tensor
    fill: Tensor
    log_p: Tensor


def doubt(prediction: Prediction, free: Tensor, order: str) -> Tensor:
    """How little the model knows of each free position (rows, length): 1 − the largest probability ("confident"), or the entropy; 0 elsewhere."""
    if order == "confident":
        return torch.where(free, -torch.expm1(certainty(prediction, free)), 0.0)
    logits = prediction.logits
    assert logits is not None
    log_p = double(logits[free.to(logits.device)]).log_softmax(-1)
    entropy = -torch.where(log_p > -torch.inf, log_p.exp() * log_p, 0.0).sum(-1)
    return torch.zeros(free.shape, dtype=torch.float64).masked_scatter_(free, entropy.cpu().double())


def first_positions(key: Tensor, free: Tensor, n: int, skip: Tensor) -> tuple[Tensor, Tensor]:
    """The n free positions of lowest key in each row, beginning with number `skip` (rows,) of them and going round: (rows, n), and which are there."""
    order = torch.where(free, key, torch.inf).argsort(dim=-1, stable=True)
    count = free.sum(-1, keepdim=True)
    turn = torch.arange(n).expand(len(key), n)
    return order.gather(-1, (turn + skip[:, None]) % count.clamp_min(1)), turn < count


def split(branch: int, there: Tensor) -> Tensor:
    """`branch` children dealt out to the positions that are there, (rows, n) bool, as evenly as can be and the first ones first."""
    count = there.sum(-1, keepdim=True).clamp_min(1)
    place = torch.arange(there.shape[-1])
    return torch.where(there, branch // count + (place < branch % count), 0)


def born(
    x: Tensor, guess: Tensor, logits: Tensor, at: Tensor, quota: Tensor, noise: Tensor | None, mask_id: int, extra: Tensor | None, more: int
) -> Brood:
    """Children of nodes x (n, length) whose masks are likeliest to be `guess`: of position at[i, p] the quota[i, p] best tokens.

    at, quota  (n, P)
    noise      (n, P, vocabulary) uniform: tokens are drawn by their probabilities without replacement (Gumbel-top-k) instead
    extra      (n, length) order of preference in which `more` other masks are revealed beside the one, as they were guessed
    """
    rows = torch.arange(len(x))[:, None]
    log_p = logits[rows.to(logits.device), at.to(logits.device)].cpu().double().log_softmax(-1)
    key = log_p if noise is None else log_p - torch.log(-torch.log(noise))
    # A sort where topk would do: ties fall the same way on every machine.
    token = key.argsort(dim=-1, descending=True, stable=True)[..., : int(quota.max())]
    value = log_p.gather(-1, token)
    possible = (torch.arange(token.shape[-1]) < quota[..., None]) & (value > -torch.inf)
    if bool((~possible.flatten(1).any(-1)).any()):
        raise ValueError("the network leaves a masked position without any possible token: its logits are all −inf or NaN there")
    parent, place, which = possible.nonzero(as_tuple=True)
    child, log_p = x[parent].scatter(-1, at[parent, place][:, None], token[parent, place, which][:, None]), value[parent, place, which]
    if extra is not None and more:
        sure = torch.where(child == mask_id, extra[parent], -torch.inf)
        also = sure.argsort(dim=-1, descending=True, stable=True)[:, :more]
        left = sure.gather(-1, also) > -torch.inf
        where = (parent[:, None].to(logits.device), also.to(logits.device))
        likely = logits[where].cpu().double().log_softmax(-1).amax(-1)
        log_p = log_p + torch.where(left, likely, 0.0).sum(-1)
        child = child.scatter(-1, also, torch.where(left, guess[parent].gather(-1, also), child.gather(-1, also)))
    return Brood(parent, child, torch.where(child == mask_id, guess[parent], child), log_p)


def by_rank(beam: Tensor, key: Tensor, log_p: Tensor) -> Tensor:
    """Rows (n,) by beam, in it by falling key, then by falling log_p, then as they came."""
    order = log_p.argsort(descending=True, stable=True)
    order = order[key[order].argsort(descending=True, stable=True)]
    return order[beam[order].argsort(stable=True)]


def place_in(beam: Tensor) -> Tensor:
    """(n,): how many rows of the same beam come before each, in rows that are ordered by beam."""
    return torch.arange(len(beam)) - torch.searchsorted(beam, beam)


def hitting_times(masked: Tensor, u: Tensor, start: float = 1.0) -> Tensor:
    """The times at which masks fall one by one (first-hitting sampling, arXiv 2409.02908), (rows, length), falling; 0 where no mask is left.

    masked (rows,) masks at time `start`, u (rows, length) uniform. Time is the probability with which a position is masked: 1 − α of any
    schedule. Of n masks at time t the next falls at t u^(1/n), so that each is still there at time s with probability s / start.
    """
    n = masked[:, None] - torch.arange(u.shape[-1])
    times = start * (u.double().log() / n.clamp_min(1)).cumsum(-1).exp()
    return torch.where(n > 0, times, 0.0)


def times_of(grid: Grid, share: Tensor) -> Tensor:
    """What the network is told when a position is masked with this probability (rows,): between two entries of the grid, in proportion."""
    level, times = grid.sigmas[:-1].flip(0), grid.times.flip(0).double()
    if len(level) == 1:
        return grid.times.expand(len(share))
    above = torch.searchsorted(level, share).clamp(1, len(level) - 1)
    part = ((share - level[above - 1]) / (level[above] - level[above - 1]).clamp_min(1e-300)).clamp(0, 1)
    found = times[above - 1] + part * (times[above] - times[above - 1])
    return found.to(grid.times.dtype) if grid.times.is_floating_point() else found.round().to(grid.times.dtype)
