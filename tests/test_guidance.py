"""Guidance of the user's own: every particle method takes it, and what is exact stays exact whatever it is."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from dataclasses import dataclass

import pytest
import torch
from exact import MODEL, REWARD, STEPS, is_exact, law, run, z_scores
from helpers import Differentiable, Line, Pictures, Tokens, differing, quiet, settings
from test_checkpoint import Interrupted, Judge

import viot
from viot.guidance import Toward
from viot.kernel import Categorical
from viot.methods import DAS, FKD, FVD, SVDD, TDS, URGE, VASR, Auto, Base, BestOfN, Importance
from viot.model import Coeffs
from viot.models.gaussian import GaussianMixture

# -- drifts -------------------------------------------------------------------------------------------------------------------------------


def wavy(x, t, prediction):
    """Deliberately bad."""
    return -1.2 * torch.sin(3 * x)


def pull(x, t, prediction, coeffs, group):
    """Toward large rewards; knows its step and its group, whose parity makes it stronger or weaker."""
    assert group.shape == t.shape == (len(x),)
    strength = (0.8 + 0.4 * (group % 2)).to(x)[:, None]
    return strength * coeffs.alpha_t * (1.5 - prediction.x0)


def sloped(x, t, prediction):
    """The gradient of −½ (x̂0(x_t) − 1)², by backpropagation."""
    return torch.autograd.grad(-0.5 * ((prediction.x0 - 1) ** 2).sum(), x)[0]


sloped.needs_grad = True

# -- exact methods stay exact ----------------------------------------------------------------------------------------------------------------

EXACT = {
    "importance": Importance(),
    "importance, eta .5": Importance(eta=0.5),
    "fkd": FKD(),
    "fkd max": FKD(potential="max", ess_threshold=None),
    "auto": Auto(ess_threshold=0.9),
    "vasr": VASR(),
    "vasr every step": VASR(schedule="every", resampling="multinomial"),
    "vasr adaptive carry": VASR(ess_threshold=0.7, carry_potential=True),
    "vasr weights": VASR(masses="weights", eta=0.6),
    "tds": TDS(),
    "tds x0, eta .6": TDS(mean="x0", eta=0.6),
    "das": DAS(ess_threshold=0.95),
    "das adaptive": DAS(tempering="adaptive", schedule="every", ess_threshold=0.9),
    "urge": URGE(),
}


def with_(method, **changes):
    """The method with other settings."""
    return type(method)(**{**method.settings(), **changes})


@pytest.mark.parametrize("guide", [wavy, pull, sloped], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", EXACT)
def test_unbiased_at_sixteen_particles(name, guide):
    method = with_(EXACT[name], guide=guide)
    assert method.exact
    population = run(method, groups=250)
    assert population.nfe == 250 * 16 * STEPS
    assert z_scores(population, law(eta=method.eta)).abs().max() < 4.0
    # It did move the draws, and the weights know.
    plain = run(EXACT[name], groups=5)
    assert not torch.equal(run(method, groups=5).samples, plain.samples)
    assert population.grad_rows == 250 * 16 * (STEPS - 1) * (method.needs_gradient + (guide is sloped))
    assert method.grads(STEPS) * 250 * 16 == population.grad_rows


def unpaid(kind):
    @dataclass(frozen=True)
    class NoRatio(kind):
        """A drift that is not paid for."""

        def propose(self, problem, state):
            return super().propose(problem, state).but(log_w=state.log_w)

    return NoRatio


@pytest.mark.parametrize("kind", [Importance, FKD, VASR, TDS, DAS, URGE], ids=lambda kind: kind.name)
def test_unpaid_drifts_are_found(kind):
    for guide in (wavy, pull):
        assert z_scores(run(unpaid(kind)(guide=guide), groups=600), law())[1:].abs().max() > 6.0


@dataclass(frozen=True)
class LeavesTheGuide(VASR):
    """Gathers all but the drift: an offspring moves along another particle's."""

    def select(self, problem, state):
        after = super().select(problem, state)
        extra = {**after.prediction.extra, "guide": state.prediction.extra["guide"]}
        return after.but(prediction=viot.Prediction(after.prediction.x0, after.prediction.eps, extra=extra))


