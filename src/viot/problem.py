"""What a method is given: the one counted, sliced door to Model and Reward, and the budget."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from . import reward as rewarding
from .answers import Answers
from .kernel import Kernel
from .model import Grid, Model, Prediction
from .particles import State
from .rng import Draw, Rng
from .weights import NEG_INF


class SteeringWarning(UserWarning):
    """The run went on, but its answer deserves a second look."""


class DeadPopulation(RuntimeError):
    """No particle of any group has positive weight left."""


# -- cost -----------------------------------------------------------------------------------------------------------------------------


@dataclass
class Cost:
    """What has been spent, counted where it happens. Rows are rows of a batch, over all groups; seconds are wall time."""

    nfe: int = 0
    grad_rows: int = 0
    decode_rows: int = 0
    reward_rows: int = 0
    faults: int = 0
    network_seconds: float = 0.0
    decode_seconds: float = 0.0
    reward_seconds: float = 0.0
    selection_seconds: float = 0.0
    total_seconds: float = 0.0

    @contextlib.contextmanager
    def timed(self, what: str, device: torch.device | None = None) -> Iterator[None]:
        """Add the time of the block to `<what>_seconds`. Work queued on a CUDA device is waited for, or it would count as somebody else's."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if device is not None and device.type == "cuda":
                torch.cuda.synchronize(device)
            setattr(self, f"{what}_seconds", getattr(self, f"{what}_seconds") + time.perf_counter() - start)

    def record(self) -> dict[str, float]:
        return asdict(self)


# -- the door -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """Rewards (rows,) float64 on the CPU, their parts, and the decoded samples where they were asked for."""

    rewards: Tensor
    parts: dict[str, Tensor]
    samples: Any = None


class Aside(Protocol):
    """What may be asked beside a prediction, slice by slice: (x, t, prediction, group) -> (rows, …).

    With `needs_grad` it runs while the graph from x to the prediction is there; `rows` are the network rows that it spends per row.
    """

    needs_grad: bool
    rows: int

    def __call__(self, x: Tensor, t: Tensor, prediction: Prediction, group: Tensor) -> Tensor: ...


