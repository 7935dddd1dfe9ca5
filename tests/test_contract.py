"""Strangers' models, rewards and methods: what the contract promises them, and what `viot.testing` says of those that break it."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from helpers import METHODS, TOKEN_METHODS, Differentiable, Line, Tokens, close, differing, run

import viot
from viot.methods import FKD, Method, make
from viot.methods.smc import SMC, ResamplingSMC
from viot.testing import check_method, check_model, check_reward

# -- a model written against the protocol alone ---------------------------------------------------------------------------------------


def test_strangers_model_passes():
    assert Line.__mro__ == (Line, object)
    check_model(Line())
    check_model(Line(), steps=3)


def test_strangers_token_model_passes():
    check_model(Tokens())


@pytest.mark.parametrize("name", ["gaussian", "mixture"])
def test_embedded_models_pass(name):
    check_model(name)


@pytest.mark.parametrize("method", METHODS)
def test_strangers_model_runs_with_every_method(method):
    population = run(method, groups=2)
    g, k = population.shape
    assert g == 2
    assert population.samples.shape == (2, k, 2)
    assert population.samples.dtype == torch.float64
    assert population.log_weights.logsumexp(-1).abs().max() < 1e-9
    assert population.nfe <= 2 * population.config["budget"]


# Every break is one member of a model that is otherwise right.


def global_rng_prior(self, n, generator):
    return torch.randn(n, 2, dtype=torch.float64)


def global_rng_seeded_prior(self, n, generator):
    # Leaves the global state as it was, but depends on it.
    state = torch.get_rng_state()
    x = torch.randn(n, 2, dtype=torch.float64)
    torch.set_rng_state(state)
    return x


def deaf_prior(self, n, generator):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def flat_prior(self, n, generator):
    return torch.randn(n, generator=generator, dtype=torch.float64)


def float32_prior(self, n, generator):
    return torch.randn(n, 2, generator=generator)


right = Line.predict


def batch_norm(self, x, t, group):
    return viot.Prediction(right(self, x, t, group).x0 - 0.1 * x.mean(0))


def first_time(self, x, t, group):
    return right(self, x, t[:1].expand_as(t), group)


def one_time(self, x, t, group):
    return right(self, x, torch.tensor([t.unique().item()]).expand_as(t), group)


def dropout(self, x, t, group):
    return viot.Prediction(right(self, x, t, group).x0 * (torch.rand(len(x), 1) > 0.1))


def noise_restored(self, x, t, group):
    with torch.random.fork_rng(devices=[]):
        # Another number for every row of every call, where a dropout could leave all of a few rows alone.
        torch.seed()
        return viot.Prediction(right(self, x, t, group).x0 * (1 + torch.rand(len(x), 1)))


def flat_predict(self, x, t, group):
    return viot.Prediction(right(self, x, t, group).x0[:, :1])


def flat_eps(self, x, t, group):
    return viot.Prediction(right(self, x, t, group).x0, eps=x[:, :1])


def bare_tensor(self, x, t, group):
    return right(self, x, t, group).x0


def in_place(self, x, t, group):
    found = right(self, x.clone(), t, group)
    x.mul_(0)
    return found


def no_gradient(self, x, t, group):
    with torch.no_grad():
        return right(self, x, t, group)


def gradients_on(self, x, t, group):
    torch.set_grad_enabled(True)
    return right(self, x, t, group)


def short_grid(self, steps):
    return Line().grid(max(1, steps - 1))


def forgetful_grid(self, steps):
    self.asked = getattr(self, "asked", 0) + 1
    grid = Line().grid(steps)
    return viot.Grid(grid.times + self.asked, grid.alphas, grid.sigmas)


def mean_decode(self, x0, group):
    return x0 - x0.mean(0)


def lumped_decode(self, x0, group):
    return x0.sum(0)


def wrong_length_decode(self, x0, group):
    return x0[:1]


BROKEN_MODELS = [
    ("prior", global_rng_prior, "global random state"),
    ("prior", global_rng_seeded_prior, "every random number must come from the generator"),
    ("prior", deaf_prior, "draw .* from the generator it is given"),
    ("prior", flat_prior, r"shape \(.*\); it must be \(n, \*event_shape\)"),
    ("prior", float32_prior, "float32, but .*dtype says torch.float64"),
    ("predict", batch_norm, "not a function of each row alone"),
    ("predict", first_time, "beside rows of other times"),
    ("predict", one_time, r"another time in every row"),
    ("predict", dropout, "global random state"),
    ("predict", noise_restored, "not a function of each row alone"),
    ("predict", flat_predict, r"x0 of shape \(5, 1\) for x of shape \(5, 2\)"),
    ("predict", flat_eps, r"eps of shape \(5, 1\) for x of shape \(5, 2\)"),
    ("predict", bare_tensor, "must return a viot.Prediction, not Tensor"),
    ("predict", in_place, "changed x in place"),
    ("predict", no_gradient, "cuts the graph"),
    ("predict", gradients_on, "turned gradients on"),
    ("grid", short_grid, r"grid\(2\) has 1 steps"),
    ("grid", forgetful_grid, "answers differently the second time"),
    ("decode", mean_decode, "decode is not a function of each row alone"),
    ("decode", lumped_decode, "one sample per row"),
    ("decode", wrong_length_decode, "one sample per row"),
    ("event_shape", [2], "event_shape must be a tuple"),
    ("device", "cpu", "device must be a torch.device"),
    ("dtype", "float64", "dtype must be the torch.dtype"),
    ("prompts", [], "one prompt per group"),
]


@pytest.mark.parametrize(("member", "broken", "message"), BROKEN_MODELS, ids=lambda v: getattr(v, "__name__", None))
def test_broken_model_fails(member, broken, message):
    model = type("Broken", (Line,), {member: broken})()
    if member == "dtype":
        with pytest.raises(AssertionError, match=message):
            check_model(model)
        return
    before = torch.is_grad_enabled()
    with pytest.raises(AssertionError, match=message):
        check_model(model)
    torch.set_grad_enabled(before)


def test_missing_members_are_named():
    with pytest.raises(AssertionError, match="lacks grid, prior, predict, decode"):
        check_model(type("Half", (), {"event_shape": (2,), "dtype": torch.float32, "device": torch.device("cpu")})())


def test_declared_gradient_must_arrive():
    check_model(type("Fine", (Line,), {"differentiable": True})())
    cut = type("Cut", (Line,), {"differentiable": True, "decode": lambda self, x0, group: x0.detach()})()
    with pytest.raises(AssertionError, match="decode cuts the graph"):
        check_model(cut)
    # Who declares that there is none is believed.
    check_model(type("Honest", (Line,), {"differentiable": False, "predict": no_gradient})())


right_tokens = Tokens.predict


def no_logits(self, x, t, group):
    return viot.Prediction(right_tokens(self, x, t, group).x0)


def flat_logits(self, x, t, group):
    found = right_tokens(self, x, t, group)
    return viot.Prediction(found.x0, logits=found.logits[:, 0])


def nan_logits(self, x, t, group):
    found = right_tokens(self, x, t, group)
    return viot.Prediction(found.x0, logits=found.logits * torch.nan)


def shared_logits(self, x, t, group):
    found = right_tokens(self, x, t, group)
    return viot.Prediction(found.x0, logits=found.logits + found.logits.mean(0).square())


def float_tokens(self, x, t, group):
    found = right_tokens(self, x, t, group)
    return viot.Prediction(found.x0.double(), logits=found.logits)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (no_logits, "logits="),
        (flat_logits, r"\(rows, length, vocabulary\)"),
        (nan_logits, "NaN"),
        (shared_logits, "not a function of each row alone: logits"),
        (float_tokens, "must return tokens as x0"),
    ],
)
def test_broken_token_model_fails(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_model(type("Broken", (Tokens,), {"predict": broken})())


# -- rewards --------------------------------------------------------------------------------------------------------------------------


POINTS = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def with_noise(samples, noise):
    return close(samples) + noise


def with_prompts(samples, prompts):
    return torch.tensor([float(len(p)) for p in prompts])


def hard(samples):
    return torch.where(samples[:, 0] > 0, 0.0, -torch.inf)


def length(samples):
    return [len(s) for s in samples]


@pytest.mark.parametrize(
    "reward", [close, Differentiable(), with_noise, with_prompts, hard, viot.rewards.Quadratic(), viot.rewards.Noisy(close, 0.5)]
)
def test_good_reward_passes(reward):
    check_reward(reward, POINTS)


def test_good_reward_of_text_passes():
    check_reward(length, ["a", "bb", "ccc"])
    check_reward(with_prompts, ["a", "bb", "ccc"], prompts=["x", "yy", "z"])


def centred(samples):
    return close(samples) - close(samples).mean()


def ranked(samples):
    return close(samples).argsort().argsort().double()


def standardised(samples):
    return (close(samples) - close(samples).mean()) / (close(samples).std(correction=0) + 1e-6)


def position(samples):
    return close(samples) + torch.arange(len(samples))


def mutating(samples):
    samples.clamp_(-1, 1)
    return close(samples)


def column(samples):
    return close(samples)[:, None]


def scalar(samples):
    return close(samples).mean()


def not_a_number(samples):
    return close(samples) * torch.nan


def plus_infinity(samples):
    return torch.where(samples[:, 0] > 0, torch.inf, 0.0)


def random(samples):
    return close(samples) + torch.randn(len(samples))


def unfulfilled(samples, temperature):
    return close(samples)


class Detached(Differentiable):
    def __call__(self, samples):
        return close(samples.detach())


class Elsewhere(Differentiable):
    weight = torch.ones((), requires_grad=True)

    def __call__(self, samples):
        return close(samples.detach()) * self.weight


class Spiky(Differentiable):
    def __call__(self, samples):
        return (samples[:, 0] * 0).sqrt()


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (centred, "does not score each sample by itself"),
        (ranked, "does not score each sample by itself"),
        (standardised, "does not score each sample by itself"),
        (position, "does not score each sample by itself"),
        (mutating, "changed the samples in place"),
        (column, r"shape \(7, 1\)"),
        (scalar, "score each sample by itself"),
        (not_a_number, "NaN or"),
        (plus_infinity, "NaN or"),
        (random, "`noise`"),
        (unfulfilled, "needs a parameter 'temperature'"),
        (Detached(), "no graph back to the samples"),
        (Elsewhere(), "no gradient of its scores reaches"),
        (Spiky(), "not finite"),
    ],
)
def test_broken_reward_fails(reward, message):
    with pytest.raises(AssertionError, match=message):
        check_reward(reward, POINTS.clone())


def test_a_reward_of_one_sample_alone():
    def needs_two(samples):
        if len(samples) < 2:
            raise IndexError("no second sample")
        return close(samples)

    with pytest.raises(AssertionError, match="failed on 1 of the 7 samples: IndexError"):
        check_reward(needs_two, POINTS)
    with pytest.raises(AssertionError, match="at least 2 samples"):
        check_reward(close, POINTS[:1])


# -- methods --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*METHODS, *TOKEN_METHODS])
def test_every_method_passes(method):
    check_method(method)


VARIANTS = [
    FKD(potential="max", ess_threshold=None),
    FKD(potential="sum"),
    FKD(potential="rt"),
    FKD(compat="released"),
    viot.methods.FVD(alpha_star=0.2),
    viot.methods.FVD(alpha_star=0.2, controller="bisection", cap_policy="temper"),
    viot.methods.FVD(rebirth_noise="all_later_steps", split="snr", cap=0.25),
    viot.methods.FVD(norm="upper_bound", target="effective"),
    viot.methods.VASR(order="ratio", standardize=True),
    viot.methods.VASR(masses="weights", resampling="ssp"),
    viot.methods.VASR(resampling="killing", carry_potential=True),
    viot.methods.VASR(resampling="residual", schedule="every", value="smoothed"),
    viot.methods.VASR(value="rollout", ess_threshold=0.5),
    viot.methods.VASR(resampling="stratified", value={"name": "x0_samples", "n": 2}),
    viot.methods.BestOfN(n=None),
]


@pytest.mark.parametrize("method", VARIANTS, ids=[f"{m.name}-{i}" for i, m in enumerate(VARIANTS)])
def test_variants_pass(method):
    check_method(method)


@dataclass(frozen=True)
class Bare:
    """A method that subclasses nothing: importance sampling."""

    name: ClassVar[str] = "bare"
    exact: ClassVar[bool] = True

    def cost(self, steps):
        return steps

    def run(self, problem, state=None):
        state = state or problem.start()
        while state.step < problem.T:
            rows = problem.group_rows(problem.K)
            prediction = problem.evaluate(problem.rows(state.x), problem.grid.times[state.step], rows)[0]
            draw = problem.draw(state.step, "propose")
            x, _ = problem.kernel.step(problem.rows(state.x), prediction, problem.grid.coeffs(state.step), 1.0, draw)
            state = state.but(x=problem.fold(x), step=state.step + 1, cost=problem.evaluate.cost.record())
            yield state
        scored = problem.evaluate.score(problem.rows(state.x), problem.group_rows(problem.K), keep=True)
        rewards = problem.fold(scored.rewards)
        end = state.but(rewards=rewards, log_w=problem.lam * rewards, samples=scored.samples, done=True)
        yield end.but(cost=problem.evaluate.cost.record())


def test_strangers_method_passes():
    check_method(Bare())


@dataclass(frozen=True)
class Forgetful(ResamplingSMC):
    """Keeps the rewards of the step before in a local, which a resumed run does not have."""

    name: ClassVar[str] = "forgetful"

    def run(self, problem, state=None):
        state = self.prepare(problem, problem.start()) if state is None else state
        before = torch.zeros_like(state.log_w)
        while state.step < problem.T:
            state = self.look(problem, state)
            state = problem_value(problem, state)
            state = state.but(log_w=state.log_w + 0.1 * before)
            before = state.rewards
            state = self.propose(problem, state)
            state = state.but(step=state.step + 1, cost=problem.evaluate.cost.record())
            yield state
        yield self.end(problem, state)


def problem_value(problem, state):
    from viot.value import Tweedie

    return Tweedie()(problem, state)


class SelfKeeping(ResamplingSMC):
    """Keeps the same in the method object."""

    name = "self-keeping"

    def propose(self, problem, state):
        if state.step == 0:
            object.__setattr__(self, "first", state.x.clone())
        after = super().propose(problem, state)
        return after.but(x=after.x + 0.01 * self.first)


@dataclass(frozen=True)
class Twice(ResamplingSMC):
    """Calls the model twice per step, and says once."""

    name: ClassVar[str] = "twice"

    def look(self, problem, state):
        return super().look(problem, super().look(problem, state).but(prediction=None))


@dataclass(frozen=True)
class Smuggler(ResamplingSMC):
    """Calls the model behind the counter's back."""

    name: ClassVar[str] = "smuggler"

    def look(self, problem, state):
        model = problem.evaluate.model
        rows = problem.rows(state.x)
        found = model.predict(rows, problem.grid.times[state.step].expand(len(rows)), None)
        return state.but(prediction=found.map(problem.fold))


