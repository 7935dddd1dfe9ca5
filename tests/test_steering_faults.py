"""What goes wrong around a guidance or a learned twist stays where it went wrong: broken rows, dead rounds, exchanged files, other objects."""

import functools
import warnings

import pytest
import torch
from exact import MODEL, REWARD
from helpers import Line, quiet
from masked import MarkovTokens

import viot
from viot import trust
from viot.guidance import Own, Toward
from viot.kernel import Gaussian
from viot.methods import FVD, URGE, VASR, Importance, TriTSMC
from viot.models.gaussian import GaussianMixture
from viot.particles import State
from viot.twists import Affine, Feature, Shift, Slope, TokenBias

MEANS = [[-1.0, 0.3], [1.2, -0.5]]


def reward(x):
    return x[:, 0] - 0.5 * x[:, 1] ** 2


def sample(method, model=None, what=reward, **more):
    with quiet():
        return viot.sample(model or GaussianMixture(MEANS, 0.3), what, method, **{"steps": 6, "particles": 40, "progress": False, **more})


class Broken(GaussianMixture):
    """The network answers NaN for one row, once."""

    calls = 0

    def predict(self, x, t, group):
        found = super().predict(x, t, group)
        self.calls += 1
        if self.calls == 2:
            found.x0[0] = torch.nan
        return found


@pytest.mark.parametrize("twist", ["slope", "direction", "shift", "affine", "vjp", "neural"])
def test_a_broken_row_of_a_round_costs_one_path(twist):
    population = sample(TriTSMC(twist=twist, rounds=2), Broken(MEANS, 0.3), groups=2)
    assert population.dead_groups == []
    assert population.training["moved"].isfinite().all()
    assert population.log_z.isfinite().all()
    with quiet():
        learned = TriTSMC(twist=twist, rounds=2).learn(Broken(MEANS, 0.3), reward, particles=20, groups=2, steps=6)
    assert learned.theta.isfinite().all()


def test_a_broken_answer_of_another_model_is_no_drift():
    class Other(GaussianMixture):
        def predict(self, x, t, group):
            found = super().predict(x, t, group)
            found.x0[0] = torch.nan
            return found

    population = sample(URGE(guide=Toward(Other([[0.0, 0.0]]))), groups=2)
    assert population.dead_groups == []
    assert population.log_weights.isfinite().all()


def test_reuse_lives_while_any_path_does():
    """The end alone is dead: the paths of the rounds are the answer."""
    calls = []

    def late(x):
        calls.append(len(x))
        return torch.where(torch.tensor(len(calls) > 2), -torch.inf, reward(x))

    population = sample(TriTSMC(rounds=2, reuse=True), what=late, particles=20)
    assert (population.log_weights > -torch.inf).sum() == 2 * 5
    with pytest.raises(viot.DeadPopulation):
        sample(TriTSMC(rounds=2), what=lambda x: torch.full((len(x),), -torch.inf), particles=20)


@pytest.mark.parametrize("twist", ["tokens", "feature"])
def test_reuse_without_rounds_on_tokens(twist):
    count = lambda samples: torch.tensor([float(str(s).count("a")) for s in samples])
    population = sample(TriTSMC(rounds=0, reuse=True, twist=twist), MarkovTokens(), count, steps=3)
    assert population.shape == (1, 40)
    assert population.log_weights.isfinite().all()


# -- learning apart ----------------------------------------------------------------------------------------------------------------------


def test_learning_nothing_is_an_error():
    with pytest.raises(viot.DeadPopulation, match="nothing was learned"), quiet():
        TriTSMC().learn(MODEL, lambda x: torch.full((len(x),), -torch.inf), particles=8, steps=4)
    with pytest.raises(TypeError, match="takes particles and no budget"):
        TriTSMC().learn(MODEL, REWARD, budget=100, steps=4)


