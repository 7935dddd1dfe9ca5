"""Diffusers pipelines as Models, on tiny random ones of every family: what the adapter says is what the pipeline itself computes.

The reference is always the pipeline's own run, watched by a scheduler that records what passes through it.
"""

from __future__ import annotations

import functools
import inspect
import warnings

import pytest
import torch
from helpers import quiet
from PIL import Image
from tiny import EMBEDS, FAMILIES, PICTURE

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers
import tiny

import viot
from viot.kernel import FlowSDE
from viot.methods import make
from viot.models.levels import levels_of
from viot.testing import check_model

#: Those whose pipelines are called, not the network directly.
CALLED = [name for name in FAMILIES if name not in ("ddpm", "ddim", "dit")]
#: One of each kind, for what takes longer.
CORE = ("sd", "sdxl", "sd3", "flux", "pixart", "wan", "lcm", "img2img", "inpaint")
STEPS = 4
#: They have a number of samples per prompt, and do not heed it everywhere.
HEEDLESS = ("AnimateDiffPipeline", "CogVideoXPipeline", "CogVideoXImageToVideoPipeline", "LTXPipeline")
pytestmark = pytest.mark.filterwarnings("ignore:.*CPU autocast")


LEARNED = ("urge", "tri-tsmc")


@functools.cache
def family(name):
    build, call, _ = FAMILIES[name]
    pipe = build()
    return pipe, viot.from_pipeline(pipe, **call), call


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def record(model, call, n=2, steps=STEPS, **more):
    """The pipeline's own run of n samples of one prompt: [(state, time, output, its σ)] of every step, where it ended, what it returned."""
    pipe, seen, ends = model.pipe, [], []
    own = pipe.scheduler
    kind = type(own)
    place = list(inspect.signature(kind.step).parameters)

    class Watching(kind):
        @functools.wraps(kind.step)
        def step(self, *args, **kwargs):
            given = dict(zip(place, (self, *args), strict=False)) | kwargs
            sigmas = getattr(self, "sigmas", None)
            sigma = None if sigmas is None else sigmas[(getattr(self, "begin_index", None) or 0) + len(seen)]
            seen.append((given["sample"].clone(), torch.as_tensor(given["timestep"]), given["model_output"].clone(), sigma))
            answer = super().step(*args, **kwargs)
            ends.append(answer[0].clone())
            return answer

    takes = inspect.signature(type(pipe).__call__).parameters
    counts = [name for name in ("num_images_per_prompt", "num_videos_per_prompt", "batch_size") if name in takes]
    count = {counts[0]: n} if counts else {}
    if not counts or type(pipe).__name__ in HEEDLESS:
        count = {name: [text] * n for name, text in call.items() if name.endswith("prompt")}
        if "image" in call:
            count["image"] = call["image"].expand(n, -1, -1, -1)
    elif "prompt_embeds" in call and "image" not in call:
        count = {name: value.expand(n, -1, -1) for name, value in call.items() if name.endswith("prompt_embeds")}
    # A strength leaves some of the steps asked for.
    asked = model.oracle.times(steps, model._call(torch.tensor([0]), generator()))[0].num_inference_steps
    pipe.scheduler = Watching.from_config(own.config)
    pipe.set_progress_bar_config(disable=True)
    try:
        out = pipe(**{**call, **count, "output_type": "pt", **more}, num_inference_steps=asked, return_dict=False)
    finally:
        pipe.scheduler = own
    return seen, ends[-1], out[0] if isinstance(out, tuple) else out


def ours(model, x, t):
    """The scheduler's state in the library's scale."""
    return x / (1 + float(model.levels.native(t[None])[0]) ** 2) ** 0.5 if model.levels.rescales(model.pipe.scheduler) else x


@functools.cache
def recorded(name):
    """One run that draws what the library's calls draw: a picture's encoding has a noise of its own, and some decoders have."""
    _, model, call = family(name)
    with torch.no_grad():
        if not model.oracle.takes_latents:
            return record(model, call, generator=generator(5))
        x = model.prior(2, generator(3), t=model.grid(STEPS).times[0])
        kind = "np" if name == "kandinsky" else "pt"
        return record(model, call, generator=[generator(), generator()], latents=x, output_type=kind)


# -- the pipeline's own answers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLED)
@torch.no_grad()
def test_the_output_is_the_pipelines_own(name):
    _, model, _ = family(name)
    seen, *_ = recorded(name)
    assert len(seen) >= STEPS
    group = torch.zeros(2, dtype=torch.long)
    for x, t, out, _ in seen:
        mine = torch.cat([model.oracle.output(ours(model, x, t)[rows], t, call) for rows, _, call in model._calls(t.expand(2), group)])
        if x is ours(model, x, t) and model._how != "alone" and name not in ("consistency", "kandinsky5"):
            assert torch.equal(mine, out), f"differs at time {float(t)} by {(mine - out).abs().max()}"
        else:  # the same network input, but for the rounding of its scaling, or of batches of another size (in the text encoder for one)
            assert torch.allclose(mine, out, atol=1e-5)
    # It is this time and this state that it depends on.
    (x, t, out, _), call = seen[1], next(model._calls(None, group[:1]))[2]
    x = ours(model, x, t)[:1]
    assert not torch.allclose(model.oracle.output(x + 0.1, t, call), out[:1], atol=1e-5)
    call = next(model._calls(None, group[:1]))[2]
    assert not torch.allclose(model.oracle.output(x, seen[0][1], call), out[:1], atol=1e-7)


@pytest.mark.parametrize("name", CALLED)
@torch.no_grad()
def test_the_start_is_the_pipelines_own(name):
    _, model, call = family(name)
    # What is asked for one by one draws in another order.
    n = 1 if model._how == "alone" else 2
    seen, *_ = record(model, call, n, steps=2, generator=generator(3))
    first = model.grid(2).times[0]
    x = model.prior(n, generator(3), t=first)
    theirs = seen[0][0].float()
    # Euler-type schedulers start a little short of unit variance, or exactly there: it is the noise that must be the same.
    scale = (x * theirs).sum() / (theirs * theirs).sum()
    assert torch.allclose(x, theirs * scale, atol=1e-5)
    if not model.levels.rescales(model.pipe.scheduler):
        assert abs(float(scale) - 1) < 1e-6
    assert not torch.allclose(model.prior(n, generator(4), t=first), x, atol=1e-2)


@pytest.mark.parametrize("name", CALLED)
@torch.no_grad()
def test_the_times_are_the_pipelines_own(name):
    _, model, _ = family(name)
    seen, *_ = recorded(name)
    grid = model.grid(STEPS)
    visited = list(dict.fromkeys(float(t) for _, t, _, _ in seen))
    assert grid.times.tolist() == visited
    assert torch.equal(model.grid(STEPS).times, grid.times)
    if seen[0][3] is not None:
        native, theirs = model.levels.native(grid.times), torch.stack([sigma for *_, sigma in seen]).double()
        # Solvers tell their networks whole times, and step with the levels before rounding: half a time apart at most.
        assert torch.allclose(native, theirs, atol=1e-6, rtol=0.02 if "Multistep" in model.levels.name else 1e-4)


@pytest.mark.parametrize("name", [n for n in CALLED if n not in ("consistency",)])
@torch.no_grad()
def test_decoding_is_the_pipelines_own(name):
    _, model, _ = family(name)
    _, ends, images = recorded(name)
    mine = model.decode(ends.float(), torch.zeros(2, dtype=torch.long))
    assert mine.shape[1:] == FAMILIES[name][2]
    assert mine.dtype == torch.float32
    if not isinstance(images, torch.Tensor):
        images = torch.as_tensor(images).movedim(-1, 1)
    # Kandinsky's own "pt" is not in [0, 1]; its array has seen another order of operations. One row at a time rounds otherwise.
    rounds = 1e-5 if name == "kandinsky" or model._how == "alone" else 0
    assert torch.allclose(mine, images.float(), rtol=0, atol=rounds)
    assert 0 <= float(mine.min()) < float(mine.max()) <= 1


