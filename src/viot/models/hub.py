"""Pretrained models by name: a hub repository, or a folder in the same layout."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch

from ..hub import dtype_of, missing
from ..optional import need
from . import published


def from_pretrained(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    variant: str | None = None,
    **settings: Any,
) -> Any:
    """The Model of a checkpoint: a pixel-space UNet where its pipeline is one, and else what `from_pipeline` makes.

    A masked language model (MDLM, LLaDA) is told by its config.json, see `mdlm.load` and `llada.load`.

    dtype       of the network (torch.bfloat16, "float16", …); states stay float32
    variant     of the weight files, for example "fp16"
    settings    those of `UNet.from_pretrained`, the keywords of the pipeline's own call (prompt, guidance_scale, …), or those of a masked
                language model (prompt, order, length, …)

    OSError if the checkpoint can't be had, with what to try.
    """

    def text() -> Any:
        """The masked language model that is there, or None."""
        if (config := published.config_of(name, revision)) is None:
            return None
        if variant is not None:
            raise ValueError(f"{name} is a masked language model, which is loaded without a variant; leave variant={variant!r} out")
        return published.load(str(name), config, device=device or "cpu", dtype=dtype, revision=revision, **settings)

    folder = Path(name).expanduser()
    if folder.is_dir() and not (folder / "model_index.json").is_file() and (model := text()) is not None:
        return model
    diffusers = need("diffusers", "diffusers")
    precision = torch.float32 if dtype is None else dtype_of(dtype)
    at = {} if revision is None else {"revision": revision}
    kind_of_file = {} if variant is None else {"variant": variant}
    try:
        index = diffusers.DiffusionPipeline.load_config(str(name), **at)
        # Pipelines of a pixel-space UNet take no latents (DDPM, DDIM, PNDM); those that do are called themselves (consistency models).
        kind = getattr(diffusers, index["_class_name"], None)
        pixels = {k for k in index if not k.startswith("_")} == {"unet", "scheduler"}
        pixels = pixels and (kind is None or "latents" not in inspect.signature(kind.__call__).parameters)
    except (OSError, ValueError) as error:
        # No pipeline there: a language model or a bare network, perhaps.
        if not folder.is_dir() and (model := text()) is not None:
            return model
        if set(settings) - {"patch", "compile", "autocast"}:
            raise missing(str(name), f"a folder (./{Path(name).name})", error) from error
        pixels = True
    if pixels:
        from .unet import UNet

        if variant is not None:
            raise ValueError(f"{name} is a pixel-space UNet, which is loaded without a variant; leave variant={variant!r} out")
        if precision != torch.float32:
            # Its chain is float32, and the network computes in the precision asked for.
            settings = {"autocast": precision, **settings}
        return UNet.from_pretrained(name, device=device or "cpu", **at, **settings)
    try:
        pipe = diffusers.DiffusionPipeline.from_pretrained(str(name), **as_dtype(precision), **at, **kind_of_file)
    except (OSError, ValueError) as error:
        raise missing(str(name), f"a folder (./{Path(name).name})", error) from error
    from . import from_pipeline

    model = from_pipeline(pipe if device is None else pipe.to(device), **settings)
    model.config |= {"name": str(name), **at, **kind_of_file, "dtype": str(precision)}
    return model


def as_dtype(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The keyword by which this version of diffusers is told the precision to load in."""
    utils = need("diffusers.utils.deprecation_utils", "diffusers")
    return {"dtype" if hasattr(utils, "_TORCH_DTYPE_DEPRECATION_MESSAGE") else "torch_dtype": dtype}
