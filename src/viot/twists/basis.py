"""A few directions of state space that stand for all of it: averages over cells of a picture, or directions of one's own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

#: A state with no more numbers than this is its own basis.
SMALL = 16
#: Cells along each side of anything larger, unless said otherwise.
SIDE = 4


@dataclass(frozen=True)
class Basis:
    """m orthonormal directions: either cells, the number `cell` (D,) of each entry's, or the rows of a matrix (m, D)."""

    m: int
    cell: Tensor | None = None
    matrix: Tensor | None = None

    def project(self, v: Tensor) -> Tensor:
        """(…, *event_shape) with D numbers each -> coordinates (…, m), float64 on the CPU. `v` is (G, N, *event_shape)."""
        flat = v.flatten(2).cpu().double()
        if self.matrix is not None:
            return flat @ self.matrix.T
        assert self.cell is not None
        sums = flat.new_zeros(*flat.shape[:2], self.m).index_add_(-1, self.cell, flat)
        return sums / self._root

    def lift(self, coordinates: Tensor, like: Tensor) -> Tensor:
        """Coordinates (G, N, m) -> (G, N, *event_shape), in the precision and on the device of `like`."""
        if self.matrix is not None:
            flat = coordinates @ self.matrix
        else:
            assert self.cell is not None
            flat = (coordinates / self._root)[..., self.cell]
        return flat.view(*coordinates.shape[:2], *like.shape[2:]).to(like)

    @property
    def _root(self) -> Tensor:
        assert self.cell is not None
        return torch.bincount(self.cell, minlength=self.m).double().sqrt()


def whole(event_shape: tuple[int, ...]) -> Basis:
    """Every entry of the state by itself."""
    return Basis(size := math.prod(event_shape), cell=torch.arange(size))


@lru_cache(maxsize=16)
def basis_of(features: int | Tensor | None, event_shape: tuple[int, ...]) -> Basis:
    """The basis for states of this shape.

    features   None: every entry of a small state, else averages over 4×4 cells of the last two dimensions, for each of the others (the
               channels of a picture); an int: so many cells along each side; a tensor (m, D) or (m, *event_shape): the span of its rows
    """
    size = math.prod(event_shape)
    if features is not None and not isinstance(features, int):
        rows = features.detach().cpu().double().reshape(len(features), -1)
        if rows.shape[1] != size or len(rows) > size:
            raise ValueError(f"features for states {tuple(event_shape)} are (m ≤ {size}, {size}), not {tuple(features.shape)}")
        q, r = torch.linalg.qr(rows.T)
        if not bool((r.diagonal().abs() > 1e-10 * rows.abs().amax()).all()):
            raise ValueError("the rows of features are linearly dependent")
        return Basis(len(rows), matrix=(q * r.diagonal().sign()).T.contiguous())
    if features is None and size <= SMALL:
        return whole(event_shape)
    side = SIDE if features is None else features
    if side < 1:
        raise ValueError(f"features is a number of cells along each side, ≥ 1, not {features}")
    cell, m = torch.zeros(event_shape, dtype=torch.long), 1
    for axis, length in enumerate(event_shape):
        n = length if axis < len(event_shape) - 2 else min(side, length)
        index = (torch.arange(length) * n) // length
        cell = cell * n + index.view(-1, *[1] * (len(event_shape) - 1 - axis))
        m *= n
    return Basis(m, cell=cell.flatten())