# Where the pipeline's own loop is one of the chains that the kernel knows, the unsteered run is the pipeline's.
@pytest.mark.parametrize(
    ("build", "call", "tolerance"),
    [
        (tiny.sd, {"prompt": "a red cat"}, 1e-5),
        (lambda: tiny.sd(diffusers.DDIMScheduler(**{**tiny.DDIM, "clip_sample": True})), {"prompt": "a red cat"}, 1e-5),
        (lambda: tiny.sd(diffusers.DDIMScheduler(**{**tiny.DDIM, "set_alpha_to_one": True})), {"prompt": "a red cat"}, 1e-5),
        (
            lambda: tiny.sd(diffusers.DDIMScheduler(**tiny.DDIM, prediction_type="v_prediction", timestep_spacing="trailing")),
            {"prompt": "a red cat"},
            1e-5,
        ),
        (tiny.inpaint, FAMILIES["inpaint"][1], 1e-5),
        (tiny.sdxl, FAMILIES["sdxl"][1], 1e-4),
        (tiny.sd3, FAMILIES["sd3"][1], 1e-5),
        (tiny.flux, FAMILIES["flux"][1], 1e-5),
        (tiny.wan, FAMILIES["wan"][1], 1e-5),
        (tiny.ddim, {}, 1e-5),
        *((*FAMILIES[name][:2], 1e-4) for name in ("flux-fill", "zimage", "mochi", "svd", "upscale")),
    ],
    ids=[
        "ddim", "ddim-clip", "ddim-to-one", "ddim-v", "inpaint", "sdxl-euler", "sd3", "flux", "wan", "pixels", "flux-fill", "zimage",
        "mochi", "svd", "upscale",
    ],
)  # fmt: skip
def test_base_without_noise_is_the_pipelines_own_run(build, call, tolerance):
    pipe = build()
    model = viot.from_pipeline(pipe, **call)
    run = viot.prepare(model, "brightness", viot.methods.Base(eta=0.0), particles=2, steps=5)
    with quiet():
        mine = run.finish(progress=False).samples[0]
    x = run.problem.prior()[0]
    if isinstance(pipe, diffusers.DDIMPipeline):
        pipe.scheduler.set_timesteps(5)
        for t in pipe.scheduler.timesteps:
            with torch.no_grad():
                x = pipe.scheduler.step(pipe.unet(x, t).sample, t, x).prev_sample
        theirs = (x / 2 + 0.5).clamp(0, 1)
    else:
        if isinstance(pipe.scheduler, diffusers.EulerDiscreteScheduler):
            pipe.scheduler.set_timesteps(5)
            x = x * (1 + pipe.scheduler.sigmas[0] ** 2) ** 0.5 / pipe.scheduler.init_noise_sigma
        count = "num_videos_per_prompt" if "num_frames" in call else "num_images_per_prompt"
        pipe.set_progress_bar_config(disable=True)
        more = {"generator": [generator(), generator()]} if "image" in call else {}
        theirs = pipe(**call, **more, latents=x, num_inference_steps=5, output_type="pt", return_dict=False, **{count: 2})
        theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    assert (mine - theirs).abs().max() < tolerance
    with quiet():
        noisy = viot.sample(model, "brightness", viot.methods.Base(eta=1.0), particles=2, steps=5, progress=False)
    assert (noisy.samples[0] - theirs).abs().max() > 10 * tolerance


@pytest.mark.parametrize("name", ["lcm", "consistency"])
def test_consistency_models_step_as_their_schedulers(name):
    pipe, model, _ = family(name)
    grid = model.grid(STEPS)
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(STEPS)
    x, out = torch.randn(2, *model.event_shape, generator=generator(1)), torch.randn(2, *model.event_shape, generator=generator(2))

    class Noise:
        def normal(self, shape, dtype, device):
            return torch.randn(shape, generator=g, dtype=dtype)

    for j, t in enumerate(scheduler.timesteps):
        if name == "consistency":
            scheduler.scale_model_input(x, t)
        g = generator(7)
        theirs = scheduler.step(out, t, x, generator=g).prev_sample
        g = generator(7)
        prediction = model.levels.read(x, out, t.expand(2))
        mine, ratio = model.kernel.step(x, prediction, grid.coeffs(j), 1.0, Noise())
        # Consistency models add √(σ² − .002²) of noise where the library has σ.
        assert (mine - theirs).abs().max() < (1e-5 if name == "lcm" else 1e-4 * (1 + float(grid.sigmas[j + 1])))
        assert not ratio.any()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("DDIMScheduler", {}),
        ("DDPMScheduler", {"clip_sample": True}),
        ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "timestep_type": "continuous", "prediction_type": "v_prediction"}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 1}),
        ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        ("EDMEulerScheduler", {}),
    ],
)
def test_clean_guesses_are_the_schedulers(kind, settings):
    base = {} if "Flow" in kind or "EDM" in kind else tiny.LDM
    scheduler = getattr(diffusers, kind)(**base, **settings)
    levels = levels_of(scheduler)
    scheduler.set_timesteps(6)
    grid = levels.grid(scheduler, scheduler.timesteps)
    j = 2
    x, out = torch.randn(2, 4, 8, 8, generator=generator(1)), torch.randn(2, 4, 8, 8, generator=generator(2))
    t = grid.times[j]
    scheduler._init_step_index(t) if hasattr(scheduler, "_init_step_index") else None
    # x in the scheduler's own scale is theirs = x · √(1 + σ²) for those whose α is 1.
    own = "Euler" in kind and "Flow" not in kind and "EDM" not in kind
    theirs = x * (1 + scheduler.sigmas[j].float() ** 2) ** 0.5 if own else x
    if kind in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler"):
        expected = scheduler.convert_model_output(out, sample=x)
    elif kind == "FlowMatchEulerDiscreteScheduler":
        expected = x - scheduler.sigmas[j] * out
    elif own:
        scheduler.is_scale_input_called = True
        expected = scheduler.step(out, t, theirs).pred_original_sample
    elif kind == "EDMEulerScheduler":
        expected = scheduler.precondition_outputs(x, out, scheduler.sigmas[j])
    else:
        expected = scheduler.step(out, t, x).pred_original_sample
    # UniPC tells the network whole times, and steps with the levels before they were cut.
    loose = 2e-2 if kind == "UniPCMultistepScheduler" else 2e-4
    assert torch.allclose(levels.read(x, out, t.expand(2)).x0, expected, atol=loose, rtol=loose)


@torch.no_grad()
def test_transformers_of_labels_run_as_their_pipeline():
    pipe, model, call = family("dit")
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(**call, generator=generator(3), num_inference_steps=5, output_type="np").images
    grid, x = model.grid(5), model.prior(1, generator(3))
    for j, t in enumerate(grid.times):
        x, _ = viot.Gaussian().step(x, model.predict(x, t[None], torch.tensor([0])), grid.coeffs(j), 0.0, None)
    assert torch.allclose(model.decode(x, torch.tensor([0])), torch.as_tensor(theirs).movedim(-1, 1), atol=1e-5)


# -- the contract ---------------------------------------------------------------------------------------------------------------------


# Mochi has no times for a single step.
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "mochi"])
def test_every_family_keeps_the_contract(name):
    _, model, _ = family(name)
    check_model(model, steps=3 if name in CORE else 2)


