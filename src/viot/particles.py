"""The state that moves through a run. Every array of a particle travels together: `state[ancestors]` gathers everything.

Published code re-indexes a dozen loose tensors one by one; two repositories forgot some of them, which silently pushes an offspring along
another particle's gradient. Here there is one gather, and nothing per-particle lives outside of the state.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .model import Prediction


@dataclass(frozen=True)
class Selection:
    """One selection: who descended from whom, and what it looked like. `stats` holds one (G,) value per name."""

    step: int
    ancestors: Tensor
    stats: dict[str, Tensor]


@dataclass(frozen=True)
class State:
    """A population in flight. It alone determines the rest of the run: what a method must remember is in here.

    x           (G, K, *event_shape) on the model's device
    step        how many steps are done
    log_w       (G, K) float64 on the CPU, unnormalised: its mean over K estimates a normalising constant; −inf is a dead particle
    rewards     (G, K) float64, the newest score of each particle's lineage; NaN before the first
    roots       (G, K) which initial particle each descends from
    prediction  of x by the model, fields (G, K, …), where it has been made already
    extra       the method's own arrays, (G, K, …)
    group       the method's own values per group, (G, …): never gathered
    history     the selections so far
    """

    x: Tensor
    step: int
    log_w: Tensor
    rewards: Tensor
    roots: Tensor
    prediction: Prediction | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)
    group: dict[str, Tensor] = field(default_factory=dict)
    history: tuple[Selection, ...] = ()
    cost: dict[str, float] = field(default_factory=dict)
    done: bool = False
    parts: dict[str, Tensor] = field(default_factory=dict)
    samples: Any = None

    def __getitem__(self, ancestors: Tensor) -> State:
        """Gather every per-particle array by ancestors (G, K)."""
        # Nobody moved: nothing to copy. (Fewer ancestors than particles is a choice, even if each is in its own slot.)
        if ancestors.shape == self.log_w.shape and torch.equal(ancestors, torch.arange(ancestors.shape[1]).expand_as(ancestors)):
            return self

        def gather(value: Tensor) -> Tensor:
            index = flat_index(ancestors, value.shape[1]).to(value.device)
            return value.flatten(0, 1).index_select(0, index).view(*ancestors.shape, *value.shape[2:])

        return self.map(gather)

    def map(self, f: Callable[[Tensor], Tensor]) -> State:
        """Apply `f` to every per-particle array."""
        return replace(
            self,
            x=f(self.x),
            log_w=f(self.log_w),
            rewards=f(self.rewards),
            roots=f(self.roots),
            prediction=self.prediction and self.prediction.map(f),
            extra={name: f(value) for name, value in self.extra.items()},
            parts={name: f(value) for name, value in self.parts.items()},
        )

    def but(self, **changes: Any) -> State:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def with_extra(self, **arrays: Tensor) -> State:
        """A copy with some of the method's own per-particle arrays set."""
        return replace(self, extra={**self.extra, **arrays})

    def with_group(self, **values: Tensor) -> State:
        """A copy with some of the method's own per-group values set."""
        return replace(self, group={**self.group, **values})

    # -- on disk ------------------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, **notes: Any) -> None:
        """Write the state to one safetensors file, atomically: a run killed in the middle leaves the previous file whole.

        The final state is an answer, from which nothing goes on: `run.population(state).save(folder)` keeps that.
        """
        if self.done:
            raise ValueError("this state is done; keep its answer with run.population(state).save(folder)")
        tensors = {"x": self.x, "log_w": self.log_w, "rewards": self.rewards, "roots": self.roots}
        if self.prediction is not None:
            tensors |= {f"prediction.{k}": v for k, v in vars(self.prediction).items() if isinstance(v, Tensor)}
            tensors |= {f"prediction.extra.{k}": v for k, v in self.prediction.extra.items()}
        for room in ("extra", "group"):
            tensors |= {f"{room}.{k}": v for k, v in getattr(self, room).items()}
        for i, selection in enumerate(self.history):
            tensors[f"history.{i}.ancestors"] = selection.ancestors
            tensors |= {f"history.{i}.stats.{k}": v for k, v in selection.stats.items()}
        away = [name for name, value in tensors.items() if value.device.type != "cpu"]
        header = {"step": self.step, "steps_of": [s.step for s in self.history], "cost": self.cost, "away": away, "notes": notes}
        write_tensors(path, tensors, {"state": json.dumps(header)})

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> tuple[State, dict[str, Any]]:
        """A saved state and the notes saved with it. What was on the model's device goes to `device`; weights stay on the CPU."""
        with safe_open(str(path), "pt") as file:
            header = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        tensors |= {name: tensors[name].to(device) for name in header["away"]}

        def under(prefix: str) -> dict[str, Tensor]:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        prediction = None
        if "prediction.x0" in tensors:
            fields = under("prediction.")
            extra = {k[len("extra.") :]: fields.pop(k) for k in list(fields) if k.startswith("extra.")}
            prediction = Prediction(**fields, extra=extra)
        history = tuple(
            Selection(step, tensors[f"history.{i}.ancestors"], under(f"history.{i}.stats.")) for i, step in enumerate(header["steps_of"])
        )
        state = cls(
            x=tensors["x"],
            step=header["step"],
            log_w=tensors["log_w"],
            rewards=tensors["rewards"],
            roots=tensors["roots"],
            prediction=prediction,
            extra=under("extra."),
            group=under("group."),
            history=history,
            cost=header["cost"],
        )
        return state, header["notes"]