def test_the_drift_goes_with_its_particle():
    """Another one's drift is still a proposal, and paid for: what is lost is the use of it. At every state it must be that of the state."""
    seen = []

    @dataclass(frozen=True)
    class Watched(VASR):
        def propose(self, problem, state):
            if state.step < problem.T - 1:
                seen.append(torch.equal(state.prediction.extra["guide"], -1.2 * torch.sin(3 * state.x)))
            return super().propose(problem, state)

    @dataclass(frozen=True)
    class Wrong(Watched, LeavesTheGuide):
        pass

    always = {"schedule": "every", "resampling": "multinomial", "guide": wavy}
    assert is_exact(run(Watched(**always), groups=400), law())
    assert all(seen)
    assert len(seen) == STEPS - 1
    seen.clear()
    assert is_exact(run(Wrong(**always), groups=400), law())
    assert not any(seen[1:])


def test_base_follows_the_guide_and_knows_the_evidence():
    """Uniform weights: an unsteered population of the guided chain, whose mean weight still estimates Z without bias."""
    population = run(Base(guide=pull), groups=600)
    assert not Base(guide=pull).exact
    z = population.log_z.exp()
    assert abs(z.mean() - law().z) < 4 * z.std() / len(z) ** 0.5
    assert (population.samples.mean() - run("base", groups=600).samples.mean()) > 0.1
    best = run(BestOfN(n=4, guide=pull), groups=600).log_z.exp()
    assert abs(best.mean() - law().z) < 4 * best.std() / len(best) ** 0.5


FULL = {"eta_base": 1.0, "eta_rebirth": 1.0}


@pytest.mark.parametrize("guide", [wavy, pull], ids=lambda f: f.__name__)
def test_fvd_converges(guide):
    """Consistent as K → ∞: with noise for everybody to the tilted chain; by default to whatever it is without a guide."""
    population = run(FVD(**FULL, guide=guide), particles=1000, groups=20)
    x = population.mean(population.samples[..., 0])
    assert abs(x.mean() - law().first) < 0.006 + 4 * x.std() / len(x) ** 0.5
    z = population.log_z.exp()
    assert z.mean().item() == pytest.approx(law().z, rel=0.04)
    means = []
    for method in (FVD(guide=guide), FVD()):
        x = (population := run(method, particles=1000, groups=20)).mean(population.samples[..., 0])
        means.append((x.mean(), x.std() / len(x) ** 0.5))
    (guided, e1), (plain, e2) = means
    assert abs(guided - plain) < 0.006 + 4 * (e1**2 + e2**2) ** 0.5
    wrong = run(unpaid(FVD)(**FULL, guide=guide), particles=1000, groups=20)
    x = wrong.mean(wrong.samples[..., 0])
    assert abs(x.mean() - law().first) > 0.02 + 4 * x.std() / len(x) ** 0.5


@dataclass(frozen=True)
class Blind(SVDD):
    """Chooses by the reward alone, as if the candidates were the model's own."""

    def pick(self, problem, step, scores, ratio=0.0):
        return super().pick(problem, step, scores)


def away(x, t, prediction):
    return torch.full_like(x, -0.5)


@pytest.mark.parametrize("guide", [away, pull], ids=lambda f: f.__name__)
def test_svdd_takes_the_drift_back_with_its_choice(guide):
    """At many candidates the law of a chain is the one without a guide."""
    m, chains, steps = 24, 2500, 6
    shared = {"groups": 1, "particles": math.ceil(chains * SVDD(m=m).cost(steps) / steps), "steps": steps}

    def moments(method):
        x = run(method, **shared).samples.flatten()
        assert len(x) >= chains
        return torch.stack([x.mean(), (x**2).mean()]), torch.stack([x.std(), (x**2).std()]) / len(x) ** 0.5

    (plain, error), (right, error2), (wrong, _) = (moments(m) for m in (SVDD(m=m), SVDD(m=m, guide=guide), Blind(m=m, guide=guide)))
    error = (error**2 + error2**2).sqrt()
    assert ((right - plain).abs() < 4 * error + 0.02).all()
    assert ((wrong - plain).abs() > 6 * error + 0.02).any()
    assert (right - plain).norm() < (wrong - plain).norm() / 2


def test_every_method_with_a_guide_takes_one():
    """All that have the setting run with it, within their budget; the maximisers and svdd-r are among them."""
    found = []
    for name in viot.methods.methods:
        kind = type(viot.methods.make(name))
        setting = getattr(kind, "__dataclass_fields__", {}).get("guide")
        if setting is None or not setting.init:
            continue
        found.append(name)
        with quiet():
            population = viot.sample(MODEL, REWARD, kind(guide=pull), particles=24, groups=2, steps=6, progress=False)
        assert population.log_weights.isfinite().any()
        assert population.nfe <= 2 * 24 * 6
        assert "pull" in population.config["method"]["guide"]
    assert {"base", "importance", "fkd", "vasr", "fvd", "svdd", "svdd-r", "tds", "das", "urge"} <= set(found)