@pytest.mark.parametrize("name", [*CORE, "dit", "qwen", "zimage", "kandinsky5", "cogvideo", "svd"])
def test_gradients_reach_the_state(name):
    pipe, model, _ = family(name)
    grid = model.grid(STEPS)
    group = torch.zeros(2, dtype=torch.long)
    x = model.prior(2, generator(), **({} if name == "dit" else {"t": grid.times[0]})).requires_grad_()

    def bright(x):
        prediction = model.predict(x, grid.times[2].expand(2), group)
        sample = model.decode(prediction.x0, group)
        # The tiny video decoder hardly answers: what it says is lost in float32 beside the network's.
        return (prediction.x0 + 0 * sample.sum() if name == "wan" else sample).flatten(1).mean(1)

    slope = torch.autograd.grad(bright(x).sum(), x)[0]
    direction = slope / slope.norm()
    with torch.no_grad():
        step = (bright(x + 1e-2 * direction) - bright(x - 1e-2 * direction)).sum() / 2e-2
    if name == "wan":
        decoded = torch.autograd.grad(model.decode(x, group).sum(), x)[0]
        assert float(decoded.norm()) > 1e-6
    assert float(slope.norm()) > 1e-6
    assert float(step) == pytest.approx(float(slope.norm()), rel=0.1)
    net = getattr(pipe, "unet", None) or pipe.transformer
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "lcm", "img2img", "inpaint", "ddpm", "dit"])
def test_steering_does_what_it_should(name):
    """Brightness rises with λ, and the best of more particles is better."""
    _, model, _ = family(name)
    bright = lambda **settings: viot.sample(model, "brightness", "vasr", steps=STEPS, groups=4, progress=False, **settings)
    with quiet():
        spread = float(viot.sample(model, "brightness", "base", steps=STEPS, particles=8, groups=4, progress=False).rewards.std())
        weak, strong = (bright(particles=8, lam=lam / spread).rewards.mean() for lam in (0.0, 3.0))
        few, many = (bright(particles=k, lam=1 / spread).rewards.amax(1).mean() for k in (2, 12))
    assert strong > weak + 0.3 * spread
    assert many > few


@pytest.mark.parametrize("name", ["sd", "sd3", "ddpm"])
@pytest.mark.parametrize("method", ["dps", "tds", "das", "svdd", "svdd-r", "dts", "dts-star"])
def test_gradients_candidates_and_trees_on_pipelines(name, method):
    """Every kind of method on an unmodified pipeline, in slices, with as many rows as it says, and nothing left behind."""
    pipe, model, _ = family(name)
    shared = {"steps": STEPS, "groups": 2, "particles": 8, "batch_size": 3, "progress": False}
    with quiet():
        spread = float(viot.sample(model, "brightness", "base", **shared).rewards.std())
        found = viot.sample(model, "brightness", method, lam=4 / spread, **shared)
        plain = viot.sample(model, "brightness", method, lam=0.0, **shared)
    gain = found.rewards.amax(1) if method == "dts-star" else found.mean()
    assert gain.mean() > (plain.rewards.mean() if method == "dts-star" else plain.mean().mean())
    k, known = found.shape[1], make(method)
    assert found.grad_rows == 2 * k * known.grads(STEPS)
    assert found.nfe <= 2 * 8 * STEPS
    assert (found.tree is not None) == method.startswith("dts")
    net = getattr(pipe, "unet", None) or pipe.transformer
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


# -- prompts and groups ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "wan", "ddpm"])
def test_the_start_declares_its_spread(name):
    """Noise in whatever order, times a constant: that of a thousand of its numbers; so a twist may move it."""
    _, model, _ = family(name)
    first = model.grid(STEPS).times[0]
    many = torch.cat([model.prior(1, generator(s), t=first) if hasattr(model, "pipe") else model.prior(1, generator(s)) for s in range(64)])
    assert many.numel() > 500
    assert float(many.std()) == pytest.approx(model.prior_std, rel=5 * (2 * many.numel()) ** -0.5)


def test_a_picture_is_no_spread():
    """It has one all the same, if it is as good as gone; and another scheduler has another."""
    _, model, _ = family("img2img")
    assert model.prior_std is None
    pipe = tiny.sd()
    model = viot.from_pipeline(pipe, prompt="a cat")
    assert model.prior_std == pytest.approx(1.0)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    first = model.grid(STEPS).times[0]
    start = torch.cat([model.prior(1, generator(s), t=first) for s in range(8)])
    assert float(start.std()) == pytest.approx(model.prior_std, rel=0.1)


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("name", ["sd", "sd3", "flux"])
@pytest.mark.parametrize("method", LEARNED)
def test_guidance_and_learned_twists_on_pipelines(name, method, flow):
    pipe, _, call = family(name)
    model = viot.from_pipeline(pipe, **call)
    if flow and name == "sd":
        pytest.skip("no rectified flow")
    if flow:
        model.kernel = FlowSDE()
    made = make(method, eta=0.7, **({"guide": lambda x, t, p: 0.1 * p.x0} if method == "urge" else {"rounds": 1, "twist": "slope"}))
    with quiet():
        found = viot.sample(model, "brightness", made, particles=6, steps=STEPS, lam=20.0, progress=False)
        again = viot.sample(model, "brightness", made, particles=6, steps=STEPS, lam=20.0, batch_size=2, progress=False)
    assert found.log_z.isfinite().all()
    assert found.nfe <= 6 * STEPS * found.shape[0]
    assert torch.allclose(found.samples, again.samples, atol=1e-3)
    if method == "tri-tsmc":
        assert (found.training["moved"] > 0).all()
        assert (found.training["moved"] <= 1 + 1e-6).all()


# Those whose encodings have the length of the prompt are called prompt by prompt, or take lists of them.
@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "pixart", "qwen", "zimage", "kandinsky5"])
def test_a_prompt_in_a_list_gives_what_it_gives_alone(name):
    build, call, _ = FAMILIES[name]
    prompts = ["a red cat", "two sevens on the mat"]
    model = viot.from_pipeline(build(), **{**call, "prompt": prompts})
    assert model._how == ("count" if name in ("qwen", "kandinsky5") else "rows")
    assert model.prompts == prompts
    settings = {"particles": 3, "steps": 3, "lam": 30.0, "progress": False}
    with quiet():
        both = viot.sample(model, "brightness", "vasr", **settings)
        alone = viot.sample(model, "brightness", "vasr", groups=[1], **settings)
        sliced = viot.sample(model, "brightness", "vasr", batch_size=2, **settings)
        single = viot.sample(viot.from_pipeline(build(), **{**call, "prompt": prompts[1]}), "brightness", "vasr", groups=[1], **settings)
    assert both.samples.shape[:2] == (2, 3)
    assert torch.equal(
        both.ancestors[:, 1] if both.ancestors.ndim == 3 else both.roots[1],
        alone.ancestors[:, 0] if both.ancestors.ndim == 3 else alone.roots[0],
    )
    for other in (alone.samples[0], single.samples[0], sliced.samples[1]):
        assert (both.samples[1] - other).abs().max() < 5e-5
    # The prompt matters: the same noise with the other prompt is another picture.
    other = viot.from_pipeline(build(), **{**call, "prompt": prompts[0]})
    with quiet():
        assert (viot.sample(other, "brightness", "vasr", groups=[1], **settings).samples[0] - both.samples[1]).abs().max() > 1e-4


def _own(name):
    """The family with a condition of its own for each of three prompts."""
    build, call, _ = FAMILIES[name]
    if name == "wan":
        return build, call | {key: torch.cat([value, value.roll(1, 1), value.roll(2, 1)]) for key, value in EMBEDS.items()}, EMBEDS
    if name == "kandinsky":
        return build, call | {key: [call[key], -call[key], 2 * call[key]] for key in tiny.GUIDE}, tiny.GUIDE
    own = {"prompt": ["a red cat", "two sevens on the mat", "a dog"]}
    own |= {"image": [call["image"], 1 - call["image"], call["image"] / 2]} if "image" in call and name != "ip-adapter" else {}
    return build, call | own, own


@pytest.mark.parametrize("name", ["sd", "qwen", "zimage", "wan", "flux-kontext", "sd3-img2img", "ip-adapter", "cogvideo-i2v", "kandinsky"])
def test_rows_of_any_prompt_and_time_in_one_call(name):
    build, call, own = _own(name)
    pipe = build()
    model = viot.from_pipeline(pipe, **call)
    assert model.P == 3
    times, group = model.grid(STEPS).times[[0, 2, 2, 1, 2]], torch.tensor([0, 1, 2, 2, 4])
    x = model.prior(5, generator(), t=times[0])
    together = model.predict(x, times, group)
    shown = model.decode(x, group)
    with torch.no_grad():
        for i, g in enumerate(group.tolist()):
            mine = {key: call[key][g % 3 : g % 3 + 1] if isinstance(call[key], torch.Tensor) else call[key][g % 3] for key in own}
            alone = viot.from_pipeline(pipe, **call | mine)
            row = alone.predict(x[i : i + 1], times[i : i + 1], torch.tensor([0]))
            assert (row.x0 - together.x0[i : i + 1]).abs().max() < 1e-4 * (1 + row.x0.abs().max())
            assert (alone.decode(x[i : i + 1], torch.tensor([0])) - shown[i : i + 1]).abs().max() < 1e-5