def notes_of(path: str | Path) -> dict[str, Any]:
    """The notes saved with a state, without reading its arrays."""
    with safe_open(str(path), "pt") as file:
        return json.loads(file.metadata()["state"])["notes"]


#: Where a state keeps the steps at which its tokens appeared.
APPEARED = "appeared"


def dated(state: State, mask_id: int, step: int) -> State:
    """The state with `extra["appeared"]` (G, K, length) int32 brought up to date after so many steps: the step 1 … T at which each token
    appeared, 0 if it was given from the start, −1 while it is masked. A token that is masked again and revealed later has the later step.

    Step 0 is the start of a chain. A state without this array, of a run that began without it, stays without.
    """
    masked = (state.x == mask_id).cpu()
    known = state.extra.get(APPEARED)
    if known is None:
        return state if step else state.with_extra(**{APPEARED: torch.where(masked, -1, 0).to(torch.int32)})
    return state.with_extra(**{APPEARED: torch.where(masked, -1, torch.where(known < 0, step, known)).to(torch.int32)})


def flat_index(ancestors: Tensor, particles: int) -> Tensor:
    """Row numbers (G·K',) of ancestors (G, K') in a group-major table with `particles` rows per group."""
    return (ancestors + torch.arange(len(ancestors))[:, None] * particles).reshape(-1)


def pick(samples: Any, rows: Tensor) -> Any:
    """Decoded samples (n, …), or a list of n, at these row numbers."""
    return samples[rows.to(samples.device)] if isinstance(samples, Tensor) else [samples[i] for i in rows.tolist()]


def copies(points: Tensor) -> Tensor:
    """(n,) bool: is the point (n, …) an exact copy of an earlier one?"""
    return first_of(points) != torch.arange(len(points), device=points.device)


def first_of(points: Tensor) -> Tensor:
    """(n,) the place of the first point that equals each, exactly, among points (n, …)."""
    n = len(points)
    _, same_as = torch.unique(points.reshape(n, -1), dim=0, return_inverse=True)
    return torch.full_like(same_as, n).scatter_reduce_(0, same_as, torch.arange(n, device=points.device), "amin")[same_as]


def write_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """One safetensors file, written beside its place and then moved there: never half a file under the final name."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    kept: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in tensors.items():
        plain = value.detach().cpu().contiguous()
        # The format refuses tensors that share memory.
        kept[name] = plain.clone() if plain.untyped_storage().data_ptr() in seen else plain
        seen.add(kept[name].untyped_storage().data_ptr())
    save_file(kept, partial, metadata=metadata)
    os.replace(partial, path)
