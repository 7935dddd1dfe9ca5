"""SVDD and SVDD-R: the law of one choice, what crosses chains and what does not, and the equivalences."""

from dataclasses import dataclass, replace

import pytest
import torch
from exact import MODEL, REWARD, law, run
from helpers import Differentiable, Line, Tokens, quiet

import viot
from viot.methods import SVDD, SVDDR, VASRMax
from viot.particles import State


def test_costs_what_the_paper_says():
    """M (T − 1) + 1 rows per chain: the chosen candidate's prediction is that of the next step."""
    for m, steps in ((1, 5), (4, 8), (20, 3)):
        assert SVDD(m=m).cost(steps) == m * (steps - 1) + 1
        population = run(SVDD(m=m), particles=2 * m, groups=3, steps=steps)
        k = 2 * m * steps // (m * (steps - 1) + 1)
        assert population.shape == (3, k)
        assert population.nfe == 3 * k * (m * (steps - 1) + 1)
        assert population.reward_rows == population.nfe - 3 * k + 3 * k
    with pytest.raises(ValueError, match=r"one particle of svdd costs 141 rows.*particles ≥ 18"):
        viot.sample(MODEL, REWARD, SVDD(m=20), particles=4, steps=8, progress=False)


def test_one_candidate_is_the_base_sampler():
    assert torch.equal(run(SVDD(m=1), groups=5).samples, run("base", groups=5).samples)
    # λ = 0 chooses blindly, which has the base law too.
    blind, base = run(SVDD(), groups=2000, lam=0.0).samples.flatten(), MODEL.chain_law(8, 1.0)
    assert abs(blind.mean() - base.mean.item()) < 4 * (base.cov.item() / len(blind)) ** 0.5
    assert blind.var().item() == pytest.approx(base.cov.item(), rel=0.05)


def one_step(method, m, particles=4000):
    """Candidates of one step from one state, scored and chosen: the states chosen, and mean and std of the proposal."""
    prepared = viot.prepare(MODEL, REWARD, method, particles=particles, budget=10**9, steps=8, lam=2.0)
    problem = prepared.problem
    problem = replace(problem, K=particles)
    x = torch.full((1, particles, 1), 0.4, dtype=torch.float64)
    zeros = torch.zeros(1, particles, dtype=torch.float64)
    state = State(x=x, step=4, log_w=zeros, rewards=zeros, roots=zeros.long(), extra={"path": zeros})
    state = method.look(problem, state)
    mean, std = problem.kernel.moments(x[0], state.prediction.map(problem.rows), problem.grid.coeffs(4), 1.0)
    return problem, method.propose(problem, state).x.flatten(), mean[0].item(), float(std)


def optimal(problem, mean, std):
    """p(x_s | x_t) exp(λ r(x̂0(x_s))) / Z on a fine grid: its mean and variance."""
    x = torch.linspace(mean - 8 * std, mean + 8 * std, 4001, dtype=torch.float64)
    guess = problem.evaluate.model.predict(x[:, None], problem.grid.times[5].expand(4001), None).x0
    p = (-((x - mean) ** 2) / (2 * std**2) + 2.0 * REWARD(guess)).softmax(0)
    return float((p * x).sum()), float((p * x**2).sum() - (p * x).sum() ** 2)


def test_one_choice_tends_to_the_optimal_kernel():
    """As M → ∞ a chosen candidate has the law ∝ p(x_s | x_t) exp(λ v(x_s)); at M = 2 it is visibly short of it."""
    for m, close in ((200, True), (2, False)):
        problem, chosen, mean, std = one_step(SVDD(m=m), m)
        truth, var = optimal(problem, mean, std)
        off = abs(chosen.mean() - truth) / (var / len(chosen)) ** 0.5
        assert (off < 4) == close
        if close:
            assert chosen.var().item() == pytest.approx(var, rel=0.12)
    assert abs(truth - mean) > 0.05


def test_the_choice_at_two_candidates_has_its_law():
    """Not in the limit: of two candidates the first is taken with probability 1 / (1 + exp(λ (v2 − v1)))."""
    problem = viot.prepare(MODEL, REWARD, SVDD(m=2), particles=60_000, steps=8, lam=1.5).problem
    scores = torch.tensor([0.3, -0.4], dtype=torch.float64).expand(1, 60_000, 2)
    share = (SVDD(m=2).pick(problem, 3, scores) == 0).double().mean().item()
    expected = 1 / (1 + torch.exp(torch.tensor(1.5 * -0.7))).item()
    assert share == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 60_000) ** 0.5)


def test_choices_of_different_steps_are_independent():
    problem = viot.prepare(MODEL, REWARD, SVDD(m=2), particles=4000, steps=8).problem
    scores = torch.zeros(1, 4000, 2, dtype=torch.float64)
    one, other = (SVDD(m=2).pick(problem, step, scores).double()[0] for step in (2, 3))
    assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1]) < 4 / 4000**0.5


def test_forbidden_candidates_lose_against_everybodys():
    """A chain whose candidates are all forbidden is below all others of its group, not above them where rewards are negative."""

    def cold(x):
        return torch.where(x[:, 0] > -0.2, -50.0 - x[:, 0], -torch.inf)

    shared = {"particles": 256, "steps": 10, "groups": 8, "progress": False}
    with quiet():
        forbidden = {m: (viot.sample(Line(), cold, m, **shared).rewards == -torch.inf).double().mean() for m in ("base", "svdd", "svdd-r")}
    assert forbidden["base"] > 0.3
    assert forbidden["svdd"] < 0.1
    assert forbidden["svdd-r"] < 0.1