def test_prompts_are_encoded_once(monkeypatch):
    pipe = tiny.sd()
    calls = []
    forward = pipe.text_encoder.forward
    monkeypatch.setattr(pipe.text_encoder, "forward", lambda *a, **k: (calls.append(1), forward(*a, **k))[1])
    model = viot.from_pipeline(pipe, prompt=["a cat", "a dog", "a cat"], negative_prompt="dark")
    made = len(calls)
    with quiet():
        viot.sample(model, "brightness", "fkd", particles=4, steps=5, progress=False)
    # Two distinct prompts with their negatives, and one pair that tells which outputs belong to the rows.
    assert made == 6
    assert len(calls) == made


def test_rewards_see_the_prompts():
    model = viot.from_pipeline(tiny.sd(), prompt=["a cat", "a dog"])
    seen = set()

    def reward(samples, prompts):
        seen.update(prompts)
        return torch.tensor([float(len(p)) for p in prompts])

    with quiet():
        population = viot.sample(model, reward, "base", particles=2, steps=2, groups=3, progress=False)
    assert seen == {"a cat", "a dog"}
    assert population.samples.shape[0] == 3
    assert population.config["model"]["prompts"] == ["a cat", "a dog"]


def test_prompts_of_unequal_length_go_apart():
    """A pipeline that encodes to as many tokens as the prompt has: they can't share a call, and need not."""
    pipe = tiny.sd()
    encode = pipe.encode_prompt

    def encode_prompt(prompt, device, num_images_per_prompt, do_classifier_free_guidance, negative_prompt=None, **kwargs):
        one, two = encode(prompt, device, num_images_per_prompt, do_classifier_free_guidance, negative_prompt, **kwargs)
        length = 3 + max(len(p) for p in ([prompt] if isinstance(prompt, str) else prompt)) % 4
        return one[:, :length], None if two is None else two[:, :length]

    pipe.encode_prompt = encode_prompt
    prompts = ["a cat", "a red dog"]
    model = viot.from_pipeline(pipe, prompt=prompts)
    with quiet():
        both = viot.sample(model, "brightness", "vasr", particles=3, steps=3, progress=False)
        alone = viot.sample(
            viot.from_pipeline(pipe, prompt=prompts[1]), "brightness", "vasr", particles=3, steps=3, groups=[1], progress=False
        )
    assert (both.samples[1] - alone.samples[0]).abs().max() < 1e-5


def test_each_prompt_has_its_own_picture():
    pictures = [PICTURE, 1 - PICTURE]
    call = {"prompt": ["a cat", "a cat"], "image": pictures, "strength": 0.3}
    model = viot.from_pipeline(tiny.img2img(), **call)
    x = [model.prior(3, generator(), group=torch.full((3,), g), t=model.grid(2).times[0]) for g in (0, 1)]
    assert (x[0].mean(0) - x[1].mean(0)).abs().max() > 0.05
    alone = viot.from_pipeline(tiny.img2img(), prompt="a cat", image=pictures[1], strength=0.3)
    assert torch.equal(alone.prior(3, generator(), t=alone.grid(2).times[0]), x[1])


def test_a_count_that_is_not_heeded():
    """AnimateDiff takes `num_videos_per_prompt`, and makes one."""
    _, call, _ = FAMILIES["animatediff"]
    model = viot.from_pipeline(tiny.animatediff(), **call)
    assert model._how == "rows"
    model._how = "count"
    assert len(model.oracle.start(None, model._call(torch.tensor([0, 0]), generator()))) == 1


def test_encoders_that_answer_in_other_ways():
    """HiDream's layers come before its rows; Kandinsky's lengths are one more than its prompts; instructions go with every prompt."""
    from viot.models.encoder import Encoder, Uneven

    class Pipe:
        components, calls, _execution_device = {}, 0, torch.device("cpu")

        def encode_prompt(self, prompt, image=None, num_images_per_prompt=1, system_prompt="be brief", prompt_embeds=None):
            self.calls += 1
            n = len(prompt) * num_images_per_prompt
            rows = torch.tensor([float(len(p)) for p in prompt]).repeat_interleave(num_images_per_prompt)
            assert isinstance(system_prompt, str)
            return rows.expand(2, n)[..., None], torch.arange(n + 1), None if image is None else image.float().mean()

    pipe = Pipe()
    encode = Encoder(pipe)
    for n in (1, 2, 3):
        layers, lengths, _ = encode(["a cat"] * n, system_prompt="x")
        assert layers.shape == (2, n, 1)
        assert lengths.tolist() == list(range(n + 1))
        assert [o.shape for o in encode("a cat", num_images_per_prompt=n, system_prompt="x")[:2]] == [(2, n, 1), (n + 1,)]
    with pytest.raises(Uneven):
        encode(["a cat", "a dog"], system_prompt="x")
    # Pictures count by what they show, not by where they are stored.
    calls = pipe.calls
    for i in range(3):
        assert float(encode(["a cat"], image=torch.full((1, 3), 1.0))[2]) == 1.0
        assert float(encode(["a cat"], image=torch.full((1, 3), 2.0))[2]) == 2.0
        assert pipe.calls == calls + 2, i


# -- the pipeline moves, and serves others --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd", "sd3", "qwen", "img2img"])
def test_a_pipeline_that_is_cast_after_it_was_wrapped(name):
    build, call, _ = FAMILIES[name]
    pipe = build()
    model = viot.from_pipeline(pipe, **call)
    group, t = torch.zeros(2, dtype=torch.long), model.grid(STEPS).times[1]
    x = model.prior(2, generator(), t=t)
    with torch.no_grad():
        before = model.predict(x, t.expand(2), group).x0
        pipe.to(torch.bfloat16)
        fresh = viot.from_pipeline(pipe, **call)
        for then in (model.predict, fresh.predict):
            assert torch.equal(then(x, t.expand(2), group).x0, fresh.predict(x, t.expand(2), group).x0)
        assert torch.equal(model.decode(x, group), fresh.decode(x, group))
        pipe.to(torch.float32)
        assert (model.predict(x, t.expand(2), group).x0 - before).abs().max() < 0.1


@pytest.mark.parametrize("name", ["sd", "qwen"])
def test_a_pipeline_that_moved_encodes_anew(name, monkeypatch):
    build, call, _ = FAMILIES[name]
    pipe = build()
    model = viot.from_pipeline(pipe, **call)
    known = len(model.oracle.always["encode_prompt"].known)
    x, t = model.prior(1, generator()), model.grid(STEPS).times[:1]
    with torch.no_grad():
        model.predict(x, t, torch.tensor([0]))
        assert len(model.oracle.always["encode_prompt"].known) == known
        monkeypatch.setattr(type(pipe), "_execution_device", torch.device("cpu", 0))
        model.predict(x, t, torch.tensor([0]))
    assert len(model.oracle.always["encode_prompt"].known) > known


@pytest.mark.parametrize("name", ["sd", "sdxl", "qwen", "img2img"])
def test_two_models_and_the_owner_take_turns(name):
    build, call, _ = FAMILIES[name]
    pipe, steps = build(), 3
    pipe.set_progress_bar_config(disable=True)
    pipe.vae.enable_slicing()
    pipe.vae.enable_tiling()
    pipe.enable_attention_slicing()
    calls = [call | {"prompt": prompt} for prompt in ("a red cat", "two sevens on the mat")]
    first = {i: viot.from_pipeline(build(), **call) for i, call in enumerate(calls)}
    both = {i: viot.from_pipeline(pipe, **call) for i, call in enumerate(calls)}
    theirs = lambda p: p(**calls[0] | {"prompt": "a dog"}, generator=generator(2), num_inference_steps=5, output_type="pt").images
    switches = lambda: (
        pipe.vae.use_slicing, pipe.vae.use_tiling, {name: type(p) for name, p in getattr(getattr(pipe, "unet", None), "attn_processors", {}).items()}
    )  # fmt: skip
    image, before, group = theirs(pipe), switches(), torch.zeros(2, dtype=torch.long)
    grid = both[0].grid(steps)
    with torch.no_grad():
        for j, t in enumerate(grid.times):
            for i in (0, 1):
                x = both[i].prior(2, generator(j), t=t)
                mine, own = both[i].predict(x, t.expand(2), group), first[i].predict(x, t.expand(2), group)
                assert (mine.x0 - own.x0).abs().max() < 1e-4
                assert torch.equal(theirs(pipe), image)
                assert (both[i].decode(x, group) - first[i].decode(x, group)).abs().max() < 1e-4
    assert switches() == before
    assert pipe.vae.use_slicing


