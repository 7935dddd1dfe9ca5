"""Bad input gets a sentence, where possible before the first network call; dead particles and groups stay what they are."""

import math
import warnings

import pytest
import torch
from helpers import METHODS, Differentiable, Line, Tokens, close, differing, quiet, run, settings
from torch import nn

import viot
from viot.methods import FKD, VASR, make
from viot.value import Rollout, as_value

SMALL = {"particles": 8, "steps": 6, "progress": False}


def refuses(error, match, model=None, reward=close, method="vasr", **changes):
    """The error, and that it came before any network call."""
    model = Line() if model is None else model
    with pytest.raises(error, match=match) as caught:
        viot.sample(model, reward, method, **{**SMALL, **changes})
    assert getattr(model, "calls", 0) == 0
    return caught.value


# -- names ----------------------------------------------------------------------------------------------------------------------------


def test_unknown_names_are_answered_with_the_nearest():
    refuses(ValueError, "unknown model 'gausian'.*mean 'gaussian'", model="gausian")
    refuses(ValueError, "unknown reward 'brigthness'.*mean 'brightness'.*Known: .*jpeg", reward="brigthness")
    refuses(ValueError, "unknown method 'vsar'.*mean 'vasr'.*Known: .*fkd", method="vsar")
    with pytest.raises(ValueError, match=r"unknown setting of vasr 'temprature'.*mean 'temperature'"):
        make("vasr", temprature=1.0)
    with pytest.raises(ValueError, match=r"unknown resampling scheme 'sistematic'.*mean 'systematic'"):
        VASR(resampling="sistematic")
    with pytest.raises(ValueError, match=r"unknown intermediate value 'rolout'.*mean 'rollout'"):
        VASR(value="rolout")
    # Nothing is near: no guess, but the list.
    assert "Did you mean" not in str(refuses(ValueError, "unknown method", method="qqqqq"))


def test_settings_go_with_a_name():
    with pytest.raises(TypeError, match=r"ess_threshold of fkd is a number or None, not 'half'"):
        make("fkd", ess_threshold="half")
    with pytest.raises(TypeError, match=r"prior of auto is a number, not None"):
        make("auto", prior=None)
    assert make("vasr", temperature=2.0) == VASR(temperature=2.0)
    with pytest.raises(TypeError, match="settings go with a method's name"):
        make(VASR(), temperature=2.0)
    refuses(TypeError, "a method is a name or an object with run", method=3)


@pytest.mark.parametrize(
    ("reward", "match"),
    [
        ("digit", "not spelled right; write digit:7"),
        ("digit:x", "a digit is one of 0 … 9, not 'x'"),
        ("digits:evens", "a digit is one of"),
        ("jpeg:high", "quality .*not 'high'; write jpeg or jpeg:75"),
        ("jpeg:0", "between 1 and 100"),
        ("brightness:3", "not spelled right; write brightness"),
    ],
)
def test_arguments_of_rewards(reward, match):
    refuses(ValueError, match, reward=reward)


def test_rewards_of_other_kinds():
    refuses(TypeError, r"callable\(samples\) -> \(n,\) or a name, not 3", reward=3)
    refuses(TypeError, "a name, not None", reward=None)


# -- numbers --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["particles", "steps", "batch_size", "budget"])
@pytest.mark.parametrize("value", [0, -3, 1.5, True, "8"])
def test_counts_are_whole_and_positive(name, value):
    refuses(ValueError, f"{name} must be a whole number ≥ 1, not {value!r}", **{name: value})


@pytest.mark.parametrize("lam", [math.nan, math.inf, -math.inf, "1", None])
def test_lam_is_finite(lam):
    refuses(ValueError, "lam must be a finite number", lam=lam)


def test_lam_wishes():
    for wish in (lambda: viot.ess(0.0), lambda: viot.ess(1.0), lambda: viot.kl(0.0), lambda: viot.kl(math.inf), lambda: viot.kl(math.nan)):
        with pytest.raises(ValueError, match="takes a"):
            wish()
    with pytest.raises(ValueError, match=r"all .* pilot rewards are equal"):
        viot.sample(Line(), lambda s: torch.zeros(len(s)), "vasr", **{**SMALL, "lam": viot.ess(0.5)})
    with pytest.raises(ValueError, match=r"exceeds log\(8\)"):
        viot.sample(Line(), close, "vasr", **{**SMALL, "lam": viot.kl(5.0)})
    with pytest.raises(ValueError, match="one target"):
        viot.calibrate(Line(), close)