def test_a_dead_group_has_no_say_in_a_shared_twist():
    def of_group(x, group):
        return torch.where(group == 0, -torch.inf, reward(x))

    both, alone = (
        TriTSMC(twist="slope", rounds=2).learn(GaussianMixture(MEANS, 0.3), of_group, particles=30, groups=g, steps=6)
        for g in ([0, 1], [1])
    )
    assert torch.allclose(both.theta, alone.theta, atol=1e-12)


def test_a_shared_bias_is_of_the_same_tokens_for_all():
    class Two(MarkovTokens):
        """Each group expects other tokens."""

        def predict(self, x, t, group):
            found = super().predict(x, t, group)
            logits = found.logits + 3.0 * torch.nn.functional.one_hot(group % 2, found.logits.shape[-1])[:, None]
            return viot.Prediction(logits.argmax(-1), logits=logits)

    count = lambda samples: torch.tensor([float(str(s).count("a")) for s in samples])
    method = TriTSMC(twist=TokenBias(most=1), rounds=1)
    learned = method.learn(Two(), count, particles=20, groups=2, steps=3)
    assert learned.ids.shape == (1, 1)
    again = sample(Importance(guide=learned), Two(), count, groups=2, steps=3)
    assert again.log_weights.isfinite().all()


# -- what the record says ----------------------------------------------------------------------------------------------------------------


def test_a_file_with_another_twist_is_another_run(tmp_path):
    path = tmp_path / "a twist.safetensors"
    Slope(theta=torch.tensor([[0.1, 0.2]])).save(path)
    first = sample(VASR(guide=path), checkpoint=tmp_path / "run").config["method"]["guide"]
    assert first["file"] == str(path)
    Slope(theta=torch.tensor([[0.3, 0.2]])).save(path)
    with pytest.raises(ValueError, match="another run"):
        sample(VASR(guide=str(path)), checkpoint=tmp_path / "run")
    with pytest.raises(ValueError, match="holds another twist now"):
        VASR(guide=first)


def test_only_what_can_be_looked_up_can_be_repeated(tmp_path):
    from viot.report.words import obstacle

    path = tmp_path / "a twist.safetensors"
    Slope(theta=torch.zeros(1, 784), features=28).save(path)
    config = {"model": {"name": "digits"}, "reward": "digit:7"}
    for guide, able in (
        (None, True),
        (path, True),
        (lambda x, t, p: 0 * x, False),
        (torch.nn.Identity(), False),
        (Slope(theta=torch.zeros(1, 2)), False),
    ):
        method = viot.prepare(MODEL, REWARD, URGE(guide=guide), particles=2, steps=2).config["method"]
        assert (obstacle({**config, "method": method}) is None) is able, guide


class Push(torch.nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale))

    def forward(self, x, t, prediction):
        return self.scale.detach() * x


def test_modules_and_partials_are_told_apart():
    def push(x, t, prediction, scale):
        return scale * x

    guides = [Push(0.1), Push(0.9), functools.partial(push, scale=0.1), functools.partial(push, scale=0.9), Own(lambda x, t, p: x)]
    assert len({str(sample(URGE(guide=g)).config["method"]["guide"]) for g in guides}) == 5


def test_fingerprints_of_twists():
    theta = torch.tensor([[0.1, 0.2]])
    many = [
        Slope(theta=theta),
        Slope(theta=2 * theta),
        Slope(theta=theta, data_std=2.0),
        Slope(theta=theta, features=torch.eye(2)),
        Shift(theta=theta),
    ]
    assert len({t.fingerprint() for t in many}) == len(set(many)) == 5
    assert Slope(theta=theta) == Slope(theta=theta.clone())


# -- small things that were wrong or could be --------------------------------------------------------------------------------------------


def test_a_kernel_without_spread_is_refused_at_once():
    class Plain(Gaussian):
        def step(self, x_t, prediction, coeffs, eta, draw, drift=None):
            return super().step(x_t, prediction, coeffs, eta, draw, drift)

    class Counted(GaussianMixture):
        kernel, calls = Plain(), 0

        def predict(self, x, t, group):
            self.calls += 1
            return super().predict(x, t, group)

    model = Counted(MEANS, 0.3)
    with pytest.raises(TypeError, match="lacks a parameter spread"):
        sample(TriTSMC(twist="affine"), model)
    assert model.calls == 0


