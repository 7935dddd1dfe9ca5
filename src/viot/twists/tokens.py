r"""Twists for masked diffusion: what is revealed is tilted, where and when is left to the model.

    q(v at ℓ | x) ∝ p_ℓ(v | x) exp(a(v)),      a(v) = b_v   or   η φ(x, ℓ, v)

Both are exponential families in θ = b or η, so weighted maximum likelihood is concave: observed minus expected features, by Newton's method.
With consistent conditionals the optimal twist never changes where a token is revealed (E over v of ψ*(x + v at ℓ) is ψ*(x) for every ℓ).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..particles import State
from ..problem import Problem
from .twist import Twist, twists


@dataclass(frozen=True, eq=False)
class Biases:
    """What a twist adds to the logits of positions being revealed, and what it saw there.

    Called by the kernel with (row, position) of each; keeps, for `note`, candidates' log-probabilities and features, (n, m) each.
    """

    answer: Any
    seen: list[tuple[Tensor, ...]]

    def __call__(self, row: Tensor, position: Tensor) -> Tensor:
        bias, *seen = self.answer(row, position)
        self.seen.append((row, position, *seen))
        return bias


@dataclass(frozen=True, eq=False)
class _Revealed(Twist):
    """The statistics of one revealed token per position: log p of m candidates, and what the token drawn was among them."""

    tokens: ClassVar[bool] = True

    def width(self, problem: Problem) -> int:
        """m, candidates per position."""
        raise NotImplementedError

    def exponent(self, statistics: dict[str, Tensor], theta: Tensor) -> tuple[Tensor, Tensor]:
        """a(v) of the candidates (G, N, L, m) and of the token drawn (G, N, L)."""
        raise NotImplementedError

    def derivatives(self, statistics: dict[str, Tensor], q: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Σ w (observed − expected) features (G, P), and Σ w their covariance (G, P, P), under candidates' probabilities q (G, N, L, m)."""
        raise NotImplementedError

    def blank(self, problem: Problem, n: int) -> dict[str, Tensor]:
        (length,) = problem.evaluate.model.event_shape
        shape = (problem.G, n, length)
        return {"log_p": torch.full((*shape, self.width(problem)), -torch.inf, dtype=torch.float64)}

    def _normalised(self, statistics: dict[str, Tensor], theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log Σ_v p(v) exp(a(v)) of each position, the candidates' q, and a of the token drawn; tokens that are no candidates have a = 0."""
        log_p = statistics["log_p"]
        a, drawn = self.exponent(statistics, theta)
        rest = (1 - log_p.exp().sum(-1)).clamp_min(0)
        log_z = torch.cat([rest[..., None].log(), log_p + a], -1).logsumexp(-1)
        return log_z, (log_p + a - log_z[..., None]).exp(), drawn

    def log_ratio(self, statistics: dict[str, Tensor], theta: Tensor) -> Tensor:
        log_z, _, drawn = self._normalised(statistics, theta)
        return (drawn - log_z).sum(-1)

    def kl(self, statistics: dict[str, Tensor], w: Tensor, new: Tensor, old: Tensor) -> Tensor:
        log_z, q, _ = self._normalised(statistics, new)
        log_z_old, _, _ = self._normalised(statistics, old)
        moved = self.exponent(statistics, new)[0] - self.exponent(statistics, old)[0]
        each = (q * moved).sum(-1) - (log_z - log_z_old)
        return (w * each.sum(-1)).sum(-1)

    def fit(self, statistics: dict[str, Tensor], w: Tensor, theta: Tensor) -> Tensor:
        eye = torch.eye(theta.shape[1], dtype=torch.float64)
        rho, now, going = None, theta, torch.ones(len(w), dtype=torch.bool)

        def value(at: Tensor) -> Tensor:
            return (w * self.log_ratio(statistics, at)).sum(-1) - (rho * (at - theta).square()).sum(-1) / 2

        for _ in range(30):
            gradient, hessian = self.derivatives(statistics, self._normalised(statistics, now)[1], w)
            if rho is None:
                mean = hessian.diagonal(dim1=-2, dim2=-1).mean(-1)
                rho = (self.shrinkage(w, theta.shape[1]) * mean + 1e-9)[:, None]
            step = torch.linalg.solve(hessian + rho[..., None] * eye, gradient - rho * (now - theta))
            # Concave, but a full step may overshoot where probabilities saturate.
            before, size = value(now), torch.ones(len(w), dtype=torch.float64)
            # Less than rounding is no loss.
            least = before - 1e-12 * (1 + before.abs())
            worse = going & (value(now + step) < least)
            for _ in range(30):
                if not bool(worse.any()):
                    break
                size = torch.where(worse, size / 2, size)
                worse = going & (value(now + size[:, None] * step) < least)
            # Each group stops by itself, so that no group's answer depends on its neighbours.
            going = going & ~worse
            now = torch.where(going[:, None], now + size[:, None] * step, now)
            going = going & (step.abs().amax(-1) > 1e-10)
            if not bool(going.any()):
                break
        return now


@twists.add("tokens", "a bias for each token, shared by positions and steps")
@dataclass(frozen=True, eq=False)
class TokenBias(_Revealed):
    """a(v) = b_v for the `most` tokens that the model expects most of at the start; the others are left alone.

    Zero variance where positions are independent and the reward adds up over them. Its parameters are as many as tokens: for small
    alphabets, or many particles.

    most   how many tokens have a bias
    ids    (1 or G, most) which; −1 for none. Found by the first prediction where not given
    """

    name = "tokens"
    most: int = 50
    ids: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ids is not None:
            object.__setattr__(self, "ids", self.ids.detach().cpu())
        if self.most < 1:
            raise ValueError(f"most must be ≥ 1, not {self.most}")
        if self.ids is not None and (self.ids.ndim != 2 or self.ids.shape[1] != self.most):
            raise ValueError(f"ids are (1 or G, most = {self.most}) numbers of tokens, not of shape {tuple(self.ids.shape)}")

    def size(self, problem: Problem) -> int:
        return self.most

    def width(self, problem: Problem) -> int:
        # As many as there are tokens, which the first prediction tells.
        return 0

    def ready(self, problem: Problem, state: State, shared: bool = False) -> State:
        """The state with the tokens that have a bias, (G, most)."""
        if "twist.ids" in state.group:
            return state
        if self.ids is not None:
            return state.with_group(**{"twist.ids": self.ids.expand(problem.G, -1)})
        assert state.prediction is not None
        assert state.prediction.logits is not None
        masked = (state.x == problem.kernel.mask_id).cpu()  # type: ignore[attr-defined]
        p = state.prediction.logits.cpu().double().softmax(-1)
        expected = (p * masked[..., None]).sum((1, 2))
        if shared:
            expected = expected.sum(0, keepdim=True).expand_as(expected)
        n = min(self.most, expected.shape[-1])
        ids = torch.full((len(expected), self.most), -1)
        ids[:, :n] = expected.argsort(dim=-1, descending=True, stable=True)[:, :n]
        return state.with_group(**{"twist.ids": ids})

    def fitted(self, theta: Tensor, state: State | None = None) -> TokenBias:
        return replace(self, theta=theta, file=None, ids=self.ids if state is None else state.group["twist.ids"][: len(theta)])

    def _ids(self, problem: Problem, state: State) -> Tensor:
        if "twist.ids" in state.group:
            return state.group["twist.ids"]
        if self.ids is None:
            raise ValueError("a tokens twist with parameters needs the ids of the tokens that they belong to: ids=(1, most)")
        return self.ids.expand(problem.G, -1)

    def blank(self, problem: Problem, n: int) -> dict[str, Tensor]:
        held = super().blank(problem, n)
        return {**held, "drawn": torch.full(held["log_p"].shape[:-1], -1)}

    def drift(self, problem: Problem, state: State, eta: float | Tensor) -> Biases:
        assert state.prediction is not None
        assert state.prediction.logits is not None
        ids, theta, n = self._ids(problem, state), self.parameters(problem, state), state.x.shape[1]
        logits = problem.rows(state.prediction.logits)
        if int(ids.max()) >= logits.shape[-1]:
            raise ValueError(f"ids hold the token {int(ids.max())}, and the model has {logits.shape[-1]} tokens")
        whole = torch.zeros(problem.G, logits.shape[-1] + 1, dtype=torch.float64)
        # What is no token falls into a column beyond the vocabulary.
        bias = whole.scatter(1, torch.where(ids < 0, logits.shape[-1], ids), theta)[:, :-1]

        def answer(row: Tensor, position: Tensor) -> tuple[Tensor, ...]:
            g = row // n
            log_p = logits[row.to(logits.device), position.to(logits.device)].cpu().double().log_softmax(-1)
            at = ids[g]
            return bias[g], torch.where(at < 0, -torch.inf, log_p.gather(-1, at.clamp_min(0)))

        return Biases(answer, [])

    def note(self, problem: Problem, before: State, after: State, eta: float, drift: Any) -> dict[str, Tensor]:
        held, n = self.copied(before), before.x.shape[1]
        ids = self._ids(problem, before)
        known = int((ids >= 0).any(0).sum())
        if held["log_p"].shape[-1] != known:
            held["log_p"] = torch.full((*held["drawn"].shape, known), -torch.inf, dtype=torch.float64)
        for row, position, log_p in drift.seen:
            g, i = row // n, row % n
            token = after.x.cpu()[g, i, position]
            match = ids[g] == token[:, None]
            held["log_p"][g, i, position] = log_p[:, :known]
            held["drawn"][g, i, position] = torch.where(match.any(-1), match.int().argmax(-1), -1)
        return held

    def exponent(self, statistics: dict[str, Tensor], theta: Tensor) -> tuple[Tensor, Tensor]:
        drawn = statistics["drawn"]
        of = theta.gather(1, drawn.clamp_min(0).flatten(1)).view_as(drawn)
        return theta[:, None, None, : statistics["log_p"].shape[-1]], torch.where(drawn < 0, 0.0, of)

    def fit(self, statistics: dict[str, Tensor], w: Tensor, theta: Tensor) -> Tensor:
        known = statistics["log_p"].shape[-1]
        return torch.cat([super().fit(statistics, w, theta[:, :known]), theta[:, known:]], -1)

    def derivatives(self, statistics: dict[str, Tensor], q: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        hot = torch.nn.functional.one_hot(statistics["drawn"] + 1, q.shape[-1] + 1)[..., 1:].double()
        expected = torch.einsum("gn,gnlv->gv", w, q)
        covariance = torch.diag_embed(expected) - torch.einsum("gn,gnlv,gnlu->gvu", w, q, q)
        return torch.einsum("gn,gnlv->gv", w, hot) - expected, covariance


@twists.add("feature", "one number: how far to tilt toward a feature of the token, by default the reward of the sequence filled in with it")
@dataclass(frozen=True, eq=False)
class Feature(_Revealed):
    """a(v) = η φ(x, ℓ, v), with φ either a number for each token or, if `phi` is None, λ times what the reward of the likeliest fill gains by having v at
    ℓ, for the `top` likeliest tokens (so many reward rows for each position, once; the others gain 0). η = 1 trusts the fills.

    phi   (V,) a feature of tokens: a lexicon
    """

    name = "feature"
    phi: Tensor | None = None
    top: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.phi is not None:
            object.__setattr__(self, "phi", self.phi.detach().cpu())
        if self.top < 2:
            raise ValueError(f"top must be ≥ 2 tokens to choose among, not {self.top}")
        if self.phi is not None and (self.phi.ndim != 1 or not bool(self.phi.isfinite().all())):
            raise ValueError(f"phi is a finite number for each token, (V,), not of shape {tuple(self.phi.shape)}")
        if self.phi is not None and len(self.levels) > 64:
            raise ValueError(f"phi has {len(self.levels)} different values; round it to at most 64")

    @property
    def levels(self) -> Tensor:
        """The different values of phi: tokens of the same value are one candidate."""
        assert self.phi is not None
        return self.phi.double().unique()

    def size(self, problem: Problem) -> int:
        return 1

    def width(self, problem: Problem) -> int:
        return self.top if self.phi is None else len(self.levels)

    def blank(self, problem: Problem, n: int) -> dict[str, Tensor]:
        held = super().blank(problem, n)
        return {**held, "phi": torch.zeros_like(held["log_p"]), "drawn": torch.zeros(held["log_p"].shape[:-1], dtype=torch.float64)}

    def drift(self, problem: Problem, state: State, eta: float | Tensor) -> Biases:
        assert state.prediction is not None
        assert state.prediction.logits is not None
        n, strength = state.x.shape[1], self.parameters(problem, state)[:, 0]
        logits, x = problem.rows(state.prediction.logits), problem.rows(state.x)
        if self.phi is not None and len(self.phi) != logits.shape[-1]:
            raise ValueError(f"phi has {len(self.phi)} numbers, and the model {logits.shape[-1]} tokens")
        levels = None if self.phi is None else self.levels
        fill = problem.kernel.guess(x, state.prediction.map(problem.rows))[:, 0]
        groups = problem.group_rows(n)

        def answer(row: Tensor, position: Tensor) -> tuple[Tensor, ...]:
            log_p = logits[row.to(logits.device), position.to(logits.device)].cpu().double().log_softmax(-1)
            if self.phi is not None and levels is not None:
                value = self.phi.double().expand_as(log_p)
                which = torch.searchsorted(levels, self.phi.double())
                mass = log_p.new_zeros(len(log_p), len(levels)).index_add_(-1, which, log_p.exp())
                return strength[row // n, None] * value, mass.log(), levels.expand_as(mass), value
            top = log_p.topk(min(self.top, log_p.shape[-1]), dim=-1)
            tried = fill[row][:, None].repeat(1, top.indices.shape[1], 1)
            tried[torch.arange(len(row))[:, None], torch.arange(tried.shape[1]), position[:, None]] = top.indices.to(tried)
            scored = problem.evaluate.score(
                tried.flatten(0, 1), groups[row].repeat_interleave(tried.shape[1]), state.step, f"twist {problem.round}", everybody=False
            ).rewards.view(len(row), -1)
            gained = problem.lam * _finite(scored)
            # The likeliest token is the fill's own; what is not tried gains nothing.
            gained = gained - gained[:, :1]
            value = torch.zeros_like(log_p).scatter_(-1, top.indices, gained)
            spare = self.top - gained.shape[1]
            pad = torch.nn.functional.pad
            return strength[row // n, None] * value, pad(top.values, (0, spare), value=-torch.inf), pad(gained, (0, spare)), value

        return Biases(answer, [])

    def note(self, problem: Problem, before: State, after: State, eta: float, drift: Any) -> dict[str, Tensor]:
        held, n = self.copied(before), before.x.shape[1]
        for row, position, log_p, phi, value in drift.seen:
            at = (row // n, row % n, position)
            held["log_p"][at], held["phi"][at] = log_p, phi
            held["drawn"][at] = value.gather(-1, after.x.cpu()[at][:, None])[:, 0]
        return held

    def exponent(self, statistics: dict[str, Tensor], theta: Tensor) -> tuple[Tensor, Tensor]:
        eta = theta[:, :, None]
        return eta[..., None] * statistics["phi"], eta * statistics["drawn"]

    def derivatives(self, statistics: dict[str, Tensor], q: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        phi = statistics["phi"]
        expected = (q * phi).sum(-1)
        variance = (q * phi.square()).sum(-1) - expected.square()
        gradient = (w[..., None] * (statistics["drawn"] - expected)).sum((-1, -2))
        return gradient[:, None], (w[..., None] * variance).sum((-1, -2))[:, None, None]


def _finite(scores: Tensor) -> Tensor:
    """Scores (n, m) with −inf replaced by the lowest finite one of the row; 0 where there is none."""
    dead = scores.isinf()
    lowest = torch.where(dead, torch.inf, scores).amin(-1, keepdim=True)
    return torch.where(dead, torch.where(lowest.isinf(), 0.0, lowest), scores)
