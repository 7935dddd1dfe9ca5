"""FKC: powers, geometric averages and products against their laws in closed form, and what its weights must and must not hold."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from exact import run
from helpers import Differentiable, Line, Tokens, differing, quiet
from helpers import run as short

import viot
from viot.kernel import FlowSDE, Gaussian
from viot.methods import URGE
from viot.methods.fkc import FKC
from viot.methods.smc import EVERY_FIFTH
from viot.models.gaussian import GaussianMixture, GridLaw, MixtureLaw
from viot.rewards import Quadratic


class Normal(GaussianMixture):
    """One Gaussian, whose denoiser is one matrix for all rows of a step."""

    def denoise(self, x, alpha, sigma):
        a, s, mean, cov = alpha[0], sigma[0], self.law.means[0], self.law.covs[0]
        gain = a * cov @ torch.linalg.inv(a * a * cov + s * s * torch.eye(len(mean), dtype=torch.float64))
        return mean + (x - a * mean) @ gain.T


HERE, THERE = Normal([[0.3]], 0.6), Normal([[1.2]], 0.3)
PLANE = Normal([[0.5, -0.5]], [[[1.0, 0.6], [0.6, 0.8]]])
ACROSS = Normal([[-0.4, 0.3]], [[[0.7, -0.3], [-0.3, 0.5]]])

#: Every law that is offered, as settings and as the powers of both models.
LAWS = {
    "squared": ({"c": 2.0}, (2.0, 0.0)),
    "root": ({"c": 0.5}, (0.5, 0.0)),
    "between": ({"mix": "geometric", "c": 0.5}, (0.5, 0.5)),
    "beyond": ({"mix": "geometric", "c": 1.5}, (-0.5, 1.5)),
    "product": ({"mix": "product"}, (1.0, 1.0)),
}


def nothing(x):
    return torch.zeros(len(x), dtype=torch.float64)


def method(name, other=THERE, kind=FKC, **changes):
    settings = LAWS[name][0]
    return kind(**settings, **({"other": other} if "mix" in settings else {}), **changes)


def truth(name, here=HERE, there=THERE, reward=None, lam=1.0):
    """Mean (D,) and covariance (D, D) of p1^a p2^b exp(λ r), Gaussian all: precisions add."""
    a, b = LAWS[name][1]
    one, two = (torch.linalg.inv(m.law.covs[0]) for m in (here, there))
    precision = a * one + b * two
    cov = torch.linalg.inv(precision)
    mean = cov @ (a * one @ here.law.means[0] + b * two @ there.law.means[0])
    law = MixtureLaw(torch.ones(1, dtype=torch.float64), mean[None], cov[None])
    if reward is not None:
        law, _ = law.tilt(reward.center, reward.precision, lam)
    return law.mean, law.cov


def draws(kind, *, steps, reward=nothing, model=HERE, particles=1500, groups=8, lam=1.0, seed=0):
    # Particles, not rows: two models cost twice as much.
    return run(
        kind, model=model, reward=reward, steps=steps, particles=particles * kind.cost(steps) // steps, groups=groups, lam=lam, seed=seed
    )


def errors(population, law):
    """Of mean and covariance, in standard deviations and in variances of the law."""
    mean, cov = law
    w, x = population.weights / population.shape[0], population.samples
    x = x.double()
    found = torch.einsum("gk,gki->i", w, x)
    around = torch.einsum("gk,gki,gkj->ij", w, x - found, x - found)
    return float((found - mean).abs().max() / cov.max() ** 0.5), float((around - cov).abs().max() / cov.max())


# -- the laws -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAWS)
def test_errors_shrink_with_the_steps(name):
    gaps = [errors(draws(method(name), steps=steps, groups=16), truth(name)) for steps in (8, 32, 128)]
    assert gaps[0][1] > 0.3
    assert gaps[0][1] > 1.4 * gaps[1][1] > 1.4**2 * gaps[2][1]
    assert gaps[2][0] < 0.06
    assert gaps[2][1] < 0.11


@pytest.mark.parametrize("name", ["squared", "between", "product"])
def test_in_the_plane(name):
    law = truth(name, PLANE, ACROSS)
    coarse, fine = (errors(draws(method(name, ACROSS), model=PLANE, steps=steps), law) for steps in (12, 96))
    assert coarse[1] > 1.5 * fine[1]
    assert fine[0] < 0.1
    assert fine[1] < 0.13


@pytest.mark.parametrize("name", ["squared", "beyond", "product"])
def test_a_reward_on_top(name):
    reward = Quadratic(center=-0.6, precision=2.0)
    law = truth(name, reward=reward, lam=1.5)
    found = draws(method(name), steps=96, reward=reward, lam=1.5)
    assert errors(found, law)[0] < 0.18
    assert errors(found, law)[1] < 0.15
    # Far from the law without it, and the same when selection looks now and then.
    assert errors(found, truth(name))[0] > 0.5
    assert errors(draws(method(name, schedule=EVERY_FIFTH), steps=96, reward=reward, lam=1.5), law)[0] < 0.18


@pytest.mark.parametrize("c", [0.5, 2.0])
def test_the_power_of_a_mixture(c):
    """By quadrature. A power changes the weights of the modes: unlike tempering the noise, it does not leave them as they are."""
    model = GaussianMixture([[-1.2], [1.0]], [0.5, 0.15], [0.35, 0.65])
    x = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    law = GridLaw(x, (c * model.law.log_density(x[:, None])).softmax(0))
    below = law.expect(lambda v: (v < -0.2).double())
    found = draws(FKC(c=c), model=model, steps=96, groups=4)
    assert float(found.mean(found.samples[..., 0]).mean()) == pytest.approx(law.mean, abs=0.1)
    assert float(found.mean((found.samples[..., 0] < -0.2).double()).mean()) == pytest.approx(below, abs=0.04)
    assert abs(below - model.law.weights[0]) > 0.06


@pytest.mark.parametrize("eta", [0.6, 1.3])
@pytest.mark.parametrize("name", ["root", "squared", "beyond", "product"])
def test_the_noise_may_be_chosen(name, eta):
    """The drift follows η, the weights do not know it."""
    mean, var = errors(draws(method(name, eta=eta), steps=96), truth(name))
    assert mean < 0.12
    assert var < 0.2


def test_one_model_twice():
    """p^{1−c} p^c is p, and p·p is p²: the latter step by step, and the former the base sampler's draws with even weights."""
    base = draws(viot.methods.Base(), steps=20)
    same = draws(FKC(mix="geometric", c=3.0, other=HERE), steps=20)
    assert torch.allclose(same.samples, base.samples, atol=1e-10)
    assert (same.log_weights + math.log(1500)).abs().max() < 1e-10
    twice, squared = draws(FKC(mix="product", other=HERE), steps=20), draws(FKC(c=2.0), steps=20)
    assert torch.allclose(twice.samples, squared.samples, atol=1e-9)
    assert torch.allclose(twice.log_weights, squared.log_weights, atol=1e-9)
    # The ends of the geometric path are the models.
    whole = draws(FKC(mix="geometric", c=1.0, other=THERE), steps=20)
    assert torch.allclose(whole.samples, draws(viot.methods.Base(), steps=20, model=THERE).samples, atol=1e-10)


