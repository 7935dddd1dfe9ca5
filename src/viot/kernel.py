r"""How a state moves: the transition kernels. The library owns them and never calls a scheduler's `step`.

One Gaussian covers DDPM, DDIM(η), Euler ancestral and flow matching; with x_t = α_t x0 + σ_t ε and s the less noisy level,

    τ = 1 − (α_t σ_s / (α_s σ_t))²      std = η σ_s √τ      mean = α_s x0 + √(σ_s² − std²) · eps      p(x_s | x_t) = N(mean, std²).

A kernel's `step` returns the next state and log p − log q of the draw, which is 0 unless a drift changed the proposal. That ratio comes
from the shift and the noise that was drawn, never as a difference of two log-densities: at 65k dimensions those cancel to noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from .model import Coeffs, Prediction

#: What is added to the logits at these rows and positions (n,): (n, vocabulary).
Bias = Callable[[Tensor, Tensor], Tensor]


class Draw(Protocol):
    """A stream of random numbers for a fixed set of rows (`viot.rng.Draw` is the one that belongs to groups)."""

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor: ...
    def uniform(self, shape: tuple[int, ...]) -> Tensor: ...


class Kernel(Protocol):
    """What moves a state. `drifts` says whether `step` takes a drift: whether the proposal has a density.

    Optional: `noisy_end`, True where the last step of a chain is as random as the others.
    """

    drifts: bool

    def step(
        self, x_t: Tensor, prediction: Prediction, coeffs: Coeffs, eta: float | Tensor, draw: Draw, drift: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...

    def guess(self, x_t: Tensor, prediction: Prediction, draw: Draw | None = None, n: int = 1) -> Tensor: ...


def per_row(value: float | Tensor, like: Tensor) -> Tensor:
    """A scalar or one value per row, float64, shaped to broadcast against `like` (rows, …)."""
    column = torch.as_tensor(value, dtype=torch.float64)
    return column.reshape(column.shape + (1,) * (like.ndim - column.ndim)) if column.ndim else column


def double(value: Tensor) -> Tensor:
    """float64 where the value lives, or on the CPU if its device has none (MPS)."""
    return value.cpu().double() if value.device.type == "mps" else value.double()


def shifted(noise: Tensor, shift: Tensor, spread: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Standard normal noise ξ (rows, …) moved to e = shift + spread ξ, and log N(e; 0, 1) − log N(e; shift, spread²), (rows,) float64.

    From the shift and the noise itself: −shift·ξ − |shift|²/2 where the spread is 1.
    """
    b, xi = double(shift), double(noise)
    if spread is None:
        return shift + noise, -(b * xi + b**2 / 2).flatten(1).sum(1).cpu()
    wide = double(spread)
    # (1 − spread²) ξ²/2 and not a difference of two squares, which may be large and nearly equal.
    ratio = wide.log() - b * wide * xi - b**2 / 2 + (1 - wide**2) * xi**2 / 2
    return shift + spread * noise, ratio.expand_as(xi).flatten(1).sum(1).cpu()


def drawn(logits: Tensor, u: Tensor, broken: int) -> Tensor:
    """Tokens (m, n) of probabilities softmax(logits), (m, vocabulary) float64, by inverse transform of u (m, n) in [0, 1).

    `broken` where the logits say nothing: NaN, +inf, or −inf throughout.
    """
    cdf = logits.softmax(-1).cumsum(-1)
    # Probabilities of 0 at the end of the vocabulary must not be hit by rounding.
    token = torch.searchsorted(cdf, u * cdf[:, -1:], right=True).clamp_(max=cdf.shape[-1] - 1)
    return torch.where(cdf[:, -1:].isfinite(), token, broken)


def at_work(masked: Tensor, prediction: Prediction) -> Tensor:
    """The masks (rows, length), on the CPU, that may be revealed now: all, or those of the lowest block where a model has blocks."""
    if "block" not in prediction.extra:
        return masked
    block = torch.where(masked, prediction.extra["block"].cpu(), torch.iinfo(torch.long).max)
    return masked & (block == block.amin(-1, keepdim=True))