# -- nothing is left behind -----------------------------------------------------------------------------------------------------------


def _fingerprint(pipe):
    return {name: id(value) for name, value in vars(pipe).items()}, dict(pipe.config), dict(pipe.scheduler.config)


def _image(pipe):
    return pipe(prompt="a dog", num_inference_steps=3, generator=generator(2), output_type="pt").images


@pytest.mark.parametrize("how", ["whole", "stopped", "error in the reward", "error in the network", "gradients"])
def test_the_pipeline_is_as_before(how):
    pipe = tiny.sd()
    pipe.set_progress_bar_config(disable=True)
    before, image = _fingerprint(pipe), _image(pipe)
    before = _fingerprint(pipe)
    model = viot.from_pipeline(pipe, prompt="a cat")
    state = torch.get_rng_state()
    with quiet():
        if how == "whole":
            viot.sample(model, "brightness", "vasr", particles=2, steps=3, progress=False)
        elif how == "stopped":
            for reached in viot.prepare(model, "brightness", "vasr", particles=2, steps=4).states():
                if reached.step == 2:
                    assert _fingerprint(pipe) == before  # also between two steps
                    break
        elif how == "error in the reward":
            with pytest.raises(ZeroDivisionError):
                viot.sample(model, lambda x: 1 / 0, "vasr", particles=2, steps=3, progress=False)
        elif how == "error in the network":
            forward, pipe.unet.forward = pipe.unet.forward, lambda *a, **k: 1 / 0
            try:
                with pytest.raises(ZeroDivisionError):
                    viot.sample(model, "brightness", "vasr", particles=2, steps=3, progress=False)
            finally:
                pipe.unet.forward = forward
                del pipe.unet.__dict__["forward"]
        else:
            evaluate = viot.prepare(model, "brightness", "vasr", particles=2, steps=3).problem.evaluate
            x = model.prior(2, generator())
            evaluate(x, model.grid(3).times[0], torch.zeros(2, dtype=torch.long), grad=True)
    assert _fingerprint(pipe) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(_image(pipe), image)
    assert all(p.requires_grad for p in pipe.unet.parameters())


def test_offloading_is_put_off_until_the_run_ends(monkeypatch):
    pipe = tiny.sd()
    freed = []
    monkeypatch.setattr(type(pipe), "maybe_free_model_hooks", lambda self: freed.append(1))
    model = viot.from_pipeline(pipe, prompt="a cat")
    assert not freed
    with quiet():
        run = viot.prepare(model, "brightness", "vasr", particles=2, steps=3)
        for state in run.states():
            assert not freed, f"freed at step {state.step}"
        assert freed == [1]
        for _ in (states := run.states()):
            break
        states.close()
    assert freed == [1, 1]


def test_a_run_can_be_stopped_and_resumed(tmp_path):
    model = viot.from_pipeline(tiny.sd(), prompt=["a cat", "a dog"])
    settings = {"particles": 3, "steps": 5, "lam": 20.0}
    with quiet():
        whole = viot.sample(model, "brightness", "vasr", progress=False, **settings)
        for state in viot.prepare(model, "brightness", "vasr", **settings).states():
            if state.step == 3:
                state.save(tmp_path / "half.safetensors")
                break
        run = viot.prepare(viot.from_pipeline(tiny.sd(), prompt=["a cat", "a dog"]), "brightness", "vasr", **settings)
        *_, last = run.states(viot.particles.State.load(tmp_path / "half.safetensors")[0])
    assert torch.equal(run.population(last).samples, whole.samples)


# -- precision, decoders, checkers ----------------------------------------------------------------------------------------------------


def test_half_precision_networks_have_float32_states():
    pipe = tiny.sd().to(torch.bfloat16)
    model = viot.from_pipeline(pipe, prompt="a cat")
    with quiet():
        population = viot.sample(model, "brightness", "vasr", particles=2, steps=3, progress=False)
    assert population.x0.dtype == population.samples.dtype == torch.float32
    assert next(pipe.unet.parameters()).dtype == torch.bfloat16
    full = viot.from_pipeline(tiny.sd(), prompt="a cat")
    x, group = model.prior(2, generator()), torch.zeros(2, dtype=torch.long)
    t = model.grid(3).times[1].expand(2)
    with torch.no_grad():
        assert (model.predict(x, t, group).eps - full.predict(x, t, group).eps).abs().max() < 0.1


def test_a_tiny_decoder_serves_on_the_way_and_the_pipelines_own_at_the_end():
    pipe = tiny.sd()
    seen = []

    class Counting(diffusers.AutoencoderTiny):
        def decode(self, *args, **kwargs):
            seen.append(len(args[0]))
            return super().decode(*args, **kwargs)

    small = Counting(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
        latent_channels=4,
    )  # fmt: skip
    model = viot.from_pipeline(pipe, tiny_vae=small, prompt="a cat")
    method = viot.methods.VASR(schedule=2)
    with quiet():
        population = viot.sample(model, "brightness", method, particles=3, steps=6, progress=False)
    plain = viot.from_pipeline(pipe, prompt="a cat")
    assert seen == [3] * len(method.scoring(6))
    assert torch.equal(plain.decode(population.x0[0], torch.zeros(3, dtype=torch.long)), population.samples[0])
    assert population.decode_rows == 3 * (1 + len(seen))
    assert pipe.vae is not small


class Checker(torch.nn.Module):
    """A safety checker that flags the brighter half of the pictures, and blacks them."""

    def __init__(self, limit):
        super().__init__()
        self.limit, self.dtype, self.device, self.seen = limit, torch.float32, torch.device("cpu"), 0

    def forward(self, images, clip_input):
        self.seen += len(images)
        flags = [bool(image.mean() > self.limit) for image in images]
        images = [torch.zeros_like(image) if flag else image for image, flag in zip(images, flags, strict=True)]
        return torch.stack(images), flags


def test_flagged_pictures_are_kept_counted_and_told():
    pipe = tiny.sd()
    model = viot.from_pipeline(pipe, prompt="a cat")
    with quiet():
        clean = viot.sample(model, "brightness", "base", particles=6, steps=3, progress=False)
    limit = float(clean.samples.flatten(2).mean(2).median()) * 2 - 1
    pipe.safety_checker = Checker(limit)
    pipe.feature_extractor = lambda images, return_tensors: _Features(torch.zeros(len(images), 1))
    with pytest.warns(viot.SteeringWarning, match="flagged finished samples as nsfw"):
        flagged = viot.sample(model, "brightness", "base", particles=6, steps=3, progress=False)
    nsfw = flagged.parts["nsfw"][0] > 0
    assert 0 < int(nsfw.sum()) < 6
    assert torch.equal(nsfw, clean.samples[0].flatten(1).mean(1) * 2 - 1 > limit)
    # What the checker shows in the picture's place is what comes out: mid-grey is its black, as the pipeline has it.
    assert torch.equal(flagged.samples[0][~nsfw], clean.samples[0][~nsfw])
    assert not torch.allclose(flagged.samples[0][nsfw], clean.samples[0][nsfw])
    # On the way nobody checks, and gradients do not pass through it.
    pipe.safety_checker.seen = 0
    with quiet():
        viot.sample(model, "brightness", viot.methods.VASR(schedule=1), particles=6, steps=4, progress=False)
    assert pipe.safety_checker.seen == 6


class _Features:
    def __init__(self, pixel_values):
        self.pixel_values = pixel_values

    def to(self, device):
        return self


# -- flows ----------------------------------------------------------------------------------------------------------------------------