def test_seed_is_a_whole_number():
    refuses(ValueError, "seed", seed=1.5)
    refuses(ValueError, "seed", seed=None)


@pytest.mark.parametrize("groups", [0, -1, [], [-1], [1, 1], [2, 3, 2]])
def test_groups(groups):
    refuses(ValueError, "group", groups=groups)


def test_a_mistyped_keyword_is_a_type_error():
    refuses(TypeError, "particle", particle=4)
    refuses(TypeError, "lamda", lamda=4)


@pytest.mark.parametrize(
    ("make_it", "match"),
    [
        (lambda: VASR(eta=-1.0), "eta must be ≥ 0"),
        (lambda: VASR(eta=math.inf), "eta must be ≥ 0"),
        (lambda: VASR(ess_threshold=2.0), "share of K"),
        (lambda: VASR(schedule=[1.5]), "fractions of T"),
        (lambda: VASR(schedule=0), "stride"),
        (lambda: VASR(schedule="always"), '"every"'),
        (lambda: VASR(masses="best"), "masses must be"),
        (lambda: VASR(order="up"), "order must be"),
        (lambda: VASR(temperature=math.nan), "temperature must be finite"),
        (lambda: FKD(potential="min"), "potential must be"),
        (lambda: FKD(compat="new"), "compat must be"),
        (lambda: viot.methods.FVD(cap=0.0), "cap is the largest share"),
        (lambda: viot.methods.FVD(cap_policy="x"), "cap_policy must be one of"),
        (lambda: viot.methods.FVD(alpha_star=1.5), "share of deaths"),
        (lambda: viot.methods.BestOfN(n=0), "n ≥ 1"),
        (lambda: Rollout(n=0), "n ≥ 1"),
    ],
)
def test_settings_of_methods(make_it, match):
    with pytest.raises(ValueError, match=match):
        make_it()


def test_value_of_another_kind():
    with pytest.raises(TypeError, match="value= takes a name"):
        as_value(3)


# -- budget ---------------------------------------------------------------------------------------------------------------------------


def test_budget_too_small_names_the_smallest_particles():
    method = VASR(value=Rollout(4, 3))
    error = refuses(ValueError, "too small: one particle of vasr costs", method=method, particles=1)
    smallest = int(str(error).split("particles ≥ ")[1].split()[0])
    assert smallest > 1
    assert run(method, particles=smallest).shape == (1, 1)
    refuses(ValueError, "too small", method=method, particles=smallest - 1)
    refuses(ValueError, "budget ≥ 6", method="vasr", budget=5)


def test_particles_come_from_the_budget():
    population = run("vasr", budget=100)
    assert population.shape == (1, 16)
    assert population.nfe == 96
    assert population.config["particles"] == 16
    assert population.config["budget"] == 100


@pytest.mark.parametrize("method", METHODS)
def test_the_smallest_run(method):
    cost = make(method).cost(1) * make(method).least
    population = run(method, steps=1, particles=cost)
    assert population.shape[1] >= 1
    assert population.nfe <= cost


# -- models ---------------------------------------------------------------------------------------------------------------------------


def test_what_a_model_lacks_is_named():
    model = type("Half", (), {"event_shape": (2,), "dtype": torch.float32, "prior": None, "decode": None})()
    refuses(TypeError, "Half is not a model: it lacks device, grid, predict.", model=model)
    refuses(TypeError, "int is not a model", model=3)


def member(name, value):
    return type("Odd", (Line,), {name: value})()


@pytest.mark.parametrize(
    ("model", "error", "match"),
    [
        (
            member("grid", lambda self, steps: Line.grid(self, steps + 1)),
            ValueError,
            r"grid\(6\) must return a viot.Grid of 6 steps, not 7 steps",
        ),
        (member("grid", lambda self, steps: [1.0] * steps), ValueError, "viot.Grid of 6 steps, not list"),
        (
            member("prior", lambda self, n, generator: torch.zeros(n, 3)),
            ValueError,
            r"Odd.prior\(8, …\) returned shape \(8, 3\), expected \(8, 2\)",
        ),
        (member("prior", lambda self, n, generator: torch.zeros(1, 2)), ValueError, r"expected \(8, 2\)"),
    ],
)
def test_models_that_are_caught_before_the_first_call(model, error, match):
    refuses(error, match, model=model)


