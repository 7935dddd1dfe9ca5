"""What a row keeps of its samples: a few pictures, points or texts beside it, from which a sheet is made without running anything again."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import interpolate

from ..particles import write_tensors
from ..population import Population, write_text
from ..report.pictures import frame
from . import features
from .reference import Against, AgainstPrompts

#: Groups of which samples are kept, the longest side of a picture, and points of a row and of its target.
GROUPS, SIDE, POINTS, TARGET = 12, 256, 1200, 500
#: Which sample of a group: the best by reward, and the first of those drawn by weight.
WHICH = ("best", "drawn")


@dataclass(frozen=True)
class Kept:
    """Samples of a row: of pictures and texts the best and a drawn one of each group (`WHICH`), of points in the plane all groups together.

    rewards    of these samples, a list by group for each of `WHICH`; None where it is not finite
    nearest    their distance to the nearest draw of the plain model, in the features of that name; empty where there was none
    pictures   (groups, C, H, W) uint8, made smaller where they are large
    points     (n, 2), their weights (n,), and equally weighted draws (m, 2) of the target
    """

    kind: str
    groups: list[int]
    prompts: list[str] = field(default_factory=list)
    rewards: dict[str, list[float | None]] = field(default_factory=dict)
    nearest: dict[str, list[float | None]] = field(default_factory=dict)
    features: str | None = None
    texts: dict[str, list[str]] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)
    points: Tensor | None = None
    weights: Tensor | None = None
    target: Tensor | None = None

    @classmethod
    def of(
        cls, population: Population, against: Against | AgainstPrompts | None = None, kind: str | None = None, device: Any = "cpu"
    ) -> Kept | None:
        """What is worth keeping of an answer; None of states that nobody can look at. `kind` names the features of the reference, read on the device."""
        modality, n = population.modality, min(GROUPS, population.shape[0])
        if modality == "tensor":
            return cls._plotted(population, against if kind == "points" else None) if population.samples[0, 0].numel() == 2 else None
        found = cls("texts" if modality == "text" else "pictures", population.indices[:n], population.prompts[:n])
        for name, chosen in (("best", population.best(1)), ("drawn", population.draw(1))):
            found.rewards[name] = [_finite(reward) for reward in chosen.rewards[:n, 0].tolist()]
            samples = [group[0] for group in chosen.samples[:n]]
            if modality == "text":
                found.texts[name] = samples
                continue
            found.pictures[name] = torch.stack([_small(frame(sample)) for sample in samples])
            if against is not None and kind is not None:
                read = features.read(kind, torch.stack(samples), device)
                gaps = [float(torch.cdist(x[None], against.of(g).base.points).min()) for g, x in zip(found.groups, read, strict=True)]
                found.nearest[name] = [_finite(gap) for gap in gaps]
        return replace(found, features=kind if found.nearest else None)

    @classmethod
    def _plotted(cls, population: Population, against: Against | AgainstPrompts | None) -> Kept:
        g, k = population.shape
        some = population if g * k <= POINTS else population.draw(max(1, POINTS // g))
        points, w = some.samples.flatten(2).flatten(0, 1).float(), (some.weights / g).flatten().float()
        sound = points.isfinite().all(-1) & (w > 0)
        one = None if against is None else against.of(population.indices[0])
        law = None if one is None else one.data or one.chain
        target = None if law is None else law.drawn.float()
        # They lie in the order of the law's points: evenly spaced ones are draws too.
        target = None if target is None else target[torch.linspace(0, len(target) - 1, min(TARGET, len(target))).round().long()]
        return cls("points", population.indices, points=points[sound], weights=w[sound], target=target)

    def write(self, place: Path) -> None:
        """Into a file of that name, whole or not at all."""
        told = {k: getattr(self, k) for k in ("kind", "groups", "prompts", "rewards", "nearest", "features", "texts")}
        told = json.dumps({k: v for k, v in told.items() if v or k == "kind"}, ensure_ascii=False)
        tensors = {**self.pictures, **{k: v for k in ("points", "weights", "target") if (v := getattr(self, k)) is not None}}
        place.parent.mkdir(parents=True, exist_ok=True)
        as_tensors, as_text = place.with_name(f"{place.name}.safetensors"), place.with_name(f"{place.name}.json")
        if tensors:
            write_tensors(as_tensors, tensors, {"told": told})
        else:
            write_text(as_text, told)
        # What an earlier run kept there in the other form is not of this one.
        (as_text if tensors else as_tensors).unlink(missing_ok=True)

    @classmethod
    def read(cls, place: Path) -> Kept | None:
        """What was kept there; None where nothing was, as by earlier versions."""
        tensors, text = place.with_name(f"{place.name}.safetensors"), place.with_name(f"{place.name}.json")
        try:
            if text.exists():
                return cls._told(json.loads(text.read_text(encoding="utf-8")), {})
            if not tensors.exists():
                return None
            with safe_open(str(tensors), "pt") as file:
                return cls._told(json.loads((file.metadata() or {})["told"]), {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ValueError(
                f"{text if text.exists() else tensors} holds no samples of a row ({type(error).__name__}: {error}); remove it"
            ) from error

    @classmethod
    def _told(cls, told: dict[str, Any], tensors: dict[str, Tensor]) -> Kept:
        pictures = {name: tensors.pop(name) for name in WHICH if name in tensors}
        if (target := tensors.get("target")) is not None and target.shape[1:] != (2,):
            # In features that are not the plane's.
            del tensors["target"]
        return cls(**{"groups": [], **told, **tensors, "pictures": pictures})


def _small(picture: Tensor) -> Tensor:
    """(C, H, W) uint8, the longest side at most `SIDE`."""
    picture = picture.detach().float().cpu().nan_to_num(nan=0.0).clamp(0, 1)
    if (longest := max(picture.shape[-2:])) > SIDE:
        size = [max(1, round(side * SIDE / longest)) for side in picture.shape[-2:]]
        picture = interpolate(picture[None], size, mode="area")[0]
    return picture.mul(255).round().to(torch.uint8)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
