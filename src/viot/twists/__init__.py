"""Learned twists: proposals that remember which noise led to high rewards. One file per family; `tri-tsmc` fits them, any method follows them."""

from __future__ import annotations

from .affine import Affine, Shift
from .basis import Basis, basis_of
from .linear import VJP, Direction, Linear, Slope
from .neural import Neural
from .tokens import Feature, TokenBias
from .twist import STATISTICS, THETA, Twist, as_twist, twists

__all__ = [
    "STATISTICS", "THETA", "VJP", "Affine", "Basis", "Direction", "Feature", "Linear", "Neural", "Shift", "Slope", "TokenBias", "Twist", "as_twist",
    "basis_of", "twists",
]  # fmt: skip
