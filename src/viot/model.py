"""What a model is: a pretrained reverse Markov chain. Four methods, no base class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor


class Coeffs(NamedTuple):
    """The two noise levels of one step t -> s, x_t = α_t x0 + σ_t ε: floats, or one value per row."""

    alpha_t: float | Tensor
    sigma_t: float | Tensor
    alpha_s: float | Tensor
    sigma_s: float | Tensor


@dataclass(frozen=True)
class Grid:
    """The noise levels a run visits, noisiest first: x_t = α x0 + σ ε.

    `times` (T,) holds what `Model.predict` receives at step j; `alphas` and `sigmas` (T+1,) hold one level more: where the chain ends
    (σ = 0 for most schedulers). For masked diffusion α is the probability that a position is revealed, and σ = 1 − α.
    """

    times: Tensor
    alphas: Tensor
    sigmas: Tensor

    def __post_init__(self) -> None:
        for name in ("alphas", "sigmas"):
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name), dtype=torch.float64, device="cpu"))
        object.__setattr__(self, "times", torch.as_tensor(self.times, device="cpu"))
        n = len(self.times)
        if n < 1 or self.alphas.shape != (n + 1,) or self.sigmas.shape != (n + 1,):
            raise ValueError(
                f"a grid of T steps needs times (T,), alphas (T+1,) and sigmas (T+1,); "
                f"got {tuple(self.times.shape)}, {tuple(self.alphas.shape)} and {tuple(self.sigmas.shape)}"
            )
        if self.times.ndim != 1 or (self.sigmas[:-1] <= 0).any() or (self.alphas[1:] <= 0).any():
            raise ValueError("a grid's times are (T,), σ may be 0 only at its end and α only at its beginning: a step divides by both")
        if not (self.alphas.isfinite().all() and self.sigmas.isfinite().all()):
            raise ValueError("the grid's alphas and sigmas must be finite")
        # σ/α must fall: compare as products, because α may start at 0.
        if (self.sigmas[1:] * self.alphas[:-1] > self.sigmas[:-1] * self.alphas[1:] + 1e-12).any():
            raise ValueError("the grid must go from noisy to clean: σ/α rises somewhere along it")

    def __len__(self) -> int:
        return len(self.times)

    @property
    def signal(self) -> Tensor:
        """(T+1,) share of signal in the variance of x_t, α² / (α² + σ²), where data has variance 1."""
        return self.alphas**2 / (self.alphas**2 + self.sigmas**2)

    def coeffs(self, j: int, k: int | None = None) -> Coeffs:
        """The levels of the step from entry j to entry k (the next one if None)."""
        k = j + 1 if k is None else k
        return Coeffs(float(self.alphas[j]), float(self.sigmas[j]), float(self.alphas[k]), float(self.sigmas[k]))


@dataclass(frozen=True)
class Prediction:
    """What one network call says of x_t. Every tensor has one leading entry per row, `extra` included.

    x0      E[x0 | x_t]; of masked tokens, which have no mean, the argmax fill or x_t itself: the fill is the kernel's `guess`
    eps     the direction of the step; None stands for (x_t − α_t x0) / σ_t
    logits  (rows, length, vocabulary) of a categorical model
    """

    x0: Tensor
    eps: Tensor | None = None
    logits: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> list[Tensor]:
        """Every tensor that is there, in a fixed order."""
        found: list[Tensor] = []
        self.map(lambda v: (found.append(v), v)[1])
        return found

    def map(self, f: Callable[[Tensor], Tensor]) -> Prediction:
        """Apply `f` to every tensor: the one way in which predictions are sliced, joined, gathered and reshaped."""
        return Prediction(
            f(self.x0),
            None if self.eps is None else f(self.eps),
            None if self.logits is None else f(self.logits),
            {name: f(value) for name, value in self.extra.items()},
        )


@runtime_checkable
class Model(Protocol):
    """A pretrained reverse Markov chain. Anyone can write one in 30 lines; `viot.testing.check_model` says what is missing.

    Optional: `kernel` (default `Gaussian()`), `prompts` (one per group), `groups` (how many a run has
    unless it says otherwise; the prompts, or 1), `differentiable` (may gradients pass through `predict` and
    `decode`?), `preview(x0, group)` (a cheaper `decode` for the clean guesses scored on the way), `flags` (name -> (rows,), what a checker
    of the model's own said of the rows decoded last), `prior_std` (a number: x_T ~ N(0, prior_std²) in every entry, so that a learned twist may
    move it), `timeless` (True: predictions depend on the state and its group alone, so that equal states need be asked about only once),
    `release()` (called when a run ends), `config` (plain values for the record). A model of text may also say `pieces(x0)` (for each row the
    strings that its tokens stand for, whose concatenation is the text) and `nll(x0, group, draws, generator)` ((rows,) nats per text, or an
    upper bound). A model never turns gradients off itself.
    """

    event_shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def grid(self, steps: int) -> Grid:
        """The noise levels of a run of `steps` network calls."""
        ...

    def prior(self, n: int, generator: torch.Generator) -> Tensor:
        """x_T, (n, *event_shape), from a CPU generator. May also accept `group` (n,), and `t`, the first time of the grid."""
        ...

    def predict(self, x: Tensor, t: Tensor, group: Tensor) -> Prediction:
        """One network call per row: x (rows, *event_shape), t (rows,) entries of `Grid.times`, group (rows,) indices."""
        ...

    def decode(self, x0: Tensor, group: Tensor) -> Any:
        """What rewards and people see: a tensor (rows, …), or a list with one entry per row."""
        ...
