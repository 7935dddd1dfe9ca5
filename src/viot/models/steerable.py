"""Which diffusers pipelines can be steered, told by their signatures, and which keywords of theirs make no sense here."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

import torch

from . import levels

#: Pipelines without `latents=` that have an adapter of their own, or that the UNet adapter takes.
DIRECT = ("DDPMPipeline", "DDIMPipeline", "DiTPipeline")
#: Pipelines whose state is a text, with an adapter of their own.
TEXT = ("LLaDA2Pipeline",)

#: What no signature tells, from their sources.
BY_NAME = {
    "its network is told how far the next step goes, so it predicts no clean guess": ("AnyFlowPipeline",),
    "it makes its sample piece by piece, each from the one before": (
        "AnyFlowFARPipeline", "WanAnimatePipeline", "LTXI2VLongMultiPromptPipeline", "Cosmos2_5_TransferPipeline",
        "TextToVideoZeroPipeline", "TextToVideoZeroSDXLPipeline",
    ),
    "it steps in overlapping windows, or at several times at once": ("StableDiffusionPanoramaPipeline", "StableDiffusionParadigmsPipeline"),
    "it changes the state between two steps by a rule of its own": (
        "StableDiffusionAttendAndExcitePipeline", "LTXConditionPipeline", "CycleDiffusionPipeline",
    ),
    "its guidance depends on how far its own loop is": (
        "SemanticStableDiffusionPipeline", "Ideogram4Pipeline", "StableDiffusionPipelineSafe",
    ),
    "its network is told times relative to the last of its own loop": ("StableCascadePriorPipeline", "StableCascadeDecoderPipeline"),
    "it keeps a cache from its first step for the others": ("Flux2KleinKVPipeline",),
    "it chains several pipelines; steer them one by one": ("VisualClozePipeline", "VersatileDiffusionPipeline"),
    "its state is an image and a text at once": ("UniDiffuserPipeline",),
    "its checkpoints go along an angle (SCMScheduler), which is no path that the library knows": (
        "SanaSprintPipeline", "SanaSprintImg2ImgPipeline",
    ),
}  # fmt: skip

#: What `viot.sample` decides, or what would be lost when its loop takes over.
NOT_HERE = {
    "num_inference_steps": "say steps= to viot.sample",
    "generator": "say seed= to viot.sample: every group has its own stream",
    "latents": "states are the library's",
    "num_images_per_prompt": "say particles= to viot.sample",
    "num_videos_per_prompt": "say particles= to viot.sample",
    "batch_size": "say batch_size= to viot.sample",
    "output_type": "samples come as tensors, and .pil() makes pictures of them",
    "return_dict": "the answer is a Population",
    "eta": "η is a setting of the method: eta= of fkd or vasr, eta_base= of fvd",
    "timesteps": "the times are those of the pipeline's own scheduler; exchange or configure pipe.scheduler",
    "sigmas": "the noise levels are those of the pipeline's own scheduler; exchange or configure pipe.scheduler",
    "callback_on_step_end": "there is no loop of the pipeline's to call back from; iterate viot.prepare(...).states()",
    "callback": "there is no loop of the pipeline's to call back from; iterate viot.prepare(...).states()",
}

#: Keywords that make the network's answer depend on how far the pipeline's own loop is, and the value at which they don't.
BY_PROGRESS = {
    "control_guidance_start": 0.0,
    "control_guidance_end": 1.0,
    "denoising_start": None,
    "denoising_end": None,
    "skip_guidance_layers": None,
    "cfg_trunc_ratio": 1.0,
    "cfg_interval_start": 0.0,
    "cfg_interval_end": 1.0,
    "use_dynamic_cfg": False,
    "enable_temporal_reasoning": False,
    "adapter_conditioning_factor": 1.0,
    "gligen_scheduled_sampling_beta": 1.0,
}


def why_not(pipe: Any) -> str | None:
    """The reason why a pipeline (or, by signature alone, a pipeline's class) can't be steered, or None."""
    kind = pipe if isinstance(pipe, type) else type(pipe)
    for reason, names in BY_NAME.items():
        if kind.__name__ in names:
            return reason
    if kind.__name__ in TEXT:
        return None if isinstance(pipe, type) else _training(pipe)
    made = inspect.signature(kind.__init__).parameters
    call = inspect.signature(kind.__call__).parameters
    schedulers = [name for name in made if "scheduler" in name]
    if not schedulers:
        return "it has no scheduler among its parts, so there are no steps to steer (of a modular pipeline, take the plain one)"
    if len(_chained(made)) > 1:
        return f"it chains several diffusions ({', '.join(_chained(made))}); steer the pipelines it is made of, one by one"
    if states := [name for name in call if name.endswith("latents") and name.startswith(("audio", "action", "sound"))]:
        return f"it denoises a second state beside the first ({', '.join(states)})"
    chunked = ("ar_step", "overlap_history", "num_latent_frames_per_chunk", "latent_window_size", "history_sizes", "block_length")
    if chunks := [name for name in call if name in chunked]:
        return f"it makes its sample piece by piece, each from the one before ({', '.join(chunks)}); there is no one state to steer"
    annotation = made[schedulers[0]].annotation
    if hasattr(annotation, "set_timesteps") and isinstance(pipe, type) and (reason := levels.why_not(_made(annotation))):
        return reason
    if not isinstance(pipe, type):
        if reason := levels.why_not(pipe.scheduler):
            return reason
        if reason := _cached(pipe) or _scheduled(pipe) or _training(pipe):
            return reason
        if getattr(getattr(getattr(pipe, "transformer", None), "config", None), "use_meanflow", False):
            return next(iter(BY_NAME))
    if kind.__name__ in DIRECT:
        return None
    if "output_type" not in call or "num_inference_steps" not in call:
        return "its call has no num_inference_steps or no output_type; it can't be used as a function of its scheduler"
    prepares = getattr(kind, "prepare_latents", None)
    if "latents" not in call and not ("strength" in call and prepares is not None):
        return "its call takes no latents, so no state can be given to it; write a Model around its network (30 lines, see viot.Model)"
    return None


def _chained(made: Any) -> list[str]:
    """The parts that say that there is more than one diffusion."""
    helpers = ("low_res_scheduler", "image_noising_scheduler", "inverse_scheduler")
    return [name for name in made if name not in helpers and ("scheduler" in name or "prior_" in name or "decoder_" in name)]


def _made(kind: Any) -> Any:
    """A scheduler of this class with its defaults, whose levels can be looked at; the class, if it has none for its arguments."""
    try:
        return kind()
    except (TypeError, ImportError):
        return kind


def _training(pipe: Any) -> str | None:
    """Dropout would draw from torch's global state."""
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module) and any(m.training and m.p > 0 for m in part.modules() if isinstance(m, torch.nn.Dropout)):
            return f"its {name} is in training mode and drops out at random; call pipe.{name}.eval() first"
    return None