@dataclass(frozen=True)
class Mixing(ResamplingSMC):
    """Normalises over all groups at once."""

    name: ClassVar[str] = "mixing"

    def finish(self, problem, state):
        state = super().finish(problem, state)
        return state.but(log_w=state.log_w * (1 + 0.1 * state.log_w.mean()))


@dataclass(frozen=True)
class Global(ResamplingSMC):
    """Draws from torch's global random state."""

    name: ClassVar[str] = "global"

    def propose(self, problem, state):
        after = super().propose(problem, state)
        return after.but(x=after.x + 0.01 * torch.randn_like(after.x))


@dataclass(frozen=True)
class Sliced(ResamplingSMC):
    """Lets the batch size into the draws."""

    name: ClassVar[str] = "sliced"

    def propose(self, problem, state):
        after = super().propose(problem, state)
        return after.but(x=after.x * (1 + 0.01 / (problem.evaluate.batch_size or 100)))


@dataclass(frozen=True)
class Unfinished(ResamplingSMC):
    """Never says that it is done."""

    name: ClassVar[str] = "unfinished"

    def end(self, problem, state):
        return super().end(problem, state).but(done=False)


@dataclass(frozen=True)
class Costless(ResamplingSMC):
    """Forgets to record its cost."""

    name: ClassVar[str] = "costless"

    def run(self, problem, state=None):
        for found in super().run(problem, state):
            yield found.but(cost={})


