"""A masked-diffusion world small enough to enumerate: strings from a Markov chain, and the exact law of the chain that reveals them.

The network answers with the exact conditional of every masked position. Several positions may be revealed in one step, independently, so
the chain's law is not the data's: it is an average over the orders in which positions appear. All of it is enumerated, nothing is sampled.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

import viot
from viot.model import Grid, Prediction


class MarkovTokens:
    """Strings of `length` letters from a Markov chain with initial law `first` (V,) and transitions `move` (V, V); V is the mask.

    Rows of `move` that all equal `first` make the positions independent.
    """

    dtype, device = torch.long, torch.device("cpu")

    def __init__(self, first: object = None, move: object = None, length: int = 3, remask: float = 0.0) -> None:
        first = torch.tensor([0.5, 0.3, 0.2] if first is None else first, dtype=torch.float64)
        move = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.3, 0.5], [0.1, 0.6, 0.3]] if move is None else move, dtype=torch.float64)
        self.V, self.L = len(first), length
        self.event_shape, self.mask = (length,), self.V
        self.kernel = viot.Categorical(self.V, remask=remask)
        joint = first
        for _ in range(length - 1):
            joint = joint[..., None] * move
        #: P(string) of the data, (V,) * L.
        self.joint = joint
        self.table = self._conditionals()

    # -- exact ------------------------------------------------------------------------------------------------------------------------

    def marginal(self, known: frozenset[int] | set[int]) -> Tensor:
        """P of the letters at these positions, broadcastable against `joint`."""
        others = [i for i in range(self.L) if i not in known]
        return self.joint.sum(others, keepdim=True) if others else self.joint

    def _conditionals(self) -> Tensor:
        """p(letter at a position | what is revealed), ((V + 1)^L, L, V): every state by its number in base V + 1."""
        table = torch.full((*[self.V + 1] * self.L, self.L, self.V), 1 / self.V, dtype=torch.float64)
        for n in range(self.L):
            for known in itertools.combinations(range(self.L), n):
                at = [slice(0, self.V) if i in known else slice(self.V, self.V + 1) for i in range(self.L)]
                below = self.marginal(set(known))
                for i in set(range(self.L)) - set(known):
                    p = self.marginal({*known, i}) / below
                    table[(*at, i)] = p.movedim(i, -1).unsqueeze(i)
        return table.flatten(0, self.L - 1)

    def law(self, steps: int) -> Tensor:
        """P(x_0) of every string under the chain of so many steps, (V,) * L.

        Each position is revealed at a step drawn evenly, independently of the others; those of one step do not see each other.
        """
        out = torch.zeros_like(self.joint)
        for blocks in _orders(tuple(range(self.L))):
            ways = math.comb(steps, len(blocks)) / steps**self.L
            if not ways:
                continue
            p, seen = torch.ones_like(self.joint), frozenset()
            for block in blocks:
                for i in block:
                    p = p * self.marginal(seen | {i}) / self.marginal(seen)
                seen |= set(block)
            out += ways * p
        return out

    def strings(self) -> list[str]:
        """Every string, in the order of `law(…).flatten()`."""
        return ["".join("abcdefgh"[t] for t in row) for row in itertools.product(range(self.V), repeat=self.L)]

    def tilted(self, reward, steps: int, lam: float = 1.0) -> tuple[Tensor, float]:
        """The law ∝ p exp(λ r) over `strings()` (V^L,), and Z = E_p[exp(λ r)]."""
        w = self.law(steps).flatten() * (lam * reward(self.strings()).double()).exp()
        return w / w.sum(), float(w.sum())

    # -- as a model -------------------------------------------------------------------------------------------------------------------

    def grid(self, steps: int) -> Grid:
        revealed = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        return Grid(1 - revealed[:-1], revealed, 1 - revealed)

    def prior(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.full((n, self.L), self.mask)

    def predict(self, x: Tensor, t: Tensor, group: Tensor) -> Prediction:
        code = (x * (self.V + 1) ** torch.arange(self.L - 1, -1, -1)).sum(1)
        logits = self.table[code].log()
        return Prediction(torch.where(x == self.mask, logits.argmax(-1), x), logits=logits)

    def decode(self, x0: Tensor, group: Tensor) -> list[str]:
        return ["".join("abcdefgh?"[t] if t < self.V else "?" for t in row) for row in x0.tolist()]


def frequency_scores(population, model: MarkovTokens, reward, steps: int, lam: float = 1.0, rare: float = 0.004) -> Tensor:
    """How many standard errors Ẑ and the tilted frequency of every string that is not rare lie from the truth, over groups."""
    exact, z = model.tilted(reward, steps, lam)
    found = population.log_z.exp()
    number = {s: i for i, s in enumerate(model.strings())}
    which = torch.tensor([[number[s] for s in group] for group in population.samples])
    share = torch.zeros(len(found), len(number), dtype=torch.float64).scatter_add_(1, which, population.weights)
    gap = (found[:, None] * (share - exact))[:, exact > rare]
    root = len(found) ** 0.5
    return torch.cat([((found.mean() - z) / (found.std() / root))[None], gap.mean(0) / (gap.std(0) / root)])


def _orders(items: tuple[int, ...]):
    """Every way to split positions into a sequence of blocks."""
    if not items:
        yield ()
        return
    for n in range(1, len(items) + 1):
        for block in itertools.combinations(items, n):
            for rest in _orders(tuple(i for i in items if i not in block)):
                yield (block, *rest)