def test_flows_run_as_ode_and_as_sde():
    model = viot.from_pipeline(tiny.sd3(), prompt="a cat", height=16, width=16)
    group = torch.zeros(2, dtype=torch.long)
    settings = {"particles": 2, "steps": 4, "progress": False}
    with quiet():
        ode = viot.sample(model, "brightness", viot.methods.Base(eta=0.0), **settings)
        sde = viot.sample(model, "brightness", viot.methods.Base(eta=1.0), **settings)
        model.kernel = FlowSDE()
        other = viot.sample(model, "brightness", viot.methods.Base(eta=0.7), **settings)
    assert (ode.samples - sde.samples).abs().max() > 1e-4
    assert (other.samples - sde.samples).abs().max() > 1e-4
    # One exact Gaussian step keeps the path's marginal: with x0 and ε known, x_s has α_s x0 + σ_s (noise of unit variance).
    grid = model.grid(4)
    x0, eps = torch.randn(2, 4, 8, 8, generator=generator(1)), torch.randn(2, 4, 8, 8, generator=generator(2))
    c = grid.coeffs(1)
    x = c.alpha_t * x0 + c.sigma_t * eps
    read = model.levels.read(x, eps - x0, grid.times[1].expand(2))
    assert torch.allclose(read.x0, x0, atol=1e-5)
    assert torch.allclose(read.eps, eps, atol=1e-5)
    mean, std = viot.Gaussian().moments(x, read, c, 1.0)
    left = (mean - c.alpha_s * x0) / eps
    assert torch.allclose(left**2 + std**2, torch.full_like(left, c.sigma_s**2), atol=1e-4)
    assert group.shape == (2,)


# -- refusals -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keyword", "value", "message"),
    [
        ("num_inference_steps", 20, "say steps= to viot.sample"),
        ("generator", generator(), "say seed="),
        ("num_images_per_prompt", 4, "say particles="),
        ("eta", 1.0, "setting of the method"),
        ("latents", torch.zeros(1), "states are the library's"),
        ("output_type", "np", "samples come as tensors"),
        ("callback_on_step_end", print, r"viot\.prepare"),
        ("guidence_scale", 3.0, "did you mean 'guidance_scale'"),
        ("negative_prompt", ["dark", "bright"], "2 entries for 1 prompts"),
        ("prompt", ["a cat", 3], "list of strings"),
    ],
)
def test_keywords_that_make_no_sense_here(keyword, value, message):
    with pytest.raises(ValueError, match=message):
        viot.from_pipeline(tiny.sd(), **{"prompt": "a cat", keyword: value})


def test_a_prompt_is_asked_for():
    with pytest.raises(ValueError, match=r"needs a prompt: viot\.from_pipeline"):
        viot.sample(tiny.sd(), "brightness")


@pytest.mark.parametrize(
    ("name", "keyword", "value"),
    [("controlnet", "control_guidance_end", 0.5), ("cogvideo", "use_dynamic_cfg", True), ("lumina", "cfg_trunc_ratio", 0.25)],
)
def test_keywords_that_depend_on_the_pipelines_own_progress(name, keyword, value):
    pipe, _, call = family(name)
    with pytest.raises(ValueError, match=f"{keyword}={value} depends on how far"):
        viot.from_pipeline(pipe, **call | {keyword: value})


PASTED = {"image": PICTURE, "mask_image": tiny.MASK, "prompt": "a cat", "height": 16, "width": 16}
MOVING = {"prompt": "a cat", "num_frames": 9, "height": 32, "width": 32}


@pytest.mark.parametrize(
    ("build", "call", "reason"),
    [
        (lambda: tiny.inpaint(4), PASTED, "changes the state after each step"),
        (lambda: tiny.xl_inpaint(4), PASTED, "changes the state after each step"),
        (tiny.flux_inpaint, PASTED, "changes the state after each step|something else than the state"),
        # A time for each token, and the first frame is left out of the steps.
        (tiny.ltx_i2v, MOVING | {"image": torch.zeros(1, 3, 32, 32), "max_sequence_length": 8}, "something else than the state"),
        # Frames become rows on the way to the scheduler.
        (tiny.text2video, MOVING, "something else than the state"),
        # It computes with the state in its scheduler's scale.
        (tiny.latent_upscale, {"prompt": "a cat", "image": torch.zeros(1, 4, 8, 8)}, "where its own loop is"),
        (lambda: (pipe := tiny.animatediff(), pipe.enable_free_init())[0], FAMILIES["animatediff"][1], "3 times a step"),
    ],
    ids=["inpaint", "xl-inpaint", "flux-inpaint", "ltx-i2v", "text2video", "latent-upscale", "free-init"],
)
def test_loops_that_cannot_be_taken_over(build, call, reason):
    with pytest.raises(TypeError, match=f"({reason}).*can't be taken over"):
        viot.sample(viot.from_pipeline(build(), **call), "brightness", particles=2, steps=3, progress=False)


@pytest.mark.parametrize("how", ["by the length of the loop", "by the calls before", "by its place", "by its start"])
def test_answers_that_depend_on_the_loop_are_caught(how):
    pipe = tiny.sd()
    forward, prepare, calls, starts = pipe.unet.forward, pipe.prepare_latents, [], []
    pipe.prepare_latents = lambda *args, **kwargs: (starts.append(prepare(*args, **kwargs)), starts[-1])[1]

    def otherwise(x, t, **kwargs):
        calls.append(float(t))
        factor = {
            "by the length of the loop": pipe.num_timesteps, "by the calls before": len(calls),
            "by its place": 2 if calls[-2:] == [calls[-1]] * 2 else 1, "by its start": float(starts[-1].mean()),
        }  # fmt: skip
        return tuple(out * factor[how] for out in forward(x, t, **kwargs))

    pipe.unet.forward = otherwise
    with pytest.raises(TypeError, match="depends on where its own loop is"):
        viot.sample(viot.from_pipeline(pipe, prompt="a cat"), "brightness", particles=2, steps=2, progress=False)


@pytest.mark.parametrize(
    ("guider", "reason"),
    [
        (lambda: diffusers.AdaptiveProjectedMixGuidance(), "momentum=-0.5"),
        (lambda: diffusers.AdaptiveProjectedMixGuidance(adaptive_projected_guidance_momentum=None), "start_step=5"),
        (lambda: diffusers.ClassifierFreeGuidance(stop=0.8), "stop=0.8"),
        (lambda: diffusers.ClassifierFreeZeroStarGuidance(), "zero_init_steps=1"),
        (lambda: diffusers.ClassifierFreeGuidance(stop=0.8, enabled=False), None),
        (lambda: diffusers.ClassifierFreeGuidance(), None),
    ],
)
def test_guiders_with_a_schedule_are_refused(guider, reason):
    from viot.models.steerable import why_not

    empty = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer"))
    pipe = diffusers.HunyuanImagePipeline(**empty, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), guider=guider())
    assert (reason in (why_not(pipe) or "")) if reason else why_not(pipe) is None


def test_a_run_that_a_pipeline_has_no_times_for():
    with pytest.raises(ValueError, match="MochiPipeline has no times for a run of 1 steps"):
        family("mochi")[1].grid(1)
    with pytest.raises(ValueError, match="goes to σ = 80"):
        levels_of(diffusers.FlowMatchEulerDiscreteScheduler()).grid(None, torch.tensor([80000.0, 1.0]))


def test_a_scheduler_that_has_no_times_before_it_is_asked():
    model = viot.from_pipeline(diffusers.StableDiffusionImg2ImgPipeline(**_pndm()), prompt="a cat", image=PICTURE)
    assert model.event_shape == (4, 8, 8)
    check_model(model, steps=2)


def _pndm():
    parts = dict(tiny.img2img().components) | {"scheduler": diffusers.PNDMScheduler(**tiny.LDM, skip_prk_steps=True, steps_offset=1)}
    return parts | {"requires_safety_checker": False}


