"""Rewards: names, combinations with their parts, noise, and the strength λ that a wish is solved for."""

import math

import pytest
import torch
from exact import MODEL, REWARD, run

import viot
from viot.rewards import Min, Noisy, Product, Quadratic, Sum, as_reward


def images(n=6, seed=0):
    return torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(seed))


def test_pixel_rewards():
    flat, noisy = torch.full((2, 1, 28, 28), 0.25), images(2)
    assert torch.allclose(as_reward("brightness")(flat), torch.tensor([0.25, 0.25]))
    size = as_reward("jpeg")
    assert (size(flat) > size(noisy)).all(), "noise compresses badly"
    assert (as_reward("jpeg:20")(noisy) > size(noisy)).all()
    assert size(torch.rand(2, 3, 16, 16)).shape == (2,)
    with pytest.raises(ValueError, match="between 1 and 100"):
        as_reward("jpeg:0")


def test_digit_rewards_read_digits():
    pytest.importorskip("safetensors")
    from viot.rewards.digits import classifier, judge

    x = images()
    log_p = classifier()(x).log_softmax(1)
    assert torch.allclose(as_reward("digit:7")(x), log_p[:, 7])
    assert torch.allclose(as_reward("digits:even")(x), log_p[:, ::2].amax(1))
    assert torch.allclose(as_reward("digits:odd")(x), log_p[:, 1::2].amax(1))
    assert torch.allclose(as_reward("digits:1,5")(x), log_p[:, [1, 5]].amax(1))
    assert judge()(x).shape == (6, 10)
    assert judge().features(x).shape == (6, 96)
    assert not any(p.requires_grad for p in judge().parameters())
    with pytest.raises(ValueError, match="digit:7"):
        as_reward("digit:x")
    with pytest.raises(ValueError, match="28"):
        as_reward("digit:7")(torch.rand(2, 3, 32, 32))
    viot.testing.check_reward(as_reward("digit:7"), x)


def test_combinations_keep_their_parts():
    r = {"near": Quadratic(1.0), "small": Quadratic(0.0, 4.0)}
    x = torch.randn(5, 1, dtype=torch.float64)
    near, small = r["near"](x), r["small"](x)
    cases = {
        Sum(r, weights=[2.0, 0.5]): 2 * near + 0.5 * small,
        Min(r): torch.minimum(near, small),
        Product(r, temperatures=[1.0, 2.0]): near + small / 2,
    }
    for combined, expected in cases.items():
        p = viot.sample(MODEL, combined, particles=16, groups=2, steps=6, progress=False)
        assert set(p.parts) == {"near", "small"}
        x0 = p.samples.flatten(0, 1)
        for name, part in r.items():
            assert torch.allclose(p.parts[name].flatten(), part(x0))
        assert torch.allclose(combined(x, torch.zeros(5), torch.zeros(5, 2)).total, expected)
        assert combined.differentiable
        assert "parts" in p.record()
    nested = viot.sample(MODEL, Sum({"both": Min(r), "own": lambda x: x.flatten()}), particles=8, steps=4, progress=False)
    assert set(nested.parts) == {"both", "both.near", "both.small", "own"}


def test_a_weight_of_zero_switches_off_even_a_constraint():
    combined = Sum({"on": lambda x: x.flatten(), "off": lambda x: x.flatten() - math.inf}, weights=[1, 0])
    assert viot.sample(MODEL, combined, particles=8, steps=4, progress=False).rewards.isfinite().all()


def test_combination_errors():
    with pytest.raises(ValueError, match="as many finite weights"):
        Sum(["jpeg"], weights=[1, 2])
    with pytest.raises(ValueError, match="temperatures > 0"):
        Product(["jpeg"], temperatures=[0])
    with pytest.raises(ValueError, match="at least one"):
        Min([])
    with pytest.raises(ValueError, match="sigma"):
        Noisy("jpeg", -1)


def test_noise_is_fresh_per_scoring_and_the_run_repeats():
    noisy = Noisy(REWARD, 0.5)
    one, two = (run("vasr", reward=noisy, groups=3, seed=4) for _ in range(2))
    assert torch.equal(one.rewards, two.rewards)
    clean = one.parts["clean"]
    assert torch.allclose(clean.flatten(), REWARD(one.samples.flatten(0, 1)))
    error = run("base", reward=noisy, groups=500).rewards - run("base", reward=noisy, groups=500).parts["clean"]
    assert error.std().item() == pytest.approx(0.5, rel=0.05)
    assert abs(error.mean().item()) < 0.02