def test_particles_without_noise_have_no_ratio():
    """FVD moves all but the reborn without noise: neither shift nor spread of a twist may touch their weights."""
    size = Affine().size(viot.prepare(MODEL, REWARD, "base", particles=2, steps=6).problem)
    twist = Affine(theta=0.3 * torch.ones(1, size))
    model = type("Unmoved", (GaussianMixture,), {"prior_std": None})([[0.3]], 0.6)
    run = viot.prepare(model, lambda x: torch.zeros(len(x)), FVD(guide=twist), particles=8, steps=6)
    for state in run.states():
        assert state.log_w.abs().max() < 1e-12
    assert isinstance(state, State)
    # One kind of noise is enough for a guidance.
    sample(FVD(eta_base=0.5, eta_rebirth=0.0, guide=lambda x, t, p: 0.1 * x))


def test_toward_takes_the_direction_of_both_models():
    """Schedulers that clip keep a raw ε beside x0: the other model's step uses its own."""

    class Clipped(Line):
        def __init__(self, scale):
            self.scale = scale

        def predict(self, x, t, group):
            x0 = self.scale * super().predict(x, t, group).x0
            return viot.Prediction(x0.clamp(-0.3, 0.3), eps=self.scale * x / (1 + t[:, None]))

    here, there = Clipped(1.0), Clipped(1.5)
    guide = Toward(there)
    run = viot.prepare(here, reward, URGE(guide=guide, eta=0.6), particles=10, steps=4)
    state = run.method.look(run.problem, run.problem.start().but(step=1))
    x, c, t = state.x[0], run.problem.grid.coeffs(1), run.problem.grid.times[1].expand(5)
    group = torch.zeros(5, dtype=torch.long)
    (mean, std), (goal, _) = (run.problem.kernel.moments(x, m.predict(x, t, group), c, 0.6) for m in (here, there))
    assert torch.allclose(mean + std**2 * guide.drift(run.problem, state, 0.6)[0], goal, atol=1e-12)
    assert not torch.allclose(mean, goal, atol=1e-3)


def test_a_feature_of_fills_ignores_what_all_fills_share():
    def count(offset):
        return lambda samples: torch.tensor([offset + float(str(s).count("a")) for s in samples])

    twist = Feature(top=2, theta=torch.tensor([[1.0]]))
    plain, shifted = (sample(Importance(guide=twist), MarkovTokens(), count(c), steps=3, particles=64) for c in (0.0, 50.0))
    assert torch.equal(plain.x0, shifted.x0)
    assert torch.allclose(plain.log_weights, shifted.log_weights, atol=1e-9)


def test_a_cap_holds_where_the_distance_is_not_monotone():
    """Up, down and far up again: the bisection may end beyond the hump."""
    old, new = torch.zeros(3, 1, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64)
    bumps = torch.tensor([3.0, 6.0, 9.0], dtype=torch.float64)

    def kl(theta):
        s = theta[:, 0]
        return 4 * (bumps * s).sin().square() + 3 * s

    found, share = trust.capped(kl, old, new, 0.5)
    assert (kl(found) <= 0.5 * (1 + 1e-5)).all()
    assert (share > 0).all()


def test_a_learned_variance_is_no_smaller_than_that_of_the_noise():
    """Where there is nothing to learn, few particles must not narrow the proposal: what they leave over is short of freedom."""
    model = GaussianMixture([[0.0]], 1.0)
    run = viot.prepare(
        model, lambda x: torch.zeros(len(x)), TriTSMC(twist="affine", rounds=1, train=0.9), particles=14, groups=300, steps=4, lam=0.0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", viot.SteeringWarning)
        *_, last = run.states()
    log_v = Affine().split(last.group["twist"], 1)[2]
    assert float(log_v[:, :3].exp().mean()) == pytest.approx(1.0, abs=0.1)