def test_noise_wears_no_weights_out():
    """Where a model of a hundred dimensions is pure noise, its square is N(0, ½): step by step, and with nearly even weights."""
    prepared = viot.prepare(Normal(torch.zeros(1, 100), 1.0), nothing, FKC(c=2.0, schedule=()), particles=500, steps=200)
    at = {state.step: state for state in prepared.states()}
    for step in (1, 2, 5, 10):
        assert at[step].x.var() == pytest.approx(0.5, abs=0.02)
        assert viot.weights.ess(at[step].log_w)[0] > 0.9 * 500
    # The rate of the paper is |s|² alone, of which one look at x_1 is enough: ½c(c−1) τ |x|² with τ = ¾ between the first levels.
    assert viot.weights.ess(0.75 * at[1].x.square().sum(-1))[0] < 3


class Late(Normal):
    """Starts where a quarter of the signal is left, and declares N(0, 1) there."""

    def grid(self, steps):
        t = torch.linspace(0.84, 0, steps + 1, dtype=torch.float64)
        return viot.Grid(t[:-1], torch.cos(t * torch.pi / 2), torch.sin(t * torch.pi / 2))


@pytest.mark.parametrize("name", ["squared", "root", "product"])
def test_the_start_is_narrowed(name):
    model, other = Late([[0.0]], 1.0), Late([[0.0]], 1.0)
    problem = viot.prepare(model, nothing, method(name, other), particles=50, steps=8).problem
    start = problem.start()
    total = sum(LAWS[name][1])
    assert torch.allclose(method(name, other).prepare(problem, start).x, start.x / total**0.5)
    # With signal in the first state its weight counts too.
    assert method(name, other).span(problem, 0) > 0
    assert max(errors(draws(method(name, other), model=model, steps=96), truth(name, model, other))) < 0.12


# -- what the weights must hold -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Uncorrected(FKC):
    """The mixed scores alone, as guidance is usually done."""

    def rate(self, problem, state, here, there):
        return 0.0 * super().rate(problem, state, here, there)