def test_rewards_get_what_they_ask_for():
    class Prompted(type(MODEL)):
        prompts = ("up", "down")

    model = Prompted([[0.0]], 1.0)
    seen = {}

    def reward(x, prompts, *, group):
        seen["prompts"], seen["group"] = prompts, group
        return torch.tensor([1.0 if p == "up" else -1.0 for p in prompts]) * x[:, 0]

    p = viot.sample(model, reward, particles=64, steps=20, lam=2.0, progress=False)
    assert p.shape == (2, 64), "one group per prompt"
    assert seen["prompts"] == ["up"] * 64 + ["down"] * 64
    assert seen["group"].tolist() == [0] * 64 + [1] * 64
    up, down = p.mean(p.samples)[:, 0]
    assert up > 1 > -1 > down
    alone = viot.sample(model, reward, particles=64, steps=20, lam=2.0, groups=[3], progress=False)
    assert seen["prompts"] == ["down"] * 64
    assert alone.mean(alone.samples).item() < -1


# -- λ ------------------------------------------------------------------------------------------------------------------------------------


def test_calibrated_strength_meets_its_wish_in_closed_form():
    """For a linear reward c·x the tilt of N(m, v) is N(m + λ c v, v): KL = λ² c² v / 2, and ESS/N → exp(−λ² c² v)."""

    def linear(x):
        return 1.7 * x[:, 0]

    v = MODEL.chain_law(8, 1.0).cov.item()
    scale = 1.7 * v**0.5
    assert viot.calibrate(MODEL, linear, kl=0.5, particles=40_000, steps=8) == pytest.approx((2 * 0.5) ** 0.5 / scale, rel=0.03)
    assert viot.calibrate(MODEL, linear, ess=0.3, particles=40_000, steps=8) == pytest.approx((-math.log(0.3)) ** 0.5 / scale, rel=0.03)


def test_a_wish_stands_where_lam_goes_and_is_recorded():
    p = viot.sample(MODEL, REWARD, particles=256, groups=4, steps=8, lam=viot.kl(0.5), progress=False)
    assert isinstance(p.config["lam"], float)
    assert p.config["lam_pilot"] == {"wish": "kl(0.5)", "nfe": 4 * 256 * 8, "reward_rows": 4 * 256}
    again = viot.sample(MODEL, REWARD, particles=256, groups=4, steps=8, lam=p.config["lam"], progress=False)
    assert torch.equal(p.samples, again.samples), "the wish is only another way to write the number"
    assert p.nfe == 4 * 256 * 8, "the pilot is not part of the run's own budget"


def test_impossible_wishes():
    with pytest.raises(ValueError, match="share"):
        viot.ess(1.5)
    with pytest.raises(ValueError, match="nats"):
        viot.kl(0)
    with pytest.raises(ValueError, match="more particles"):
        viot.calibrate(MODEL, REWARD, kl=20.0, steps=4)
    with pytest.raises(ValueError, match="equal"):
        viot.calibrate(MODEL, lambda x: torch.zeros(len(x)), kl=1.0, steps=4)
    with pytest.raises(ValueError, match="one target"):
        viot.calibrate(MODEL, REWARD)


# -- gradients through the door -----------------------------------------------------------------------------------------------------------


def test_gradient_of_the_reward_at_the_clean_guess():
    """∂r(E[x0|x_t])/∂x_t of the linear-Gaussian model by hand, in slices of any size."""
    problem = viot.prepare(MODEL, REWARD, "base", particles=10, steps=8).problem
    j = 4
    a, s, _, _ = problem.grid.coeffs(j)
    gain = a * 0.6 / (a * a * 0.6 + s * s)
    x = torch.randn(10, 1, dtype=torch.float64)
    group = torch.zeros(10, dtype=torch.long)
    expected = -2.0 * (0.3 + gain * (x - a * 0.3) - 1.5) * gain
    for size in (None, 1, 3):
        problem.evaluate.batch_size = size
        prediction, rewards, grad = problem.evaluate(x, problem.grid.times[j], group, score=True, grad=True)
        assert torch.allclose(grad, expected)
        assert not prediction.x0.requires_grad
        assert torch.allclose(rewards, REWARD(prediction.x0))
    assert problem.evaluate.cost.grad_rows == problem.evaluate.cost.nfe == 30


# -- combinations that could lose something -----------------------------------------------------------------------------------------------


