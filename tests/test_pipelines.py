"""Diffusers pipelines as Models, on tiny random ones of every family: what the adapter says is what the pipeline itself computes.

The reference is always the pipeline's own run, watched by a scheduler that records what passes through it.
"""

from __future__ import annotations

import functools
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
from viot.models.levels import levels_of
from viot.testing import check_model

#: Those whose pipelines are called, not the network directly.
CALLED = [name for name in FAMILIES if name not in ("ddpm", "ddim", "dit")]
STEPS = 4


@functools.cache
def family(name):
    build, call, _ = FAMILIES[name]
    pipe = build()
    return pipe, viot.from_pipeline(pipe, **call), call


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def record(pipe, call, n=2, steps=STEPS, **more):
    """The pipeline's own run of n samples of one prompt: [(state, time, output)] of every step, and what it returned."""
    seen = []
    own = pipe.scheduler
    kind = type(own)

    class Watching(kind):
        @functools.wraps(kind.step)
        def step(self, model_output, timestep, sample, *args, **kwargs):
            seen.append((sample.clone(), torch.as_tensor(timestep), model_output.clone()))
            return super().step(model_output, timestep, sample, *args, **kwargs)

    count = {"num_images_per_prompt": n}
    if isinstance(pipe, diffusers.ConsistencyModelPipeline):
        count = {"batch_size": n}
    elif isinstance(pipe, diffusers.WanPipeline):
        count = {name: value.repeat(n, 1, 1) for name, value in EMBEDS.items()}
    steps_asked = 7 if "strength" in call else steps
    pipe.scheduler = Watching.from_config(own.config)
    pipe.set_progress_bar_config(disable=True)
    try:
        out = pipe(**{**call, **count, **more}, num_inference_steps=steps_asked, return_dict=False)[0]
    finally:
        pipe.scheduler = own
    return seen, out


def ours(model, x, t):
    """The scheduler's state in the library's scale."""
    return (
        x / (1 + float(model.levels.native(t[None])[0]) ** 2) ** 0.5
        if "Euler" in model.levels.name and "Flow" not in model.levels.name
        else x
    )


# -- the pipeline's own answers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLED)
@torch.no_grad()
def test_the_output_is_the_pipelines_own(name):
    pipe, model, call = family(name)
    more = {"generator": [generator(5), generator(6)]}
    if name == "inpaint":
        # The picture is encoded with noise of its own, which must be the same draw.
        more = {"generator": [generator(0), generator(0)], "latents": model.prior(2, generator(3), t=model.grid(STEPS).times[0])}
    seen, _ = record(pipe, call, **more)
    assert len(seen) >= STEPS
    for x, t, out in seen:
        mine = model.oracle.output(ours(model, x, t), t, model._call(torch.zeros(2, dtype=torch.long), None))
        if x is ours(model, x, t) and name != "consistency":
            assert torch.equal(mine, out), f"differs at time {float(t)} by {(mine - out).abs().max()}"
        else:  # the same network input, but for the rounding of its scaling
            assert torch.allclose(mine, out, atol=1e-5)
    # It is this time and this state that it depends on.
    x, t, out = seen[1]
    call = model._call(torch.zeros(2, dtype=torch.long), None)
    assert not torch.allclose(model.oracle.output(ours(model, x, t) + 0.1, t, call), out, atol=1e-5)
    assert not torch.allclose(model.oracle.output(ours(model, x, t), seen[0][1], call), out, atol=1e-7)


@pytest.mark.parametrize("name", CALLED)
@torch.no_grad()
def test_the_start_is_the_pipelines_own(name):
    pipe, model, call = family(name)
    seen, _ = record(pipe, call, generator=generator(3))
    first = model.grid(STEPS).times[0]
    x = model.prior(2, generator(3), t=first)
    theirs = seen[0][0].float()
    # Euler-type schedulers start a little short of unit variance, or exactly there: it is the noise that must be the same.
    scale = (x * theirs).sum() / (theirs * theirs).sum()
    assert torch.allclose(x, theirs * scale, atol=1e-5)
    if "Euler" not in model.levels.name or "Flow" in model.levels.name:
        assert abs(float(scale) - 1) < 1e-6
    assert not torch.allclose(model.prior(2, generator(4), t=first), x, atol=1e-2)


@pytest.mark.parametrize("name", CALLED)
@torch.no_grad()
def test_the_times_are_the_pipelines_own(name):
    pipe, model, call = family(name)
    seen, _ = record(pipe, call)
    grid = model.grid(STEPS)
    visited = list(dict.fromkeys(float(t) for _, t, _ in seen))
    assert grid.times.tolist() == visited
    assert torch.equal(model.grid(STEPS).times, grid.times)
    if name == "sd-karras":
        # Its network is told whole times, its steps use the levels before rounding: half a time apart at most.
        native, theirs = model.levels.native(grid.times).log(), _sigmas(pipe).log()
        assert (native - theirs).abs().max() < 0.02
    elif hasattr(pipe.scheduler, "sigmas") and name != "pixart":
        assert torch.allclose(model.levels.native(grid.times), _sigmas(pipe), rtol=1e-4)