# -- tokens ---------------------------------------------------------------------------------------------------------------------------------

ALPHABET, LENGTH, MASK = 4, 3, 4
STRINGS = torch.tensor(list(itertools.product(range(ALPHABET), repeat=LENGTH)))


def ways(masked, p, order):
    """What may be revealed in a step, (states, LENGTH), and with what probability in each state."""
    if order == "random":
        for chosen in map(torch.tensor, itertools.product([False, True], repeat=LENGTH)):
            picked = chosen & masked
            # What is not masked chooses nothing: every choice of the masked positions counts once.
            yield ~(chosen & ~masked).any(-1) * p ** picked.sum(-1) * (1 - p) ** (masked & ~chosen).sum(-1), picked
        return
    # From the left, n p of n masks: with fewer masks than steps one of them or none. (A state with more is never reached.)
    wanted = (masked.sum(-1) * p).clamp_max(1)
    for k, weight in ((0, 1 - wanted), (1, wanted)):
        yield weight, masked & (masked.cumsum(-1) <= k)


def token_law(model, steps, order="random"):
    """The law (64,) of the finished strings, by enumeration of all 125 states of the chain."""
    states = torch.tensor(list(itertools.product(range(ALPHABET + 1), repeat=LENGTH)))
    probs = model.predict(states, torch.zeros(len(states)), torch.zeros(len(states))).logits.double().softmax(-1)
    masked, now = states == MASK, (states == MASK).all(-1).double()
    for s_t, s_s in itertools.pairwise(model.grid(steps).sigmas.tolist()):
        p, move = (s_t - s_s) / s_t, torch.zeros(len(states), len(states), dtype=torch.float64)
        for weight, reveal in ways(masked, p, order):
            to = torch.ones(len(states), len(states), dtype=torch.float64)
            for i in range(LENGTH):
                token = torch.cat([probs[:, i], torch.zeros(len(states), 1)], 1)[:, states[:, i]]
                stay = (states[:, i][:, None] == states[:, i][None]).double()
                to = to * torch.where(reveal[:, i][:, None], token, stay)
            move += weight[:, None] * to
        now = now @ move
    at = [states.tolist().index(row) for row in STRINGS.tolist()]
    assert float(now[at].sum()) == pytest.approx(1)
    return now[at]


def letters(samples):
    return torch.tensor([1.0 * s.count("b") + 0.5 * (s[0] == "a") - 0.7 * (s[-1] == "d") for s in samples], dtype=torch.float64)


def bias(x, t, prediction):
    """Prefers b, and less of what was likely; more so at the first positions."""
    likes = torch.tensor([0.0, 1.5, -0.5, 0.3], dtype=torch.float64)
    return likes * torch.tensor([1.0, 0.6, 0.2], dtype=torch.float64)[:, None] - 0.4 * prediction.logits


def token_scores(method, model=None, steps=4, lam=1.2, groups=1000, order="random"):
    """z-scores of Ẑ, of every token at every position, and of the 8 likeliest strings under the target, over groups."""
    model = model or Tokens()
    base = token_law(model, steps, order)
    tilt = base * (lam * letters(model.decode(STRINGS, None))).exp()
    z_true, pi = tilt.sum(), tilt / tilt.sum()
    with quiet():
        found = viot.sample(model, letters, method, particles=12, groups=groups, steps=steps, lam=lam, seed=1, progress=False)
    x = found.x0.flatten(2)
    z, w = found.log_z.exp(), found.weights
    cells = [((STRINGS[:, i] == v).double() @ pi, x[..., i] == v) for i in range(LENGTH) for v in range(ALPHABET)]
    cells += [(pi[k], (x == STRINGS[k]).all(-1)) for k in pi.topk(8).indices.tolist()]
    # What nobody draws has no spread to be judged by.
    cells = [(exact, there) for exact, there in cells if exact > 0.001]
    scores = [(z.mean() - z_true) / (z.std() / groups**0.5)]
    for exact, hit in cells:
        gap = z * ((w * hit).sum(-1) / w.sum(-1) - exact)
        scores.append(gap.mean() / (gap.std() / groups**0.5))
    return torch.stack(scores)


