r"""From masses to ancestors, batched over groups.

A scheme takes masses m (G, K), normalised over K, and uniforms u (G, scheme.uniforms(K)), and returns ancestors (G, K) with
E[N_i] = K m_i, N_i the number of children of i (`fleming_viot` and `argmax` excepted). Everything is float64 on the CPU, and nothing loops
over groups or particles.

==============  =============================================================================================================
multinomial     N ~ Mult(K, m);  Var N_i = K m_i (1 − m_i)
stratified      one point in each of K equal strata;  \|N_i − K m_i\| < 2
systematic      one uniform, K equidistant points;  N_i ∈ {⌊K m_i⌋, ⌈K m_i⌉},  Var N_i = d(1 − d), d = frac(K m_i)
residual        ⌊K m_i⌋ copies, the rest multinomial
ssp             Srinivasan's sampling: N_i ∈ {⌊K m_i⌋, ⌈K m_i⌉}, negatively associated (arXiv 1707.01845)
killing         keep i with probability m_i / max m, else replace it by a draw from m
fleming_viot    keep i with probability m_i / max m, else replace it by a uniform *survivor*; unbiased only as K → ∞
argmax          every child descends from the heaviest particle (the first of several)
==============  =============================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .registry import Registry

schemes = Registry("resampling scheme")

#: Schemes with E[N_i] = K m_i for every K.
UNBIASED = {"multinomial", "stratified", "systematic", "residual", "ssp", "killing"}


@dataclass(frozen=True)
class Scheme:
    """A named resampling scheme: call it with masses (G, K) and uniforms (G, uniforms(K)) to get ancestors (G, K)."""

    name: str
    draw: Callable[[Tensor, Tensor], Tensor]
    uniforms: Callable[[int], int]

    def __call__(self, masses: Tensor, u: Tensor) -> Tensor:
        return self.draw(masses, u)


def _scheme(name: str, summary: str, uniforms: Callable[[int], int]) -> Callable:
    def register(draw: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        schemes.add(name, summary)(Scheme(name, draw, uniforms))
        return draw

    return register


def get(name: str) -> Scheme:
    """The scheme called `name` (a hyphen may stand for an underscore)."""
    return schemes[name.replace("-", "_")].make  # type: ignore[return-value]


def identity(groups: int, particles: int) -> Tensor:
    """Ancestors (G, K) under which everybody stays."""
    return torch.arange(particles).expand(groups, particles)


def counts(ancestors: Tensor) -> Tensor:
    """N (G, K): how many children each particle has."""
    return torch.zeros_like(ancestors).scatter_add_(-1, ancestors, torch.ones_like(ancestors))


def ancestors_of(n: Tensor) -> Tensor:
    """Ancestors (G, K) in ascending order from counts (G, K) that sum to K in each group."""
    g, k = n.shape
    flat = torch.repeat_interleave(n.reshape(-1), output_size=g * k)
    return flat.view(g, k) - torch.arange(g)[:, None] * k


def _cumulative(masses: Tensor) -> Tensor:
    """K · (m_1 + … + m_i), with the last entry exactly K: float error may not lose or invent a particle."""
    k = masses.shape[-1]
    c = masses.cumsum(-1).mul_(k).clamp_(max=k)
    # Particles without mass behind the last one that has some must stay at K too.
    c[c >= c[:, -1:]] = k
    return c


def _from_cumulative_counts(c: Tensor) -> Tensor:
    """Ancestors from the (G, K) integer counts of all particles up to and including each."""
    return ancestors_of(torch.diff(c, dim=-1, prepend=torch.zeros_like(c[:, :1])))


@_scheme("systematic", "one uniform, K equidistant points; the least variance per particle", lambda k: 1)
def systematic(masses: Tensor, u: Tensor) -> Tensor:
    # The points U + k below C number ceil(C − U): no search is needed.
    c = _cumulative(masses)
    full = c >= c.shape[-1]
    c = c.sub_(u).ceil_()
    # K − U rounds to K − 1 for the largest U there is.
    c[full] = c.shape[-1]
    return _from_cumulative_counts(c.long())


@_scheme("stratified", "one uniform point in each of K equal strata", lambda k: k)
def stratified(masses: Tensor, u: Tensor) -> Tensor:
    c = _cumulative(masses)
    whole = c.floor().long()
    inside = u.gather(-1, whole.clamp(max=u.shape[-1] - 1)) < c - whole
    return _from_cumulative_counts(whole + inside)


def _multinomial_counts(masses: Tensor, u: Tensor, n: Tensor) -> Tensor:
    """Counts of the first n[g] of the uniforms u (G, K) in the cells of `masses` (G, K)."""
    keep = torch.arange(u.shape[-1]) < n[:, None]
    points = torch.where(keep, u, 2.0).sort(-1).values
    edges = _cumulative(masses) / masses.shape[-1]
    upto = torch.searchsorted(points, edges, right=False).minimum(n[:, None])
    return torch.diff(upto, dim=-1, prepend=torch.zeros_like(upto[:, :1]))


@_scheme("multinomial", "K independent draws: what most published code does", lambda k: k + 1)
def multinomial(masses: Tensor, u: Tensor) -> Tensor:
    # Normalised exponential spacings are sorted uniforms: linear time, where sorting K of them is not.
    e = torch.log1p(-u).neg_().cumsum_(-1)
    points = e[:, :-1] / e[:, -1:]
    edges = _cumulative(masses) / masses.shape[-1]
    upto = torch.searchsorted(points, edges)
    upto[edges >= 1] = masses.shape[-1]
    return _from_cumulative_counts(upto)


@_scheme("residual", "⌊K m⌋ copies, the rest multinomial", lambda k: k)
def residual(masses: Tensor, u: Tensor) -> Tensor:
    k = masses.shape[-1]
    # The nudge keeps 3 from becoming 2.9999999999999996 -> 2; it is far below the size of any probability that matters.
    copies = (masses * k + 1e-9).floor()
    rest = (masses * k - copies).clamp_min(0)
    left = k - copies.sum(-1).long()
    rest = torch.where((left > 0)[:, None], rest / rest.sum(-1, keepdim=True).clamp_min(1e-300), masses)
    return ancestors_of(copies.long() + _multinomial_counts(rest, u, left))


@_scheme("ssp", "Srinivasan sampling process: counts within one of K m, negatively associated", lambda k: k)
def ssp(masses: Tensor, u: Tensor) -> Tensor:
    g, k = masses.shape
    copies = (masses * k + 1e-9).floor()
    p = (masses * k - copies).clamp_(0, 1)
    # Pairs of neighbours settle one of the two per round, so a tournament of log2 K rounds settles all; each round uses fresh uniforms.
    index, value, used = torch.arange(k).expand(g, k), p.clone(), 0
    settled = torch.zeros_like(p)
    while index.shape[1] > 1:
        pairs = index.shape[1] // 2
        i, j = index[:, : 2 * pairs : 2], index[:, 1 : 2 * pairs : 2]
        a, b = value[:, : 2 * pairs : 2], value[:, 1 : 2 * pairs : 2]
        coin, used = u[:, used : used + pairs], used + pairs
        total = a + b
        low = total < 1
        # low: one of them drops to 0 and the other takes it all. high: one is filled to 1 and the other keeps the excess.
        first = torch.where(low, coin * total < a, coin * (2 - total) < 1 - b)
        stays = torch.where(low == first, i, j)
        done = torch.where(low == first, j, i)
        settled.scatter_(1, done, (~low).to(p))
        rest = torch.where(low, total, total - 1)
        index = torch.cat([stays, index[:, 2 * pairs :]], 1)
        value = torch.cat([rest, value[:, 2 * pairs :]], 1)
    settled.scatter_(1, index, value.round())
    n = (copies + settled).long()
    # Rounding can leave the total off by one; the last active particle absorbs it.
    n.scatter_add_(1, index, k - n.sum(-1, keepdim=True))
    return ancestors_of(n)


def _survive(masses: Tensor, u: Tensor) -> Tensor:
    return u < masses / masses.amax(-1, keepdim=True)


@_scheme("killing", "keep i with probability m_i / max m, else replace it by a draw from m", lambda k: 2 * k)
def killing(masses: Tensor, u: Tensor) -> Tensor:
    k = masses.shape[-1]
    edges = _cumulative(masses) / k
    donors = torch.searchsorted(edges, u[:, k:].contiguous(), right=True).clamp_(max=k - 1)
    return torch.where(_survive(masses, u[:, :k]), identity(len(masses), k), donors)


def donors_among(survivors: Tensor, u: Tensor) -> Tensor:
    """For each u (G, K) in [0, 1) the index of a uniformly chosen survivor of its group; survivors (G, K) bool, at least one per group."""
    upto = survivors.cumsum(-1)
    n = upto[:, -1:]
    rank = (u * n).long().minimum(n - 1)
    # The survivors' indices, packed to the left; the dead all write into a last column that nobody reads.
    k = survivors.shape[-1]
    packed = torch.zeros(len(survivors), k + 1, dtype=torch.long)
    packed.scatter_(-1, torch.where(survivors, upto - 1, k), identity(len(survivors), k))
    return packed.gather(-1, rank)


@_scheme("fleming_viot", "keep i with probability m_i / max m, else copy a uniform survivor", lambda k: 2 * k)
def fleming_viot(masses: Tensor, u: Tensor) -> Tensor:
    k = masses.shape[-1]
    survivors = _survive(masses, u[:, :k])
    return torch.where(survivors, identity(len(masses), k), donors_among(survivors, u[:, k:]))


@_scheme("argmax", "every child descends from the heaviest particle", lambda k: 0)
def argmax(masses: Tensor, u: Tensor) -> Tensor:
    return masses.argmax(-1, keepdim=True).expand_as(masses)