def test_members_of_the_same_name_are_all_kept():
    both = Sum([lambda x: x.flatten(), lambda x: 100 * x.flatten()])
    p = viot.sample(MODEL, both, "base", particles=4, steps=4, progress=False)
    assert len(p.parts) == 2
    assert torch.allclose(p.rewards.flatten(), 101 * p.samples.flatten())


def test_members_have_noise_of_their_own():
    both = Sum({"a": Noisy(REWARD, 1.0), "b": Noisy(Noisy(REWARD, 1.0), 1.0)})
    assert both.noises == 3
    p = run("base", reward=both, groups=200)
    a, b = (p.parts[k] - p.parts["a.clean"] for k in ("a", "b"))
    assert a.var().item() == pytest.approx(1.0, rel=0.1)
    assert b.var().item() == pytest.approx(2.0, rel=0.1)
    assert abs(torch.stack([a.flatten(), b.flatten()]).corrcoef()[0, 1]) < 0.07


def test_a_module_is_asked_for_what_its_forward_names():
    class Judge(torch.nn.Module):
        def forward(self, x, group=None):
            assert group is not None
            return x[:, 0] + 0 * group

    assert viot.sample(MODEL, Judge(), particles=4, steps=4, progress=False).rewards.isfinite().all()


def test_a_wish_out_of_reach_is_refused():
    """A reward of two values cannot push the ESS below the share of the better one."""

    def better(x):
        return (x[:, 0] > 0.3).double()

    for wish in (viot.ess(0.2), viot.kl(2.0)):
        with pytest.raises(ValueError, match="cannot be met"):
            viot.sample(MODEL, better, particles=256, steps=8, lam=wish, progress=False)
    assert viot.sample(MODEL, better, particles=256, steps=8, lam=viot.ess(0.8), progress=False).config["lam"] < 10


def test_custom_values_are_checked_like_rewards():
    def broken(problem, state):
        return torch.where(state.x[..., 0] > 0, torch.nan, 0.0)

    with pytest.warns(viot.SteeringWarning, match="intermediate value broken"):
        p = viot.sample(MODEL, REWARD, viot.methods.VASR(value=broken), particles=64, steps=10, progress=False)
    assert p.faults > 0
    assert p.trace["deaths"].sum() > 0


def test_results_without_evidence_say_so():
    from viot.methods import FKD, FVD, VASR

    for method in (VASR(masses="spike"), VASR(resampling="argmax"), FKD(compat="released"), FVD(cap_policy="spare_best")):
        p = run(method, groups=2)
        assert not p.exact
        assert p.log_z.isnan().all()
    p = run("vasr", groups=2)
    assert p.exact
    assert not p.best(2).exact
    assert not p.draw(4, weighted=False).exact
    assert p.draw(4).exact


def test_draws_belong_to_the_group():
    among = run("vasr", groups=range(4)).draw(8, seed=3)
    alone = run("vasr", groups=[2]).draw(8, seed=3)
    assert torch.equal(among.samples[2], alone.samples[0])


def test_a_network_that_breaks_is_noticed():
    class Breaks(type(MODEL)):
        def predict(self, x, t, group):
            return viot.Prediction(torch.where(x > 1.0, torch.nan, super().predict(x, t, group).x0))

    with pytest.warns(viot.SteeringWarning, match="network"):
        p = viot.sample(Breaks([[0.3]], 0.6), lambda x: torch.zeros(len(x)), "importance", particles=64, steps=6, progress=False)
    bad = p.samples[..., 0].isnan()
    assert bad.any()
    assert (p.weights[bad] == 0).all()


def test_whether_gradients_pass_is_declared_or_found_out():
    def opaque(x):
        return x[:, 0].detach()

    class Declared:
        differentiable = False

        def __call__(self, x):
            return x[:, 0]

    class Shut(type(MODEL)):
        differentiable = False

    def found(model, reward):
        problem = viot.prepare(model, reward, "base", particles=2, steps=4).problem
        answer = problem.evaluate.differentiable(problem.rows(problem.prior()), problem.group_rows(2))
        assert problem.evaluate.cost.reward_rows == 0, "a probe is not part of the run's cost"
        return answer

    assert found(MODEL, lambda x: x[:, 0])
    assert found(MODEL, REWARD)
    assert not found(MODEL, opaque)
    assert not found(MODEL, Declared())
    assert not found(Shut([[0.0]], 1.0), lambda x: x[:, 0])