TOKENS = {
    "importance": Importance(),
    "fkd": FKD(ess_threshold=None, schedule="every"),
    "vasr": VASR(schedule="every"),
    "urge": URGE(ess_threshold=None),
    "urge, scaled": URGE(path="scaled"),
    "urge, terminal": URGE(path="terminal"),
}


@pytest.mark.parametrize("name", TOKENS)
def test_tokens_keep_their_frequencies(name):
    """Against the enumerated law of the chain, tilted."""
    assert token_scores(with_(TOKENS[name], guide=bias)).abs().max() < 4.2


@pytest.mark.parametrize("order", ["random", "left"])
def test_tokens_in_other_orders(order):
    model = Tokens()
    model.kernel = Categorical(mask_id=MASK, order=order)
    for guide in (None, bias):
        assert token_scores(URGE(guide=guide), model, order=order, groups=600).abs().max() < 4.2


def test_unpaid_biases_are_found():
    for kind in (Importance, URGE, VASR):
        assert token_scores(unpaid(kind)(guide=bias))[1:].abs().max() > 6.0


# -- gradients ------------------------------------------------------------------------------------------------------------------------------


class Weighed(Line):
    """`Line` with a weight that could be trained."""

    differentiable = True

    def __init__(self):
        self.net = torch.nn.Linear(1, 1).double()
        with torch.no_grad():
            self.net.weight.fill_(0.9)
            self.net.bias.zero_()

    def predict(self, x, t, group):
        x0 = super().predict(x, t, group).x0
        return viot.Prediction(self.net(x0[..., None])[..., 0])


class Slope:
    """A guide with a network of its own, that differentiates."""

    needs_grad = True

    def __init__(self):
        self.net = torch.nn.Linear(2, 1).double()
        with torch.no_grad():
            self.net.weight.copy_(torch.tensor([[0.8, -0.5]]))
            self.net.bias.fill_(0.1)
        self.calls = []

    def __call__(self, x, t, prediction):
        # A graph to x, and none to the weights.
        self.calls.append(x.requires_grad and prediction.x0.requires_grad and not self.net.weight.requires_grad)
        return torch.autograd.grad(torch.tanh(self.net(prediction.x0)).sum(), x)[0]


@pytest.mark.parametrize("kind", [VASR, TDS, URGE, SVDD], ids=lambda kind: kind.name)
def test_guides_that_differentiate(kind):
    model, guide = Weighed(), Slope()
    parameters = [*model.net.parameters(), *guide.net.parameters()]
    with quiet():
        whole = viot.sample(model, Differentiable(), kind(guide=guide), **settings(kind.name, groups=2))
    assert all(guide.calls)
    assert all(p.requires_grad and p.grad is None for p in parameters)
    assert not whole.samples.requires_grad
    assert not whole.log_weights.requires_grad
    # A prediction of every particle but the last, from which no noise leads on: of every candidate in svdd.
    rows, looks = whole.rewards.numel(), {SVDD: 1 + 4 * 4, TDS: 2 * 5}.get(kind, 5)
    assert whole.grad_rows == rows * looks
    with quiet():
        sliced = viot.sample(model, Differentiable(), kind(guide=guide), **settings(kind.name, groups=2, batch_size=3))
    assert torch.allclose(sliced.samples, whole.samples, atol=1e-12)
    assert torch.allclose(sliced.log_weights, whole.log_weights, atol=1e-10)
    assert sliced.grad_rows == whole.grad_rows


def test_a_broken_guide_leaves_the_weights_as_they_were():
    model = Weighed()

    def broken(x, t, prediction):
        raise RuntimeError("no idea")

    broken.needs_grad = True
    with pytest.raises(RuntimeError, match="no idea"):
        viot.sample(model, Differentiable(), URGE(guide=broken), **settings("urge"))
    assert all(p.requires_grad for p in model.net.parameters())
    assert torch.is_grad_enabled()


def test_the_gradient_is_the_gradient():
    """By backpropagation as in closed form."""

    def closed(x, t, prediction, coeffs):
        a, s = coeffs.alpha_t, coeffs.sigma_t
        return -(prediction.x0 - 1) * (0.6 * a / (0.6 * a * a + s * s))

    for kind in (URGE, TDS):
        a, b = (run(kind(guide=guide), groups=20) for guide in (sloped, closed))
        assert torch.allclose(a.samples, b.samples, atol=1e-12)
        assert torch.allclose(a.log_weights, b.log_weights, atol=1e-9)
        assert a.grad_rows - b.grad_rows == 20 * 16 * (STEPS - 1)


