"""The embedded text-to-image model: a small Stable Diffusion pipeline of captioned digits, trained by `recipes/captions.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...hub import dtype_of, quietly
from ...optional import need
from ..hub import as_dtype

FOLDER = Path(__file__).parent

#: What is drawn if nothing else is asked for.
PROMPTS = ("two sevens", "a thick red three above a blue one", "a green eight left of a yellow two", "a thin white five")


def load(
    *, prompt: str | list[str] | None = None, device: str | torch.device = "cpu", dtype: torch.dtype | str | None = None, **call: Any
) -> Any:
    """The captions model. `prompt` is one caption or a list of them (`viot.rewards.captions.grammar` says which there are); the other
    keywords are those of diffusers' StableDiffusionPipeline. Its guidance is 3 unless said otherwise."""
    need("transformers", "captions")
    diffusers = need("diffusers", "captions")
    precision = torch.float32 if dtype is None else dtype_of(dtype)
    with quietly():
        # Kept in half precision on disk, computed in whatever is asked for.
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(FOLDER, safety_checker=None, **as_dtype(precision)).to(device)
    prompts = list(PROMPTS) if prompt is None else prompt
    from .. import from_pipeline

    model = from_pipeline(pipe, prompt=prompts, **{"guidance_scale": 3.0, **call})
    model.config["name"] = "captions"
    return model