@dataclass(frozen=True)
class Lossy(ResamplingSMC):
    """Resamples by exp(r) whatever λ, and drops the correcting weights: the bug of the field."""

    name: ClassVar[str] = "lossy"

    def log_masses(self, problem, state):
        return state.rewards.log_softmax(-1)

    def select(self, problem, state):
        return super().select(problem, state).but(log_w=torch.zeros_like(state.log_w))


@dataclass(frozen=True)
class Deaf(ResamplingSMC):
    """Says it is exact, and never looks at the reward."""

    name: ClassVar[str] = "deaf"

    def finish(self, problem, state):
        return state

    def select(self, problem, state):
        return state


@dataclass(frozen=True)
class Poisoned(ResamplingSMC):
    """Subtracts infinities."""

    name: ClassVar[str] = "poisoned"

    def weigh(self, problem, state):
        return state.but(log_w=torch.where(torch.arange(state.log_w.shape[1]) == 0, torch.nan, state.log_w))

    def select(self, problem, state):
        return state


@dataclass(frozen=True)
class Ragged(ResamplingSMC):
    """Gathers one array, and forgets the others."""

    name: ClassVar[str] = "ragged"

    def finish(self, problem, state):
        state = super().finish(problem, state)
        return state.but(roots=state.roots[:, : problem.K // 2])


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Ragged(), r"disagree about \(G, K\)"),
        (Forgetful(), "that state does not determine the rest"),
        (SelfKeeping(), "cannot go on from the state|that state does not determine the rest"),
        (Twice(), "exceeds its budget"),
        (Smuggler(), "behind the back of problem.evaluate"),
        (Mixing(), "group 3 alone differs"),
        (Global(), "draws from torch's global random state"),
        (Sliced(), "batch_size=1 changes the answer"),
        (Unfinished(), "done=True"),
        (Costless(), "does not record the cost"),
        (Lossy(), "at λ = 0 its weighted mean"),
        (Deaf(), "at λ = 1 the mean reward"),
        (Poisoned(), "log_w .* holds NaN"),
        (object(), "a method is a name or an object with run"),
        (type("Runs", (), {"run": lambda self, problem, state=None: None})(), r"must have cost\(steps\)"),
    ],
    ids=lambda v: getattr(v, "name", None),
)
def test_broken_method_fails(method, message):
    with pytest.raises(AssertionError, match=message):
        check_method(method)


