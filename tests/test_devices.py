"""Nothing mixes devices: run on a pretend accelerator, which raises wherever a real one would.

Its tensors say that they live on "meta" and hold their data on the CPU. An operation on tensors of both kinds is an error, as on CUDA (numbers
and 0-dimensional tensors excepted); moving between the two is allowed.
"""

import warnings

import pytest
import torch
from helpers import METHODS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import viot
from viot.guidance import Toward
from viot.methods import FKD, FVD, SVDD, URGE, VASR, TriTSMC
from viot.models.masked_lm import MaskedLM
from viot.models.tokens import Letters
from viot.rewards import Min, Noisy, Quadratic, Sum
from viot.twists import VJP, Affine, Feature, Neural, Slope
from viot.value import X0Samples

AWAY = torch.device("meta")
# These move data, or may be told where by indices from the CPU.
MOVES = {"copy_", "_to_copy", "index", "index_put", "index_put_"}


class Elsewhere(torch.Tensor):
    """A tensor that claims to be on the pretend device; `here` is its data."""

    @staticmethod
    def __new__(cls, here):
        made = torch.Tensor._make_wrapper_subclass(cls, here.shape, strides=here.stride(), dtype=here.dtype, device=AWAY)
        made.here = here
        return made

    def __init__(self, here):
        pass

    __torch_dispatch__ = classmethod(lambda cls, f, types, args=(), kwargs=None: dispatch(f, args, kwargs or {}))


def dispatch(f, args, kwargs):
    name = f.__name__.split(".")[0]
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    away = [t for t in tensors if isinstance(t, Elsewhere)]
    mixed = away and any(t.ndim for t in tensors if not isinstance(t, Elsewhere))
    if (mixed and name not in MOVES) or (name == "index" and away and not isinstance(args[0], Elsewhere)):
        raise RuntimeError(f"devices mixed in {f.__name__}")
    wrap, kwargs = bool(away), dict(kwargs)
    if kwargs.get("device") is not None:
        wrap = torch.device(kwargs["device"]).type == AWAY.type
        kwargs["device"] = torch.device("cpu")
    out = f(*tree_map(data, args), **tree_map(data, kwargs))
    if name == "_local_scalar_dense" or not any(isinstance(o, torch.Tensor) for o in tree_leaves(out)):
        return out
    if name in MOVES and name.endswith("_"):
        return args[0]
    if name.endswith("_") and isinstance(args[0], Elsewhere):
        return args[0]
    return tree_map(lambda o: Elsewhere(o) if isinstance(o, torch.Tensor) else o, out) if wrap else out


def data(value):
    return value.here if isinstance(value, Elsewhere) else value


class Pretend(TorchDispatchMode):
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        return dispatch(f, args, kwargs or {})


class Model:
    event_shape, dtype, device = (1, 8, 8), torch.float32, AWAY
    prompts = ("a", "b")

    def grid(self, steps):
        t = torch.linspace(1, 0, steps + 1, dtype=torch.float64) * torch.pi / 2
        return viot.Grid(t[:-1], t.cos(), t.sin())

    def prior(self, n, generator, group):
        return torch.randn(n, 1, 8, 8, generator=generator)

    def predict(self, x, t, group):
        assert {x.device, t.device, group.device} == {AWAY}
        return viot.Prediction(0.5 * x, eps=0.7 * x, extra={"hidden": 2 * x})

    def decode(self, x0, group):
        assert {x0.device, group.device} == {AWAY}
        return x0 / 2 + 0.5


class Tokens(Model):
    event_shape, dtype, prompts = (3,), torch.long, None

    def __init__(self, order):
        self.kernel = viot.Categorical(4, order, remask=0.1)

    def grid(self, steps):
        a = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        return viot.Grid(a[:-1], a, 1 - a)

    def prior(self, n, generator):
        return torch.full((n, 3), 4)

    def predict(self, x, t, group):
        return viot.Prediction(torch.where(x == 4, 0, x), logits=torch.zeros(len(x), 3, 4, device=AWAY))

    def decode(self, x0, group):
        return ["".join("abcd?"[i] for i in row) for row in x0.cpu().tolist()]


def bright(x):
    return x.flatten(1).mean(1)


def run(model=None, reward=bright, method="vasr", **settings):
    with warnings.catch_warnings(), Pretend():
        warnings.simplefilter("ignore", viot.SteeringWarning)
        return viot.sample(model or Model(), reward, method, **{"particles": 8, "steps": 8, "progress": False, **settings})


@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize(
    "method",
    [*METHODS, FVD(rebirth_noise="all_later_steps", cap_policy="temper"), FKD(compat="released", potential="sum")],
    ids=str,
)
def test_methods(method, batch_size):
    population = run(method=method, batch_size=batch_size)
    assert population.samples.device.type == population.log_weights.device.type == "cpu"


@pytest.mark.parametrize("value", ["rollout", "x0_samples", "smoothed", lambda problem, state: state.x.flatten(2).mean(-1)])
def test_values(value):
    run(method=VASR(value=value), batch_size=3)


@pytest.mark.parametrize(
    "reward",
    [
        Sum({"a": bright, "b": bright}),
        Min({"here": lambda x: bright(x.cpu()), "away": bright}),
        Noisy(bright, 0.1),
        lambda x, group: bright(x) * group,
        lambda x, noise: bright(x) + noise,
        lambda x: Quadratic([0.0, 1.0])(x.flatten(1)[:, :2]),
        lambda x, prompts: bright(x) * len(prompts),
    ],
)
def test_rewards(reward):
    run(reward=reward, batch_size=3)