@pytest.mark.parametrize(
    ("predict", "error", "match"),
    [
        (lambda self, x, t, group: x, TypeError, "must return a viot.Prediction, not Tensor"),
        (lambda self, x, t, group: viot.Prediction(x[:1]), ValueError, r"x0 of shape \(1, 2\) for x of shape \(8, 2\)"),
        (lambda self, x, t, group: viot.Prediction(x[:, :1]), ValueError, r"x0 of shape \(8, 1\)"),
        (lambda self, x, t, group: viot.Prediction(x, eps=x[:, :1]), ValueError, r"eps of shape \(8, 1\)"),
    ],
)
def test_predictions_of_the_wrong_shape(predict, error, match):
    with pytest.raises(error, match=match):
        viot.sample(member("predict", predict), close, **SMALL)


def test_logits_of_the_wrong_shape():
    broken = type("Odd", (Tokens,), {"predict": lambda self, x, t, group: viot.Prediction(x, logits=torch.zeros(len(x), 4))})()
    with pytest.raises(ValueError, match=r"logits of shape \(8, 4\) for x of shape \(8, 3\)"):
        viot.sample(broken, lambda s: torch.zeros(len(s)), "base", **SMALL)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((torch.arange(3), torch.ones(3), torch.ones(4)), "alphas"),
        ((torch.arange(0), torch.ones(1), torch.ones(1)), "grid of T steps"),
        ((torch.arange(2), torch.tensor([0.1, 0.5, torch.nan]), torch.tensor([0.9, 0.5, 0.0])), "finite"),
        ((torch.arange(2), torch.tensor([1.0, 0.5, 0.1]), torch.tensor([0.1, 0.5, 0.9])), "noisy to clean"),
        ((torch.arange(2), torch.ones(3), torch.zeros(3)), "σ may be 0 only at its end"),
        ((torch.arange(2), torch.zeros(3), torch.ones(3)), "α only at its beginning"),
    ],
)
def test_grids(arguments, match):
    with pytest.raises(ValueError, match=match):
        viot.Grid(*arguments)


# -- rewards --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reward", "error", "match"),
    [
        (lambda s: close(s).mean(), ValueError, r"returned shape \(\) for 8 samples; it must return \(8,\).*score each sample by itself"),
        (lambda s: close(s)[:, None], ValueError, r"shape \(8, 1\)"),
        (lambda s: close(s)[:3], ValueError, r"shape \(3,\)"),
        (lambda s: s, ValueError, r"shape \(8, 2\)"),
        (lambda s: "good", TypeError, "returned str; it must return 8 numbers"),
        (lambda s: ["good"] * len(s), TypeError, "returned list; it must return 8 numbers"),
        (lambda s: None, TypeError, "returned NoneType; it must return 8 numbers"),
        (lambda s: [None] * len(s), TypeError, "returned list; it must return 8 numbers"),
        (lambda s: close(s) + 1j, TypeError, "complex"),
        (lambda s: viot.Scores(close(s), {"half": close(s)[:4]}), ValueError, r"shape \(4,\) for its part 'half'"),
    ],
)
@pytest.mark.parametrize("method", ["vasr", "base"])
def test_wrong_answers_of_rewards(reward, error, match, method):
    with pytest.raises(error, match=match):
        viot.sample(Line(), reward, method, **SMALL)


@pytest.mark.parametrize("convert", [torch.Tensor.tolist, lambda r: r.numpy(), lambda r: r.float(), lambda r: viot.Scores(r), tuple])
def test_good_answers_of_rewards(convert):
    expected = run("vasr", reward=close)
    found = run("vasr", reward=lambda s: convert(close(s)))
    assert torch.allclose(found.rewards, expected.rewards, atol=1e-5)


def test_a_parameter_that_nothing_supplies():
    refuses(TypeError, "needs a parameter 'temperature' that nothing supplies", reward=lambda s, temperature: close(s))
    # With a default it is the reward's own affair.
    run("vasr", reward=lambda s, temperature=1.0: close(s))


class Odd(Exception):
    pass