@dataclass(frozen=True)
class WithRatio(FKC):
    """Adds the density of the step under the model over that of the step that was made."""

    def propose(self, problem, state):
        after = super().propose(problem, state)
        if state.step == problem.T - 1:
            return after
        coeffs, rows = problem.grid.coeffs(state.step), problem.rows
        t = problem.grid.times[state.step].expand(rows(state.x).shape[0])
        own = problem.evaluate.model.predict(rows(state.x), t, problem.group_rows(state.x.shape[1]))
        mean, std = problem.kernel.moments(rows(state.x), own, coeffs, self.eta)
        if self.shares[2] == 1:
            moved, spread = problem.kernel.moments(rows(state.x), state.prediction.map(rows), coeffs, self.eta)
        else:
            moved, spread = self.moments(problem, state)
            moved = rows(moved)
        p, q = (-(((rows(after.x) - m) / s) ** 2).flatten(1).sum(1) / 2 for m, s in ((mean, std), (moved, spread)))
        return after.but(log_w=after.log_w + problem.fold(p - q))


@pytest.mark.parametrize("name", LAWS)
def test_the_corrector_is_needed(name):
    assert max(errors(draws(method(name, kind=Uncorrected), steps=96), truth(name))) > 0.1


@pytest.mark.parametrize("name", LAWS)
def test_the_ratio_of_the_steps_is_not(name):
    """(With it, geometric averages would be the first model alone.)"""
    assert max(errors(draws(method(name, kind=WithRatio), steps=96), truth(name))) > 0.4


def test_the_weights_are_the_formulas():
    """Of Gaussians all scores are known: the sum along a path of ν² (½|s|² − ½ Σ a_i |s_i|² + ½(A−1) κ x·s) times its share of u."""
    steps = 7
    for name, (_, (a, b)) in LAWS.items():
        prepared = viot.prepare(HERE, nothing, method(name, schedule=()), particles=80, steps=steps)
        grid, before, total = prepared.problem.grid, prepared.problem.start(), a + b
        x = before.x / total**0.5
        log_w = torch.zeros_like(before.log_w)
        for state in prepared.states():
            j = state.step - 1
            if state.done:
                break
            alpha, sigma, *_ = grid.coeffs(j)
            s1, s2 = (-(x - alpha * m) / (alpha**2 * v + sigma**2) for m, v in ((0.3, 0.6), (1.2, 0.3)))
            s = a * s1 + b * s2
            rate = (s**2 - a * s1**2 - b * s2**2) / 2 + (total - 1) / 2 * (sigma / (alpha**2 + sigma**2)) ** 2 * x * s
            u = [math.log((p**2 + q**2) / p**2) if p else math.inf for p, q in zip(grid.alphas.tolist(), grid.sigmas.tolist(), strict=True)]
            span = (u[max(j - 1, 1)] - u[j] if j else 0.0) / 2 + ((u[j] - u[j + 1]) / (1 + (j < steps - 1)) if j else 0.0)
            log_w = log_w + (alpha**2 + sigma**2) * span * rate[..., 0]
            assert torch.allclose(state.log_w, log_w, atol=1e-9)
            x = state.x


# -- the ordinary method at c = 1, and errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [Line(), Tokens()], ids=["line", "tokens"])
@pytest.mark.parametrize(
    "more", [{}, {"schedule": EVERY_FIFTH, "ess_threshold": None}, {"value": "rollout"}], ids=["every", "fifth", "rollout"]
)
def test_plain_is_feynman_kac_steering(model, more):
    reward = Differentiable() if isinstance(model, Line) else lambda texts: [float(t.count("b")) for t in texts]
    one, other = (short(kind, model=model, reward=reward, groups=2, lam=2.0) for kind in (FKC(**more), URGE(path="value", **more)))
    assert differing(one, other) == []
    assert one.exact
    assert one.log_z.isfinite().all()


