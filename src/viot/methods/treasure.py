r"""TReASURe: tree search over masked sequences, by beams (arXiv 2509.23146)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from .. import weights
from ..kernel import at_work
from ..model import Prediction
from ..particles import State, copies
from ..problem import Problem
from ..weights import NEG_INF
from .beam import BeamSearch
from .brood import Brood, born, by_rank, doubt, first_positions, place_in, split
from .method import methods

Order = Literal["random", "confident", "entropy"]
Expand = Literal["top", "sample"]
Score = Literal["resubstitute", "own", "samples"]
Prune = Literal["top", "resample"]


@methods.add(
    "treasure",
    "beam search over the order in which a masked text is revealed; a maximiser for tokens",
    cost="K·T network calls, about four times as many rewards",
)
@dataclass(frozen=True)
class TReASURe(BeamSearch):
    r"""Beam search with UnmaskBranch and ResubstituteScore (arXiv 2509.23146). Until no mask is left, each of at most M sequences of a beam

        branches   at a masked position drawn at random: its K likeliest tokens are K children, for one network call
        scores     a child by the reward of its *parent's* likeliest completion with the child's token put in; no further call
        prunes     all children of the beam to the M best by λ · score + γ · log p, p being the probability of the tokens placed so far

    The last score is the reward. A beam over L masks costs 1 + K + … + M network calls, at most M a level, and K rewards for each. As many
    beams as the budget affords run side by side, which differ by their positions; the best K distinct sequences of all are returned, equally
    weighted, fewer where fewer were found. A negative λ minimises.

    The rules of branching and scoring are the paper's; the options, the defaults and what is done with a budget beyond one beam are ours.

    width      M, sequences that a beam keeps            branch     K, children of each
    positions  positions that a sequence branches at, which share its K children (the paper's groups)
    order      which masked positions: "random" as in first-hitting sampling, "confident" or "entropy", where the model knows most. Beams of the
               last two begin each at another place
    shared     all sequences of a beam branch at the same random positions
    expand     "top", the likeliest tokens, or "sample": K different ones drawn by their probabilities (Gumbel-top-k)
    reveal     tokens per level: beside the child's own, the ones the model is surest of. Fewer levels, fewer calls
    score      "resubstitute"; "own", the child's own likeliest completion, for a call of each child; or "samples", the mean over `fills` random
               completions by the parent's probabilities
    prune      "top", or "resample": M draws with replacement ∝ exp(λ Δscore + γ Δlog p), particles from the first level on; with branch=1 and
               expand="sample" that is Feynman–Kac steering, a token at a time
    faithful   γ ≥ 0: how much the model's own opinion counts. At 1 sequences are ranked by the tilted law itself, p(x₀) exp(λ r(x₀))
    dedupe     a sequence that was reached in several ways is kept once, with its best score (particles are never merged)
    beams      how many; None is as many as the budget affords
    """

    name: ClassVar[str] = "treasure"
    reference: ClassVar[str] = "arXiv 2509.23146"

    width: int = 4
    branch: int = 4
    positions: int = 1
    order: Order = "random"
    shared: bool = False
    expand: Expand = "top"
    reveal: int = 1
    score: Score = "resubstitute"
    fills: int = 4
    prune: Prune = "top"
    faithful: float = 0.0
    dedupe: bool = True
    beams: int | None = None

    def __post_init__(self) -> None:
        for name in ("width", "branch", "positions", "reveal", "fills", "beams"):
            value = getattr(self, name)
            if (value is None or value < 1) and not (name == "beams" and value is None):
                raise ValueError(f"treasure needs {name} ≥ 1, not {value!r}")
        if self.positions > self.branch:
            raise ValueError(f"{self.positions} positions share branch={self.branch} children: give each one, branch ≥ {self.positions}")
        for name, kind in (("order", Order), ("expand", Expand), ("score", Score), ("prune", Prune)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(map(repr, get_args(kind)))}, not {getattr(self, name)!r}")
        if not 0 <= self.faithful < math.inf:
            raise ValueError(f"faithful must be ≥ 0 and finite, not {self.faithful}")

    @property
    def start(self) -> int:
        return self.width if self.prune == "resample" else 1

    @property
    def draws(self) -> bool:
        return self.order == "random" or self.score == "samples" or (self.expand, self.prune) != ("top", "top")

    def sizes(self, masked: int) -> list[tuple[int, int]]:
        """How many sequences, and children of them, each level of a beam over so many masks has at most."""
        found, parents = [], self.start
        for _ in range(0, masked, self.reveal):
            found.append((parents, parents * self.branch))
            parents = max(self.start, min(self.width, parents * self.branch))
        return found

    def price(self, masked: int) -> tuple[int, int]:
        """Network and reward rows of a beam over so many masks, at most: fewer where the model thinks a token impossible, or copies are dropped."""
        sizes = self.sizes(masked)
        scored = sum(children for _, children in sizes)
        if self.score == "samples":
            scored = self.fills * scored - (self.fills - 1) * sum(children for _, children in sizes[-1:])
        if self.score == "own":
            return sum([parents for parents, _ in sizes[:1]] + [children for _, children in sizes[:-1]]), scored
        return sum(parents for parents, _ in sizes), scored

    def branched(self, problem: Problem, state: State, node: Tensor, prediction: Prediction) -> Brood:
        """UnmaskBranch: the children of the sequences at places `node`."""
        x, mask = problem.rows(state.x)[node.to(state.x.device)], self.mask(problem)
        guess, logits = problem.kernel.guess(x, prediction)[:, 0].cpu(), prediction.logits
        assert logits is not None
        x = x.cpu()
        free = at_work(x == mask, prediction)
        if self.order == "random":
            key, skip = self.uniform(problem, state, "position", (x.shape[-1],), self.shared)[node], torch.zeros_like(node)
        else:
            key = doubt(prediction, free, self.order)
            skip = self.where(state, node)[1] * (state.step == 0)
        at, there = first_positions(key, free, min(self.positions, x.shape[-1]), skip)
        noise = None
        if self.expand == "sample":
            noise = self.uniform(problem, state, "token", (at.shape[-1], logits.shape[-1]))[node]
        # Masks of a later block may appear beside the child's token, once there are no others.
        extra = free.double() - doubt(prediction, x == mask, "confident") if self.reveal > 1 else None
        return born(x, guess, logits, at, split(self.branch, there), noise, mask, extra, self.reveal - 1)

    def assess(
        self, problem: Problem, state: State, origin: Tensor, brood: Brood, prediction: Prediction
    ) -> tuple[Tensor, dict[str, Tensor], Prediction | None]:
        """What children whose parents are at places `origin` are worth: scores (n,), the parts of finished ones, and what the network said of them."""
        whole, device = (brood.x != self.mask(problem)).all(-1), state.x.device
        group, scores = origin // state.log_w.shape[1], torch.full((len(origin),), torch.nan, dtype=torch.float64)
        index, ahead = torch.tensor(problem.groups)[group], None
        if len(at := torch.nonzero(~whole)[:, 0]):
            x, guess = brood.x[at].to(device), brood.fill[at, None]
            if self.score == "own":
                own = self.predicted(problem, state, origin[at], x, state.step + 1)
                guess = problem.kernel.guess(x, own)[:, :1]
                # The finished have none, and need none.
                ahead = own.map(lambda v: v.new_zeros(len(whole), *v.shape[1:]).index_copy(0, at.to(v.device), v))
            elif self.score == "samples":
                draw = problem.draw(state.step, "fill", counts=torch.bincount(group[at], minlength=problem.G).tolist())
                parents = prediction.map(lambda v: v[brood.parent[at].to(v.device)])
                guess = problem.kernel.guess(x, parents, draw, self.fills)
            n = guess.shape[1]
            found = problem.evaluate.score(guess.flatten(0, 1).to(device), index[at].repeat_interleave(n), state.step)
            scores[at] = found.rewards.view(-1, n).mean(-1)
        parts: dict[str, Tensor] = {}
        if len(at := torch.nonzero(whole)[:, 0]):
            found = self.finished(problem, brood.x[at].to(device), index[at])
            scores[at] = found.rewards
            parts = {name: torch.full_like(scores, torch.nan).index_copy(0, at, part) for name, part in found.parts.items()}
        return scores, parts, ahead

    def worth(self, problem: Problem, scores: Tensor, log_p: Tensor) -> Tensor:
        """λ · score + γ · log p: what sequences are ranked by."""
        return weights.tilt(scores, problem.lam) + self.faithful * log_p

    def pruned(self, problem: Problem, state: State, origin: Tensor, brood: Brood, scores: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
        """Which child each place (G · places,) goes to, −1 where nothing changes; and which of these are empty: copies of their beam's first."""
        beam, worth = origin // self.width, self.worth(problem, scores, log_p)
        order = by_rank(beam, worth, log_p)
        if self.dedupe and self.prune == "top":
            order = order[~copies(torch.cat([beam[order, None], brood.x[order]], -1))]
        kept = torch.full((state.log_w.numel() // self.width, self.width), -1)
        if self.prune == "resample":
            drawn = self.drawn(problem, state, origin, order, scores, log_p)
            kept[beam.unique()] = drawn
        else:
            place = place_in(beam[order])
            first = place < self.width
            kept[beam[order][first], place[first]] = order[first]
        empty = (kept < 0) & (kept[:, :1] >= 0)
        return torch.where(empty, kept[:, :1], kept).flatten(), empty.flatten()

    def drawn(self, problem: Problem, state: State, origin: Tensor, order: Tensor, scores: Tensor, log_p: Tensor) -> Tensor:
        """(beams that are open, M) children drawn systematically ∝ exp(λ Δscore + γ Δlog p)."""
        beam = origin[order] // self.width
        which, row = beam.unique(return_inverse=True)
        table = torch.full((len(which), self.width * self.branch), -1)
        table[row, place_in(beam)] = order
        there = table >= 0

        # A forbidden guess is low, but not worthless, as everywhere.
        now = weights.floored(torch.where(there, scores[table], NEG_INF), problem.lam)
        held = state.rewards.view(-1, self.width)[which].nan_to_num(nan=0.0)
        before = weights.floored(held, problem.lam).gather(-1, (origin % self.width)[table])
        risen = log_p[table] - problem.rows(state.extra["cumlogp"])[origin][table]
        log_w = torch.where(there, problem.lam * (now - before) + self.faithful * risen, NEG_INF)
        u = self.uniform(problem, state, "select", (), shared=True).view(-1, self.width)[which, :1]
        edges = (log_w - log_w.amax(-1, keepdim=True)).exp().cumsum(-1)
        points = (torch.arange(self.width) + u) / self.width * edges[:, -1:]
        return table.gather(-1, torch.searchsorted(edges, points, right=True).clamp_max(there.sum(-1, keepdim=True) - 1))