# -- what a guide sees ----------------------------------------------------------------------------------------------------------------------


def test_group_and_coeffs_are_offered():
    seen = []

    def guide(x, t, prediction, group, coeffs):
        seen.append((x, t, group, coeffs, prediction))
        assert not torch.is_grad_enabled()
        return torch.zeros_like(x)

    with quiet():
        found = viot.sample(Line(), Differentiable(), URGE(guide=guide), **settings("urge", groups=(4, 7)))
        plain = viot.sample(Line(), Differentiable(), URGE(), **settings("urge", groups=(4, 7)))
    assert torch.allclose(found.samples, plain.samples, atol=1e-12), "a drift of 0 changes nothing"
    assert torch.allclose(found.log_weights, plain.log_weights, atol=1e-12)
    grid, k = Line().grid(6), found.shape[1]
    # No noise follows the last prediction, and nothing is asked about it.
    assert len(seen) == 5
    for j, (x, t, group, coeffs, prediction) in enumerate(seen):
        assert coeffs == grid.coeffs(j)
        assert (t == grid.times[j]).all()
        assert group.tolist() == [4] * k + [7] * k
        assert x.shape == prediction.x0.shape == (2 * k, 2)


def test_modules_and_objects_are_guides():
    class Net(torch.nn.Module):
        def forward(self, x, t, prediction, coeffs):
            return 0.3 * coeffs.alpha_t * (1 - prediction.x0)

    class Object:
        def __call__(self, x, t, prediction, *, coeffs):
            return 0.3 * coeffs.alpha_t * (1 - prediction.x0)

    a, b = (run(URGE(guide=guide), groups=4) for guide in (Net(), Object()))
    assert torch.equal(a.log_weights, b.log_weights)


# -- runs -----------------------------------------------------------------------------------------------------------------------------------


def lean(x, t, prediction):
    return 0.7 * (1 - prediction.x0)


def other(x, t, prediction):
    return 0.6 * (1 - prediction.x0)


def sample(method, folder=None, model=None, reward=None, **changes):
    with quiet():
        return viot.sample(
            model or Interrupted(), reward or Judge(), method, checkpoint=folder, **settings(method.name, groups=2, **changes)
        )


RESUMED = [URGE, VASR, FVD, SVDD, TDS]


@pytest.mark.parametrize("kind", RESUMED, ids=lambda kind: kind.name)
def test_interrupted_runs_go_on(kind, tmp_path):
    method = kind(guide=lean)
    whole = sample(method)
    for broken in [{"model": Interrupted(at)} for at in (1, 3, 5)] + [{"reward": Judge(at)} for at in (1, 2)]:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        with pytest.raises(KeyboardInterrupt):
            sample(method, folder, **broken)
        assert differing(sample(method, folder), whole) == []


@pytest.mark.parametrize("kind", RESUMED, ids=lambda kind: kind.name)
def test_slices_change_nothing(kind):
    method = kind(guide=lean)
    whole = sample(method)
    for size in (1, 3):
        assert differing(sample(method, batch_size=size), whole) == []


def test_the_record_names_the_guide(tmp_path):
    found = sample(URGE(guide=lean)).config["method"]["guide"]
    assert found.startswith("lean ")
    assert len(found) > len("lean ") + 6
    assert json.loads(json.dumps(found)) == found
    with pytest.raises(KeyboardInterrupt):
        sample(URGE(guide=lean), tmp_path, model=Interrupted(3))
    for guide in (other, None):
        with pytest.raises(ValueError, match=r"another run.*guide"):
            sample(URGE(guide=guide), tmp_path)
    # The same name is not enough.
    namesake = lambda x, t, prediction: 0.1 * x
    namesake.__qualname__ = "lean"
    with pytest.raises(ValueError, match=r"another run.*guide"):
        sample(URGE(guide=namesake), tmp_path)
    assert differing(sample(URGE(guide=lean), tmp_path), sample(URGE(guide=lean))) == []