@pytest.mark.parametrize("how", ["twice", "before"])
def test_pipelines_that_are_no_function_of_the_state_are_caught(how):
    class Odd(diffusers.StableDiffusionPipeline):
        def prepare_extra_step_kwargs(self, generator, eta):
            own = self.scheduler.step
            kind = type(self.scheduler)

            def step(model_output, timestep, sample, **kwargs):
                if how == "twice":
                    own(model_output, timestep, sample, **kwargs)
                return own(model_output, timestep, sample if how == "twice" else sample * 1.5, **kwargs)

            self.scheduler.step = functools.wraps(kind.step)(step)
            return super().prepare_extra_step_kwargs(generator, eta)

    pipe = tiny.sd()
    odd = Odd(**pipe.components, requires_safety_checker=False)
    with pytest.raises(TypeError, match="2 times a step" if how == "twice" else "something else than the state"):
        viot.sample(viot.from_pipeline(odd, prompt="a cat"), "brightness", particles=2, steps=2, progress=False)


def test_caches_between_calls_are_refused():
    pipe = tiny.flux()
    pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.2))
    with pytest.raises(TypeError, match=r"keeps a cache.*disable_cache"):
        viot.from_pipeline(pipe, prompt="a cat")
    pipe.transformer.disable_cache()
    viot.from_pipeline(pipe, prompt="a cat", height=8, width=8)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("StableCascadeCombinedPipeline", "chains several diffusions"),
        ("KandinskyV22CombinedPipeline", "chains several diffusions"),
        ("LTX2Pipeline", "second state"),
        ("SkyReelsV2DiffusionForcingPipeline", "piece by piece"),
        ("AmusedPipeline", "moves tokens"),
        ("IFPipeline", "takes no latents"),
        ("StableDiffusionAttendAndExcitePipeline", "rule of its own"),
        ("StableCascadePriorPipeline", "relative to the last"),
        ("StableDiffusionPipelineSafe", "how far its own loop is"),
        ("FluxModularPipeline", "take the plain one"),
    ],
)
def test_pipelines_that_cannot_be_steered(kind, reason):
    from viot.models.steerable import why_not

    assert reason in (why_not(getattr(diffusers, kind)) or "")


@pytest.mark.parametrize("kind", ["StableDiffusionPipeline", "FluxPipeline", "WanPipeline", "SanaPipeline", "QwenImagePipeline"])
def test_pipelines_that_can(kind):
    from viot.models.steerable import why_not

    assert why_not(getattr(diffusers, kind)) is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_schedulers_that_call_twice_a_step():
    model = viot.from_pipeline(tiny.sd(diffusers.KDPM2DiscreteScheduler(**tiny.LDM)), prompt="a cat")
    with pytest.raises(ValueError, match=r"KDPM2DiscreteScheduler visits .* DDIMScheduler\.from_config"):
        viot.sample(model, "brightness", particles=2, steps=5)
    heun = viot.from_pipeline(tiny.sd(diffusers.HeunDiscreteScheduler(**tiny.LDM)), prompt="a cat")
    assert len(heun.grid(5)) == 5


# -- memory ---------------------------------------------------------------------------------------------------------------------------


class Small:
    """A model on an accelerator that holds four rows."""

    event_shape, dtype, device, limit = (2,), torch.float32, torch.device("cpu"), 4

    def __init__(self, where="predict"):
        self.where = where

    def grid(self, steps):
        return viot.Grid(torch.arange(steps), torch.linspace(0.1, 1, steps + 1), torch.linspace(1, 0, steps + 1))

    def prior(self, n, generator):
        return torch.randn(n, 2, generator=generator)

    def _fits(self, rows, where):
        if where == self.where and rows > self.limit:
            raise torch.OutOfMemoryError(f"{rows} rows")

    def predict(self, x, t, group):
        self._fits(len(x), "predict")
        return viot.Prediction(x / 2)

    def decode(self, x0, group):
        self._fits(len(x0), "decode")
        return x0


@pytest.mark.parametrize("where", ["predict", "decode"])
def test_out_of_memory_halves_the_batch_and_says_so_once(where):
    def reward(x):
        return x[:, 0]

    settings = {"particles": 9, "steps": 5, "progress": False}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        survived = viot.sample(Small(where), reward, "vasr", **settings)
    assert sum("memory is too small" in str(w.message) for w in told) == 1
    big = Small()
    big.limit = 99
    with quiet():
        whole = viot.sample(big, reward, "vasr", **settings)
    assert torch.equal(survived.samples, whole.samples)
    assert (survived.nfe, survived.decode_rows, survived.reward_rows) == (whole.nfe, whole.decode_rows, whole.reward_rows)
    none = Small(where)
    none.limit = 0
    with quiet(), pytest.raises(torch.OutOfMemoryError):
        viot.sample(none, reward, "vasr", **settings)


# -- by name --------------------------------------------------------------------------------------------------------------------------


def test_a_folder_is_loaded_and_steered(tmp_path):
    pipe = tiny.sd()
    pipe.save_pretrained(tmp_path / "tiny")
    model = viot.load(f"{tmp_path}/tiny", prompt="a cat", guidance_scale=3.0)
    assert model.config["name"] == f"{tmp_path}/tiny"
    mine = viot.from_pipeline(pipe, prompt="a cat", guidance_scale=3.0)
    x, group = mine.prior(2, generator()), torch.zeros(2, dtype=torch.long)
    t = mine.grid(3).times[0].expand(2)
    with torch.no_grad():
        assert torch.equal(model.predict(x, t, group).eps, mine.predict(x, t, group).eps)
    assert viot.load(f"{tmp_path}/tiny", prompt="a cat", dtype="bfloat16").pipe.unet.dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:.*local_dir_use_symlinks:UserWarning")
def test_a_checkpoint_that_is_not_there(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"nobody/nothing.*hf download"):
        viot.load("nobody/nothing", prompt="a cat")
    with pytest.raises(ValueError, match=r"nobody/nothing.*can be read"):
        viot.load("nobody/nothing")


def test_the_record_says_how_the_pipeline_was_called():
    pipe, model, _ = family("img2img")
    told = model.config
    assert told["pipeline"] == "StableDiffusionImg2ImgPipeline"
    assert told["call"]["strength"] == 0.6
    assert told["call"]["image"].startswith("(1, 3, 16, 16)")
    assert told["scheduler"]["type"] == "DDIMScheduler"
    other = viot.from_pipeline(pipe, prompt="a red cat", image=1 - PICTURE, strength=0.6)
    assert other.config["call"]["image"] != told["call"]["image"]
    shown = [{"prompt": "a red cat", "image": Image.new("RGB", (16, 16), color)} for color in (0, 9)]
    images = [viot.from_pipeline(pipe, **call).config["call"]["image"] for call in shown]
    assert all(image.startswith("Image (16, 16) ") for image in images)
    assert images[0] != images[1]
    from viot.models.encoder import said

    assert said({"scale": 0.5, "layers": (1, 2), "faces": [PICTURE]}) == {"scale": 0.5, "layers": [1, 2], "faces": [said(PICTURE)]}


def test_several_pictures_that_go_with_every_prompt():
    """Two control nets look at two pictures, whatever the number of prompts; frames are one video."""
    single = tiny.controlnet()
    nets = diffusers.MultiControlNetModel([single.controlnet, tiny.controlnet().controlnet])
    pipe = diffusers.StableDiffusionControlNetPipeline(**dict(single.components) | {"controlnet": nets}, requires_safety_checker=False)
    model = viot.from_pipeline(pipe, prompt="a cat", image=[PICTURE, 1 - PICTURE], controlnet_conditioning_scale=[1.0, 0.5])
    assert model.P == 1
    check_model(model, steps=2)
    from viot.models.diffusers import _by_prompt

    frames = [Image.new("RGB", (16, 16))] * 2
    assert _by_prompt({"prompt": ["a cat", "a dog"], "video": frames})[0]["video"] == frames
    assert _by_prompt({"prompt": ["a cat", "a dog"], "video": [frames, frames]})[1]["video"] == [frames, frames]


def test_adapters_stay_on():
    peft = pytest.importorskip("peft")
    pipe = tiny.sd()
    pipe.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False), "style")
    model = viot.from_pipeline(pipe, prompt="a cat")
    x, t, group = model.prior(2, generator()), model.grid(3).times[1].expand(2), torch.zeros(2, dtype=torch.long)
    with torch.no_grad():
        on = model.predict(x, t, group).x0
        pipe.unet.disable_adapters()
        off = model.predict(x, t, group).x0
    assert (on - off).abs().max() > 1e-3
    check_model(model, steps=2)


