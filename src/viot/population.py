"""The answer of a run: a weighted population with its rewards, lineages, evidence and cost."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from . import lineage, weights
from .particles import APPEARED, State, flat_index, write_tensors
from .rng import Rng
from .tree import Tree

if TYPE_CHECKING:
    from PIL.Image import Image

COUNTS = ("nfe", "grad_rows", "decode_rows", "reward_rows", "faults")
#: Where a method that learns keeps what it knows of its rounds, in `State.group`, (G, R) each.
ROUNDS = "rounds."
CLOCKS = ("total", "network", "decode", "reward", "selection")
#: What is known of every token of a text.
TOKENS = ("appeared", "letters")


@dataclass(frozen=True)
class Population:
    """G groups of K weighted particles.

    samples      (G, K, …): images float32 in [0, 1] (C, H, W); text as nested lists of str; else the model's tensor
    x0           (G, K, *event_shape), what was decoded
    rewards      (G, K) float64; `parts` the scores of a combined reward, (G, K) each
    log_weights  (G, K) float64, logsumexp = 0 over K; NaN for a group in which every particle died
    log_z        (G,) estimate of log E_p[exp(λ r)]; NaN where the method has none
    exact        do the weighted particles target π ∝ p exp(λ r)? False for maximisers and biased variants
    roots        (G, K) the initial particle that each descends from; `ancestors` (S, G, K) the parents at each selection
    trace        per selection: step (S,), and (S, G): ess, distinct_parents, deaths, lam, temperature, reward_mean, reward_max, …
    nfe …        rows that went through network, gradient, decoder and reward, over all groups; `seconds` of wall time
    config       everything needed to run it again
    training     of a method that learns on the way, per round (R, G): ess (share of its particles), log_z, variance of the log-weights, …
    tree         the search tree that the particles were drawn from; `tree.draw(n)` draws again, without a network call
    unsteered    draws of the plain model for the same groups, to look at beside the answer; its cost is its own, not in the counts above
    appeared     of tokens, (G, K, length): the step 1 … T at which each appeared (of beams the level), 0 if it was given; None where the method does not tell
    letters      of tokens, (G, K, length): how many characters of its text each stands for (0 behind the end, −1 in a text that they do not
                 spell), see `pieces`; None where the model does not tell
    """

    samples: Any
    x0: Tensor
    rewards: Tensor
    log_weights: Tensor
    log_z: Tensor
    exact: bool
    roots: Tensor
    ancestors: Tensor
    trace: dict[str, Tensor]
    parts: dict[str, Tensor] = field(default_factory=dict)
    nfe: int = 0
    grad_rows: int = 0
    decode_rows: int = 0
    reward_rows: int = 0
    faults: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    unsteered: Population | None = None
    tree: Tree | None = None
    training: dict[str, Tensor] = field(default_factory=dict)
    appeared: Tensor | None = None
    letters: Tensor | None = None

    @classmethod
    def from_state(
        cls, state: State, method: Any, config: dict[str, Any], pieces: Callable[[Tensor], list[list[str]]] | None = None
    ) -> Population:
        """The population of a run's final state. `pieces` says of tokens (n, length) the pieces of text that they stand for."""
        if not state.done:
            raise ValueError(f"this state is at step {state.step}, not at the end of its run; iterate the method until a state is `done`")
        g, k = state.log_w.shape
        log_z = weights.log_mean_exp(state.log_w)
        log_z = log_z if getattr(method, "has_log_z", method.exact) else torch.full_like(log_z, torch.nan)
        names = state.history[0].stats if state.history else {}
        trace = {name: torch.stack([s.stats[name] for s in state.history]) for name in names}
        trace["step"] = torch.tensor([s.step for s in state.history])
        # A maximiser may return fewer particles than it ran.
        full = state.history[0].ancestors.shape[-1] if state.history else k
        ancestors = torch.stack([s.ancestors for s in state.history]) if state.history else torch.zeros(0, g, full, dtype=torch.int32)
        rows = state.samples
        counts: dict[str, Any] = {name: int(state.cost[name]) for name in COUNTS}
        return cls(
            samples=rows.unflatten(0, (g, k)).cpu() if isinstance(rows, Tensor) else [rows[i * k : (i + 1) * k] for i in range(g)],
            x0=state.x.cpu(),
            rewards=state.rewards,
            parts=state.parts,
            log_weights=weights.normalize(state.log_w),
            log_z=torch.where(log_z.isinf(), torch.nan, log_z),
            exact=bool(method.exact),
            roots=state.roots,
            ancestors=ancestors,
            trace=trace,
            **counts,
            seconds={name: state.cost[f"{name}_seconds"] for name in CLOCKS},
            config=config,
            tree=Tree.held(state) if Tree.grows(state) else None,
            training={name[len(ROUNDS) :]: v.T for name, v in state.group.items() if name.startswith(ROUNDS)},
            appeared=state.extra.get(APPEARED),
            letters=None
            if pieces is None or not isinstance(rows, list)
            else _letters(rows, pieces(state.x.flatten(0, 1))).unflatten(0, (g, k)),
        )

    # -- looking at it ------------------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int]:
        """(G, K)."""
        return self.rewards.shape[0], self.rewards.shape[1]

    @property
    def weights(self) -> Tensor:
        """(G, K), summing to 1 over K; 0 in a dead group."""
        return self.log_weights.exp().nan_to_num(nan=0.0)

    @property
    def ess(self) -> Tensor:
        """(G,) effective sample size of the final weights, between 1 and K; 0 for a dead group."""
        return weights.ess(self.log_weights.nan_to_num(nan=weights.NEG_INF))

    @property
    def dead_groups(self) -> list[int]:
        """The positions of groups in which every particle died."""
        return torch.nonzero(self.log_weights.isnan().all(-1))[:, 0].tolist()

    @property
    def surviving_lineages(self) -> Tensor:
        """(G,) initial particles that have a descendant in the answer."""
        return lineage.distinct(self.roots)

    @property
    def prompts(self) -> list[str]:
        """The prompt of each of the G groups; empty where the model follows none."""
        model = self.config.get("model") or {}
        known = model.get("prompts") or model.get("config", {}).get("prompts") or []
        return [known[g % len(known)] for g in self.indices] if known else []

    @property
    def indices(self) -> list[int]:
        """The index of each of the G groups."""
        return list(self.config.get("groups") or range(self.shape[0]))

    @property
    def flagged(self) -> Tensor:
        """(G, K) bool: what the model's own checker flagged as unsafe (`parts["nsfw"]`); all False without a checker."""
        return self.parts["nsfw"] > 0.5 if "nsfw" in self.parts else torch.zeros(self.shape, dtype=torch.bool)

    @property
    def modality(self) -> str:
        """ "images", "video", "text" or "tensor"."""
        if not isinstance(self.samples, Tensor):
            return "text"
        channels = self.samples.shape[-3] if self.samples.ndim >= 5 else 0
        if self.samples.is_floating_point() and channels in (1, 3, 4):
            return {5: "images", 6: "video"}.get(self.samples.ndim, "tensor")
        return "tensor"

    def mean(self, values: Tensor | None = None) -> Tensor:
        """Weighted mean over K of `values` (G, K, …), the rewards if None; NaN in a dead group."""
        averaged = self.rewards if values is None else values
        w = self.weights.view(*self.shape, *(1,) * (averaged.ndim - 2))
        # A weight of zero hides even an infinite value.
        mean = torch.where(w > 0, w * averaged, 0.0).sum(1)
        mean[self.dead_groups] = torch.nan
        return mean

    # -- choosing from it ---------------------------------------------------------------------------------------------------------

    def best(self, n: int = 1) -> Population:
        """The n particles of highest reward in each group, best first."""
        if not 1 <= n <= self.shape[1]:
            raise ValueError(f"best(n) takes 1 ≤ n ≤ {self.shape[1]} (the particles of a group), not {n}")
        return replace(self._take(self.rewards.argsort(dim=-1, descending=True, stable=True)[:, :n]), exact=False)

    def first(self, n: int) -> Population:
        """The first n particles of each group as they came: of the plain model an unselected draw."""
        if not 1 <= n <= self.shape[1]:
            raise ValueError(f"first(n) takes 1 ≤ n ≤ {self.shape[1]} (the particles of a group), not {n}")
        return self._take(torch.arange(n).repeat(self.shape[0], 1))

    def draw(self, n: int, weighted: bool = True, seed: int = 0) -> Population:
        """n particles per group with replacement, by weight or uniformly; the result is equally weighted."""
        if n < 1:
            raise ValueError(f"draw(n) takes n ≥ 1, not {n}")
        p = self.weights if weighted else torch.ones_like(self.rewards)
        # A dead group has no weights to draw by; its particles are all equally worthless.
        p = torch.where(p.sum(-1, keepdim=True) > 0, p, 1.0)
        # Like all randomness it belongs to the group.
        groups = self.config.get("groups", range(len(p)))
        streams = [Rng(seed).generator(g, 0, 0, "draw") for g in groups]
        index = torch.stack([torch.multinomial(row, n, replacement=True, generator=s) for row, s in zip(p, streams, strict=True)])
        return replace(self._take(index, equal=True), exact=self.exact and weighted)

    def _take(self, index: Tensor, equal: bool = False) -> Population:
        rows = flat_index(index, self.shape[1])

        def pick(v: Tensor) -> Tensor:
            return v.flatten(0, 1)[rows].view(*index.shape, *v.shape[2:])

        samples = self.samples
        samples = (
            pick(samples)
            if isinstance(samples, Tensor)
            else [[row[i] for i in ids] for row, ids in zip(samples, index.tolist(), strict=True)]
        )
        log_w = weights.normalize(pick(self.log_weights).nan_to_num(nan=weights.NEG_INF))
        if equal:
            dead = self.log_weights.isnan().all(-1, keepdim=True)
            log_w = torch.zeros(index.shape, dtype=torch.float64).sub_(math.log(index.shape[1])).masked_fill_(dead, torch.nan)
        return replace(
            self,
            samples=samples,
            x0=pick(self.x0),
            rewards=pick(self.rewards),
            parts={k: pick(v) for k, v in self.parts.items()},
            log_weights=log_w,
            roots=pick(self.roots),
            **{name: None if (v := getattr(self, name)) is None else pick(v) for name in TOKENS},
        )

    # -- showing it ---------------------------------------------------------------------------------------------------------------

    def pil(self) -> list[list[Image]]:
        """The samples as PIL images, [G][K] (the first frame of a video)."""
        from .report.pictures import to_pil

        if self.modality not in ("images", "video"):
            raise TypeError(f"these samples are {self.modality}, not images; see population.samples")
        frames = self.samples if self.modality == "images" else self.samples[:, :, 0]
        return [[to_pil(image) for image in group] for group in frames]

    def text(self) -> list[list[str]]:
        """The samples as strings, [G][K]."""
        if self.modality != "text":
            raise TypeError(f"these samples are {self.modality}, not text; see population.samples")
        return self.samples

    def pieces(self, group: int, particle: int) -> list[tuple[str, int]] | None:
        """The tokens of a text, at these positions: the piece that each spells and the step at which it appeared (0: given from the start).

        None where model or method did not tell.
        """
        if self.appeared is None or self.letters is None:
            return None
        letters, steps = self.letters[group, particle].tolist(), self.appeared[group, particle].tolist()
        ends = list(accumulate(letters))
        text = self.text()[group][particle]
        if ends[-1] != len(text):
            return None
        return [(text[end - n : end], step) for n, end, step in zip(letters, ends, steps, strict=True) if n]

    def show(self) -> Path:
        """Write the report to a temporary folder and open it in the browser; returns its path."""
        import tempfile
        import webbrowser

        from .report import page

        path = Path(tempfile.mkdtemp(prefix="viot-")) / "report.html"
        path.write_text(page(self), encoding="utf-8")
        webbrowser.open(path.as_uri())
        return path

    def _repr_html_(self) -> str:
        from .report import notebook

        return notebook(self)

    def __repr__(self) -> str:
        g, k = self.shape
        z = "" if self.log_z.isnan().all() else f", log Z {self.log_z.nanmean():.3f}"
        return f"<Population of {g}×{k} {self.modality}: reward {self.mean().nanmean():.3f}, ESS {self.ess.mean():.1f}{z}, {self.nfe} network rows>"

    # -- keeping it ---------------------------------------------------------------------------------------------------------------

    def record(self) -> dict[str, Any]:
        """What run.json holds: configuration, cost and scores."""
        return {
            "config": self.config,
            "exact": self.exact,
            **{name: getattr(self, name) for name in COUNTS},
            "seconds": self.seconds,
            "log_z": _plain(self.log_z),
            "ess": _plain(self.ess),
            "surviving_lineages": self.surviving_lineages.tolist(),
            "rewards": _plain(self.rewards),
            "parts": {name: _plain(value) for name, value in self.parts.items()},
            **({} if self.unsteered is None else {"unsteered": self.unsteered.record()}),
        }

    def save(self, folder: str | Path) -> Path:
        """Write run.json, population.safetensors (and tree.safetensors), report.html, and samples.png with the folder images/ (or samples.txt) into `folder`.

        Each file appears whole or not at all. The pictures need Pillow; without it the numbers are saved and a warning says so.
        """
        from .report import save_report

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        record = self.record()
        self._write(folder / "population.safetensors", record)
        if self.unsteered is not None:
            self.unsteered._write(folder / "unsteered.safetensors", record["unsteered"])
        else:
            (folder / "unsteered.safetensors").unlink(missing_ok=True)
        if self.tree is not None:
            self.tree.save(folder / "tree.safetensors")
        else:
            (folder / "tree.safetensors").unlink(missing_ok=True)
        if images := save_report(self, folder):
            record["images"] = images
        # Last, because its presence says that the folder is complete.
        write_text(folder / "run.json", json.dumps(record, indent=1, ensure_ascii=False))
        return folder

    def _write(self, path: Path, record: dict[str, Any]) -> None:
        """The tensors go to a file of their own, samples that are none into the record."""
        tensors = {name: getattr(self, name) for name in ("x0", "rewards", "log_weights", "log_z", "roots", "ancestors")}
        tensors |= {f"trace.{k}": v for k, v in self.trace.items()} | {f"parts.{k}": v for k, v in self.parts.items()}
        tensors |= {f"training.{k}": v for k, v in self.training.items()}
        tensors |= {name: v for name in TOKENS if (v := getattr(self, name)) is not None}
        if isinstance(self.samples, Tensor):
            tensors["samples"] = self.samples
        else:
            record["samples"] = self.samples
        write_tensors(path, tensors, {"format": "viot population 1"})

    @classmethod
    def load(cls, folder: str | Path) -> Population:
        """A population that `save` wrote."""
        folder = Path(folder)
        if not (folder / "run.json").exists():
            raise FileNotFoundError(f"{folder} holds no run.json; Population.load takes a folder that population.save(folder) wrote")
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        beside = cls._read(folder / "unsteered.safetensors", record["unsteered"]) if "unsteered" in record else None
        tree = Tree.load(folder / "tree.safetensors") if (folder / "tree.safetensors").exists() else None
        return replace(cls._read(folder / "population.safetensors", record), unsteered=beside, tree=tree)

    @classmethod
    def _read(cls, path: Path, record: dict[str, Any]) -> Population:
        with safe_open(str(path), "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        rooms: dict[str, dict[str, Tensor]] = {"trace": {}, "parts": {}, "training": {}}
        for name in [n for n in tensors if "." in n]:
            room, key = name.split(".", 1)
            rooms[room][key] = tensors.pop(name)
        tensors.setdefault("samples", record.get("samples"))
        counts = {name: record[name] for name in COUNTS}
        return cls(**tensors, **rooms, **counts, exact=record["exact"], seconds=record["seconds"], config=record["config"])


def _letters(texts: list[str], pieces: list[list[str]]) -> Tensor:
    """(n, length) int16: the lengths of the pieces of each text; −1 in one that they do not spell."""
    found = [
        [len(piece) for piece in parts] if "".join(parts) == text else [-1] * len(parts) for text, parts in zip(texts, pieces, strict=True)
    ]
    return torch.tensor(found, dtype=torch.int16)


def _plain(value: Tensor) -> Any:
    """Nested lists with None for NaN and infinities: JSON has no words for them."""

    def clean(v: Any) -> Any:
        return [clean(w) for w in v] if isinstance(v, list) else v if math.isfinite(v) else None

    return clean(value.tolist())


def write_text(path: Path, text: str) -> None:
    """A text file that appears whole or not at all."""
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
