"""`auto`: what it believes, what it does where guesses mislead, and that none of it changes the law. Its exactness is also in test_exact.py."""

import pytest
import torch
from exact import MODEL, REWARD, is_exact, law, run
from helpers import Tokens, quiet

import viot
from viot.methods import TDS, VASR, Auto
from viot.methods.auto import agreement


def test_agreement_is_the_adjusted_share_of_variance():
    a = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    b = torch.tensor([[0.0, 2.0, 1.0, 3.0], [3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]], dtype=torch.float64)
    # Correlation .8: share .64, adjusted 1 − .36 · 3/2. A correlation of −1 is none, and a constant tells nothing.
    assert torch.allclose(agreement(a, b), torch.tensor([0.46, 0.0, 0.0], dtype=torch.float64))
    noise = torch.randn(2, 2000, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    raw = torch.stack([torch.corrcoef(torch.stack([x, y]))[0, 1] for x, y in zip(*noise, strict=True)])
    found = agreement(*noise)
    # Unadjusted, eight particles of pure noise would look as if a seventh of it were told.
    assert float((raw.clamp_min(0) ** 2).mean()) > 0.06
    assert float(found.mean()) < 0.045


def test_belief_grows_with_the_signal_and_begins_with_it():
    population = run(Auto(schedule=(0.1, 0.3, 0.5, 0.7), power=2.0), groups=40, particles=64, steps=40)
    belief = population.trace["belief"]
    assert belief.shape == (4, 40)
    grid = MODEL.grid(40)
    share = float(grid.alphas[4] ** 2 / (grid.alphas[4] ** 2 + grid.sigmas[4] ** 2))
    assert torch.allclose(belief[0], torch.full((40,), share**2, dtype=torch.float64))
    assert bool((belief >= 0).all())
    assert bool((belief <= 1).all())
    means = belief.mean(1)
    assert bool((means.diff() > 0).all()), means


def test_full_belief_is_difference_potentials():
    plain = VASR(masses="weights", ess_threshold=0.5, resampling="ssp", order="none")
    a, b, other = (run(method, groups=20) for method in (Auto(power=0.0), plain, Auto()))
    assert torch.equal(a.samples, b.samples)
    assert torch.allclose(a.weights, b.weights, atol=1e-12)
    assert torch.allclose(a.log_z, b.log_z, atol=1e-12)
    assert not torch.equal(a.samples, other.samples)


def test_guided_with_full_belief_is_the_twisted_sampler():
    auto = Auto(power=0.0, guidance=1.0, schedule=(0.2, 0.5), resampling="systematic", ess_threshold=None)
    a, b = run(auto, groups=20), run(TDS(schedule=(0.2, 0.5), ess_threshold=None), groups=20)
    assert torch.equal(a.samples, b.samples)
    assert torch.allclose(a.weights, b.weights, atol=1e-12)
    assert a.grad_rows == b.grad_rows > 0
    assert Auto().grads(8) == 0


@pytest.mark.parametrize("guidance", [1.0, -0.5])
def test_guided_is_unbiased_whatever_it_follows(guidance):
    population = run(Auto(guidance=guidance, schedule="every", ess_threshold=0.9), groups=1500)
    assert population.trace["deaths"].sum() > 0
    assert is_exact(population, law())
    assert not is_exact(population, law(lam=0.8))


def test_groups_do_not_know_of_each_other():
    together, alone = run(Auto(), groups=6), run(Auto(), groups=2)
    assert torch.equal(together.samples[:2], alone.samples)
    assert torch.equal(together.weights[:2], alone.weights)


class Believes(Auto):
    """Broken: what was believed on the way is never taken back."""

    name = "believes"

    def finish(self, problem, state):
        return state


def test_a_belief_that_is_not_taken_back_is_found():
    always = {"schedule": "every", "ess_threshold": None}
    truth = law()
    assert is_exact(run(Auto(**always), groups=1000), truth)
    assert not is_exact(run(Believes(**always), groups=1000), truth)


def test_misleading_guesses_cost_it_less():
    """Eight narrow modes: the mean of several has a reward far below that of each, and who is nearest to one says little of who ends in it."""
    model = viot.load("mixture")
    found = {}
    for method in (Auto(), VASR(), Auto(power=0.0)):
        with quiet():
            found[method] = viot.sample(model, "modes", method, particles=40, groups=24, steps=50, seed=3, progress=False)
    auto, vasr, credulous = found.values()
    with quiet():
        known = viot.sample(model, "modes", "base", particles=4096, steps=50, seed=9, progress=False).log_z
    errors = [float((p.log_z - known).abs().mean()) for p in (auto, vasr, credulous)]
    assert errors[0] < 0.5 < errors[1], errors
    assert errors[0] < errors[2] / 2, errors
    lineages = [float(p.surviving_lineages.double().mean()) for p in (auto, vasr, credulous)]
    assert lineages[0] > 3 * lineages[1], lineages
    assert lineages[0] > 2 * lineages[2], lineages


def test_tokens():
    """All 64 texts of three letters: the weighted frequencies are those of the tilted law, and Ẑ is unbiased."""

    def reward(x0):
        return torch.tensor([1.5 * text.count("c") - (text[0] == "a") for text in x0], dtype=torch.float64)

    with quiet():
        base = viot.sample(Tokens(), reward, "base", particles=40000, steps=4, seed=1, progress=False)
        found = viot.sample(Tokens(), reward, Auto(schedule="every"), particles=16, groups=1500, steps=4, seed=2, progress=False)
    tilted = (1.0 * base.rewards[0]).exp()
    z, error = float(tilted.mean()), float(tilted.std()) / 200
    zs = found.log_z.exp()
    spread = float(zs.std()) / len(zs) ** 0.5
    assert abs(float(zs.mean()) - z) < 4 * (error**2 + spread**2) ** 0.5
    counts = torch.tensor([[text.count("c") for text in group] for group in found.samples], dtype=torch.float64)
    reference = torch.tensor([text.count("c") for text in base.samples[0]], dtype=torch.float64)
    target = float((tilted * reference).sum() / tilted.sum())
    gap = zs * (found.mean(counts) - target)
    assert abs(float(gap.mean())) < 4.5 * float(gap.std()) / len(gap) ** 0.5
    # The base law is another one.
    assert abs(float(reference.mean()) - target) > 0.2


def test_dead_and_constant_rewards():
    with quiet():
        flat = viot.sample(MODEL, lambda x: torch.zeros(len(x)), "auto", particles=16, groups=3, steps=20, progress=False)
        half = viot.sample(
            MODEL, lambda x: torch.where(x[..., 0] > 0, 0.0, -torch.inf), "auto", particles=32, groups=3, steps=20, progress=False
        )
    assert torch.allclose(flat.weights, torch.full((3, 16), 1 / 16, dtype=torch.float64))
    assert torch.equal(flat.log_z, torch.zeros(3, dtype=torch.float64))
    assert bool((half.samples[..., 0][half.weights > 0] > 0).all())
    assert bool(half.log_z.isfinite().all())


@pytest.mark.parametrize("wrong", [{"power": -1.0}, {"prior": -0.1}, {"power": float("nan")}])
def test_settings_that_mean_nothing(wrong):
    with pytest.raises(ValueError, match=r"power \(or None\) and prior"):
        Auto(**wrong)


def test_strength_zero_is_the_model():
    plain, found = run("base", lam=0.0, groups=4), run(Auto(), lam=0.0, groups=4)
    assert torch.equal(plain.samples, found.samples)
    assert torch.equal(found.log_z, torch.zeros(4, dtype=torch.float64))


def world(k, method):
    """A problem of two groups of k particles in the middle of its chain."""
    problem = viot.prepare(MODEL, REWARD, method, particles=k, groups=2, steps=8, lam=0.7).problem
    state = method.prepare(problem, problem.start()).but(step=4)
    return problem, state


def test_belief_by_hand():
    method = Auto(power=2.0, prior=10.0)
    problem, state = world(4, method)
    before = torch.tensor([[0.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.0, 0.0]], dtype=torch.float64)
    rewards = torch.tensor([[0.0, 2.0, 1.0, 3.0], [0.0, 1.0, 2.0, 3.0]], dtype=torch.float64)
    weighed = method.weigh(problem, state.but(rewards=rewards).with_extra(guessed=before))
    s = float(problem.grid.alphas[4] ** 2 / (problem.grid.alphas[4] ** 2 + problem.grid.sigmas[4] ** 2))
    # Adjusted shares of .46 and, against each other, 0: each group has a belief of its own.
    expected = torch.tensor([(4 * 0.46 + 10 * s) / 14, 10 * s / 14], dtype=torch.float64) ** 2
    assert torch.allclose(weighed.group["belief"], expected)
    assert torch.allclose(weighed.log_w, 0.7 * expected[:, None] * rewards)
    assert torch.equal(weighed.extra["guessed"], rewards)
    # Whoever descends from a particle descends from its guess.
    children = torch.tensor([[3, 3, 0, 1], [2, 2, 2, 0]])
    assert torch.equal(weighed[children].extra["guessed"], rewards.gather(1, children))


def test_the_more_the_guesses_ask_for_the_less_is_left_for_later():
    problem, _ = world(4, Auto())
    # At λ = .7: nothing is asked for, all that four particles can carry, and half of it, log 2 of log 4.
    rewards = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 900.0, 0.0], [0.0, 900.0, 900.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(Auto().caution(problem, rewards), torch.tensor([2.0, 1.0, 1.5], dtype=torch.float64))
    assert torch.equal(Auto().caution(problem, rewards[:, :1]), torch.full((3,), 2.0, dtype=torch.float64))
    assert Auto(power=0.5).caution(problem, rewards) == 0.5
    problem, state = world(4, Auto())
    weighed = Auto().weigh(problem, state.but(rewards=rewards[[0, 2]]))
    s = float(problem.grid.signal[4])
    assert torch.allclose(weighed.group["belief"], torch.tensor([s**2, s**1.5], dtype=torch.float64))


def test_gradients_are_followed_as_far_as_guesses_are_believed():
    method = Auto(guidance=1.0, power=2.0)
    problem, state = world(4, method)
    grid = problem.grid
    now = float(grid.alphas[4] ** 2 / (grid.alphas[4] ** 2 + grid.sigmas[4] ** 2)) ** 2
    assert torch.allclose(method.strength(problem, state), torch.full((2,), 0.7 * now, dtype=torch.float64))
    known = state.with_group(belief=torch.tensor([now / 2, (1 + now) / 2], dtype=torch.float64))
    assert torch.allclose(method.strength(problem, known), 0.7 * torch.tensor([now, (1 + now) / 2], dtype=torch.float64))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_few_particles_tell_nothing_of_a_correlation(k):
    found = agreement(torch.arange(k).double()[None], 2 * torch.arange(k).double()[None])
    assert float(found) == pytest.approx(1.0 if k > 2 else 0.0)