@dataclass
class Evaluate:
    """The only caller of Model and Reward: counts, slices by `batch_size`, and checks what comes back."""

    model: Model
    reward: Callable
    kernel: Kernel
    rng: Rng
    batch_size: int | None = None
    cost: Cost = field(default_factory=Cost)
    answers: Answers = field(default_factory=Answers, repr=False)
    _held: dict[bool, list[Tensor]] = field(default_factory=dict, repr=False)
    _shrunk: bool = field(default=False, repr=False)
    told: set[str] = field(default_factory=set, repr=False)

    def __call__(
        self,
        x: Tensor,
        t: Tensor | float,
        group: Tensor,
        score: bool = False,
        grad: bool = False,
        step: int = -1,
        guide: Aside | None = None,
    ) -> tuple[Prediction, Tensor | None, Tensor | None]:
        """One network call per row.

        x (rows, *event_shape), t (rows,) or one time for all, group (rows,) indices. With `score`, also the rewards (rows,) of the clean
        guesses; with `grad`, also ∂r/∂x (rows, *event_shape). `step` names the random stream of a stochastic reward. What `guide` answers
        is the prediction's `extra["guide"]`. A model that is `timeless` is asked once about equal rows, and not again about those of the call
        before.
        """
        times = torch.as_tensor(t, device=x.device).expand(len(x))
        if not getattr(self.model, "timeless", False) or score or grad or guide is not None:
            return self._asked(x, times, group, score, grad, step, guide)
        prediction = self.answers(x, group, lambda new: self._asked(x[new], times[new], group[new.to(group.device)])[0])
        return prediction, None, None

    def _asked(
        self, x: Tensor, times: Tensor, group: Tensor, score: bool = False, grad: bool = False, step: int = -1, guide: Aside | None = None
    ) -> tuple[Prediction, Tensor | None, Tensor | None]:
        """The same, for times (rows,), and every row asked about."""
        through = guide is not None and guide.needs_grad
        noise = self._noise(group, step, "reward") if score or grad else None
        joined: Prediction | None = None
        rewards, grads = [], []

        def one(part: slice) -> None:
            nonlocal joined
            xs, ts, gs = x[part], times[part], group[part]
            with self._gradients(grad or through, guide):
                xs = xs.detach().requires_grad_() if grad or through else xs
                with self.cost.timed("network", x.device):
                    prediction = self._checked(self.model.predict(xs, ts, gs.to(xs.device)), xs)
                self.cost.nfe += len(xs)
                found: list[Tensor] = []
                if score or grad:
                    guess = self.kernel.guess(xs, prediction)[:, 0]
                    _, scores, _ = self._score_slice(guess, gs, None if noise is None else noise[part], step)
                    if grad:
                        with self.cost.timed("network", x.device):
                            found.append(self._gradient(scores, xs, keep=through))
                        self.cost.grad_rows += len(xs)
                    found.insert(0, self.sane(scores, _where(step)))
                if guide is not None:
                    prediction = self._aside(guide, xs, ts, prediction, gs)
                if grad or through:
                    prediction = prediction.map(Tensor.detach)
            joined = _put(joined, prediction, part, len(x))
            # Last, when nothing can run out of memory any more: a slice that does is tried again in halves.
            for kept, value in zip((rewards, grads), found, strict=False):
                kept.append(value)

        self._sliced(len(x), one)
        assert joined is not None
        return joined, torch.cat(rewards) if rewards else None, torch.cat(grads) if grads else None

    def score(
        self, x0: Tensor, group: Tensor, step: int = -1, purpose: str = "reward", keep: bool = False, everybody: bool = True
    ) -> Scored:
        """Decode x0 (rows, *event_shape) and score it. `keep` returns the decoded samples too. When all of the rows are faults, and they are
        `everybody`, there is no going on.
        """
        noise = self._noise(group, step, purpose)
        rewards, parts, samples = [], [], []
        faults = self.cost.faults

        def one(part: slice) -> None:
            decoded, scores, extra = self._score_slice(x0[part], group[part], None if noise is None else noise[part], step)
            rewards.append(self.sane(scores, _where(step)))
            parts.append({k: v.cpu().double() for k, v in extra.items()})
            if keep:
                samples.append(decoded)

        with torch.no_grad():
            self._sliced(len(x0), one)
        if everybody and self.cost.faults - faults == len(x0):
            raise DeadPopulation(
                f"every particle of every group is dead: the reward {rewarding.name_of(self.reward)} returned NaN or +inf for every one of "
                f"{len(x0)} {_where(step)}. It must return finite numbers, or −inf for what is forbidden; try it on the samples of a short "
                f'unsteered run, viot.sample(model, lambda x: torch.zeros(len(x)), "base").'
            )
        scores = torch.cat(rewards)
        if step < 0:
            # Some rewards have an opinion of NaN pixels; a sample that the network broke is dead all the same. A token stays masked there.
            whole = (x0.isfinite() if x0.is_floating_point() else x0 != getattr(self.kernel, "mask_id", None)).flatten(1).all(1).cpu()
            scores = self.sane(torch.where(whole, scores, torch.nan), _where(step), "the network")
        joined = {k: torch.cat([p[k] for p in parts]) for k in parts[0]}
        return Scored(scores, joined, _join_samples(samples) if keep else None)

    def decode(self, x0: Tensor, group: Tensor) -> Any:
        """Decode x0 (rows, *event_shape) that has been scored before."""
        samples = []

        def one(part: slice) -> None:
            samples.append(self._decoded(x0[part], group[part], self.model.decode))

        with torch.no_grad():
            self._sliced(len(x0), one)
        return _join_samples(samples)

    def differentiable(self, x: Tensor, group: Tensor) -> bool:
        """Can gradients reach x_t? What model and reward declare, or else found out by decoding and scoring one row of x (not counted as cost)."""
        if not getattr(self.model, "differentiable", True) or not x.is_floating_point():
            return False
        declared = getattr(self.reward, "differentiable", None)
        if declared is not None:
            return bool(declared)
        before = dataclasses.replace(self.cost)
        with self._gradients(True):
            row = x[:1].detach().requires_grad_()
            noise = self._noise(group[:1], -1, "probe")
            _, scores, _ = self._score_slice(row, group[:1], noise, -1)
            found = scores.requires_grad and torch.autograd.grad(scores.sum(), row, allow_unused=True)[0] is not None
        self.cost.__dict__.update(vars(before))
        return found

    # -- pieces -------------------------------------------------------------------------------------------------------------------

    def _sliced(self, n: int, one: Callable[[slice], None]) -> None:
        """Call `one` on slices of `batch_size` of n rows; on half of that from then on, when the accelerator's memory is too small."""
        begin = 0
        while begin < n:
            size = min(self.batch_size or n, n - begin)
            before = dataclasses.replace(self.cost)
            try:
                one(slice(begin, begin + size))
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                # What the failed slice had counted must not count twice; its time was spent all the same.
                for name in ("nfe", "grad_rows", "decode_rows", "reward_rows", "faults"):
                    setattr(self.cost, name, getattr(before, name))
                if not self._shrunk:
                    warnings.warn(
                        f"the accelerator's memory is too small for {size} rows at a time; going on with {size // 2}, and fewer if need be. "
                        f"The draws stay the same. Say batch_size={size // 2} to spare the attempt.",
                        SteeringWarning,
                        stacklevel=2,
                    )
                self._shrunk, self.batch_size = True, size // 2
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            begin += size

    def _score_slice(self, x0: Tensor, group: Tensor, noise: Tensor | None, step: int) -> tuple[Any, Tensor, dict[str, Tensor]]:
        n = len(x0)
        # Guesses on the way may be shown by a cheaper decoder; finished samples never are.
        samples = self._decoded(x0, group, self.model.decode if step < 0 else getattr(self.model, "preview", self.model.decode))
        prompts = getattr(self.model, "prompts", None)
        beside = getattr(samples, "device", "cpu")
        offers = {
            "group": group.to(beside),
            "noise": None if noise is None else noise.to(beside),
            "prompts": prompts and [prompts[g % len(prompts)] for g in group.tolist()],
        }
        with self.cost.timed("reward", x0.device):
            try:
                scores, parts = rewarding.call(self.reward, samples, n, offers)
            except Exception as error:
                error.add_note(f"(raised while the reward {rewarding.name_of(self.reward)} scored {n} of the {_where(step)})")
                raise
        self.cost.reward_rows += n
        return samples, scores, parts | (self._flags(n) if step < 0 else {})

    def _decoded(self, x0: Tensor, group: Tensor, decode: Callable[[Tensor, Tensor], Any]) -> Any:
        n = len(x0)
        with self.cost.timed("decode", x0.device):
            samples = decode(x0, group.to(x0.device))
        if (
            not (isinstance(samples, Tensor) or (isinstance(samples, list) and all(isinstance(s, str) for s in samples)))
            or len(samples) != n
        ):
            got = type(samples).__name__ + (f" of {len(samples)}" if hasattr(samples, "__len__") else "")
            raise TypeError(f"{type(self.model).__name__}.decode must return a tensor of {n} rows or a list of {n} strings, not a {got}")
        self.cost.decode_rows += n
        return samples

    def _flags(self, n: int) -> dict[str, Tensor]:
        """What the model's own checker said of the n rows decoded last, told once."""
        flags = {name: flag.cpu() for name, flag in (getattr(self.model, "flags", None) or {}).items() if len(flag) == n}
        for name, flag in flags.items():
            if bool(flag.any()) and name not in self.told:
                self.told.add(name)
                warnings.warn(
                    f"the pipeline's own checker flagged finished samples as {name}, and shows something else in their place (black, mostly), "
                    f"which was scored like any other sample. `population.parts[{name!r}]` says which.",
                    SteeringWarning,
                    stacklevel=2,
                )
        return flags

    def _noise(self, group: Tensor, step: int, purpose: str) -> Tensor | None:
        if "noise" not in rewarding.asks_for(self.reward):
            return None
        # A combination may want several numbers per row, so that its members do not share theirs.
        width = getattr(self.reward, "noises", 1)
        out = torch.empty(len(group), width)
        for g in group.unique().tolist():
            rows = torch.nonzero(group == g)[:, 0].cpu()
            out[rows] = torch.randn(len(rows), width, generator=self.rng.generator(g, 0, step, f"{purpose} noise"))
        return out if width > 1 else out[:, 0]

    def sane(self, scores: Tensor, where: str, who: str = "") -> Tensor:
        """Scores as float64 on the CPU, with NaN and +inf turned into −inf, counted and told once."""
        scores = scores.detach().cpu().double()
        bad = scores.isnan() | (scores == -NEG_INF)
        if n := int(bad.sum()):
            if not self.cost.faults:
                who = who or f"the reward {rewarding.name_of(self.reward)}"
                warnings.warn(
                    f"{who} returned NaN or +inf for {n} of {scores.numel()} {where}; they count as −inf: dead at the end, lowest on the way. "
                    f"Further ones are counted in `population.faults` without a word.",
                    SteeringWarning,
                    stacklevel=2,
                )
            self.cost.faults += n
            scores = torch.where(bad, NEG_INF, scores)
        return scores

    def _checked(self, prediction: Prediction, x: Tensor) -> Prediction:
        if not isinstance(prediction, Prediction):
            raise TypeError(f"{type(self.model).__name__}.predict must return a viot.Prediction, not {type(prediction).__name__}")
        # Tokens have a vocabulary dimension more; anything else would broadcast without a word.
        for name, value in {"x0": prediction.x0, "eps": prediction.eps, "logits": prediction.logits}.items():
            if value is not None and (value.shape[:-1] if name == "logits" else value.shape) != x.shape:
                found = f"{name} of shape {tuple(value.shape)}"
                raise ValueError(f"{type(self.model).__name__}.predict returned {found} for x of shape {tuple(x.shape)}")
        if x.is_floating_point():
            # The chain runs in the state's precision, whatever the network's.
            prediction = prediction.map(lambda v: v.to(x.dtype) if v.is_floating_point() else v)
        return prediction

    def _aside(self, guide: Aside, x: Tensor, t: Tensor, prediction: Prediction, group: Tensor) -> Prediction:
        """The prediction with the answer of `guide` about this slice, counted."""
        with self.cost.timed("network", x.device), contextlib.nullcontext() if guide.needs_grad else torch.no_grad():
            answer = guide(x, t, prediction, group)
        self.cost.nfe += len(x) * guide.rows
        self.cost.grad_rows += len(x) * guide.needs_grad
        return dataclasses.replace(prediction, extra={**prediction.extra, "guide": answer})

    @contextlib.contextmanager
    def _gradients(self, on: bool, guide: Any = None) -> Iterator[None]:
        """no_grad, or gradients to x alone: the weights' own requires_grad is off inside and restored after, even on error."""
        if not on:
            with torch.no_grad():
                yield
            return
        # Looked for once without a guide and once with one: a run has the same all along.
        key = guide is not None
        if key not in self._held:
            self._held[key] = [p for part in (self.model, self.reward, guide) for p in _weights(part)]
        weights = [p for p in self._held[key] if p.requires_grad]
        try:
            for p in weights:
                p.requires_grad_(False)
            with torch.enable_grad():
                yield
        finally:
            for p in weights:
                p.requires_grad_(True)

    def _gradient(self, scores: Tensor, x: Tensor, keep: bool = False) -> Tensor:
        # Weights that `_weights` does not find may make a graph that does not lead to x.
        gradient = torch.autograd.grad(scores.sum(), x, retain_graph=keep, allow_unused=True)[0] if scores.requires_grad else None
        if gradient is None:
            broken = "reward" if getattr(self.model, "differentiable", True) else "model"
            raise TypeError(
                f"no gradient reaches x_t through the {broken}: reward {rewarding.name_of(self.reward)}, model "
                f"{type(self.model).__name__}. A gradient method needs both to be differentiable; particle methods need neither."
            )
        return gradient


