"""Every picture a file of its own: images/003-a-red-seven/00.png, the best of its group first, with its story in the file."""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .. import __version__
from ..optional import need
from ..prompts import slug
from .pictures import frame, to_pil
from .words import method_name, model_name

if TYPE_CHECKING:
    from ..population import Population

#: About as many pictures as are written, and how many of each group at least; the rest stays in population.safetensors.
PICTURES, LEAST = 512, 4


def ranked(population: Population) -> Tensor:
    """(G, K) positions by falling reward; those that died come last."""
    return population.rewards.nan_to_num(nan=-math.inf).argsort(dim=-1, descending=True, stable=True)


def kept(population: Population) -> int:
    """How many pictures of each group are written: all, or of a large population the best few."""
    g, k = population.shape
    return k if g * k <= PICTURES else min(k, max(LEAST, PICTURES // g))


def name_of(population: Population, i: int, rank: int) -> str:
    """The file of the picture with this rank in the group at position i, relative to the run's folder."""
    indices, prompts = population.indices, population.prompts
    digits = max(3, len(str(max(indices))))
    words = slug(prompts[i]) if prompts else ""
    folder = f"{indices[i]:0{digits}d}" + (f"-{words}" if words else "")
    return f"images/{folder}/{rank:0{max(2, len(str(kept(population) - 1)))}d}.png"


def write_images(population: Population, folder: Path) -> list[dict[str, Any]]:
    """Write the pictures; returns what run.json says of them: per group its prompt, and per picture file and scores.

    The pictures of an earlier run in the same folder go, as far as its run.json lists them; nothing else is touched.
    """
    png = need("PIL.PngImagePlugin", "report")
    _remove_earlier(folder)
    order, n = ranked(population)[:, : kept(population)].tolist(), kept(population)
    groups = []
    for i, index in enumerate(population.indices):
        files = []
        for rank in range(n):
            j = order[i][rank]
            told = {"file": name_of(population, i, rank), "particle": j, **scores(population, i, j)}
            path = folder / told["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            info = png.PngInfo()
            for key, value in story(population, i, told).items():
                info.add_text(key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
            partial = path.with_name(path.name + ".part")
            to_pil(frame(population.samples[i, j])).save(partial, format="PNG", pnginfo=info)
            os.replace(partial, path)
            files.append(told)
        groups.append({"group": index, **({"prompt": population.prompts[i]} if population.prompts else {}), "files": files})
    return groups


def scores(population: Population, i: int, j: int) -> dict[str, Any]:
    """Reward, parts and weight of particle j of the group at position i; None for what is not finite."""

    def plain(value: Tensor) -> float | None:
        return float(value) if math.isfinite(float(value)) else None

    parts = {name: plain(part[i, j]) for name, part in population.parts.items()}
    return {"reward": plain(population.rewards[i, j]), "parts": parts, "log_weight": plain(population.log_weights[i, j])}


def story(population: Population, i: int, told: dict[str, Any]) -> dict[str, Any]:
    """What a picture's file says of it: the text entries of a PNG."""
    config = population.config
    said = {
        "Software": f"viot {__version__}",
        "model": model_name(config),
        "method": method_name(config),
        "reward_name": str(config.get("reward", "")),
        "group": population.indices[i],
        **{name: config[name] for name in ("seed", "steps", "lam") if name in config},
        **{name: told[name] for name in ("particle", "reward", "parts", "log_weight")},
    }
    # Readers of such files look for the prompt first.
    return {**({"prompt": population.prompts[i]} if population.prompts else {}), **said}


def _remove_earlier(folder: Path) -> None:
    record = folder / "run.json"
    if not record.exists():
        return
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        for group in json.loads(record.read_text(encoding="utf-8")).get("images", []):
            for told in group["files"]:
                path = folder / told["file"]
                # A record is a file like any other: it must not lead out of its own pictures.
                if path.suffix == ".png" and path.resolve().is_relative_to((folder / "images").resolve()):
                    path.unlink(missing_ok=True)
                    with contextlib.suppress(OSError):
                        path.parent.rmdir()