def test_the_loop_itself_is_the_control_of_the_broken_ones():
    @dataclass(frozen=True)
    class Whole(ResamplingSMC):
        name: ClassVar[str] = "whole"

        def weigh(self, problem, state):
            return state

    check_method(Whole())
    assert issubclass(Whole, SMC)
    assert issubclass(Whole, Method)


# -- groups, slices, global randomness ------------------------------------------------------------------------------------------------


def one(population, i):
    pick = {name: getattr(population, name)[i : i + 1] for name in ("x0", "samples", "rewards", "log_weights", "log_z", "roots")}
    trace = {k: v if k == "step" else v[:, i : i + 1] for k, v in population.trace.items()}
    parts = {k: v[i : i + 1] for k, v in population.parts.items()}
    return replace(population, **pick, ancestors=population.ancestors[:, i : i + 1], trace=trace, parts=parts)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["line", "mixture", "tokens"])
def test_a_group_alone_is_the_group_among_others(method, model):
    model, reward = {"line": (Line(), Differentiable()), "mixture": ("mixture", Differentiable()), "tokens": (Tokens(), count_b)}[model]
    if not fits(method, model):
        pytest.skip("the method needs gradients, tokens have none")
    among = run(method, model, reward, groups=range(2, 7))
    alone = run(method, model, reward, groups=[5])
    third = one(among, 3)
    if alone.shape != third.shape:  # a maximiser's group with fewer distinct candidates than another is filled up with copies of weight 0
        filled = third.weights[0, alone.shape[1] :]
        assert (filled == 0).all()
        n = alone.shape[1]
        third = replace(third, **{k: getattr(third, k)[:, :n] for k in ("x0", "rewards", "log_weights", "roots")})
        third = replace(third, samples=third.samples[:, :n] if isinstance(third.samples, torch.Tensor) else [third.samples[0][:n]])
    assert differing(alone, third, costs=False) == []
    # Control: another group is another population.
    if alone.shape[1] > 1 or not isinstance(model, Tokens):
        assert "rewards" in differing(one(among, 2), third, costs=False)