def _where(step: int) -> str:
    return "finished samples" if step < 0 else f"clean guesses of step {step}"


def _weights(thing: Any) -> list[Tensor]:
    """The parameters of the modules that a model or a reward holds: itself, its attributes, and what those hold in lists and mappings."""
    seen: dict[int, Any] = {}
    found: dict[int, Tensor] = {}
    waiting = [thing]
    while waiting:
        held = waiting.pop()
        if id(held) in seen or isinstance(held, (str, bytes, int, float, Tensor, type)):
            continue
        seen[id(held)] = held
        if isinstance(held, torch.nn.Module):
            found |= {id(p): p for p in held.parameters()}
        elif isinstance(held, Mapping):
            waiting += held.values()
        elif isinstance(held, (list, tuple, set)):
            waiting += held
        elif hasattr(held, "__dict__") and not isinstance(held, ModuleType):
            waiting += vars(held).values()
    return list(found.values())


def _put(whole: Prediction | None, piece: Prediction, part: slice, n: int) -> Prediction:
    """Write a slice's prediction into the whole one of n rows, made at the first slice: the pieces never pile up beside their sum."""
    if part == slice(0, n):
        return piece
    if whole is None:
        whole = piece.map(lambda v: v.new_empty(n, *v.shape[1:]))
    for target, value in zip(whole.tensors(), piece.tensors(), strict=True):
        target[part] = value
    return whole


