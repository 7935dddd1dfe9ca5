"""Models by name, and what else can stand for one. Each file is an adapter; none knows of rewards or methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..registry import Registry, unknown

models = Registry("model")


@models.add(
    "digits",
    "handwritten digits: an MNIST UNet that comes with the package",
    cost="1.9 ms per image on two cores",
    licence="Apache-2.0, trained on MNIST",
)
def _digits(**settings: Any) -> Any:
    from .digits import load

    return load(**settings)


@models.add(
    "cifar16",
    "photographs of CIFAR-10's classes at 16x16 pixels: a small UNet that comes with the package",
    cost="1 ms per image on one core",
    licence="Apache-2.0, trained on CIFAR-10 (Krizhevsky 2009)",
)
def _cifar16(**settings: Any) -> Any:
    from .cifar import load

    return load(**settings)


@models.add("gaussian", "an exact correlated Gaussian in two dimensions", cost="free", licence="Apache-2.0")
def _gaussian() -> Any:
    from .gaussian import GaussianMixture

    return GaussianMixture([[0.5, -0.5]], [[[1.0, 0.6], [0.6, 0.8]]])


@models.add("mixture", "an exact mixture of eight Gaussians on a circle", cost="free", licence="Apache-2.0")
def _mixture() -> Any:
    import torch

    from .gaussian import GaussianMixture

    angle = torch.arange(8, dtype=torch.float64) * (2 * torch.pi / 8)
    return GaussianMixture(4 * torch.stack([angle.cos(), angle.sin()], 1), 0.3**2)


@models.add(
    "checkerboard", "a board of four by four squares, its dark ones an exact mixture of 72 Gaussians", cost="free", licence="Apache-2.0"
)
def _checkerboard() -> Any:
    import torch

    from .gaussian import GaussianMixture

    # Squares of side 2 on [−4, 4]², each of three by three Gaussians twice their standard deviation apart: nearly flat inside.
    corners = torch.tensor([(i, j) for i in range(4) for j in range(4) if (i + j) % 2 == 0], dtype=torch.float64) * 2 - 4
    inside = torch.cartesian_prod(*[torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64) / 3] * 2)
    return GaussianMixture((corners[:, None] + inside).flatten(0, 1), (1 / 3) ** 2)


@models.add(
    "captions",
    "pictures of one or two coloured digits from a caption: a small Stable Diffusion pipeline that comes with the package",
    cost="4 ms per image on two cores",
    licence="Apache-2.0, trained on MNIST",
)
def _captions(**settings: Any) -> Any:
    from .captions import load

    return load(**settings)


@models.add(
    "names",
    "first names, letter by letter: a masked diffusion model that comes with the package",
    cost="0.3 ms per name and step on one core",
    licence="Apache-2.0, trained on US SSA names (public domain)",
)
def _names(**settings: Any) -> Any:
    from .names import load

    return load(**settings)


@models.add(
    "reviews",
    "sentences of film reviews, word by word: a masked diffusion model that comes with the package",
    cost="8 ms per sentence and step on one core",
    licence="Apache-2.0, trained on rt-polarity (Pang & Lee 2005)",
)
def _reviews(**settings: Any) -> Any:
    from .reviews import load

    return load(**settings)


def load(name: str, **settings: Any) -> Any:
    """A model by name: an embedded one (`viot list` shows them), or "org/checkpoint" or a folder holding a diffusers pipeline or a
    masked language model (MDLM, LLaDA).

    `settings` go to the model: device, dtype, revision and variant for all that is loaded; compile and autocast for pixel-space UNets;
    prompt, order, tokenizer and more for language models (`models.mdlm.load`, `models.llada.load`); the keywords of the pipeline's own
    call (prompt, guidance_scale, …) for every other pipeline.
    """
    if name in models:
        return models[name].make(**settings)
    if "/" in name or name.startswith(".") or Path(name).is_dir():
        from .hub import from_pretrained

        return from_pretrained(name, **settings)
    raise unknown("model", name, models)


def from_pipeline(pipe: Any, *, tiny_vae: Any = None, **call_kwargs: Any) -> Any:
    """A diffusers pipeline as a Model, to be steered as it is: unmodified, and as before after every call.

    pipe         any diffusers pipeline whose loop moves one Gaussian state: Stable Diffusion 1.5 to 3, SDXL, Flux, PixArt, Sana, Wan,
                 latent consistency models, their image-to-image, inpainting, ControlNet and IP-Adapter kin, DDPM, DDIM, DiT, …; and
                 LLaDA2, whose state is a text
    tiny_vae     a small decoder (diffusers' AutoencoderTiny) for the clean guesses scored on the way; finished samples go through the
                 pipeline's own
    call_kwargs  the keywords of the pipeline's own call: prompt (one, or a list of P for P groups), negative_prompt, guidance_scale,
                 height, width, image, … A list of P entries gives each prompt its own. Steps, seeds and counts are arguments of
                 `viot.sample`

    Make it after adapters (LoRA, IP-Adapter) are loaded: prompts are encoded here, once. Its `kernel` may be exchanged:
    `model.kernel = viot.kernel.FlowSDE()`. TypeError says why a pipeline can't be steered, ValueError which keyword is wrong: both before
    any work.
    """
    from .steerable import check_call, why_not

    if reason := why_not(pipe):
        raise TypeError(f"{type(pipe).__name__} can't be steered: {reason}")
    kind = type(pipe).__name__
    if tiny_vae is not None and (kind == "DiTPipeline" or not hasattr(pipe, "vae")):
        raise ValueError(f"{kind} has no decoder that a tiny_vae could stand in for")
    if kind == "LLaDA2Pipeline":
        from .llada2 import load as language_model

        return language_model(pipe, **call_kwargs)
    check_call(pipe, call_kwargs)
    if kind in ("DDPMPipeline", "DDIMPipeline"):
        from .unet import UNet

        if call_kwargs:
            raise ValueError(f"{kind} is called without any of its keywords here; leave {', '.join(call_kwargs)} out")

        return UNet(pipe.unet, pipe.scheduler)
    if kind == "DiTPipeline":
        from .dit import DiT

        if "class_labels" not in call_kwargs:
            raise ValueError("DiTPipeline needs classes: viot.from_pipeline(pipe, class_labels=[207, 360]), indices or names")
        return DiT(pipe, **call_kwargs)
    from .diffusers import Pipeline

    return Pipeline(pipe, tiny_vae=tiny_vae, **call_kwargs)


def as_model(model: Any) -> Any:
    """A Model from a name, a Model, or a diffusers pipeline that needs no prompt."""
    if isinstance(model, str):
        return load(model)
    missing = [name for name in ("event_shape", "dtype", "device", "grid", "prior", "predict", "decode") if not hasattr(model, name)]
    if not missing:
        return model
    if hasattr(model, "components") and hasattr(model, "scheduler"):
        return from_pipeline(model)
    raise TypeError(
        f"{type(model).__name__} is not a model: it lacks {', '.join(missing)}. Give a name ({', '.join(models)}, or org/checkpoint), a "
        f"diffusers pipeline, or an object with the members of viot.Model."
    )


__all__ = ["as_model", "from_pipeline", "load", "models"]