# -- what a stranger would stumble over -----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*upcast_vae:FutureWarning")
def test_memory_that_runs_out_in_a_decoder_that_upcasts():
    """SDXL decodes in float32 and returns to half precision: an error in between must not leave it there."""
    pipe = tiny.sdxl().to(torch.float16)
    pipe.vae.register_to_config(force_upcast=True)
    decode, tries = pipe.vae.decode, []

    def small(z, **kwargs):
        tries.append(z.dtype)
        if len(z) > 2:
            raise torch.OutOfMemoryError("too many")
        return decode(z, **kwargs)

    pipe.vae.decode = small
    model = viot.from_pipeline(pipe, prompt="a cat", height=16, width=16)
    with pytest.warns(viot.SteeringWarning, match="memory is too small"):
        survived = viot.sample(model, "brightness", "base", particles=4, steps=2, progress=False)
    assert pipe.vae.dtype == torch.float16
    assert set(tries) == {torch.float32}
    with quiet():
        again = viot.sample(model, "brightness", "base", particles=4, steps=2, batch_size=2, progress=False)
    assert torch.equal(survived.samples, again.samples)
    with pytest.raises(torch.OutOfMemoryError):
        model.decode(model.prior(3, generator()), torch.zeros(3, dtype=torch.long))
    assert pipe.vae.dtype == torch.float16


def test_conditions_without_words_are_groups_too():
    embeds = torch.randn(3, 7, 32, generator=generator(4))
    call = {"negative_prompt_embeds": torch.randn(1, 7, 32, generator=generator(5)), "height": 16, "width": 16, "num_frames": 5}
    model = viot.from_pipeline(tiny.wan(), prompt_embeds=embeds, **call)
    with quiet():
        three = viot.sample(model, "brightness", "base", particles=2, steps=2, progress=False)
        one = viot.from_pipeline(tiny.wan(), prompt_embeds=embeds[2:], **call)
        alone = viot.sample(one, "brightness", "base", particles=2, steps=2, groups=[2], progress=False)
    assert three.samples.shape[:2] == (3, 2)
    assert (three.samples[2] - alone.samples[0]).abs().max() < 1e-5


def test_a_tensor_of_pictures_has_one_for_each_prompt():
    pictures = torch.cat([PICTURE, 1 - PICTURE])
    calls = [{"prompt": ["a cat", "a cat"], "image": image, "strength": 0.3} for image in (pictures, list(pictures.split(1)))]
    tensor, listed = (viot.from_pipeline(tiny.img2img(), **call) for call in calls)
    t = tensor.grid(2).times[0]
    for g in (0, 1):
        group = torch.full((3,), g)
        assert torch.equal(tensor.prior(3, generator(), group=group, t=t), listed.prior(3, generator(), group=group, t=t))
    with pytest.raises(ValueError, match="image has 2 rows for 3 prompts"):
        viot.from_pipeline(tiny.img2img(), prompt=["a", "b", "c"], image=pictures)


@pytest.mark.parametrize("name", ["img2img", "inpaint"])
def test_slices_of_pictures_do_not_change_the_draws(name):
    _, model, _ = family(name)
    with quiet():
        whole, sliced = (
            viot.sample(model, "brightness", "vasr", particles=4, steps=3, batch_size=size, progress=False) for size in (None, 3)
        )
    assert (whole.samples - sliced.samples).abs().max() < 1e-5


def test_the_scheduler_may_be_exchanged_afterwards():
    pipe = tiny.sd()
    model = viot.from_pipeline(pipe, prompt="a cat")
    pipe.scheduler = diffusers.LCMScheduler.from_config(pipe.scheduler.config)
    grid, fresh = model.grid(4), viot.from_pipeline(pipe, prompt="a cat")
    assert model.kernel == viot.Gaussian(fresh=True)
    assert torch.equal(grid.sigmas, fresh.grid(4).sigmas)
    assert model.config["scheduler"]["type"] == "LCMScheduler"
    x, group = model.prior(2, generator()), torch.zeros(2, dtype=torch.long)
    with torch.no_grad():
        mine, theirs = (m.predict(x, grid.times[1].expand(2), group).x0 for m in (model, fresh))
    assert torch.equal(mine, theirs)


def test_another_run_is_not_resumed(tmp_path):
    """Pictures, decoders, encoders, kernels: whatever changes the draws is part of the record."""
    call = {"prompt": "a cat", "image": Image.new("RGB", (16, 16), "red"), "strength": 0.5}

    def run(model, folder):
        with quiet():
            viot.sample(model, "brightness", "base", particles=2, steps=2, checkpoint=tmp_path / folder, progress=False)

    run(viot.from_pipeline(tiny.img2img(), **call), "a")
    others = [viot.from_pipeline(tiny.img2img(), **{**call, "image": Image.new("RGB", (16, 16), "blue")})]
    for part in ("vae", "text_encoder"):
        pipe = tiny.img2img()
        with torch.no_grad():
            for weight in getattr(pipe, part).parameters():
                weight.mul_(1.1)
        others.append(viot.from_pipeline(pipe, **call))
    others.append(viot.from_pipeline(tiny.img2img(), **call))
    others[-1].kernel = viot.Gaussian(fresh=True)
    for other in others:
        with pytest.raises(ValueError, match="belongs to another run"):
            run(other, "a")
    run(viot.from_pipeline(tiny.img2img(), **call), "a")


def test_pipelines_in_training_mode_that_drop_out():
    pipe = tiny.pixart()
    pipe.text_encoder.train()
    with pytest.raises(TypeError, match=r"text_encoder is in training mode.*text_encoder\.eval\(\)"):
        viot.from_pipeline(pipe, prompt="a cat", height=16, width=16, use_resolution_binning=False)
    pixels = tiny.ddpm()
    pixels.unet.train()
    viot.from_pipeline(pixels)
    assert pixels.unet.training


def test_keywords_that_the_direct_adapters_would_swallow():
    with pytest.raises(ValueError, match="leave use_clipped_model_output out"):
        viot.from_pipeline(tiny.ddim(), use_clipped_model_output=True)
    with pytest.raises(ValueError, match="no decoder"):
        viot.from_pipeline(tiny.ddim(), tiny_vae=torch.nn.Identity())
    with pytest.raises(ValueError, match="needs classes"):
        viot.from_pipeline(tiny.dit())
    with pytest.raises(ValueError, match="strength=0 must be above 0"):
        viot.from_pipeline(tiny.img2img(), prompt="a cat", image=PICTURE, strength=0)
    with pytest.raises(ValueError, match=r"strength=0\.01 leaves 20 steps only of 2000"):
        viot.from_pipeline(tiny.img2img(), prompt="a cat", image=PICTURE, strength=0.01).grid(20)


def test_a_folder_of_a_consistency_model(tmp_path):
    tiny.consistency().save_pretrained(tmp_path / "cm")
    model = viot.load(f"{tmp_path}/cm")
    assert model.kernel == viot.Gaussian(fresh=True)
    assert float(model.prior(64, generator(), t=model.grid(2).times[0]).std()) == pytest.approx(float(model.grid(2).sigmas[0]), rel=0.05)
    with pytest.raises(TypeError, match=r"give viot\.from_pipeline the whole pipeline"):
        viot.models.unet.UNet(tiny.consistency().unet, tiny.consistency().scheduler)


def test_gradients_pass_a_checker_by():
    pipe = tiny.sd()
    pipe.safety_checker = Checker(-9.0)
    pipe.feature_extractor = lambda images, return_tensors: _Features(torch.zeros(len(images), 1))
    model = viot.from_pipeline(pipe, prompt="a cat")
    x = model.prior(2, generator()).requires_grad_()
    slope = torch.autograd.grad(model.decode(x, torch.zeros(2, dtype=torch.long)).sum(), x)[0]
    assert float(slope.norm()) > 0
    assert pipe.safety_checker.seen == 0