def test_others_are_not_exact():
    for name in LAWS:
        found = draws(method(name), steps=5, particles=8)
        assert not found.exact
        assert found.log_z.isnan().all()
        assert found.config["method"]["mix"] == method(name).mix


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mix": "sum"}, "mix must be 'power', 'geometric' or 'product'"),
        ({"c": math.nan}, "c must be finite"),
        ({"c": 0.0}, "> 0 as the power"),
        ({"c": -1.0}, "> 0 as the power"),
        ({"mix": "geometric", "c": math.inf, "other": THERE}, "c must be finite"),
        ({"mix": "product", "c": 2.0, "other": THERE}, "has no c"),
        ({"mix": "geometric"}, "of two models; give the second"),
        ({"mix": "product"}, "of two models; give the second"),
        ({"c": 2.0, "other": THERE}, "the model alone"),
        ({"eta": 0.0}, "eta > 0"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        FKC(**settings)


def test_it_takes_no_guidance_and_no_nonsense_for_a_model():
    with pytest.raises(TypeError, match="guide"):
        FKC(guide=lambda x, t, prediction: x)
    with pytest.raises(TypeError, match="not a model"):
        FKC(mix="product", other=3)


class Counted(Line):
    prior_std = 1.0

    def predict(self, x, t, group):
        assert not getattr(self, "shut", False), "no network call was to be made"
        return super().predict(x, t, group)


@pytest.mark.parametrize(
    ("kind", "changes", "error", "message"),
    [
        ({"c": 2.0}, {"prior_std": None}, ValueError, r"starts from N\(0, prior_std²/2\), and Counted does not declare"),
        ({"mix": "product", "other": Line()}, {"prior_std": None}, ValueError, "does not declare prior_std"),
        ({"c": 2.0}, {"kernel": FlowSDE()}, TypeError, "corrects the kernel"),
        ({"c": 2.0}, {"kernel": Gaussian(fresh=True)}, TypeError, "corrects the kernel"),
        ({"mix": "geometric", "other": Line()}, {"kernel": Gaussian(fresh=True)}, TypeError, "corrects the kernel"),
        ({"mix": "product", "other": THERE}, {}, ValueError, "states"),
        ({"mix": "geometric", "c": 1.5, "other": GaussianMixture([[0.0, 0.0]])}, {}, ValueError, "other noise levels"),
    ],
)
def test_errors_come_before_the_network(kind, changes, error, message):
    model = Counted()
    model.shut = True
    for key, value in changes.items():
        setattr(model, key, value)
    with pytest.raises(error, match=message):
        short(FKC(**kind), model=model)


class Unread(Tokens):
    def predict(self, x, t, group):
        raise AssertionError("no network call was to be made")


@pytest.mark.parametrize("settings", [{"c": 2.0}, {"mix": "geometric", "other": Unread()}, {"mix": "product", "other": Unread()}])
def test_tokens_have_no_scores(settings):
    with pytest.raises(TypeError, match="the states of Unread are tokens"):
        viot.sample(Unread(), lambda texts: [0.0] * len(texts), FKC(**settings), particles=8, steps=4, progress=False)


# -- the run ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAWS)
def test_batches_groups_and_pauses_change_nothing(name, tmp_path):
    far, reward = Counted(), Differentiable()
    far.predict = lambda x, t, group: viot.Prediction(0.5 * x + 0.1 * group.to(x)[:, None])
    shared = {"model": Counted(), "reward": reward, "particles": 24, "steps": 6, "lam": 2.0}
    whole = short(method(name, far), groups=3, **shared)
    assert len(whole.trace["step"])
    assert differing(whole, short(method(name, far), groups=3, batch_size=5, **shared)) == []
    part = short(method(name, far), groups=[1, 2], **shared)
    for field in ("samples", "log_weights", "rewards", "roots"):
        assert torch.equal(getattr(part, field), getattr(whole, field)[1:])
    # From a state that was written down in the middle.
    with quiet():
        prepared = viot.prepare(shared["model"], reward, method(name, far), particles=24, steps=6, lam=2.0, groups=3, seed=5)
        for state in prepared.states():
            if state.step == 3:
                state.save(tmp_path / "state")
                break
        kept, _ = viot.particles.State.load(tmp_path / "state")
        *_, last = prepared.states(kept)
    assert differing(whole, prepared.population(last)) == []


@pytest.mark.parametrize("name", LAWS)
def test_every_call_is_counted(name):
    far, near = Counted(), Counted()
    asked = []
    far.predict = lambda x, t, group: (asked.append(len(x)), viot.Prediction(0.4 * x))[1]
    near.predict = lambda x, t, group: (asked.append(len(x)), viot.Prediction(0.5 * x))[1]
    kind = method(name, far)
    found = short(kind, model=near, particles=25, steps=6, groups=2)
    rows = 2 if kind.other is not None else 1
    assert kind.cost(6) == 6 * rows
    assert found.shape == (2, 25 // rows)
    assert found.nfe == sum(asked) == 2 * (25 // rows) * 6 * rows <= 2 * 25 * 6


def test_a_particle_that_a_network_gives_up_is_dead():
    def broken(x, t, group):
        return viot.Prediction(torch.where(x[:, :1] > 0.5, torch.nan, 0.5 * x))

    far = Counted()
    far.predict = broken
    found = short(FKC(mix="product", other=far), model=Counted(), particles=64)
    assert found.samples[found.weights > 0].isfinite().all()
    assert found.weights.sum() == pytest.approx(1.0)


def test_single_precision_and_short_runs():
    single = Normal([[0.3]], 0.6, dtype=torch.float32)
    for name in LAWS:
        found = draws(method(name), model=single, steps=40, particles=500)
        assert found.samples.dtype == torch.float32
        assert errors(found, truth(name))[0] < 0.2
        for steps in (1, 2):
            assert draws(method(name), steps=steps, particles=50).log_weights.isfinite().all()