def test_argmax_is_the_limit_of_strength():
    hot = run(SVDD(), groups=20, lam=1e7, particles=32)
    best = run(SVDD(choice="argmax"), groups=20, particles=32)
    assert torch.equal(hot.samples.sort(1).values, best.samples.sort(1).values)
    assert not best.exact
    assert (best.rewards[:, :-1] >= best.rewards[:, 1:]).all()
    # With a negative strength the least is the best.
    worst = run(SVDD(choice="argmax"), groups=20, lam=-1.0)
    assert worst.rewards.mean() < run("base", groups=20).rewards.mean() < best.rewards.mean()


def test_chains_do_not_know_of_each_other():
    """Two particles of a run: changing where one starts leaves the other as it is; in SVDD-R it does not."""

    def walk(method, nudge):
        prepared = viot.prepare(MODEL, REWARD, method, particles=16, steps=8, lam=3.0)
        states = list(prepared.states())
        # (From pure noise every step of this model forgets where it was.)
        first = states[3]
        x = first.x.clone()
        x[0, 0] += nudge
        moved = method.look(prepared.problem, first.but(x=x, prediction=None))
        *_, last = prepared.states(moved)
        return last.x[0]

    for method, apart in ((SVDD(), True), (SVDDR(), False)):
        still, moved = walk(method, 0.0), walk(method, 3.0)
        assert torch.equal(still[1:], moved[1:]) == apart
        assert not torch.equal(still[0], moved[0])


@dataclass(frozen=True)
class SVDDRUnfed(SVDDR):
    """Resamples the states and forgets their predictions: each goes on along another's direction."""

    def mix(self, problem, state):
        return super().mix(problem, state).but(prediction=state.prediction)


def test_svdd_r_gathers_everything():
    """Each state's prediction is the network's answer for that very state, after every choice and every resampling."""

    def worst(method):
        prepared = viot.prepare(MODEL, REWARD, method, particles=32, groups=3, steps=8, lam=3.0)
        problem, gap = prepared.problem, 0.0
        for state in prepared.states():
            if state.prediction is not None:
                known = problem.evaluate(problem.rows(state.x), problem.grid.times[state.step], problem.group_rows(state.x.shape[1]))[0]
                gap = max(gap, (problem.fold(known.x0) - state.prediction.x0).abs().max().item())
        return gap

    assert worst(SVDD()) == 0
    assert worst(SVDDR()) == 0
    assert worst(SVDDRUnfed()) > 0.01


def test_resampling_in_proportion_to_the_values():
    population = run(SVDDR(), groups=400, particles=64)
    trace = population.trace
    assert trace["deaths"].sum() > 0
    assert len(trace["step"]) == 7
    # Drawn towards the reward harder than π: the mean lies beyond the target's, which shows that it is no sampler of it.
    x = population.mean(population.samples[..., 0]).mean().item()
    assert x > law().first + 0.1
    assert not population.exact
    assert population.log_z.isnan().all()


class FromOnePoint(Line):
    """Every chain starts at the same state."""

    def prior(self, n, generator):
        return torch.full((n, 2), 0.3, dtype=self.dtype)


def test_e4_one_chain_of_greedy_choices_is_vasr_max():
    """VASR-Max at every step, K particles, is SVDD with one chain and M = K candidates, from a common start and with the same noise."""
    k, steps = 6, 7
    with quiet():
        most = viot.sample(FromOnePoint(), Differentiable(), VASRMax(schedule="every"), particles=k, steps=steps, groups=9, progress=False)
        one = viot.sample(
            FromOnePoint(),
            Differentiable(),
            SVDD(m=k, choice="argmax"),
            particles=k,
            steps=steps,
            groups=9,
            budget=k * steps,
            progress=False,
        )
    assert one.shape == (9, 1)
    assert torch.allclose(one.x0[:, 0], most.best(1).x0[:, 0], atol=1e-12)


def test_tokens_and_hard_constraints():
    with quiet():
        texts = viot.sample(
            Tokens(), lambda t: torch.tensor([float(s.count("b")) for s in t]), SVDD(), particles=32, steps=6, lam=3.0, progress=False
        )
        base = viot.sample(
            Tokens(), lambda t: torch.tensor([float(s.count("b")) for s in t]), "base", particles=200, steps=6, progress=False
        )

        def positive(x):
            return torch.where(x[:, 0] > 0, 0.0, -torch.inf)

        held = viot.sample(Line(), positive, SVDD(), particles=256, steps=6, progress=False)
    assert texts.rewards.mean() > base.rewards.mean() + 0.3
    dead = held.rewards == -torch.inf
    assert (held.weights[dead] == 0).all()
    assert (held.weights[~dead] > 0).all()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: SVDD(m=0), "m ≥ 1"),
        (lambda: SVDD(choice="best"), "categorical"),
        (lambda: SVDD(eta=0), "eta > 0"),
        (lambda: SVDDR(resampling="x"), "x"),
    ],
)
def test_settings_that_cannot_be(make, match):
    with pytest.raises(ValueError, match=match):
        make()
