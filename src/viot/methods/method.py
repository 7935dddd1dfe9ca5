"""What a method is: hyper-parameters, and a generator of states."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from ..particles import State
from ..problem import Problem
from ..registry import Registry

methods = Registry("method")


@dataclass(frozen=True)
class Method:
    """A frozen dataclass of hyper-parameters with `run(problem, state=None)`, a generator of states whose last one is `done`.

    Each yielded state alone determines the rest, so a run can be looked at, stopped, saved and gone on with at every step. Subclass this or
    write any class with the same four members.
    """

    name: ClassVar[str] = "method"
    reference: ClassVar[str] = ""

    @property
    def exact(self) -> bool:
        """Do the weighted particles target π ∝ p exp(λ r), exactly or as K → ∞?"""
        return True

    @property
    def has_log_z(self) -> bool:
        """Is the mean of the final weights an estimate of Z = E_p[exp(λ r)]?"""
        return self.exact

    @property
    def needs_gradient(self) -> bool:
        """Does it follow the gradient of the reward, so that model and reward must be differentiable?"""
        return False

    @property
    def needs_tokens(self) -> bool:
        """Does it move masked sequences only, so that the model's kernel must be a `viot.Categorical`?"""
        return False

    @property
    def least(self) -> int:
        """The fewest particles it can run with."""
        return 1

    def cost(self, steps: int) -> int:
        """Network rows per particle of a run of `steps`: K = ⌊budget / cost⌋."""
        return steps

    def scored(self, steps: int) -> int:
        """Rows per particle that a run of `steps` decodes and scores, the finished sample included."""
        return 1

    def grads(self, steps: int) -> int:
        """Rows per particle of which a run of `steps` takes the gradient of the reward through decoder and network."""
        return 0

    def check(self, problem: Problem) -> None:
        """Refuse what this method cannot do with this problem, before the first network call. What is wrong with the settings alone is said
        when the method is made.
        """

    def run(self, problem: Problem, state: State | None = None) -> Iterator[State]:
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """The hyper-parameters, as they go into the record of a run."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        # As JSON will have it.
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}