def test_captured_numbers_are_part_of_the_record():
    def strong(scale):
        return lambda x, t, prediction: scale * (1 - prediction.x0)

    one, two = (sample(URGE(guide=strong(s))).config["method"]["guide"] for s in (0.1, 0.2))
    assert one != two
    near, far = (Toward(GaussianMixture([[m]]), s) for m, s in ((0.0, 1.0), (0.5, 1.0)))
    weak = Toward(GaussianMixture([[0.0]]), 0.5)
    assert len({guide.fingerprint() for guide in (near, far, weak)}) == 3
    assert near.fingerprint() == Toward(GaussianMixture([[0.0]])).fingerprint()


def test_captured_tensors_and_functions_are_part_of_the_record():
    def pulled(where, how):
        return lambda x, t, prediction: how(where - prediction.x0)

    kinds = [(torch.zeros(2), torch.sin), (torch.ones(2), torch.sin), (torch.zeros(2), lambda v: 2 * v), (torch.zeros(2), lambda v: 3 * v)]
    told = [sample(URGE(guide=pulled(*kind))).config["method"]["guide"] for kind in kinds]
    assert len(set(told)) == 4
    assert told[0] == sample(URGE(guide=pulled(torch.zeros(2), torch.sin))).config["method"]["guide"]


def test_a_guides_precision_does_not_reach_the_chain():
    model = Pictures()
    with quiet():
        found = viot.sample(
            model, lambda s: s.mean((1, 2, 3)), URGE(guide=lambda x, t, p: (0.1 * x).double()), particles=4, steps=3, progress=False
        )
    assert found.x0.dtype == model.dtype


def test_svdd_counts_the_gradients_of_its_guide():
    def pull(x, t, prediction):
        return torch.autograd.grad(-prediction.x0.square().sum(), x)[0]

    pull.needs_grad = True
    method = SVDD(m=4, guide=pull)
    found = run(method, groups=1, particles=64, steps=6)
    assert found.grad_rows == method.grads(6) * found.shape[1] == 17 * found.shape[1]


def test_a_guide_without_noise_is_refused_by_fvd_too():
    with pytest.raises(ValueError, match="eta=0 has none"):
        sample(FVD(eta_base=0.0, eta_rebirth=0.0, guide=lean))


def test_a_guides_own_rows_are_inside_the_budget():
    def costly(x, t, prediction):
        return lean(x, t, prediction)

    costly.rows = 1
    for kind in (URGE, Importance, VASR, SVDD, TDS):
        method = kind(guide=costly)
        with quiet():
            found = viot.sample(Line(), Differentiable(), method, particles=40, steps=6, groups=2, progress=False)
        assert method.cost(6) == 2 * kind().cost(6)
        k = found.shape[1]
        assert k == 40 * 6 // method.cost(6)
        # Nothing is asked about the state before the last step, which no noise follows.
        assert found.nfe == 2 * k * (2 * kind().cost(6) - (SVDD().m if kind is SVDD else 1))
        assert found.nfe <= 2 * 40 * 6
    plain, twice = (viot.prepare(Line(), Differentiable(), URGE(guide=g), particles=40, steps=6).problem.K for g in (lean, costly))
    assert plain == 2 * twice == 40


# -- what goes wrong ------------------------------------------------------------------------------------------------------------------------


def refused(error, match, method, model=None, calls=0, reward=None):
    model = model or Line()
    model.calls = 0
    counted, predict = [], model.predict
    model.predict = lambda *args: (counted.append(1), predict(*args))[1]
    with quiet(), pytest.raises(error, match=match):
        viot.sample(model, reward or Differentiable(), method, particles=8, steps=6, progress=False)
    assert len(counted) == calls


def test_errors_teach():
    with pytest.raises(TypeError, match=r"guide= takes a function.*not 3"):
        URGE(guide=3)
    refused(
        ValueError,
        r"guidance short returned shape \(8,\).*must return \(8, 2\)",
        URGE(guide=named("short", lambda x, t, p: x[:, 0])),
        None,
        1,
    )
    refused(ValueError, r"returned NoneType.*must return \(8, 2\)", URGE(guide=lambda x, t, p: None), None, 1)
    refused(ValueError, r"eta=0 has none: give importance eta > 0", Importance(eta=0.0, guide=lean))
    refused(ValueError, r"eta=0 has none: give vasr eta > 0", VASR(eta=0.0, guide=lean))


def named(name, function):
    function.__qualname__ = name
    return function


