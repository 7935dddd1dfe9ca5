"""Models by name, and what else can stand for one. Each file is an adapter; none knows of rewards or methods."""

from __future__ import annotations

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


def load(name: str, **settings: Any) -> Any:
    """A model by name: an embedded one (`viot list` shows them), or "org/checkpoint" or a folder holding a pixel-space diffusers model.

    `settings` go to the model: for UNets device, compile, autocast, revision.
    """
    if name in models:
        return models[name].make(**settings)
    if "/" in name or name.startswith("."):
        from .unet import UNet

        return UNet.from_pretrained(name, **settings)
    raise unknown("model", name, models)


def as_model(model: Any) -> Any:
    """A Model from a name, a Model, or a pixel-space diffusers pipeline."""
    if isinstance(model, str):
        return load(model)
    missing = [name for name in ("event_shape", "dtype", "device", "grid", "prior", "predict", "decode") if not hasattr(model, name)]
    if not missing:
        return model
    if set(getattr(model, "components", ())) == {"unet", "scheduler"}:
        from .unet import UNet

        return UNet(model.unet, model.scheduler)
    raise TypeError(
        f"{type(model).__name__} is not a model: it lacks {', '.join(missing)}. Give a name ({', '.join(models)}, or org/checkpoint), a "
        f"pixel-space diffusers pipeline, or an object with the members of viot.Model."
    )


__all__ = ["as_model", "load", "models"]