@pytest.mark.parametrize(("method", "where"), [("vasr", "the clean guesses of step 1"), ("base", "the finished samples")])
def test_a_reward_that_raises_keeps_its_exception(method, where):
    def broken(samples):
        raise Odd("judge is out")

    with pytest.raises(Odd, match="judge is out") as caught:
        viot.sample(Line(), broken, method, **SMALL)
    if hasattr(caught.value, "__notes__"):
        (note,) = caught.value.__notes__
        assert where in note
        assert "broken" in note
        assert "8" in note


def recorded(method, reward, **changes):
    """A run and the texts of its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        population = viot.sample(Line(), reward, method, **settings(method, **changes))
    assert all(w.category is viot.SteeringWarning for w in caught)
    return population, [str(w.message) for w in caught]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fault", [math.nan, math.inf])
def test_faults_are_dead_counted_and_told_once(method, fault):
    class Faulty(Differentiable):
        seen = 0

        def __call__(self, samples):
            bad = samples[:, 0] > 0.6
            self.seen += int(bad.sum())
            return torch.where(bad, fault, close(samples))

    reward = Faulty()
    population, said = recorded(method, reward, groups=3, particles=max(32, settings(method)["particles"]))
    assert reward.seen > 1
    assert population.faults == reward.seen
    assert sum("returned NaN or +inf" in text for text in said) == 1
    assert not population.rewards.isnan().any()
    assert (population.rewards < math.inf).all()
    assert ((population.rewards == -math.inf) == (population.samples[..., 0] > 0.6)).all()
    assert not population.log_weights.isnan().any()
    if method != "base":
        assert (population.weights[population.rewards == -math.inf] == 0).all()
    again, _ = recorded(method, reward, groups=3, particles=max(32, settings(method)["particles"]), batch_size=5)
    assert differing(population, again) == []


def half(samples):
    return torch.where(samples[:, 0] < 0, -torch.inf, close(samples))


class Half(Differentiable):
    def __call__(self, samples):
        return half(samples)


@pytest.mark.parametrize("method", METHODS)
def test_minus_infinity_is_a_constraint(method):
    population, said = recorded(method, Half(), groups=4, particles=max(32, settings(method)["particles"]))
    assert population.faults == 0
    assert not any("NaN or +inf" in text for text in said)
    if method != "base":
        assert (population.weights[population.samples[..., 0] < 0] == 0).all()
    assert torch.allclose(population.weights.sum(-1), torch.ones(4, dtype=torch.float64))


def test_a_constraint_holds_at_lambda_zero():
    population = run("importance", reward=half, lam=0.0, particles=500)
    fine = population.samples[0, :, 0] >= 0
    assert torch.allclose(population.weights[0], fine / fine.sum().double())
    assert abs(float(population.log_z[0]) - math.log(fine.double().mean())) < 1e-12


def test_pools_without_a_possible_candidate():
    def high(samples):
        return torch.where(samples[:, 0] < 0.3, -torch.inf, close(samples))

    population, base = (run(method, reward=high, particles=32, groups=20, lam=0.5) for method in ("best-of-n", "base"))
    impossible = population.rewards == -math.inf
    assert impossible.any(-1).sum() > 5
    assert not impossible.all(-1).any()
    assert (population.weights[impossible] == 0).all()
    # The candidates are the draws of base: they meet the same evidence.
    assert torch.allclose(population.log_z, base.log_z, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fault", [-math.inf, math.nan])
def test_a_dead_group_is_frozen_named_and_harmless(method, fault):
    class Dead(Differentiable):
        def __call__(self, samples, group):
            return torch.where(group == 1, fault, close(samples))

    population, said = recorded(method, Dead(), groups=3)
    assert population.dead_groups == [1]
    assert population.log_weights[1].isnan().all()
    assert population.log_z[1].isnan()
    assert (population.rewards[1] == -math.inf).all()
    assert (population.weights[1] == 0).all()
    assert population.ess[1] == 0
    assert any("group 1 died" in text for text in said)
    assert population.samples[1].isfinite().all()
    without, said = recorded(method, Dead(), groups=[0, 2])
    assert not any("died" in text for text in said)
    k = min(population.shape[1], without.shape[1])
    for i, j in ((0, 0), (2, 1)):
        ours, theirs = population.best(k), without.best(k)
        for name in ("x0", "rewards", "log_weights", "roots"):
            assert torch.equal(getattr(ours, name)[i], getattr(theirs, name)[j])
        assert torch.equal(population.log_z[i].nan_to_num(7), without.log_z[j].nan_to_num(7))
        assert torch.equal(population.ancestors[:, i], without.ancestors[:, j])
    # The answer can still be used.
    assert population.draw(3).log_weights[1].isnan().all()
    assert population.best(1).shape == (3, 1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("fault", [-math.inf, math.nan])
def test_when_all_are_dead_the_run_ends(method, groups, fault):
    class Hopeless(Differentiable):
        name = "hopeless"

        def __call__(self, samples):
            return torch.where(samples[:, 0] < 1e9, fault, close(samples))

    with quiet(), pytest.raises(viot.DeadPopulation, match="every particle of every group is dead") as caught:
        viot.sample(Line(), Hopeless(), method, **settings(method, groups=groups))
    text = str(caught.value)
    assert "the reward hopeless" in text
    scoring = getattr(make(method), "scoring", None)
    if scoring is not None:
        # A broken reward is found at its first call. A forbidden clean guess is not yet a forbidden sample.
        # (Where gradients are, a guess that is a fault is no guidance, and the run goes on.)
        # (A method that trains scores finished samples first.)
        first = scoring(6) if math.isnan(fault) and not make(method).needs_gradient and not hasattr(make(method), "rounds") else []
        assert (f"clean guesses of step {first[0]}" if first else "finished samples") in text


@pytest.mark.parametrize("method", ["importance", "fkd", "vasr", VASR(value="rollout"), VASR(standardize=True), "fvd"], ids=str)
def test_constraints_that_clean_guesses_break_do_not_cut_the_target(method):
    """r = 0 where x > c, −inf elsewhere: Z = P(x > c), also where the blurred guesses of early steps never get there."""
    from exact import MODEL

    eta = 0.0 if method == "fvd" else 1.0
    known = MODEL.chain_law(10, eta)
    for c in (0.3, 1.0):
        truth = 0.5 * math.erfc((c - known.mean.item()) / (2 * known.cov.item()) ** 0.5)
        chosen = viot.methods.FVD(eta_base=0.0, eta_rebirth=0.0, schedule=(0.5, 0.8)) if method == "fvd" else method
        with quiet():
            p = viot.sample(
                MODEL, lambda x, c=c: torch.where(x[:, 0] > c, 0.0, -torch.inf), chosen, particles=64, groups=600, steps=10, progress=False
            )
        z = p.log_z.exp().nan_to_num(nan=0.0)
        assert abs(z.mean() - truth) < 4 * z.std() / 600**0.5 + (0.02 if method == "fvd" else 0.0)
        if method in ("fkd", "vasr"):
            assert p.trace["deaths"].sum() > 0


def test_warnings_of_strength():
    with pytest.warns(viot.SteeringWarning, match="fewer than 2 effective particles"):
        viot.sample(Line(), close, "importance", **{**SMALL, "lam": 1000.0})
    with pytest.warns(viot.SteeringWarning, match="hardly felt"):
        viot.sample(Line(), close, "importance", **{**SMALL, "lam": 1e-4})


# -- gradients ------------------------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """A model that is a module, with one weight frozen by its owner."""

    event_shape, dtype, device, differentiable = (2,), torch.float64, torch.device("cpu"), True

    def __init__(self):
        super().__init__()
        self.free = nn.Parameter(torch.tensor([0.5, -0.3], dtype=torch.float64))
        self.frozen = nn.Parameter(torch.tensor(0.9, dtype=torch.float64), requires_grad=False)

    grid, prior, decode = Line.grid, Line.prior, Line.decode

    def predict(self, x, t, group):
        return viot.Prediction(torch.tanh(x * self.frozen + self.free))


def door(model, reward, batch_size=None):
    return viot.prepare(model, reward, "base", particles=5, steps=4, batch_size=batch_size).problem.evaluate


X = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
ROWS = torch.zeros(5, dtype=torch.long)


def flags(model):
    return {name: p.requires_grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("batch_size", [None, 2])
def test_gradients_reach_x_and_nothing_else(batch_size):
    model = Net()
    evaluate = door(model, close, batch_size)
    prediction, rewards, gradient = evaluate(X, 0.5, ROWS, grad=True)
    x = X.clone().requires_grad_()
    found = close(model.predict(x, None, None).x0)
    assert torch.allclose(rewards, found.detach())
    assert torch.allclose(gradient, torch.autograd.grad(found.sum(), x)[0])
    assert not prediction.x0.requires_grad
    assert flags(model) == {"free": True, "frozen": False}
    assert model.free.grad is None
    assert evaluate.cost.grad_rows == 5
    assert evaluate.cost.nfe == 5
    # Without grad, nothing carries a graph.
    prediction, rewards, gradient = evaluate(X, 0.5, ROWS, score=True)
    assert gradient is None
    assert not prediction.x0.requires_grad
    assert not rewards.requires_grad


def detached(samples):
    return close(samples.detach())


def test_a_reward_without_gradients():
    model = Net()
    evaluate = door(model, detached)
    with pytest.raises(TypeError, match="no gradient reaches x_t through the reward: reward detached, model Net"):
        evaluate(X, 0.5, ROWS, grad=True)
    assert flags(model) == {"free": True, "frozen": False}
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


def test_a_model_without_gradients():
    model = Net()
    model.differentiable = False
    model.predict = lambda x, t, group: viot.Prediction(x.detach())
    with pytest.raises(TypeError, match="through the model"):
        door(model, close)(X, 0.5, ROWS, grad=True)


def test_requires_grad_is_restored_after_errors():
    model = Net()
    judge = nn.Linear(2, 1, dtype=torch.float64)

    class Judge:
        def __init__(self):
            self.net, self.broken = judge, False

        def __call__(self, samples):
            if self.broken:
                raise Odd("in the middle")
            assert not any(p.requires_grad for p in self.net.parameters())
            assert not model.free.requires_grad
            return self.net(samples)[:, 0]

    reward = Judge()
    evaluate = door(model, reward)
    evaluate(X, 0.5, ROWS, grad=True)
    reward.broken = True
    with pytest.raises(Odd):
        evaluate(X, 0.5, ROWS, grad=True)
    assert flags(model) == {"free": True, "frozen": False}
    assert all(p.requires_grad and p.grad is None for p in judge.parameters())


def test_a_combination_of_networks():
    judge = nn.Sequential(nn.Linear(2, 1, dtype=torch.float64))

    class Judge(nn.Module):
        differentiable = True

        def __init__(self):
            super().__init__()
            self.inner, self.cut = judge, False

        def forward(self, samples):
            return self.inner(samples.detach() if self.cut else samples)[:, 0]

    parts = {"judge": Judge(), "close": Differentiable()}
    _, _, gradient = door(Net(), viot.rewards.Sum(parts))(X, 0.5, ROWS, grad=True)
    assert gradient.isfinite().all()
    assert all(p.grad is None and p.requires_grad for p in judge.parameters())
    # A graph that ends in a network's weights is not one that reaches x.
    parts["judge"].cut = True
    with pytest.raises(TypeError, match="no gradient reaches x_t through the reward"):
        door(Net(), viot.rewards.Sum({"judge": parts["judge"]}))(X, 0.5, ROWS, grad=True)


# -- folders --------------------------------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("here is no folder")
    population = run("vasr")
    with pytest.raises(OSError, match="file"):
        population.save(tmp_path / "file" / "run")
    model = Line()
    with pytest.raises(OSError, match="file"):
        viot.sample(model, close, checkpoint=tmp_path / "file" / "run", **SMALL)
    assert model.calls == 0
    assert (tmp_path / "file").read_text() == "here is no folder"


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no run.json; Population.load takes a folder"):
        viot.Population.load(tmp_path)


# -- populations ----------------------------------------------------------------------------------------------------------------------


def test_asking_a_population_for_what_it_has_not():
    population = run("vasr")
    for n in (0, 9):
        with pytest.raises(ValueError, match="1 ≤ n ≤ 8"):
            population.best(n)
    with pytest.raises(ValueError, match="n ≥ 1"):
        population.draw(0)
    with pytest.raises(TypeError, match="not images"):
        population.pil()
    with pytest.raises(TypeError, match="not text"):
        population.text()


def test_an_unfinished_state_is_no_answer():
    prepared = viot.prepare(Line(), close, "vasr", particles=4, steps=4)
    first = next(iter(prepared.states()))
    with pytest.raises(ValueError, match="step 1, not at the end"):
        prepared.population(first)