def _cached(pipe: Any) -> str | None:
    """Caches between calls mix up particles: what is remembered of one step would be used for others."""
    for name, part in pipe.components.items():
        hooks = getattr(getattr(part, "_diffusers_hook", None), "hooks", {})
        found = [str(key) for key, hook in hooks.items() if getattr(hook, "_is_stateful", False)]
        if getattr(part, "is_cache_enabled", False) or found:
            return (
                f"its {name} keeps a cache from one call to the next ({', '.join(found) or 'enable_cache'}), which would be used for "
                f"other particles; call pipe.{name}.disable_cache() first"
            )
    return None


def _scheduled(pipe: Any) -> str | None:
    """Guiders that guide some steps of the loop otherwise than others, or remember the steps before."""
    for name, part in pipe.components.items():
        if not hasattr(part, "set_state") or not getattr(part, "_enabled", True):
            continue
        for key, value in part.config.items():
            where = key.rsplit("_", 1)[-1]
            harmless = {"start": 0.0, "stop": 1.0, "momentum": None, "step": 0, "steps": 0}.get(where, value)
            if value != harmless and not key.startswith("_"):
                return f"its {name} guides by how far the pipeline's own loop is ({key}={value!r}); exchange it: ClassifierFreeGuidance() does not"
    return None


def check_call(pipe: Any, call: dict[str, Any]) -> None:
    """ValueError for keywords that the pipeline does not have, that belong elsewhere, or that depend on a loop which isn't run."""
    takes = inspect.signature(type(pipe).__call__).parameters
    for name in call:
        if name in NOT_HERE:
            raise ValueError(f"{name}= is not given here: {NOT_HERE[name]}")
        if name not in takes:
            near = difflib.get_close_matches(name, takes, 1)
            raise ValueError(f"{type(pipe).__name__} has no keyword {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    for name, harmless in BY_PROGRESS.items():
        if name in takes and (value := call.get(name, takes[name].default)) != harmless:
            default = "" if name in call else " (its default)"
            raise ValueError(
                f"{name}={value!r}{default} depends on how far the pipeline's own loop is, which is not run here; set it to {harmless}, or "
                f"write a Model that does it by the time t"
            )
    if "strength" in takes and not 0 < float(call.get("strength", takes["strength"].default)) <= 1:
        raise ValueError(f"strength={call['strength']!r} must be above 0 and at most 1: the share of the way that is noised and gone again")
    text = "prompt" in takes and "prompt_embeds" in takes
    if text and call.get("prompt") is None and call.get("prompt_embeds") is None:
        raise ValueError(f'{type(pipe).__name__} needs a prompt: viot.from_pipeline(pipe, prompt="…"), or a list of them')