def count_b(samples):
    return torch.tensor([s.count("b") + 0.3 * s.count("c") for s in samples])


def fits(method, model):
    return not isinstance(model, Tokens) or not getattr(make(method), "needs_gradient", False)


@pytest.mark.parametrize("method", METHODS)
def test_batch_size_changes_memory_only(method):
    whole = run(method, groups=3)
    for size in (1, 2, 5, 7, 1000):
        assert differing(run(method, groups=3, batch_size=size), whole) == []


@pytest.mark.parametrize("method", METHODS)
def test_noisy_rewards_belong_to_the_group_too(method):
    reward = viot.rewards.Noisy(Differentiable(), 0.5)
    among = run(method, reward=reward, groups=3)
    assert differing(run(method, reward=reward, groups=3), among) == []
    alone = run(method, reward=reward, groups=[2])
    k = min(alone.shape[1], among.shape[1])
    assert torch.equal(alone.best(k).rewards, one(among, 2).best(k).rewards)


@pytest.mark.parametrize("method", METHODS)
def test_batch_size_of_a_noisy_reward(method):
    reward = viot.rewards.Noisy(Differentiable(), 0.5)
    assert differing(run(method, reward=reward, groups=3, batch_size=5), run(method, reward=reward, groups=3)) == []


@pytest.mark.parametrize("method", METHODS)
def test_global_rng_is_neither_read_nor_moved(method):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = run(method, groups=2)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert differing(run(method, groups=2), first) == []
    # Control: the seed of the run does matter.
    assert "x0" in differing(run(method, groups=2, seed=6), first)