def _join_samples(pieces: list[Any]) -> Any:
    if isinstance(pieces[0], Tensor):
        return torch.cat(pieces)
    return [sample for piece in pieces for sample in piece]


# -- the problem ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """Everything a method may look at.

    evaluate    the door to model and reward          grid     the noise levels, T = len(grid)
    kernel      how a state moves                     groups   the indices of the G groups; K particles in each
    lam         λ of the target π ∝ p exp(λ r)        budget   network rows per group, never to be exceeded
    round       which of a method's passes along the chain this is: each has random numbers of its own
    """

    evaluate: Evaluate
    grid: Grid
    kernel: Kernel
    groups: tuple[int, ...]
    K: int
    lam: float
    rng: Rng
    budget: int
    round: int = 0

    @property
    def G(self) -> int:  # noqa: N802 (the contract's name)
        return len(self.groups)

    @property
    def T(self) -> int:  # noqa: N802
        return len(self.grid)

    def draw(self, step: int, purpose: str, round: int | None = None, counts: Sequence[int] | None = None) -> Draw:
        """The random stream of one purpose at one step, for as many rows in every group, or `counts` of them."""
        return Draw(self.rng, self.groups, step, purpose, self.round if round is None else round, counts)

    def rows(self, value: Tensor) -> Tensor:
        """(G, K, …) -> (G·K, …)"""
        return value.flatten(0, 1)

    def fold(self, value: Tensor) -> Tensor:
        """(G·K, …) -> (G, K, …)"""
        return value.unflatten(0, (self.G, -1))

    def group_rows(self, per_group: int) -> Tensor:
        """The group index of each of G · per_group rows."""
        return torch.tensor(self.groups).repeat_interleave(per_group)

    def prior(self) -> Tensor:
        """x_T (G, K, *event_shape), each group from its own stream."""
        return self.fold(self.prior_rows([self.K] * self.G))

    def prior_rows(self, counts: Sequence[int], round: int | None = None) -> Tensor:
        """x_T (sum of counts, *event_shape), so many of each group."""
        model = self.evaluate.model
        draw = self.draw(-1, "prior", round)
        # Where a run starts may depend on the prompt, and on how noisy its first state is (image to image).
        first = {"t": self.grid.times[0]} if rewarding.takes(model.prior, "t") else {}
        asks = rewarding.takes(model.prior, "group")
        pieces = [
            model.prior(n, generator, **first, **({"group": torch.full((n,), g)} if asks else {}))
            for g, generator, n in zip(self.groups, draw.generators, counts, strict=True)
            if n
        ]
        expected = tuple(model.event_shape)
        if pieces[0].ndim == 0 or tuple(pieces[0].shape[1:]) != expected or sum(map(len, pieces)) != sum(counts):
            found, expected = tuple(pieces[0].shape), (next(n for n in counts if n), *expected)
            raise ValueError(f"{type(model).__name__}.prior({expected[0]}, …) returned shape {found}, expected {expected}")
        return torch.cat(pieces).to(device=model.device, dtype=model.dtype)

    def start(self) -> State:
        """The state before the first step."""
        x = self.prior()
        zeros = torch.zeros(self.G, self.K, dtype=torch.float64)
        roots = torch.arange(self.K).repeat(self.G, 1)
        return State(x=x, step=0, log_w=zeros, rewards=zeros + torch.nan, roots=roots)