def test_errors_of_tokens_teach():
    tilted = lambda x, t, p: torch.zeros_like(p.logits)
    refused(TypeError, r"needs_grad.*Tokens: its states are tokens", URGE(guide=sloped), Tokens(), reward=letters)
    wrong = URGE(guide=lambda x, t, p: torch.zeros(8, 3))
    refused(ValueError, r"returned shape \(8, 3\); .*must return \(8, 3, 4\)", wrong, Tokens(), 1, letters)
    sure = Tokens()
    sure.kernel = Categorical(mask_id=MASK, order="confidence")
    refused(
        TypeError, r"adds a drift to the proposal, which Categorical in this form has no density", VASR(guide=tilted), sure, reward=letters
    )


def test_models_without_gradients_are_named():
    model = Line()
    model.differentiable = False
    refused(TypeError, r"declares needs_grad.*Line: it declares differentiable = False", VASR(guide=sloped), model)


def test_errors_of_toward_teach():
    class Coarse(Line):
        def grid(self, steps):
            sigmas = torch.linspace(0.9, 0, steps + 1, dtype=torch.float64)
            return viot.Grid(sigmas[:-1], (1 - sigmas**2).sqrt(), sigmas)

    refused(ValueError, r"has states \(1,\), this one \(2,\)", URGE(guide=Toward(MODEL)))
    refused(ValueError, "other noise levels; give both the same scheduler", URGE(guide=Toward(Coarse())))
    with pytest.raises(TypeError, match="is not a model"):
        Toward(lambda x: x)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_count_as_no_drift(bad):
    def guide(x, t, prediction):
        return torch.where(x > 0.5, bad, pull(x, t, prediction, Coeffs(0.5, 0.5, 0.6, 0.4), torch.zeros(len(x))))

    def finite(x, t, prediction):
        return guide(x, t, prediction).nan_to_num(0.0, 0.0, 0.0)

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = viot.sample(MODEL, REWARD, URGE(guide=guide), particles=16, groups=400, steps=STEPS, progress=False)
    ours = [str(w.message) for w in told if "not finite" in str(w.message)]
    assert len(ours) == 1
    assert "guidance" in ours[0]
    assert "count as 0" in ours[0]
    assert found.log_weights.isfinite().all()
    assert is_exact(found, law())
    assert torch.equal(found.log_weights, run(URGE(guide=finite), groups=400).log_weights)


def test_the_last_step_has_no_drift():
    """No noise follows it, so a drift there would have no density; on tokens it has, and is asked for."""
    steps = []

    def guide(x, t, prediction, coeffs):
        steps.append(coeffs.sigma_s)
        return torch.full_like(prediction.x0 if prediction.logits is None else prediction.logits, 5.0)

    found = run(URGE(guide=guide, path="terminal"), groups=2, steps=3)
    assert len(steps) == 2
    assert min(steps) > 0
    prepared = viot.prepare(MODEL, REWARD, URGE(guide=guide), particles=4, steps=3)
    last = next(s for s in prepared.states() if s.step == 2)
    t = prepared.problem.grid.times[2].expand(4)
    expected = MODEL.predict(last.x[0], t, torch.zeros(4)).x0
    assert torch.allclose(list(prepared.states(last))[-1].x[0], expected, atol=1e-12)
    assert found.log_weights.isfinite().all()
    steps.clear()
    with quiet():
        viot.sample(Tokens(), letters, URGE(guide=guide), particles=4, steps=3, progress=False)
    assert steps[-1] == 0
    assert len(steps) == 3


# -- another model as the drift: classifier-free guidance -------------------------------------------------------------------------------------

THERE = GaussianMixture([[1.2]], 0.3)


@pytest.mark.parametrize(
    "method", [URGE(), URGE(path="terminal"), VASR(eta=0.6), TDS(guidance=0.3), FKD()], ids=lambda m: f"{m.name}, {m.eta}"
)
def test_toward_another_model_the_target_is_this_ones(method):
    for scale in (1.0, -0.3):
        population = run(with_(method, guide=Toward(THERE, scale)), groups=400, particles=32)
        assert population.shape == (400, 16), "half of the rows are the other model's"
        assert population.nfe == 400 * 16 * (2 * STEPS - 1)
        assert z_scores(population, law(eta=method.eta)).abs().max() < 4.0


def test_unpaid_guidance_toward_another_model_is_found():
    for kind in (URGE, VASR):
        assert z_scores(run(unpaid(kind)(guide=Toward(THERE)), groups=1000), law())[1:].abs().max() > 6.0