@pytest.mark.parametrize("order", ["random", "left", "confidence"])
def test_tokens(order):
    run(Tokens(order), lambda texts: torch.tensor([float(t.count("a")) for t in texts]), VASR(value="x0_samples"))


def test_a_saved_state_goes_back_to_its_device(tmp_path):
    with Pretend():
        prepared = viot.prepare(Model(), bright, "vasr", particles=8, steps=8)
        for state in prepared.states():
            if state.step == 4 and not state.done:
                state.save(tmp_path / "half")
        again, _ = viot.particles.State.load(tmp_path / "half", AWAY)
        assert again.x.device == AWAY
        assert again.log_w.device.type == "cpu"
        assert list(prepared.states(again))[-1].done
        with pytest.raises(ValueError, match=r"device=model\.device"):
            next(prepared.states(viot.particles.State.load(tmp_path / "half")[0]))


def test_the_pretend_device_notices_a_mix():
    with pytest.raises(RuntimeError, match="devices mixed"):
        run(reward=lambda x: bright(x) * torch.ones(len(x)))


def away(pipe):
    """The pipeline with its weights on the pretend device."""
    for part in pipe.components.values():
        for module in part.modules() if isinstance(part, torch.nn.Module) else ():
            for held, kind in ((module._parameters, lambda t: torch.nn.Parameter(t, requires_grad=False)), (module._buffers, lambda t: t)):
                held.update({name: kind(Elsewhere(value.data)) for name, value in held.items() if value is not None})
    return pipe


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "img2img", "inpaint", "lcm", "dit", "ddpm"])
def test_pipelines(name):
    pytest.importorskip("diffusers")
    tiny = pytest.importorskip("tiny")
    build, call, _ = tiny.FAMILIES[name]
    pipe = away(build())
    with Pretend():
        model = viot.from_pipeline(pipe, **call)
    assert model.device.type == AWAY.type
    assert run(model, batch_size=2, particles=3, steps=3).samples.device.type == "cpu"


# -- guidance and learned twists ---------------------------------------------------------------------------------------------------------


class Still(Model):
    """It says how its noise is drawn, so that a twist may move it."""

    prior_std = 1.0


class Tiny(Still):
    event_shape = (1, 2, 2)

    def prior(self, n, generator, group):
        return torch.randn(n, 1, 2, 2, generator=generator)


FEATURES = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
TWISTS = {"slope": "slope", "direction": "direction", "shift": "shift", "neural": "neural", "rows": Slope(features=FEATURES)}
TWISTS["vjp"] = VJP(features=FEATURES)


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("name", [*TWISTS, "affine"])
def test_twists_are_learned_elsewhere(name, reuse):
    run(Tiny() if name == "affine" else Still(), method=TriTSMC(twist=TWISTS.get(name, name), reuse=reuse, rounds=2))


def given(width):
    return torch.full((1, width), 0.1)


@pytest.mark.parametrize("kind", [URGE, VASR, FVD, SVDD, FKD])
def test_guides_elsewhere(kind):
    more = {"eta_base": 0.3} if kind is FVD else {}
    learned = [Slope(theta=given(16)), VJP(features=FEATURES, theta=given(2)), Neural(theta=given(18 * 16 + 16 + 16 * 16 + 16))]
    for guide in (lambda x, t, p: 0.1 * x, Toward(Still()), *learned):
        run(Still(), method=kind(guide=guide, **more), particles=16)
    if kind is not SVDD:
        run(Tiny(), method=kind(guide=Affine(theta=given(9 * 4 * 6)), **more))


@pytest.mark.parametrize("twist", ["tokens", "feature", Feature(phi=torch.tensor([1.0, 0.0, 0.0, -1.0]))], ids=str)
@pytest.mark.parametrize("reuse", [False, True])
def test_twists_of_tokens_elsewhere(twist, reuse):
    model = Tokens("random")
    model.kernel = viot.Categorical(4, "random")
    run(model, lambda texts: torch.tensor([float(t.count("a")) for t in texts]), TriTSMC(twist=twist, reuse=reuse, rounds=2))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"cached": True},
        {"order": "first-hitting", "block": 2},
        {"order": "confidence", "temperature": 0.5, "top_p": 0.8},
        {"remask": 0.2},
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["vasr", FKD(value=X0Samples(2)), "tri-tsmc", "svdd", "dts", "treasure"], ids=str)
def test_language_models_elsewhere(settings, method):
    if method == "tri-tsmc" and (settings.get("order") == "confidence" or "remask" in settings):
        pytest.skip("refused: a twist needs a proposal with a density and one token per position")

    def network(x):
        assert x.device == AWAY
        return torch.zeros(*x.shape, 4, device=AWAY) + 0.3 * (x[..., None] == 1)

    with Pretend():
        model = MaskedLM(network, Letters("abc"), length=4, mask_id=3, prompt=["a", "[MASK:3]b"], device=AWAY, **settings)
    population = run(model, lambda texts: torch.tensor([float(t.count("a")) for t in texts]), method)
    assert all(text[0] == "a" for text in population.samples[0])
    assert all(text[-1] == "b" for text in population.samples[1])
    with Pretend():
        nats = model.nll(population.x0[0].to(AWAY), torch.zeros(len(population.x0[0]), dtype=torch.long), 2)
    assert nats.isfinite().all()
