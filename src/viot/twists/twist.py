r"""What a twist is: a guidance with parameters θ that are fitted to weighted paths.

    q_θ(x_s | x_t) ∝ p(x_s | x_t) ψ_θ(x_s)

θ (G, P) has a row for each group, or one row for all once it is fitted and given away. Families differ in ψ and in what they must remember
of a path to be fitted: sufficient statistics, never the path.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import safe_open
from torch import Tensor

from ..guidance import Guidance, prior_std, require_density, still
from ..kernel import double
from ..model import Model, Prediction
from ..particles import State, write_tensors
from ..problem import Problem
from ..registry import Registry
from .basis import SMALL

twists = Registry("twist")

#: Where a population's θ and statistics live in its state.
THETA, STATISTICS = "twist", "twist."


@dataclass(frozen=True, eq=False)
class Twist(Guidance):
    """A family of twists, and one of them if it has its parameters.

    ridge   how strongly θ is held where it was: the prior precision, in units of what one effective particle says of one parameter
    file    where it was loaded from
    theta   (1, P) or (G, P), fitted (`TriTSMC(…).learn`, or by hand); None = a family to be fitted by `tri-tsmc`
    """

    name: ClassVar[str] = "twist"
    tokens: ClassVar[bool] = False

    ridge: float = 0.5
    theta: Tensor | None = field(default=None, repr=False)
    file: str | None = field(default=None, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 <= self.ridge < float("inf"):
            raise ValueError(f"ridge must be ≥ 0 and finite, not {self.ridge}")
        if self.theta is not None:
            given = torch.as_tensor(self.theta, dtype=torch.float64).detach().cpu()
            if given.ndim != 2 or not bool(given.isfinite().all()):
                raise ValueError(f"theta is a finite tensor (1, P), or (G, P) for G groups, not of shape {tuple(given.shape)}")
            object.__setattr__(self, "theta", given)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.fingerprint() == other.fingerprint()  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash(self.fingerprint())

    # -- what a family says -------------------------------------------------------------------------------------------------------

    def size(self, problem: Problem) -> int:
        """P, the number of parameters; at θ = 0 a twist leaves the model alone."""
        raise NotImplementedError

    def blank(self, problem: Problem, n: int) -> dict[str, Tensor]:
        """The statistics (G, n, …) of paths of which nothing is known yet."""
        raise NotImplementedError

    def note(self, problem: Problem, before: State, after: State, eta: float, drift: Any) -> dict[str, Tensor]:
        """The statistics after a step from `before` to `after`; `drift` is what this twist had answered for it."""
        raise NotImplementedError

    def note_prior(self, problem: Problem, state: State) -> dict[str, Tensor]:
        """The statistics after x_T was drawn."""
        return self.held(state)

    def log_ratio(self, statistics: dict[str, Tensor], theta: Tensor) -> Tensor:
        """log q_θ − log p of the paths, (G, N)."""
        raise NotImplementedError

    def fit(self, statistics: dict[str, Tensor], w: Tensor, theta: Tensor) -> Tensor:
        """argmax Σ_n w_n log q_θ(path n) − ridge, from θ (G, P), for normalised weights w (G, N)."""
        raise NotImplementedError

    def kl(self, statistics: dict[str, Tensor], w: Tensor, new: Tensor, old: Tensor) -> Tensor:
        """KL(q_new ‖ q_old) of paths in nats, (G,): the sum of the steps' own along the paths weighted by w (G, N)."""
        raise NotImplementedError

    def ready(self, problem: Problem, state: State, shared: bool = False) -> State:
        """The state with what can only be decided once there is a prediction."""
        return state

    # -- shared -------------------------------------------------------------------------------------------------------------------

    def start(self, problem: Problem) -> Tensor:
        """θ (G, P) to begin with: its own if it is fitted, else 0."""
        size = self.size(problem)
        if self.theta is None:
            return torch.zeros(problem.G, size, dtype=torch.float64)
        if self.theta.shape[1] != size or len(self.theta) not in (1, problem.G):
            raise ValueError(
                f"this {self.name} twist has parameters {tuple(self.theta.shape)}, and a run of {problem.T} steps with "
                f"{problem.G} groups needs (1 or {problem.G}, {size}): it was fitted for another model or number of steps"
            )
        return self.theta.expand(problem.G, -1)

    def parameters(self, problem: Problem, state: State) -> Tensor:
        """θ (G, P) in force: the population's, or its own."""
        return state.group[THETA] if THETA in state.group else self.start(problem)

    @staticmethod
    def held(state: State) -> dict[str, Tensor]:
        """The statistics in a state."""
        return {name[len(STATISTICS) :]: value for name, value in state.extra.items() if name.startswith(STATISTICS)}

    @classmethod
    def copied(cls, state: State) -> dict[str, Tensor]:
        """The same to write into: a state that was given away does not change."""
        return {name: value.clone() for name, value in cls.held(state).items()}

    @staticmethod
    def keep(state: State, statistics: dict[str, Tensor]) -> State:
        """The state with these statistics. What is not a number, of a sample that the network broke, says nothing (and has no weight)."""
        fine = {name: value if name == "log_p" else value.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) for name, value in statistics.items()}
        return state.with_extra(**{STATISTICS + name: value for name, value in fine.items()})

    def shrinkage(self, w: Tensor, parameters: int) -> Tensor:
        """(G,) the ridge relative to the information of all particles: ridge · parameters / effective particles."""
        return self.ridge * parameters * w.square().sum(-1)

    def check(self, problem: Problem) -> None:
        require_density(f"a {self.name} twist", problem)
        model, continuous = type(problem.evaluate.model).__name__, problem.evaluate.model.dtype.is_floating_point
        if continuous == self.tokens:
            names = ", ".join(sorted(name for name in twists if getattr(twists[name].make, "tokens", False) != self.tokens))
            raise TypeError(
                f"a {self.name} twist is for {'tokens' if self.tokens else 'real numbers'}, and the states of {model} are not: use {names}"
            )
        if continuous and not hasattr(problem.kernel, "moments"):
            raise TypeError(f"a {self.name} twist needs a kernel with moments(x_t, prediction, coeffs, eta), as viot.Gaussian has")
        if self.tokens and getattr(problem.kernel, "remask", 0):
            raise ValueError(f"a {self.name} twist remembers one token per position: it needs a kernel with remask=0")
        self.start(problem)

    # -- on disk ------------------------------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """The family's settings without its parameters; tensors among them are kept as such."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init and f.name not in ("theta", "file")}

    def record(self) -> dict[str, Any]:
        """What the record of a run says of it."""
        from ..record import plain

        own = {} if self.theta is None else {"theta": self.fingerprint()}
        return {"name": self.name, **plain(self.settings()), **own, **({} if self.file is None else {"file": self.file})}

    def fingerprint(self) -> str:
        """What tells it apart: family, settings and parameters."""
        from ..record import digest, plain

        told = (self.name, plain(self.settings()), None if self.theta is None else (tuple(self.theta.shape), digest(self.theta)))
        return hashlib.blake2b(repr(told).encode(), digest_size=6).hexdigest()

    def save(self, path: str | Path) -> None:
        """One safetensors file with the parameters and what family they are of."""
        if self.theta is None:
            raise ValueError(f"this {self.name} twist has no parameters to save; fit it with TriTSMC(twist=…).learn(model, reward, …)")
        own = self.settings()
        tensors = {name: value for name, value in own.items() if isinstance(value, Tensor)} | {"theta": self.theta}
        plain = {name: value for name, value in own.items() if name not in tensors}
        write_tensors(path, tensors, {"twist": json.dumps({"name": self.name, **plain})})

    @staticmethod
    def load(path: str | Path) -> Twist:
        """A twist that was saved."""
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            if "twist" not in metadata:
                raise ValueError(f"{path} holds no twist; TriTSMC(twist=…).learn(model, reward, …).save(path) writes one")
            found = json.loads(metadata["twist"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        return twists[found.pop("name")].make(**found, **tensors, file=str(path))

    def fitted(self, theta: Tensor, state: State | None = None) -> Self:
        """The same family with these parameters, and what else of the population that learned them they belong to."""
        return replace(self, theta=theta, file=None)


def as_twist(twist: Any, model: Model | None = None) -> Twist:
    """A twist, or one by name ("slope"), by name and settings ({"name": "slope", "features": 8}), or from a file (….safetensors).

    "auto" is "tokens" for tokens, "slope" for a few real numbers and "direction" for many.
    """
    if isinstance(twist, Twist):
        return twist
    if isinstance(twist, (str, Path)) and str(twist).endswith(".safetensors"):
        return Twist.load(twist)
    if twist == "auto":
        twist = "slope"
        if model is not None:
            few = math.prod(model.event_shape) <= SMALL
            twist = "tokens" if not model.dtype.is_floating_point else "slope" if few else "direction"
    if isinstance(twist, str):
        return twists[twist].make()
    if isinstance(twist, dict) and "name" in twist:
        own = dict(twist)
        if own.get("file") is not None:
            found = Twist.load(own["file"])
            if found.fingerprint() != own["theta"]:
                raise ValueError(f"{own['file']} holds another twist now than when this record was made")
            return found
        return twists[own.pop("name")].make(**own)
    raise TypeError(f"a twist is a name ({', '.join(twists)}), a file of viot.twists, or a Twist, not {twist!r}")


# -- Gaussian steps -------------------------------------------------------------------------------------------------------------------


def standardised(problem: Problem, before: State, after: State, eta: float) -> tuple[Tensor, float]:
    """e = (x_s − mean) / std of the model's own step (G, N, *event_shape), float64, and std; nothing to see (std = 0) where it has no noise,
    as at the end of a chain, wherever its grid ends.
    """
    assert before.prediction is not None
    if still(problem, before.step):
        return torch.zeros_like(after.x), 0.0
    x, prediction = problem.rows(before.x), before.prediction.map(problem.rows)
    mean, std = problem.kernel.moments(x, prediction, problem.grid.coeffs(before.step), eta)  # type: ignore[attr-defined]
    level = float(std)
    if level == 0:
        return torch.zeros_like(after.x), 0.0
    return problem.fold(double(problem.rows(after.x) - mean) / level), level


def step_std(problem: Problem, state: State, eta: float | Tensor) -> Tensor:
    """The standard deviation of the coming step: one number (1, 1, …), or one per particle (G, K, 1, …)."""
    level = torch.as_tensor(eta, dtype=torch.float64)
    at = torch.zeros(level.numel(), 1, dtype=torch.float64)
    eta = level.flatten() if level.ndim else eta
    std = problem.kernel.moments(at, Prediction(at), problem.grid.coeffs(state.step), eta)[1]  # type: ignore[attr-defined]
    shape = state.x.shape[:2] if level.ndim else (1, 1)
    return std.reshape(*shape, *[1] * (state.x.ndim - 2)) if std.numel() > 1 else std.reshape(*[1] * state.x.ndim)


def start_noise(problem: Problem, state: State) -> tuple[Tensor, float] | None:
    """x_T in units of its standard deviation, and that; None where the model does not say how it draws."""
    std = prior_std(problem)
    return None if std is None else (double(state.x) / std, std)