@dataclass(frozen=True)
class Gaussian:
    """The Gaussian kernel of the module's formula. `fresh=True` is that of consistency models: mean α_s x0, std σ_s, whatever η."""

    fresh: bool = False
    drifts = True

    def moments(self, x_t: Tensor, prediction: Prediction, coeffs: Coeffs, eta: float | Tensor) -> tuple[Tensor, Tensor]:
        """Mean (rows, *event) and standard deviation (broadcastable) of p(x_s | x_t)."""
        a_t, s_t, a_s, s_s = (per_row(c, x_t) for c in coeffs)
        x0 = prediction.x0
        if self.fresh:
            return a_s.to(x_t) * x0, s_s.to(x_t)
        tau = (1 - (a_t * s_s / (a_s * s_t)) ** 2).clamp(min=0)
        std = per_row(eta, x_t).to(tau.device) * s_s * tau.sqrt()
        toward = (s_s**2 - std**2).clamp(min=0).sqrt()
        # One state-sized tensor and no more: with eps = (x_t − α_t x0)/σ_t put in, the mean is linear in x0 and x_t.
        if prediction.eps is None:
            toward, a_s, direction = toward / s_t, a_s - toward / s_t * a_t, x_t
        else:
            direction = prediction.eps
        return torch.addcmul(a_s.to(x_t) * x0, toward.to(x_t), direction), std.to(x_t)

    def response(self, coeffs: Coeffs, eta: float) -> tuple[float, float]:
        """How far the mean of a step moves per unit of x0, the direction following it, and the standard deviation of the step."""
        at = torch.zeros(1, 1, dtype=torch.float64)
        mean, std = self.moments(at, Prediction(at + 1), coeffs, eta)
        return float(mean), float(std)

    def step(
        self,
        x_t: Tensor,
        prediction: Prediction,
        coeffs: Coeffs,
        eta: float | Tensor,
        draw: Draw,
        drift: Tensor | None = None,
        spread: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x_s (rows, *event) and log p − log q (rows,) float64. `drift` (rows, *event), in score units, shifts the mean by std² · drift;
        `spread` (rows, *event) multiplies the standard deviation.
        """
        mean, std = self.moments(x_t, prediction, coeffs, eta)
        if not bool((std > 0).any()):
            return mean, torch.zeros(len(x_t), dtype=torch.float64)
        noise = draw.normal(tuple(x_t.shape), x_t.dtype, x_t.device)
        if drift is None and spread is None:
            return mean.addcmul_(std, noise), torch.zeros(len(x_t), dtype=torch.float64)
        shift = torch.zeros_like(noise) if drift is None else std * drift
        moved, ratio = shifted(noise, shift, None if spread is None else torch.where(std > 0, spread, 1.0))
        return mean + std * moved, ratio

    def guess(self, x_t: Tensor, prediction: Prediction, draw: Draw | None = None, n: int = 1) -> Tensor:
        """(rows, n, *event): a Gaussian model's clean guess is its conditional mean, so all n are the same."""
        return prediction.x0.unsqueeze(1).expand(-1, n, *prediction.x0.shape[1:])


@dataclass(frozen=True)
class FlowSDE(Gaussian):
    """The stochastic flow-matching step of Flow-GRPO (arXiv 2505.05470): Euler–Maruyama of the SDE with diffusion η √(σ/(1−σ)).

    For rectified flows, x_σ = (1 − σ) x0 + σ ε; their default is η = 0.7. It agrees with `Gaussian` only as the steps shrink.
    """

    def moments(self, x_t: Tensor, prediction: Prediction, coeffs: Coeffs, eta: float | Tensor) -> tuple[Tensor, Tensor]:
        a_t, s_t, _, s_s = (per_row(c, x_t) for c in coeffs)
        if bool(((a_t + s_t - 1).abs() > 1e-6).any()):
            raise ValueError("FlowSDE is the kernel of rectified flows, α = 1 − σ; this model's grid has another path. Use Gaussian().")
        x0 = prediction.x0
        eps = prediction.eps if prediction.eps is not None else (x_t - a_t.to(x_t) * x0) / s_t.to(x_t)
        back = s_t - s_s
        # σ = 1 makes the diffusion infinite; like the reference, use the next level there.
        level = torch.where(s_t >= 1, s_s, s_t)
        g2 = per_row(eta, x_t).to(level.device) ** 2 * level / (1 - level)
        mean = x_t * (1 - g2 / (2 * s_t) * back).to(x_t) - (eps - x0) * (back * (1 + g2 * (1 - s_t) / (2 * s_t))).to(x_t)
        # The chain ends where σ does: its last step is deterministic, like every other kernel's.
        std = torch.where(s_s > 0, (g2 * back).sqrt(), 0.0)
        return mean, std.to(x_t)


def certainty(prediction: Prediction, at: Tensor) -> Tensor:
    """How sure the model is of these positions (rows, length) bool: the log of its largest probability, 0 elsewhere; float64 on the CPU.

    By `extra["sure"]`, probabilities, where a model says itself what it is sure of.
    """
    if "sure" in prediction.extra:
        # Of probability 0 it is still more sure than of what is not there at all.
        return torch.where(at, prediction.extra["sure"].cpu().double().log().clamp_min(-1e300), 0.0)
    assert prediction.logits is not None
    asked = double(prediction.logits[at.to(prediction.logits.device)])
    return torch.zeros(at.shape, dtype=torch.float64).masked_scatter_(at, (asked.amax(-1) - asked.logsumexp(-1)).cpu().double())


Order = Literal["random", "first-hitting", "confidence", "left"]


@dataclass(frozen=True)
class Categorical:
    """The kernel of masked diffusion: tokens (rows, length) int64, `mask_id` where nothing is revealed yet.

    order    "random": each mask is revealed with probability (σ_t − σ_s) / σ_t, independently: the ancestral kernel of SUBS models (arXiv
             2406.07524). The others reveal n (σ_t − σ_s) / σ_t of n masks, rounded up, and where there are more steps than masks one in a
             random n of the steps: "first-hitting" any of them alike, which with one per step is the ancestral chain of infinitely many
             steps (arXiv 2409.02908); "left" from the left; "confidence" where the model is surest, which has no density and so takes no drift
    remask   the largest probability η with which a revealed token is masked again: ϑ = min(η, σ_s / α_t) (ReMDM-cap, arXiv 2503.00307);
             masks are revealed the more often, so that α_s of all tokens are. None is masked in the last step

    A model may say more in its predictions' `extra`: `block` (rows, length) int64, of which only the lowest with a mask in it is worked on;
    `given` (rows, length) bool, tokens that are never masked again; `sure` (rows, length), the probabilities by which "confidence" ranks.
    Tokens are drawn in float64, at revealed positions only. `drift` is added to the logits: (rows, length, vocabulary), or a function
    (row, position) -> (n, vocabulary) of the n positions that are being revealed.
    """

    mask_id: int
    order: Order = "random"
    remask: float = 0.0
    noisy_end = True

    def __post_init__(self) -> None:
        if self.order not in ("random", "first-hitting", "confidence", "left"):
            raise ValueError(f"order must be 'random', 'first-hitting', 'confidence' or 'left', not {self.order!r}")
        if not 0 <= self.remask < 1:
            raise ValueError(f"remask is a probability in [0, 1), not {self.remask}")

    @property
    def drifts(self) -> bool:
        return self.order != "confidence"

    def step(
        self, x_t: Tensor, prediction: Prediction, coeffs: Coeffs, eta: float | Tensor, draw: Draw, drift: Tensor | Bias | None = None
    ) -> tuple[Tensor, Tensor]:
        """x_s (rows, length) and log p − log q (rows,) float64. η plays no part: revealing is random in itself."""
        if drift is not None and not self.drifts:
            raise ValueError('a drift needs a proposal with a density; order="confidence" has none. Use another order.')
        if prediction.logits is None:
            raise ValueError("a Categorical kernel needs Prediction.logits (rows, length, vocabulary); the model gave none")
        # Tokens are few: everything but the logits is done on the CPU, where float64 and the random numbers are.
        logits, x_s = prediction.logits, x_t.cpu()
        masked = x_s == self.mask_id
        a_t, s_t, _, s_s = (torch.as_tensor(c, dtype=torch.float64, device="cpu").reshape(-1, 1) for c in coeffs)
        shape = tuple(x_s.shape)
        chance = (s_t - s_s) / s_t
        if self.remask:
            again = torch.minimum(torch.tensor(self.remask), s_s / a_t).nan_to_num_(nan=0.0)
            chance = chance + again * a_t / s_t
            kept = masked | prediction.extra["given"].cpu() if "given" in prediction.extra else masked
            x_s = torch.where((draw.uniform(shape) < again) & ~kept, self.mask_id, x_s)
        if self.order == "random":
            reveal = masked & ((draw.uniform(shape) < chance) | (s_s <= 0))
        else:
            reveal = self._counted(masked, prediction, chance, draw) | (masked & (s_s <= 0))
        ratio = torch.zeros(len(x_t), dtype=torch.float64)
        v = draw.uniform(shape)
        row, position = reveal.nonzero(as_tuple=True)
        if not len(row):
            return x_s.to(x_t.device), ratio
        at = (row.to(logits.device), position.to(logits.device))
        proposal = shown = logits[at].cpu().double()
        if drift is not None:
            bias: Tensor = drift[at] if isinstance(drift, Tensor) else drift(row, position)  # type: ignore[index]
            proposal = shown + bias.cpu().double()
        token = drawn(proposal, v[row, position][:, None], self.mask_id)[:, 0]
        x_s = x_s.clone()
        x_s[row, position] = token
        if drift is not None:
            told = token != self.mask_id
            each = (shown[told].log_softmax(-1) - proposal[told].log_softmax(-1)).gather(-1, token[told][:, None])
            ratio.index_add_(0, row[told], each[:, 0])
        return x_s.to(x_t.device), ratio

    def _counted(self, masked: Tensor, prediction: Prediction, chance: Tensor, draw: Draw) -> Tensor:
        """Which masks (rows, length) are revealed when their number is set: in the block that is at work, the first ones of the order."""
        open, n = at_work(masked, prediction), masked.sum(-1, keepdim=True)
        # The steps that are left, 1/chance of them, are dealt out to blocks by what is masked in each.
        here = open.sum(-1, keepdim=True)
        share = 1 / (here / chance / n.clamp_min(1) - 1e-9).ceil().clamp_min(1) if "block" in prediction.extra else chance
        if self.order == "first-hitting":
            key = draw.uniform(tuple(masked.shape))
        elif self.order == "left":
            key = -torch.arange(masked.shape[1], dtype=torch.float64)
        else:
            key = certainty(prediction, open)
        rank = torch.where(open, key, -torch.inf).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        # A hair less, since a product that should be 1 may be more.
        wanted = here * share - 1e-9
        u = draw.uniform((len(masked), 1))
        # The larger numbers come first (LLaDA); but of less than one, or where masks come back, as many as there are on average.
        spread = (wanted < 1 - 1e-6) | bool(self.remask)
        return open & (rank < torch.where(spread, wanted.floor() + (u < wanted - wanted.floor()), wanted.ceil()))

    def guess(self, x_t: Tensor, prediction: Prediction, draw: Draw | None = None, n: int = 1) -> Tensor:
        """(rows, n, length): n fills of the masks, drawn independently per position; without a `draw` the likeliest token of each."""
        masked = x_t == self.mask_id
        if draw is None or prediction.logits is None:
            fill = prediction.x0 if prediction.logits is None else prediction.logits.argmax(-1)
            return torch.where(masked, fill, x_t)[:, None].expand(-1, n, -1)
        # At the masks only: all of a vocabulary in float64 is much.
        row, position = masked.nonzero(as_tuple=True)
        logits = prediction.logits[row, position].cpu().double()
        row, position = row.cpu(), position.cpu()
        out = x_t.cpu()[:, None].repeat(1, n, 1)
        out[row, :, position] = drawn(logits, draw.uniform((len(x_t), n, x_t.shape[1]))[row, :, position], self.mask_id)
        return out.to(x_t.device)