def _sigmas(pipe):
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    if isinstance(pipe, diffusers.FluxPipeline):
        scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=0.5 + (4 - 256) * (1.15 - 0.5) / (4096 - 256))
    else:
        scheduler.set_timesteps(STEPS)
    return scheduler.sigmas[:-1].double()


@pytest.mark.parametrize("name", [n for n in CALLED if n not in ("consistency",)])
@torch.no_grad()
def test_decoding_is_the_pipelines_own(name):
    pipe, model, call = family(name)
    latents = record(pipe, call, output_type="latent", generator=[generator(5), generator(6)])[1]
    images = record(pipe, call, output_type="pt", generator=[generator(5), generator(6)])[1]
    mine = model.decode(latents.float(), torch.zeros(2, dtype=torch.long))
    assert mine.shape[1:] == FAMILIES[name][2]
    assert mine.dtype == torch.float32
    assert torch.equal(mine, images.float())
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
    ],
    ids=["ddim", "ddim-clip", "ddim-to-one", "ddim-v", "inpaint", "sdxl-euler", "sd3", "flux", "wan", "pixels"],
)
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
        theirs = pipe(**call, **more, latents=x, num_inference_steps=5, output_type="pt", return_dict=False, **{count: 2})[0]
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


# -- the contract ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_family_keeps_the_contract(name):
    _, model, _ = family(name)
    check_model(model, steps=3)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "pixart", "wan", "lcm", "img2img", "inpaint", "dit"])
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


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "pixart", "wan", "lcm", "img2img", "inpaint", "ddpm", "dit"])
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


# -- prompts and groups ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build",
    [tiny.sd, tiny.sdxl, tiny.sd3, tiny.flux, tiny.pixart],
    ids=lambda b: b.__wrapped__.__name__ if hasattr(b, "__wrapped__") else "pipe",
)
def test_a_prompt_in_a_list_gives_what_it_gives_alone(build):
    size = {"height": 16, "width": 16} if build is not tiny.flux else {"height": 8, "width": 8}
    call = size | ({"use_resolution_binning": False} if build is tiny.pixart else {})
    prompts = ["a red cat", "two sevens on the mat"]
    model = viot.from_pipeline(build(), prompt=prompts, **call)
    assert model.prompts == prompts
    settings = {"particles": 3, "steps": 3, "lam": 30.0, "progress": False}
    with quiet():
        both = viot.sample(model, "brightness", "vasr", **settings)
        alone = viot.sample(model, "brightness", "vasr", groups=[1], **settings)
        sliced = viot.sample(model, "brightness", "vasr", batch_size=2, **settings)
        single = viot.sample(viot.from_pipeline(build(), prompt=prompts[1], **call), "brightness", "vasr", groups=[1], **settings)
    assert both.samples.shape[:2] == (2, 3)
    assert torch.equal(
        both.ancestors[:, 1] if both.ancestors.ndim == 3 else both.roots[1],
        alone.ancestors[:, 0] if both.ancestors.ndim == 3 else alone.roots[0],
    )
    for other in (alone.samples[0], single.samples[0], sliced.samples[1]):
        assert (both.samples[1] - other).abs().max() < 1e-5
    # The prompt matters: the same noise with the other prompt is another picture.
    other = viot.from_pipeline(build(), prompt=prompts[0], **call)
    with quiet():
        assert (viot.sample(other, "brightness", "vasr", groups=[1], **settings).samples[0] - both.samples[1]).abs().max() > 1e-4


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


def test_keywords_that_depend_on_the_pipelines_own_progress():
    with pytest.raises(ValueError, match=r"control_guidance_end=0\.5 depends on how far"):
        viot.from_pipeline(tiny.controlnet(), prompt="a cat", image=PICTURE, control_guidance_end=0.5)


def test_inpainting_that_pastes_back_is_refused():
    model = viot.from_pipeline(tiny.inpaint(4), **FAMILIES["inpaint"][1])
    with pytest.raises(TypeError, match="changes the state after each step"):
        viot.sample(model, "brightness", particles=2, steps=3, progress=False)


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
    with pytest.raises(FileNotFoundError, match=r"nobody/nothing.*hf download"):
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
    picture = viot.from_pipeline(pipe, prompt="a red cat", image=Image.new("RGB", (16, 16)), strength=0.6)
    assert picture.config["call"]["image"] == "Image"
