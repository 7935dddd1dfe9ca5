"""The contract's own tests, for strangers' code: `check_model`, `check_reward`, `check_method`.

Each is a plain function that raises AssertionError with a sentence that says what the contract wants, and returns nothing when all is well.
Call them from a test of your own, or once at a prompt:

    from viot.testing import check_model
    def test_my_model():
        check_model(MyModel())
"""

from __future__ import annotations

import contextlib
import copy
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import reward as rewarding
from .kernel import Categorical, Gaussian
from .methods import make
from .model import Grid, Prediction
from .models import as_model
from .particles import State
from .population import Population
from .problem import SteeringWarning
from .rewards import as_reward
from .rng import Draw, Rng
from .sample import Run, prepare

__all__ = ["check_method", "check_model", "check_reward"]


# -- models ---------------------------------------------------------------------------------------------------------------------------


def check_model(model: Any, steps: int = 8, tolerance: float = 1e-4) -> None:
    """Does this Model keep the contract of `viot.Model`? Raises AssertionError if not.

    It walks the unsteered chain of `steps` steps and checks that

    - the members are there, and `grid(T)` is a valid Grid of T steps for several T, the same every time it is asked;
    - `prior` has its shape and dtype, draws from the generator that it is given and from nothing else;
    - `predict` returns a Prediction of the right shapes (for tokens: logits), takes one time and one group per row, leaves x as it was, and
      says the same of a row alone, among others, in another order and beside rows of other times;
    - `predict` leaves gradients on; if `differentiable` is declared True, they reach x through `predict` and `decode`;
    - `decode` gives one sample per row, each from its own row;
    - nothing reads or moves torch's global random state.

    tolerance   how far two predictions of the same row may differ, relative to the largest value: networks round differently in batches of
                different sizes. Bit-equality is not asked for.
    """
    model = _model(model)
    what = type(model).__name__
    categorical = not model.dtype.is_floating_point
    kernel = getattr(model, "kernel", None) or Gaussian()
    for verb in ("step", "guess"):
        _require(callable(getattr(kernel, verb, None)), f"{what}.kernel must have step and guess, like viot.Gaussian(); it lacks {verb}")
    prompts = getattr(model, "prompts", None)
    _require(prompts is None or len(prompts) > 0, f"{what}.prompts must hold one prompt per group, or be None; it is empty")

    for total in sorted({1, 2, steps, 2 * steps + 1}):
        # A model may need more steps than one: it says so.
        with contextlib.suppress(ValueError) if total < steps else contextlib.nullcontext():
            _check_grid(model, total)
    _check_prior(model, categorical)

    n, grid = 5, model.grid(steps)
    group = torch.arange(n)
    x = _prior(model, n, 0).to(model.device)
    visited, predictions = [], []
    for j in range(steps):
        t = grid.times[j].to(model.device).expand(n)
        prediction = _predict(model, x, t, group, f"at step {j}")
        _check_shapes(prediction, x, what, categorical)
        visited.append(x)
        predictions.append(prediction)
        with torch.no_grad():
            x, _ = kernel.step(x, prediction, grid.coeffs(j), 1.0, Draw(Rng(0), [0], j, "check"))
        _require(categorical or bool(x.isfinite().all()), f"the chain of {what} leaves the finite numbers at step {j} of {steps}")

    def compare(rows: Tensor | slice, got: Prediction, expected: Prediction, how: str) -> None:
        for name, value in _fields(expected).items():
            if categorical and name == "x0":
                continue  # an argmax may tip on the last bit
            gap = _distance(_fields(got)[name], value[rows])
            _require(
                gap <= tolerance,
                f"{what}.predict is not a function of each row alone: {name} of the same x_t and t differs by {gap:.2g} (relative) {how}. "
                f"Look for a statistic over the batch, a layer in training mode (batch norm, dropout), or the first row's t used for all.",
            )

    for j in sorted({0, steps // 2, steps - 1}):
        t = grid.times[j].to(model.device).expand(n)
        for i in range(n):
            one = slice(i, i + 1)
            compare(one, _predict(model, visited[j][one], t[one], group[one], "for one row"), predictions[j], "between batches of 1 and 5")
        back = torch.arange(n - 1, -1, -1)
        compare(back, _predict(model, visited[j][back], t, group[back], "in reversed order"), predictions[j], "when the batch is reversed")
    at = [min(i * steps // n, steps - 1) for i in range(n)]
    mixed = torch.stack([visited[j][i] for i, j in enumerate(at)])
    together = _predict(
        model, mixed, grid.times[at].to(model.device), group, "with another time in every row: t is (rows,), as trees need it"
    )
    for i, j in enumerate(at):
        one = slice(i, i + 1)
        compare(one, together.map(lambda v: v[one]), predictions[j], "beside rows of other times t")  # noqa: B023

    _check_gradients(model, visited[steps // 2], grid.times[steps // 2].to(model.device).expand(n), group, categorical)
    _check_decode(model, predictions[-1].x0 if not categorical else x, group, tolerance)


def _model(model: Any) -> Any:
    try:
        model = as_model(model)
    except TypeError as error:
        raise AssertionError(str(error)) from None
    what, shape = type(model).__name__, model.event_shape
    _require(
        isinstance(shape, tuple) and all(isinstance(d, int) and d > 0 for d in shape),
        f"{what}.event_shape must be a tuple of whole numbers, the shape of one x_t without the row dimension; it is {shape!r}",
    )
    _require(isinstance(model.dtype, torch.dtype), f"{what}.dtype must be the torch.dtype of x_t, not {model.dtype!r}")
    _require(isinstance(model.device, torch.device), f"{what}.device must be a torch.device, not {model.device!r}")
    return model


def _check_grid(model: Any, steps: int) -> None:
    what = type(model).__name__
    grid = model.grid(steps)
    _require(isinstance(grid, Grid), f"{what}.grid({steps}) must return a viot.Grid, not {type(grid).__name__}")
    _require(len(grid) == steps, f"{what}.grid({steps}) has {len(grid)} steps: T steps are T times, and T + 1 alphas and sigmas")
    _require(
        grid.times.ndim == 1,
        f"{what}.grid({steps}).times must be (T,): what predict receives at each step; it is {tuple(grid.times.shape)}",
    )
    _require(bool((grid.alphas[1:] > 0).all()), f"{what}.grid({steps}): α must be > 0 after the first step; the state would hold no signal")
    model.grid(steps + 1)
    again = model.grid(steps)
    same = all(torch.equal(getattr(grid, name), getattr(again, name)) for name in ("times", "alphas", "sigmas"))
    _require(same, f"{what}.grid({steps}) answers differently the second time; it must depend on `steps` alone")


def _prior(model: Any, n: int, seed: int) -> Tensor:
    asks: dict[str, Any] = {"group": torch.zeros(n, dtype=torch.long)} if rewarding.takes(model.prior, "group") else {}
    if rewarding.takes(model.prior, "t"):
        asks["t"] = model.grid(4).times[0]
    return model.prior(n, torch.Generator().manual_seed(seed), **asks)


def _check_prior(model: Any, categorical: bool) -> None:
    what = type(model).__name__
    with _global_rng_untouched(f"{what}.prior"):
        x = _prior(model, 3, 0)
    _require(isinstance(x, Tensor), f"{what}.prior must return a tensor, not {type(x).__name__}")
    for n in (1, 3):
        shape = tuple(_prior(model, n, 0).shape)
        _require(
            shape == (n, *model.event_shape),
            f"{what}.prior({n}, …) has shape {shape}; it must be (n, *event_shape) = {(n, *model.event_shape)}",
        )
    _require(x.dtype == model.dtype, f"{what}.prior returns {x.dtype}, but {what}.dtype says {model.dtype}")
    _require(
        x.device.type in (model.device.type, "cpu"), f"{what}.prior must return a tensor on the CPU or on {model.device}, not on {x.device}"
    )
    with _another_global_seed():
        again = _prior(model, 3, 0)
    _require(
        torch.equal(x, again),
        f"{what}.prior draws differently from two generators with the same seed: every random number must come from the generator it is "
        f"given, none from torch's global random state",
    )
    if not categorical:
        _require(
            not torch.equal(x, _prior(model, 3, 1)) and not torch.equal(x[0], x[1]),
            f"{what}.prior returns the same numbers for another seed, or for two rows: draw them all from the generator it is given",
        )


def _predict(model: Any, x: Tensor, t: Tensor, group: Tensor, when: str) -> Prediction:
    """One prediction under no_grad, with what must never happen in it."""
    what, kept = type(model).__name__, x.clone()
    with torch.no_grad(), _global_rng_untouched(f"{what}.predict"):
        try:
            prediction = model.predict(x, t, group.to(x.device))
        except Exception as error:
            raise AssertionError(f"{what}.predict failed {when}: {type(error).__name__}: {error}") from error
        _require(not torch.is_grad_enabled(), f"{what}.predict turned gradients on; leave them to the caller")
    _require(isinstance(prediction, Prediction), f"{what}.predict must return a viot.Prediction, not {type(prediction).__name__}")
    _require(torch.equal(x, kept), f"{what}.predict changed x in place; the caller still needs it: work on a copy")
    return prediction


def _check_shapes(prediction: Prediction, x: Tensor, what: str, categorical: bool) -> None:
    got = tuple(prediction.x0.shape)
    _require(got == tuple(x.shape), f"{what}.predict returned x0 of shape {got} for x of shape {tuple(x.shape)}; they must be equal")
    if prediction.eps is not None:
        got = tuple(prediction.eps.shape)
        _require(got == tuple(x.shape), f"{what}.predict returned eps of shape {got} for x of shape {tuple(x.shape)}; they must be equal")
    for name, value in prediction.extra.items():
        _require(
            value.shape[:1] == x.shape[:1], f"{what}.predict: extra[{name!r}] must have one leading entry per row, not {tuple(value.shape)}"
        )
    if not categorical:
        _require(bool(prediction.x0.isfinite().all()), f"{what}.predict returned an x0 that is not finite")
        return
    logits = prediction.logits
    if logits is None:
        raise AssertionError(
            f"{what} works on tokens ({x.dtype}), so predict must return Prediction(x0, logits=…), (rows, length, vocabulary)"
        )
    _require(
        logits.ndim == x.ndim + 1 and logits.shape[:-1] == x.shape,
        f"{what}.predict returned logits of shape {tuple(logits.shape)}, not (rows, length, vocabulary) for x of shape {tuple(x.shape)}",
    )
    good = not bool(logits.isnan().any()) and bool((logits > -torch.inf).any(-1).all()) and bool((logits < torch.inf).all())
    _require(good, f"{what}.predict returned logits with NaN, +inf, or no possible token at some position (−inf forbids a token)")
    _require(
        not prediction.x0.is_floating_point(),
        f"{what}.predict must return tokens as x0 (the argmax fill, or x_t itself), not {prediction.x0.dtype}",
    )


def _check_gradients(model: Any, x: Tensor, t: Tensor, group: Tensor, categorical: bool) -> None:
    what, declared = type(model).__name__, getattr(model, "differentiable", None)
    if declared is False or categorical:
        return
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        group = group.to(x.device)
        x0 = model.predict(x, t, group).x0
        _require(torch.is_grad_enabled(), f"{what}.predict turned gradients off for its caller (torch.set_grad_enabled?)")
        _require(
            x0.requires_grad,
            f"{what}.predict cuts the graph: x asked for gradients, and x0 has none. A model never turns gradients off itself (no_grad, "
            f"inference_mode, detach); the library does where it needs none. If the network has none, declare differentiable = False.",
        )
        if not declared:
            return
        samples = model.decode(x0, group)
        _require(
            isinstance(samples, Tensor) and samples.requires_grad,
            f"{what} declares differentiable = True, but {what}.decode cuts the graph: gradients of a reward must pass through it",
        )
        (gradient,) = torch.autograd.grad(samples.double().sum(), x, allow_unused=True)
    if gradient is None:
        raise AssertionError(f"{what} declares differentiable = True, but no gradient of its samples reaches x")
    _require(bool(gradient.isfinite().all()), f"{what}: the gradient of the samples with respect to x is not finite")


def _check_decode(model: Any, x0: Tensor, group: Tensor, tolerance: float) -> None:
    what, kept, group = type(model).__name__, x0.clone(), group.to(x0.device)
    with torch.no_grad(), _global_rng_untouched(f"{what}.decode"):
        samples = model.decode(x0, group)
        alone = [model.decode(x0[i : i + 1], group[i : i + 1]) for i in range(len(x0))]
    _require(torch.equal(x0, kept), f"{what}.decode changed x0 in place; work on a copy")
    sized = hasattr(samples, "__len__") and len(samples) == len(x0)
    _require(
        sized,
        f"{what}.decode must return one sample per row: a tensor (rows, …) or a list; for {len(x0)} rows it returned {_outline(samples)}",
    )
    for i, one in enumerate(alone):
        _require(
            len(one) == 1 and _alike(one[0], samples[i], tolerance),
            f"{what}.decode is not a function of each row alone: sample {i} differs between a batch of 1 and of {len(x0)}",
        )
    spell: Any = getattr(model, "pieces", None)
    if callable(spell):
        spelled: Any = spell(x0)
        for i, (parts, text, row) in enumerate(zip(spelled, samples, x0, strict=True)):
            _require(
                len(parts) == row.numel() and "".join(parts) == text,
                f"{what}.pieces must return, for each row, one string per token whose concatenation is what decode returns; for row {i} they are "
                f"{parts!r}, the text is {text!r}",
            )


# -- rewards --------------------------------------------------------------------------------------------------------------------------


def check_reward(reward: Callable | str, samples: Any, prompts: list[Any] | None = None, tolerance: float = 1e-4) -> None:
    """Does this reward keep the contract of `viot.Reward`? Raises AssertionError if not.

    samples     what a model decodes: a tensor (n, …) or a list of n, as different from each other as they may be; n ≥ 2
    prompts     one per sample, for a reward that asks for them
    tolerance   how far two scores of the same sample may differ, relative to the largest: batches of different sizes round differently

    It checks that the reward returns (n,) numbers, finite or −inf, for n samples and for one; that a sample's score does not depend on
    which others are scored with it, or on their order; that the samples stay as they were; that scores repeat without touching torch's
    global random state (a random reward asks for `noise`, and is judged at fixed noise); and, if it declares `differentiable = True`, that
    finite gradients reach the samples.
    """
    try:
        reward = as_reward(reward)
        rewarding.asks_for(reward)
    except TypeError as error:
        raise AssertionError(str(error)) from error
    what, n = f"the reward {rewarding.name_of(reward)}", len(samples)
    _require(n >= 2, f"check_reward needs at least 2 samples, to score them together and apart; it got {n}")
    _require(prompts is None or len(prompts) == n, "check_reward takes one prompt per sample")
    # A combination takes a number for each of its members.
    width = getattr(reward, "noises", 1)
    noise = torch.randn((n, width) if width > 1 else (n,), generator=torch.Generator().manual_seed(0))
    prompts = ["a prompt"] * n if prompts is None else list(prompts)
    declared = getattr(reward, "differentiable", None)

    def score(chosen: list[int], given: Any = None) -> Tensor:
        rows = torch.tensor(chosen)
        offers = {"group": torch.zeros(len(chosen), dtype=torch.long), "noise": noise[rows], "prompts": [prompts[i] for i in chosen]}
        given = _pick(samples, chosen) if given is None else given
        try:
            return rewarding.call(reward, given, len(chosen), offers)[0]
        except Exception as error:
            raise AssertionError(f"{what} failed on {len(chosen)} of the {n} samples: {type(error).__name__}: {error}") from error

    everyone = list(range(n))
    with torch.no_grad():
        given = _pick(samples, everyone)
        with _global_rng_untouched(what, "a random reward names a parameter `noise` and gets one standard normal number per sample"):
            together = score(everyone, given).double().cpu()
        _require(_alike(given, samples, 0.0), f"{what} changed the samples in place; they belong to the population: work on a copy")
        _require(
            not bool((together.isnan() | (together == torch.inf)).any()),
            f"{what} returned NaN or +inf; a score is finite, or −inf for what must never be chosen",
        )
        with _another_global_seed():
            again = score(everyone).double().cpu()
        _require(
            _alike(again, together, tolerance), f"{what} scores the same samples differently a second time; ask for `noise` if it is random"
        )
        for size in sorted({1, 2, max(1, n // 2), n - 1}):
            parts = [everyone[i : i + size] for i in range(0, n, size)]
            sliced = torch.cat([score(part).double().cpu() for part in parts])
            _require(
                _alike(sliced, together, tolerance),
                f"{what} does not score each sample by itself: in slices of {size} they become {_numbers(sliced)} instead "
                f"of {_numbers(together)}. Slices may have any size, so no mean, rank or normalisation over the batch may enter.",
            )
        back = score(everyone[::-1]).double().cpu().flip(0)
        _require(_alike(back, together, tolerance), f"{what} depends on the order of the samples; score each by itself")
    if declared is True:
        _require(
            isinstance(samples, Tensor) and samples.is_floating_point(),
            f"{what} declares differentiable = True, but the samples are not a floating-point tensor that could carry gradients",
        )
        with torch.enable_grad():
            leaf = samples.detach().clone().requires_grad_()
            scores = score(everyone, leaf)
            _require(scores.requires_grad, f"{what} declares differentiable = True, but its scores carry no graph back to the samples")
            (gradient,) = torch.autograd.grad(scores[scores.isfinite()].sum(), leaf, allow_unused=True)
        if gradient is None:
            raise AssertionError(f"{what} declares differentiable = True, but no gradient of its scores reaches the samples")
        _require(bool(gradient.isfinite().all()), f"{what}: the gradient of the scores is not finite")


# -- methods --------------------------------------------------------------------------------------------------------------------------


class _Isotropic:
    """N(0, v I) data in two dimensions, float64; t is σ. Additions, products and roots only, so that every batch rounds alike."""

    event_shape, dtype, device, differentiable = (2,), torch.float64, torch.device("cpu"), True
    variance = 0.5

    def __init__(self) -> None:
        self.rows = 0

    def grid(self, steps: int) -> Grid:
        sigmas = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        return Grid(sigmas[:-1], (1 - sigmas**2).sqrt(), sigmas)

    def prior(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, 2, generator=generator, dtype=torch.float64)

    def predict(self, x: Tensor, t: Tensor, group: Tensor) -> Prediction:
        self.rows += len(x)
        alpha2 = 1 - t * t
        return Prediction(x * (alpha2.sqrt() * self.variance / (alpha2 * self.variance + t * t))[:, None])

    def decode(self, x0: Tensor, group: Tensor) -> Tensor:
        return x0


class _Closeness:
    """−|x − (1, 1)|², summed without a reduction over a dimension whose order could change with the batch."""

    name, differentiable = "closeness", True

    def __call__(self, samples: Tensor) -> Tensor:
        gap = samples - 1.0
        return -(gap[:, 0] * gap[:, 0] + gap[:, 1] * gap[:, 1])


class _Letters:
    """Four letters of three, masked; what is likely depends on what is revealed. Whole numbers alone, so that every batch rounds alike."""

    event_shape, dtype, device = (4,), torch.int64, torch.device("cpu")
    kernel = Categorical(3)

    def __init__(self) -> None:
        self.rows = 0

    def grid(self, steps: int) -> Grid:
        revealed = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        return Grid(1 - revealed[:-1], revealed, 1 - revealed)

    def prior(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.full((n, 4), 3)

    def predict(self, x: Tensor, t: Tensor, group: Tensor) -> Prediction:
        self.rows += len(x)
        known = torch.where(x == 3, 5, x) * torch.tensor([1, 2, 3, 5])
        likes = (known.sum(-1)[:, None, None] + torch.arange(4)[:, None] + torch.arange(3)) % 7
        logits = likes.double() / 4 - (t * 0.25)[:, None, None]
        return Prediction(torch.where(x == 3, logits.argmax(-1), x), logits=logits)

    def decode(self, x0: Tensor, group: Tensor) -> Tensor:
        return x0


class _Spelling:
    """Scores for letters and for two of them side by side."""

    name = "spelling"

    def __call__(self, samples: Tensor) -> Tensor:
        pairs = (samples[:, :-1] == 2) & (samples[:, 1:] == 0)
        return (samples == 1).sum(-1) + 1.75 * pairs.sum(-1).double() - 0.25 * (samples[:, 0] == 0)


def check_method(method: Any, steps: int = 6, particles: int = 8) -> None:
    """Does this Method keep the contract? Raises AssertionError if not. Takes a name or an object.

    It runs on a small exact Gaussian model whose predictions do not depend on the batch (on a small masked one, if the method says that it
    `needs_tokens`), and checks that

    - network calls go through `problem.evaluate`, stay inside the budget, and are recorded in every yielded state;
    - each yielded state alone determines the rest: saved to disk, loaded, and continued by a fresh copy of the method, the run ends with
      the same answer, bit for bit;
    - a group's answer is the same alone and among others, and for every batch_size, bit for bit;
    - nothing reads or moves torch's global random state;
    - log-weights are never NaN or +inf, normalise, and only the last state is `done`;
    - a method that says it is `exact` leaves the chain as it is at λ = 0 (weighted means of x_0 within 5 standard errors of the chain's,
      which is 0 here by symmetry, whatever the noise), and raises the mean reward at λ = 1.

    Exactness at λ > 0 needs the law of the chain: see the tests of the methods that come with viot.
    """
    try:
        method = make(method)
    except TypeError as error:
        raise AssertionError(str(error)) from None
    what = getattr(method, "name", type(method).__name__)
    _require(callable(getattr(method, "cost", None)), f"{what} must have cost(steps): the network rows that one particle costs in a run")
    _require(isinstance(getattr(method, "exact", None), bool), f"{what} must say whether it is `exact`: does it target p(x) exp(λ r(x))?")
    cost = method.cost(steps)
    _require(isinstance(cost, int) and cost >= 1, f"{what}.cost({steps}) must be a whole number ≥ 1, not {cost!r}")
    tokens = bool(getattr(method, "needs_tokens", False))
    # At least four particles, so that there is something to select among.
    particles = max(particles, math.ceil(4 * cost / steps))

    def start(groups: Any = 5, batch_size: int | None = None, lam: float = 1.0, k: int = particles) -> Run:
        return prepare(
            _Letters() if tokens else _Isotropic(),
            _Spelling() if tokens else _Closeness(),
            copy.deepcopy(method),
            particles=k,
            groups=groups,
            steps=steps,
            lam=lam,
            seed=7,
            batch_size=batch_size,
        )

    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore", SteeringWarning)
        with _global_rng_untouched(what, "randomness belongs to the group: draw from problem.draw(step, purpose)"):
            whole, saved = _walk(start(), what, Path(folder))
        with _another_global_seed():
            _compare(
                _answer(start()), whole, f"{what} gives another answer under another global seed; draw from problem.draw(step, purpose)"
            )
        _require(
            bool((whole.log_weights.logsumexp(-1).abs() < 1e-9).all()),
            f"{what}: the normalised log-weights of the answer do not sum to 1; the final log_w must be finite for somebody in each group",
        )
        for step, path in saved:
            state, _ = State.load(path)
            try:
                resumed = _answer(start(), state)
            except Exception as error:
                raise AssertionError(
                    f"{what} cannot go on from the state that it yielded at step {step}: {type(error).__name__}: {error}. What it must "
                    f"remember belongs in state.extra (per particle) or state.group (per group)."
                ) from error
            _compare(
                resumed,
                whole,
                f"{what} ends differently when it goes on from the state that it yielded at step {step}: that state does not determine the "
                f"rest. Something lives in a local or in the method object across a yield; keep it in state.extra or state.group",
            )
        _compare(
            _answer(start(groups=[3])),
            _one_group(whole, 3),
            f"{what}: group 3 alone differs from group 3 among 0 … 4. Groups never share anything: draw from problem.draw, reduce over the "
            f"last dimension of (G, K) only",
            costs=False,
        )
        for size in (1, 3, 7):
            _compare(_answer(start(batch_size=size)), whole, f"{what}: batch_size={size} changes the answer; it may change memory only")
        if method.exact and not tokens:
            _check_strength(what, lambda lam, groups: _answer(start(groups=groups, lam=lam, k=max(256, particles))))


def _walk(run: Run, what: str, folder: Path) -> tuple[Population, list[tuple[int, Path]]]:
    """A whole run, watched and saved at every yield."""
    problem, model = run.problem, run.problem.evaluate.model
    states, files, step = 0, [], 0
    state: State | None = None
    for state in run.states():
        where = f"the state at step {state.step}"
        rows, spent = model.rows, problem.evaluate.cost.nfe  # type: ignore[attr-defined]
        _require(rows == spent, f"{what} calls the model behind the back of problem.evaluate: {rows} rows were run and {spent} counted")
        _require(
            spent <= problem.G * problem.budget,
            f"{what} exceeds its budget: {spent} network rows by step {state.step}, allowed are {problem.G} groups × {problem.budget}. "
            f"Declare what a particle costs in cost(steps)",
        )
        _require(
            state.cost.get("nfe") == spent,
            f"{what}: {where} does not record the cost so far; yield it with cost=problem.evaluate.cost.record()",
        )
        _require(
            (now := run.progress(state)) >= step,
            f"{what}: steps go backwards, from {step} to {now}. A method that walks the chain several times says how far it is by progress(problem, state)",
        )
        bad = state.log_w.isnan() | (state.log_w == torch.inf)
        _require(not bool(bad.any()), f"{what}: log_w of {where} holds NaN or +inf although all rewards are finite")
        _require(state.log_w.dtype == torch.float64, f"{what}: log_w of {where} is {state.log_w.dtype}; weights are float64")
        states, step = states + 1, now
        if not state.done:
            try:
                state.save(folder / f"{states}.safetensors")
            except Exception as error:
                raise AssertionError(
                    f"{what}: {where} cannot be saved: {type(error).__name__}: {error}. It may hold tensors only"
                ) from error
            files.append((state.step, folder / f"{states}.safetensors"))
    if state is None or not state.done:
        raise AssertionError(f"{what} must end by yielding a state with done=True, and it did not")
    _require(states > 1, f"{what} yields only its final state; yield after every step, so that a run can be looked at, stopped and resumed")
    # A tree may yield very often; ten places along the run tell as much.
    files = files[:: max(1, len(files) // 10)]
    return _whole(run, state), files


def _answer(run: Run, state: State | None = None) -> Population:
    *_, last = run.states(state)
    return _whole(run, last)


def _whole(run: Run, state: State) -> Population:
    """The answer, every array of which must be about the same particles."""
    population = run.population(state)
    shapes = {name: tuple(getattr(population, name).shape[:2]) for name in ("x0", "samples", "rewards", "log_weights", "roots")}
    _require(len(set(shapes.values())) == 1, f"the arrays of the final state disagree about (G, K): {shapes}; gather all with state[index]")
    return population


def _check_strength(what: str, answer: Callable[[float, int], Population]) -> None:
    groups = 24
    still = answer(0.0, groups)
    means = still.mean(still.x0)
    error = means.std(0) / groups**0.5
    off = (means.mean(0) / error).abs().max().item()
    _require(
        off < 5,
        f"{what} says it is exact, but at λ = 0 its weighted mean of x_0 is {off:.1f} s.e. off the chain's own: something other than "
        f"λ r weighs or chooses the particles, or weights are lost on the way",
    )
    tilted = answer(1.0, groups)
    gain = tilted.mean() - still.mean()
    _require(
        bool(gain.mean() > 5 * gain.std() / groups**0.5),
        f"{what} says it is exact, but at λ = 1 the mean reward ({tilted.mean().mean():.3f}) is not above the "
        f"{still.mean().mean():.3f} of λ = 0",
    )


# -- pieces ---------------------------------------------------------------------------------------------------------------------------


def _require(condition: bool, message: str) -> None:
    # Not `assert`, which python -O removes.
    if not condition:
        raise AssertionError(message)


@contextlib.contextmanager
def _global_rng_untouched(what: str, instead: str = "draw from the generator that is given") -> Iterator[None]:
    before = torch.get_rng_state()
    yield
    _require(torch.equal(before, torch.get_rng_state()), f"{what} draws from torch's global random state; {instead}")


@contextlib.contextmanager
def _another_global_seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20240229)
        yield


def _fields(prediction: Prediction) -> dict[str, Tensor]:
    named = {"x0": prediction.x0, "eps": prediction.eps, "logits": prediction.logits}
    return {k: v for k, v in named.items() if v is not None} | {f"extra[{k!r}]": v for k, v in prediction.extra.items()}


def _distance(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest magnitude (at least 1); infinite where shapes, infinities or NaN disagree."""
    if a.shape != b.shape:
        return math.inf
    if not a.numel():
        return 0.0
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    equal = (a == b) | (a.isnan() & b.isnan())
    gap = torch.where(equal, 0.0, (a - b).abs()).nan_to_num(nan=math.inf)
    scale = torch.where(b.isfinite(), b.abs(), 0.0).max().clamp_min(1.0)
    return float(gap.max() / scale)


def _alike(a: Any, b: Any, tolerance: float) -> bool:
    """Are two samples, or two lists of them, equal up to the tolerance where they are numbers?"""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return _distance(a, b) <= tolerance
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_alike(x, y, tolerance) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def _pick(samples: Any, chosen: list[int]) -> Any:
    """A copy of some of the samples."""
    return samples[chosen].clone() if isinstance(samples, Tensor) else [copy.deepcopy(samples[i]) for i in chosen]


def _outline(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else type(value).__name__


def _numbers(values: Tensor) -> str:
    return "[" + ", ".join(f"{v:.4g}" for v in values[:4].tolist()) + (", …]" if len(values) > 4 else "]")


#: What two answers are compared by, beside the trace.
_FIELDS = ("x0", "samples", "rewards", "log_weights", "log_z", "roots", "ancestors")
_COSTS = ("nfe", "grad_rows", "decode_rows", "reward_rows")


def _compare(got: Population, expected: Population, message: str, costs: bool = True) -> None:
    """Bit-equality of two answers; the message, and what differs, if they are not."""
    pairs = {name: (getattr(got, name), getattr(expected, name)) for name in _FIELDS}
    pairs |= {f"trace[{k!r}]": (got.trace.get(k), v) for k, v in expected.trace.items()}
    if costs:
        pairs |= {name: (getattr(got, name), getattr(expected, name)) for name in _COSTS}
    elif got.shape != expected.shape:
        # How many distinct candidates a maximiser returns is the one thing that groups share: the fewest of any group.
        k = min(got.shape[1], expected.shape[1])
        both = [population.best(k) for population in (got, expected)]
        pairs |= {name: tuple(getattr(p, name) for p in both) for name in ("x0", "samples", "rewards", "log_weights", "roots")}
        if not len(expected.ancestors):
            # Of no selection, whose width is that of the answer.
            pairs["ancestors"] = (got.ancestors[..., :k], expected.ancestors[..., :k])
    differ = [name for name, (a, b) in pairs.items() if not _alike(a, b, 0.0)]
    _require(not differ, f"{message} (differing: {', '.join(differ)}).")


def _one_group(population: Population, i: int) -> Population:
    """The answer of one group of several."""
    kept = {name: getattr(population, name)[i : i + 1] for name in ("x0", "samples", "rewards", "log_weights", "log_z", "roots")}
    trace = {k: v if k == "step" else v[:, i : i + 1] for k, v in population.trace.items()}
    return Population(**kept, exact=population.exact, ancestors=population.ancestors[:, i : i + 1], trace=trace, config=population.config)
