"""The network's last answers, for models that say the same of equal states whatever the time: nobody is asked twice.

A masked sequence that revealed nothing in a step is the state it was (ddpm_cache of MDLM, arXiv 2406.07524); particles that have just been
resampled, or have not begun, are equal to each other. Groups never share an answer, so that what each costs is its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .model import Prediction
from .particles import first_of


@dataclass
class Answers:
    """The rows that were asked about last, (n, 1 + event): group and state, and what was answered. It changes cost, never the answer."""

    rows: Tensor | None = None
    prediction: Prediction | None = None

    def __call__(self, x: Tensor, group: Tensor, ask: Callable[[Tensor], Prediction]) -> Prediction:
        """The prediction of all rows x (n, *event), from `ask(index)`, which is called once with the rows that are new."""
        rows = torch.cat([group.to(x.device)[:, None], x.flatten(1)], 1)
        n = 0 if self.rows is None else len(self.rows)
        # Old rows first: the first of several equal ones answers for all.
        first = first_of(rows if self.rows is None else torch.cat([self.rows, rows]))[n:]
        fresh = torch.nonzero(first == torch.arange(n, n + len(x), device=x.device))[:, 0]
        if len(fresh) == len(x):
            found = ask(fresh)
        else:
            place = torch.arange(n + len(x), device=x.device)
            place[n + fresh] = n + torch.arange(len(fresh), device=x.device)
            found = _picked(self.prediction, ask(fresh) if len(fresh) else None, place[first], n)
        self.rows, self.prediction = rows, found
        return found


def _picked(old: Prediction | None, new: Prediction | None, index: Tensor, n: int) -> Prediction:
    """Rows of `old` below n, of `new` from n on."""
    if old is None or new is None:
        # Without old ones n is 0.
        whole = new if old is None else old
        assert whole is not None
        return whole.map(lambda v: v[index.to(v.device)])
    pieces = iter(new.tensors())

    def pick(v: Tensor) -> Tensor:
        out = v.new_empty(len(index), *v.shape[1:])
        at, piece = index.to(v.device), next(pieces)
        out[at < n], out[at >= n] = v[at[at < n]], piece[at[at >= n] - n]
        return out

    return old.map(pick)