def steps_agree(model, far, steps, eta=1.0, scale=1.0):
    """The mean of a step that is moved by std² · drift is `scale` of the way to the other model's own, at every step, pure noise included.

    Returns by how much the drift differs from `scale` times the difference of the scores, relative to that: less as steps shrink.
    """
    run = viot.prepare(model, lambda x: torch.zeros(len(x)), URGE(guide=Toward(far, scale)), particles=6, groups=1, steps=steps)
    problem, state = run.problem, run.problem.start()
    apart = []
    for j in sorted({0, 1, steps // 4, steps // 2, steps - 2}):
        looked = run.method.look(problem, state.but(step=j))
        drift = problem.rows(Toward(far, scale).drift(problem, looked, eta))
        x, c, group = problem.rows(looked.x), problem.grid.coeffs(j), problem.group_rows(looked.x.shape[1])
        t = problem.grid.times[j].expand(len(x))
        with torch.no_grad():
            here, there = model.predict(x, t, group), far.predict(x, t, group)
        (mean, std), (goal, _) = (problem.kernel.moments(x, p, c, eta) for p in (here, there))
        size = (goal - mean).abs().max()
        assert (mean + std**2 * drift - (mean + scale * (goal - mean))).abs().max() <= 1e-3 * size + 1e-6
        if c.alpha_t > 0:
            score = scale * c.alpha_t / c.sigma_t**2 * (there.x0 - here.x0)
            apart.append(float((drift - score).abs().max() / score.abs().max()))
    return apart


@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_toward_makes_the_other_models_step(eta):
    for scale in (1.0, 0.7):
        steps_agree(MODEL, THERE, 5, eta, scale)


def test_toward_is_the_difference_of_the_scores_where_steps_are_small():
    assert max(steps_agree(MODEL, THERE, 4)) > 0.3
    # But for the last steps, which are never small against the noise that is left.
    assert min(steps_agree(MODEL, THERE, 400)) < 0.02


def test_the_walk_toward_another_model_is_the_other_models():
    """But for the last step, which has no noise to move and goes to the clean guess of the model."""
    gaps = []
    for steps in (5, 40):
        walked = run(Base(guide=Toward(THERE)), particles=4000, groups=2, steps=steps).samples.flatten()
        goal = THERE.chain_law(steps, 1.0)
        gaps.append(torch.stack([walked.mean() - goal.mean.item(), walked.var() - goal.cov.item()]).abs())
    assert gaps[0].max() > 0.1
    assert gaps[1].max() < 0.05


#: Flux has its guidance embedded: the network is told the scale.
PIPELINES = ("sd", "sd3", "flux")


@pytest.fixture(scope="module", params=PIPELINES)
def pair(request):
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    import tiny

    build, call, _ = tiny.FAMILIES[request.param]
    pipe = build()
    return [viot.from_pipeline(pipe, **{**call, "guidance_scale": scale}) for scale in (1.0, 5.0)]


def test_classifier_free_guidance_as_a_drift(pair):
    model, far = pair
    assert max(steps_agree(model, far, 4)) > 0.2
    assert min(steps_agree(model, far, 400)) < 0.02


def check_run(model, far, reward, particles=4):
    method = URGE(guide=Toward(far))
    with quiet():
        found = viot.sample(model, reward, method, particles=particles, steps=3, lam=1.0, progress=False)
        plain = viot.sample(model, reward, URGE(), particles=found.shape[1], steps=3, lam=1.0, progress=False)
    assert found.log_weights.isfinite().all()
    assert found.samples.isfinite().all()
    assert found.nfe <= found.shape[0] * particles * 3
    assert not torch.allclose(found.samples, plain.samples)
    # The ratio is in the weights.
    assert not torch.allclose(found.log_weights - found.rewards, plain.log_weights - plain.rewards, atol=1e-6)
    assert "Toward" in found.config["method"]["guide"]
    with quiet():
        again = viot.sample(model, reward, method, particles=particles, steps=3, lam=1.0, batch_size=1, progress=False)
    assert torch.allclose(again.samples, found.samples, atol=1e-4)
    return found


@pytest.mark.filterwarnings("ignore:.*CPU autocast")
def test_urge_runs_on_pipelines(pair):
    check_run(*pair, "brightness")


def test_urge_runs_on_the_captions_model():
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    prompts = ["two sevens", "a red three above a blue one"]
    model, far = (viot.load("captions", prompt=prompts, guidance_scale=s) for s in (1.0, 3.0))
    found = check_run(model, far, "captions")
    assert found.shape == (2, 2)
    assert max(steps_agree(model, far, 4)) > 0.2
