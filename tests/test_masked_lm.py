"""Masked diffusion language models: the law of every order, prompts, temperatures and remasking, by enumeration; prompts and their mistakes.

Statistical tolerances are in standard errors at fixed seeds.
"""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from masked import MarkovTokens, frequency_scores
from torch.nn.functional import one_hot

import viot
from viot.methods import DTS, FKD, FVD, SVDD, VASR, DTSStar, Importance, TriTSMC
from viot.models.masked_lm import MaskedLM, nucleus
from viot.models.token_net import TokenNet
from viot.models.tokens import Letters, Pieces, given
from viot.rng import Draw, Rng
from viot.sample import prepare
from viot.testing import check_model
from viot.value import X0Samples

WORLD = MarkovTokens(length=3)
LETTERS = Letters("abc")


def network(world):
    """The world's exact conditionals as a network, with a logit for the mask that is not to be heeded."""
    place = (world.V + 1) ** torch.arange(world.L - 1, -1, -1)

    def answer(x):
        logits = world.table[(x * place).sum(1)].log()
        return torch.cat([logits, torch.full_like(logits[..., :1], 9.0)], -1)

    return answer


def language(world=WORLD, **settings):
    return MaskedLM(network(world), LETTERS, length=world.L, mask_id=world.V, **settings)


def worth(texts):
    return torch.tensor([0.8 * t.count("c") - 0.5 * (t[0] == "b") + 0.4 * (t[-1] == t[0]) for t in texts], dtype=torch.float64)


def texts_of(model, groups, particles, steps, seed=0):
    population = viot.sample(
        model, lambda t: torch.zeros(len(t)), "base", particles=particles, groups=groups, steps=steps, seed=seed, progress=False
    )
    return population.samples


def shares(world, samples):
    """(strings,) how often each came."""
    number = {s: i for i, s in enumerate(world.strings())}
    return torch.bincount(torch.tensor([number[s] for group in samples for s in group]), minlength=len(number)).double()


def chi2(found, law):
    """Pearson's statistic in standard deviations above its mean, over what is expected at least five times; nothing impossible came."""
    assert found[law == 0].sum() == 0
    n = found.sum()
    often = law * n >= 5
    expected = torch.cat([law[often], (1 - law[often].sum())[None].clamp_min(1e-12)]) * n
    seen = torch.cat([found[often], (n - found[often].sum())[None]])
    if expected[-1] < 1:
        expected, seen = expected[:-1], seen[:-1]
    free = len(expected) - 1
    return float((((seen - expected) ** 2 / expected).sum() - free) / (2 * free) ** 0.5)


# -- the law of the chain -------------------------------------------------------------------------------------------------------------


def test_nothing_follows_the_end_of_a_padded_text():
    def flat(x):
        return torch.zeros(*x.shape, 4)

    def drawn(**settings):
        model = MaskedLM(flat, Letters("abc"), length=6, mask_id=4, end_id=3, order="first-hitting", **settings)
        check_model(model)
        return model, viot.sample(model, lambda t: torch.zeros(len(t)), "base", particles=400, steps=6, progress=False).x0[0]

    model, x = drawn(padded=True)
    ended = (x == 3).cumsum(1) > 0
    assert torch.equal(ended, x == 3), "one end, and ends behind it"
    assert 0.1 < ended.double().mean() < 0.9
    _, loose = drawn()
    assert not torch.equal((loose == 3).cumsum(1) > 0, loose == 3)
    # Between an end and what it was revealed beside in one step, the end is believed.
    logits = model.predict(torch.tensor([[4, 3, 4, 0, 4, 4]]), torch.ones(1), torch.zeros(1, dtype=torch.long)).logits[0]
    assert logits[0, 3] == -torch.inf
    assert (logits[[2, 4, 5], :3] == -torch.inf).all()
    assert logits[[2, 4, 5], 3].isfinite().all()
    # The bound is one of the text, whatever stands behind its end.
    same = torch.tensor([[0, 3, 3, 3, 3, 3], [0, 3, 1, 3, 2, 0]])
    assert torch.equal(*(model.nll(row[None], draws=6) for row in same))
    assert model.nll(same).isfinite().all()
    # An end that is given is no end of what is drawn.
    given = MaskedLM(flat, Letters("abc"), length=4, mask_id=4, end_id=3, padded=True, start=torch.tensor([[3, 4, 4, 4]]), skip=1)
    assert given.predict(given.start, torch.ones(1), torch.zeros(1, dtype=torch.long)).logits[0, 1:, :4].isfinite().all()
    with pytest.raises(ValueError, match="there is no end_id"):
        MaskedLM(flat, Letters("abc"), length=4, mask_id=4, padded=True)


def test_a_network_may_be_asked_about_masks_alone():
    world, asked = MarkovTokens(length=4), []
    exact = network(world)

    def some(x, masked):
        assert torch.equal(masked, x == 3)
        asked.append(int(masked.sum()))
        return exact(x)[masked]

    for settings in ({}, {"cached": True, "prompt": ["a", "[MASK:3]b"]}, {"top_p": 0.8, "order": "left"}):
        runs = [
            viot.sample(model, worth, VASR(schedule="every"), particles=16, steps=6, progress=False)
            for model in (language(world, **settings), MaskedLM(some, LETTERS, length=4, mask_id=3, at_masks=True, **settings))
        ]
        assert runs[0].samples == runs[1].samples
        assert torch.equal(runs[0].log_weights, runs[1].log_weights)
    assert asked[-1] < asked[0]
    check_model(MaskedLM(some, LETTERS, length=4, mask_id=3, at_masks=True))
    with pytest.raises(ValueError, match="at_masks or timed"):
        MaskedLM(some, LETTERS, length=4, mask_id=3, at_masks=True, timed=True)


def test_it_is_a_model():
    for settings in (
        {},
        {"order": "first-hitting"},
        {"order": "confidence", "block": 2},
        {"remask": 0.2},
        {"prompt": ["a", "[MASK]b[MASK]"]},
    ):
        check_model(language(**settings))


@pytest.mark.parametrize("order", ["first-hitting", "left", "confidence"])
def test_one_token_per_step_is_the_law_of_the_data(order):
    found = shares(WORLD, texts_of(language(order=order), 4, 6000, 3))
    assert chi2(found, WORLD.joint.flatten()) < 4
    assert chi2(found, WORLD.law(2).flatten()) > 10, "the law of fewer steps is told apart"


def test_first_hitting_is_ancestral_sampling_with_infinitely_many_steps():
    # Sixty ancestral steps, in at most 3 of which anything happens.
    model = language(cached=True)
    population = viot.sample(model, lambda t: torch.zeros(len(t)), "base", particles=8000, steps=60, progress=False)
    ancestral = shares(WORLD, population.samples)
    hitting = shares(WORLD, texts_of(language(order="first-hitting"), 1, 8000, 3, seed=1))
    assert chi2(ancestral, WORLD.law(60).flatten()) < 4
    assert chi2(hitting, WORLD.joint.flatten()) < 4
    both = ancestral + hitting
    two = ((ancestral - hitting) ** 2 / both.clamp_min(1)).sum()
    assert float(two - len(both)) / (2 * len(both)) ** 0.5 < 4
    few = shares(WORLD, texts_of(language(), 1, 8000, 2))
    assert float(((few - hitting) ** 2 / (few + hitting).clamp_min(1)).sum() - len(few)) / (2 * len(few)) ** 0.5 > 10


def test_the_number_of_masks_is_binomial():
    run = prepare(language(MarkovTokens(length=5)), lambda t: torch.zeros(len(t)), "base", particles=20_000, steps=4)
    for state in itertools.islice(run.states(), 3):
        left = (state.x == 3).sum(-1).flatten()
        p = 1 - state.step / 4
        law = torch.tensor([math.comb(5, k) * p**k * (1 - p) ** (5 - k) for k in range(6)], dtype=torch.float64)
        assert chi2(torch.bincount(left, minlength=6).double(), law) < 4
        assert chi2(torch.bincount(left, minlength=6).double(), law.flip(0)) > 4 or p == 0.5


def test_given_tokens_stay_and_condition_the_rest():
    world = MarkovTokens(length=4)
    model = language(world, prompt=["b", "[MASK:2]a[MASK]", "[MASK:4]"], order="first-hitting")
    assert model.prompts == ["b", "[MASK:2]a[MASK]", "[MASK:4]"]
    samples = texts_of(model, 3, 8000, 4)
    for group, known in zip(samples, ({0: 1}, {2: 0}, {}), strict=True):
        law = world.joint.clone()
        for position, token in known.items():
            law = law * one_hot(torch.tensor(token), 3).view([-1 if i == position else 1 for i in range(4)])
        assert chi2(shares(world, [group]), (law / law.sum()).flatten()) < 4
    free = shares(world, samples[2:])
    assert free[world.joint.flatten() > 0].min() >= 0
    assert (free > 0).sum() > (shares(world, samples[:1]) > 0).sum()


def test_temperature_and_nucleus_make_another_model():
    # Independent letters, so that a tempered conditional is the tempered law.
    alike = MarkovTokens(move=[[0.5, 0.3, 0.2]] * 3)
    first = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    for settings, law in (
        ({"temperature": 0.5}, first**2 / (first**2).sum()),
        ({"top_p": 0.7}, torch.tensor([5 / 8, 3 / 8, 0], dtype=torch.float64)),
        ({"temperature": 2.0, "top_p": 0.5}, None),
    ):
        if law is None:
            root = first.sqrt() / first.sqrt().sum()
            law = torch.where(root.cumsum(0) - root < 0.5, root, 0.0)
            law = law / law.sum()
        joint = (law[:, None, None] * law[:, None] * law).flatten()
        found = shares(alike, texts_of(language(alike, **settings), 1, 8000, 3))
        assert chi2(found, joint) < 4
        plain = shares(alike, texts_of(language(alike), 1, 8000, 3))
        assert plain[joint == 0].sum() > 0 or chi2(plain, joint) > 10
    assert nucleus(torch.tensor([[0.5, 0.3, 0.2]]).log(), 1e-9).isfinite().tolist() == [[True, False, False]]


def test_confidence_is_that_of_the_network_itself():
    # At a temperature near 0 every position is certain, and "surest" would mean the first.
    world = MarkovTokens(first=[0.34, 0.33, 0.33], length=4)
    model = language(world, order="confidence", temperature=1e-3)
    x = torch.full((1, 4), 3)
    shift = torch.tensor([9.0, 0.0, 0.0, 0.0])[:, None]  # of all logits of a position: no matter
    exact = model.network
    model.network = lambda x: exact(x) + shift
    sure = exact(x)[..., :3].softmax(-1).amax(-1)[0]
    prediction = model.predict(x, torch.ones(1), torch.zeros(1, dtype=torch.long))
    after, _ = model.kernel.step(x, prediction, model.grid(4).coeffs(0), 1.0, Draw(Rng(0), [0], 0, "propose"))
    assert int((after != 3)[0].nonzero()) == int(sure.argmax()) != 0


def test_remasking_lets_tokens_change_and_keeps_what_is_given():
    world = MarkovTokens(length=4)
    samples = texts_of(language(world, prompt="[MASK]c", remask=0.6), 1, 3000, 12)
    assert all(text[1] == "c" for text in samples[0])
    few = texts_of(language(world), 1, 20_000, 2, seed=3)
    # With exact conditionals remasked tokens are drawn again given all others, which takes the chain towards the law of the data.
    again = texts_of(language(world, remask=0.6), 1, 20_000, 12, seed=3)
    distance = [float((shares(world, s) / 20_000 - world.joint.flatten()).abs().sum()) for s in (few, again)]
    assert distance[1] < 0.6 * distance[0]


# -- the law of the methods -----------------------------------------------------------------------------------------------------------


def conditional(world, known):
    law = world.joint.clone()
    for position, token in known.items():
        law = law * one_hot(torch.tensor(token), world.V).view([-1 if i == position else 1 for i in range(world.L)])
    return law / law.sum()


@pytest.mark.parametrize(
    "method",
    [
        Importance(),
        FKD(schedule="every"),
        VASR(schedule="every"),
        VASR(schedule="every", value=X0Samples(2)),
        TriTSMC(twist="tokens", rounds=1),
    ],
    ids=lambda m: type(m).__name__ + type(getattr(m, "value", None)).__name__,
)
@pytest.mark.parametrize(("order", "prompt"), [("first-hitting", "[MASK]b[MASK:2]"), ("random", None), ("left", "c")])
def test_tilted_frequencies_and_z(method, order, prompt):
    world = MarkovTokens(length=4 if prompt else 3)
    if prompt:
        world.law = lambda steps: conditional(world, {1: 1} if prompt.startswith("[") else {0: 2})
    model = language(world, prompt=prompt, order=order)
    k = 40 if isinstance(method, TriTSMC) else 12
    population = viot.sample(model, worth, method, particles=k, groups=500, steps=3, seed=2, progress=False)
    scores = frequency_scores(population, world, worth, 3)
    assert scores.abs().max() < 4.5, scores
    assert frequency_scores(population, world, lambda t: 0.0 * worth(t), 3).abs().max() > 8


def test_fvd_converges():
    world = MarkovTokens(length=3)
    exact, _ = world.tilted(worth, 3)
    gap = []
    for particles in (8, 256):
        population = viot.sample(
            language(world), worth, FVD(schedule="every"), particles=particles, groups=4096 // particles, steps=3, progress=False
        )
        found = torch.zeros(27, dtype=torch.float64)
        number = {s: i for i, s in enumerate(world.strings())}
        for texts, w in zip(population.samples, population.weights, strict=True):
            found.index_add_(0, torch.tensor([number[t] for t in texts]), w / len(population.samples))
        gap.append(float((found - exact).abs().sum()))
    assert gap[1] < 0.15
    assert gap[1] < gap[0]


def test_the_law_of_svdd():
    """With two candidates, P(y) = 2 p(y) Σ_z p(z) e^{λv(y)} / (e^{λv(y)} + e^{λv(z)}), and one candidate at the last step."""
    world, steps = MarkovTokens(length=2), 2
    place = torch.tensor([4, 1])
    states = list(itertools.product(range(4), repeat=2))

    def moves(state, chance):
        out: dict = {}
        masked = [i for i, token in enumerate(state) if token == 3]
        table = world.table[int((torch.tensor(state) * place).sum())]
        for shown in itertools.product([False, True], repeat=len(masked)):
            where = [i for i, s in zip(masked, shown, strict=True) if s]
            p = chance ** len(where) * (1 - chance) ** (len(masked) - len(where))
            if not p:
                continue
            for tokens in itertools.product(range(3), repeat=len(where)):
                new, q = list(state), p
                for i, token in zip(where, tokens, strict=True):
                    new[i], q = token, q * float(table[i, token])
                out[tuple(new)] = out.get(tuple(new), 0.0) + q
        return out

    def value(state):
        table = world.table[int((torch.tensor(state) * place).sum())]
        fill = [int(table[i].argmax()) if token == 3 else token for i, token in enumerate(state)]
        return math.exp(1.5 * float(worth(["".join("abc"[i] for i in fill)])))

    assert len(states) == 16
    first = moves((3, 3), 0.5)
    chosen = {y: 2 * p * sum(q * value(y) / (value(y) + value(z)) for z, q in first.items()) for y, p in first.items()}
    assert abs(sum(chosen.values()) - 1) < 1e-12
    law, plain = torch.zeros(9, dtype=torch.float64), torch.zeros(9, dtype=torch.float64)
    for target, before in ((law, chosen), (plain, first)):
        for y, p in before.items():
            for z, q in moves(y, 1.0).items():
                target[z[0] * 3 + z[1]] += p * q
    method = SVDD(m=2)
    population = viot.sample(language(world), worth, method, particles=12_000, groups=1, steps=steps, lam=1.5, progress=False)
    found = shares(world, population.samples)
    assert found.sum() >= 3000
    assert chi2(found, law) < 4
    assert chi2(found, plain) > 5


@pytest.mark.parametrize("method", [DTS(), DTSStar(), SVDD(), FVD()], ids=lambda m: m.name)
def test_searches_run_on_text(method):
    model = language(MarkovTokens(length=4), prompt=["b", "[MASK:3]c"])
    population = viot.sample(model, worth, method, particles=64, steps=4, lam=3.0, progress=False)
    base = viot.sample(model, worth, "base", particles=64, steps=4, progress=False)
    assert all(t[0] == "b" for t in population.samples[0])
    assert all(t[-1] == "c" for t in population.samples[1])
    # A maximiser returns distinct texts, the few that there are in this world, best first.
    few = population.best(4) if method.name == "dts-star" else population
    assert (few.rewards.mean(1) > base.rewards.mean(1) + 0.3).all()
    assert population.nfe <= 2 * 64 * 4


# -- answers that are kept ------------------------------------------------------------------------------------------------------------


def test_nobody_is_asked_twice():
    world, asked = MarkovTokens(length=4), []
    exact = network(world)

    def counting(x):
        asked.append(len(x))
        return exact(x)

    def run(cached, steps=40, method="vasr", **settings):
        asked.clear()
        model = MaskedLM(counting, LETTERS, length=4, mask_id=3, cached=cached, prompt=["a", "b"])
        return viot.sample(model, worth, method, particles=32, steps=steps, progress=False, **settings)

    for method in ("base", "vasr", "svdd", "dts", FKD(value=X0Samples(2))):
        plain, kept = run(False, method=method), run(True, method=method)
        assert sum(asked) == kept.nfe
        assert kept.samples == plain.samples
        assert torch.equal(kept.log_weights.nan_to_num(), plain.log_weights.nan_to_num())
        assert kept.nfe < 0.5 * plain.nfe
    few = run(True, method="base", batch_size=3)
    assert few.nfe == run(True, method="base").nfe <= 2 * (1 + 32 * 3)
    # Groups do not share: each costs what it costs alone, also where they ask the same.
    free = MaskedLM(counting, LETTERS, length=4, mask_id=3, cached=True)
    two, one = (viot.sample(free, worth, "base", particles=32, groups=g, steps=8, progress=False).nfe for g in (2, [1]))
    assert two > 1.5 * one
    assert two == one + viot.sample(free, worth, "base", particles=32, groups=[0], steps=8, progress=False).nfe
    alone = [run(True, method="base", groups=[g]) for g in (0, 1)]
    assert few.nfe == alone[0].nfe + alone[1].nfe
    assert few.samples == [alone[0].samples[0], alone[1].samples[0]]


def test_a_network_that_is_told_the_time_keeps_nothing():
    seen = []

    def timed(x, t):
        seen.append(t.clone())
        return network(WORLD)(x)

    model = MaskedLM(timed, LETTERS, length=3, mask_id=3, timed=True)
    viot.sample(model, worth, "base", particles=2, steps=4, progress=False)
    assert [t.tolist() for t in seen] == [[1.0] * 2, [0.75] * 2, [0.5] * 2, [0.25] * 2]
    with pytest.raises(ValueError, match="told the time"):
        MaskedLM(timed, LETTERS, length=3, mask_id=3, timed=True, cached=True)


def test_a_resumed_run_asks_again_and_answers_the_same(tmp_path):
    model = language(MarkovTokens(length=4), cached=True)
    whole = viot.sample(model, worth, "vasr", particles=16, steps=20, progress=False)
    run = prepare(model, worth, "vasr", particles=16, steps=20)
    states = list(itertools.islice(run.states(), 9))
    again = prepare(model, worth, "vasr", particles=16, steps=20)
    found = again.population(list(again.method.run(again.problem, states[-1]))[-1])
    assert found.samples == whole.samples
    assert torch.equal(found.log_weights, whole.log_weights)


def test_what_a_network_breaks_is_dead_and_its_fault():
    def broken(x):
        logits = network(WORLD)(x)
        logits[(x == 0).sum(1) >= 2] = torch.nan
        return logits

    model = MaskedLM(broken, LETTERS, length=3, mask_id=3, order="left")
    with pytest.warns(viot.SteeringWarning, match="the network returned NaN or"):
        population = viot.sample(model, lambda texts: torch.zeros(len(texts)), "vasr", particles=64, steps=3, progress=False)
    dead = torch.tensor([["_" in text for text in group] for group in population.samples])
    assert 0 < dead.sum() < 64
    assert (population.weights[dead] == 0).all()
    assert (population.weights[~dead] > 0).all()
    assert population.faults == int(dead.sum())


def test_x0_samples_is_a_log_mean_exp():
    model, lam, seen = language(MarkovTokens(length=4)), 1.7, []

    def counted(texts):
        seen.append(list(texts))
        return worth(texts)

    run = prepare(model, counted, VASR(schedule="every", value=X0Samples(3)), particles=5, steps=2, lam=lam)
    state = run.method.prepare(run.problem, run.problem.start())
    scored = run.method.assess(run.problem, run.method.look(run.problem, state))
    fills = worth(seen[-1]).view(5, 3)
    assert torch.allclose(scored.rewards[0], (lam * fills).exp().mean(1).log() / lam)
    assert not torch.allclose(scored.rewards[0], fills.mean(1))


# -- likelihood -----------------------------------------------------------------------------------------------------------------------


def test_nll_is_exact_on_average_for_exact_conditionals():
    world = MarkovTokens(length=4)
    texts = ["abca", "cccc", "aaaa", "babc"]
    for prompt, known in ((None, {}), ("[MASK:3]a", {3: 0})):
        model = language(world, prompt=prompt)
        chosen = [t for t in texts if not known or t[3] == "a"]
        x = model.encode(chosen)
        exact = torch.stack([-conditional(world, known)[tuple(row)].log() for row in x.tolist()])
        many = torch.stack([model.nll(x, draws=7, generator=torch.Generator().manual_seed(i)) for i in range(300)])
        score = (many.mean(0) - exact).abs() / (many.std(0) / 300**0.5)
        assert score.max() < 4.5
        assert (many.std(0) > 0).all()
    both = language(world, prompt=["[MASK:3]a", "b"])
    x = both.encode(["abca", "babc"])
    many = torch.stack([both.nll(x, torch.tensor([0, 1]), 7, torch.Generator().manual_seed(i), batch_size=1 + i % 2) for i in range(300)])
    known = torch.stack([-conditional(world, k)[tuple(row)].log() for row, k in zip(x.tolist(), ({3: 0}, {0: 1}), strict=True)])
    assert ((many.mean(0) - known).abs() / (many.std(0) / 300**0.5)).max() < 4.5
    assert both.nll(x, torch.tensor([1, 0])).tolist() == [torch.inf, torch.inf], "a text that is not what is given is impossible"
    wrong = torch.stack([language(world, temperature=0.5).nll(x, draws=7, generator=torch.Generator().manual_seed(i)) for i in range(300)])
    assert ((wrong.mean(0) - exact).abs() / (wrong.std(0) / 300**0.5)).min() > 10


# -- the embedded models --------------------------------------------------------------------------------------------------------------


def test_names():
    model = viot.load("names", prompt=["mar", "[MASK:3]a", ""])
    check_model(model)
    population = viot.sample(model, "count:a", "base", particles=24, steps=12, progress=False)
    first, second, third = population.text()
    assert all(t.startswith("mar") for t in first)
    assert all(len(t) == 4 and t[3] == "a" for t in second)
    assert len({len(t) for t in third}) > 3
    assert all(t.isascii() and t.isalpha() and t.islower() for group in population.text() for t in group)
    assert [["".join(p) for p in model.pieces(population.x0[g])] for g in range(3)] == population.text()
    plain = viot.load("names")
    names = ["emma", "olivia", "liam", "anna"]
    nll = plain.nll(plain.encode(names), draws=24)
    assert nll.max() < plain.nll(plain.encode(["xqzw", "bbbb", "qqqqqq", "zzzz"]), draws=24).min()
    assert plain.decode(plain.encode(names), torch.zeros(4)) == names


def test_names_are_steered_by_letters():
    found = {}
    for prompt in (None, "mar", "[MASK:4]ie"):
        for method in ("base", "vasr"):
            model = viot.load("names", prompt=prompt, cached=True)
            found[prompt, method] = viot.sample(model, "count:a", method, particles=32, groups=4, steps=12, lam=2.0, progress=False)
        base, steered = (found[prompt, m] for m in ("base", "vasr"))
        assert steered.mean().mean() > base.mean().mean() + 0.4
        assert steered.nfe <= 4 * 32 * 12


# -- bad input ------------------------------------------------------------------------------------------------------------------------


def test_prompts_that_do_not_go():
    with pytest.raises(ValueError, match=r"'José' holds 'é', which this model does not know"):
        viot.load("names", prompt="José")
    with pytest.raises(ValueError, match="takes 13 tokens, and the model has room for 12"):
        viot.load("names", prompt="abcdefghijklm")
    with pytest.raises(ValueError, match="leaves no place free"):
        viot.load("names", prompt="abcdefghijkl")
    with pytest.raises(ValueError, match=r"\[MASK:\*\] twice"):
        viot.load("names", prompt="a[MASK:*]b[MASK:*]")
    with pytest.raises(ValueError, match="empty list"):
        viot.load("names", prompt=[])


def test_patterns():
    def row(text, end=9):
        return given(text, LETTERS, 6, 3, end)

    assert row("ab") == [0, 1, 3, 3, 3, 3]
    assert row("") == [3] * 6
    assert row("[MASK:2]c") == [3, 3, 2, 9, 9, 9]
    assert row("[MASK:2]c", None) == [3, 3, 2, 3, 3, 3]
    assert row("a[MASK]b[MASK:2]") == [0, 3, 1, 3, 3, 9]
    assert row("a[MASK:*]cb") == [0, 3, 3, 3, 2, 1]
    assert row("a[MASK:*]c[MASK]b") == [0, 3, 3, 2, 3, 1]
    assert row("ABC") == [0, 1, 2, 3, 3, 3]


def test_a_text_does_not_end_before_a_given_token():
    model = viot.load("names", prompt=["[MASK:6]a[MASK:2]", "x"])
    x = model.prior(2, torch.Generator(), torch.tensor([0, 1]))
    logits = model.predict(x, torch.ones(2), torch.tensor([0, 1])).logits
    assert logits[0, :6, 26].eq(-torch.inf).all()
    assert logits[0, 7:9, 26].isfinite().all()
    assert logits[1, :, 26].isfinite().all()


def test_fewer_steps_than_blocks_are_refused():
    model = language(MarkovTokens(length=5), order="left", block=2, prompt="[MASK]b[MASK:3]")
    with pytest.raises(ValueError, match="2 blocks are revealed one after the other in at least 2 steps, not 1"):
        viot.sample(model, worth, "base", particles=2, steps=1, progress=False)
    assert viot.sample(model, worth, "base", particles=2, steps=2, progress=False).text()[0][0][1] == "b"


def test_prompts_are_texts():
    for prompt in (3, ["a", None]):
        with pytest.raises(TypeError, match="a text or a list of texts"):
            viot.load("names", prompt=prompt)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "at 0 nothing is drawn"),
        ({"top_p": 0.0}, "top_p is a share"),
        ({"block": 2}, "counted order"),
        ({"block": 0, "order": "left"}, "at least one token"),
        ({"order": "right"}, "order must be"),
        ({"remask": 1.5}, "remask is a probability"),
    ],
)
def test_settings_that_do_not_go(settings, message):
    with pytest.raises(ValueError, match=message):
        language(**settings)


def test_a_text_that_is_no_text_of_the_model():
    with pytest.raises(ValueError, match="'abcabc' has 6 tokens, and a text of this model has 3"):
        language().encode(["abcabc"])


def test_other_weights_are_another_model():
    one, two = viot.load("names"), viot.load("names")
    assert one.config == two.config
    with torch.no_grad():
        two.network.bias += 1
    again = MaskedLM(two.network, two.tokenizer, length=12, mask_id=27, end_id=26, at_masks=True, padded=True, config={"name": "names"})
    assert again.config["weights"] != one.config["weights"]
    assert {**again.config, "weights": None} == {**one.config, "weights": None}


def test_answers_are_kept_within_a_run():
    model = language(cached=True)
    runs = [viot.sample(model, worth, "base", particles=8, steps=6, seed=s, progress=False) for s in (0, 0)]
    assert runs[0].nfe == runs[1].nfe
    assert replace(runs[0], seconds={}).samples == runs[1].samples


# -- words ----------------------------------------------------------------------------------------------------------------------------


def words(**settings):
    """A model that says any of seven words alike."""
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {"<end>": 0, "<unk>": 1, "▁good": 2, "▁film": 3, "'s": 4, ".": 5, "▁a": 6}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"'s|▁?\w+|\."), "isolated")
    core.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([tokenizers.pre_tokenizers.Metaspace(split=False), split])
    core.add_special_tokens(["<end>", "<unk>"])
    flat = lambda x: torch.zeros(*x.shape, 7)
    return MaskedLM(flat, Pieces(core), length=6, mask_id=7, end_id=0, barred=(1,), **settings)


def test_words_are_joined_as_they_are_written():
    model = words()
    x = model.encode(["A good film's good.", "a film"])
    assert x.tolist() == [[6, 2, 3, 4, 2, 5], [6, 3, 0, 0, 0, 0]]
    assert model.decode(x, torch.zeros(2)) == ["a good film's good.", "a film"]
    assert model.pieces(x)[1] == ["a", " film", "", "", "", ""]
    assert model.encode(["a   good\tfilm"]).tolist() == model.encode([" a good film "]).tolist()
    for text in ("a good movie", "moviefilm", "a film é", "a film <end>"):
        with pytest.raises(ValueError, match=f"holds {text.split()[-1]!r}, which this model does not know; it knows 7 words"):
            words(prompt=text)


def test_a_tokenizer_that_leaves_out_what_it_does_not_know():
    tokenizers = pytest.importorskip("tokenizers")
    core = tokenizers.Tokenizer(tokenizers.models.BPE({"▁": 0, "a": 1, "b": 2}, []))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    assert Pieces(core).encode("ab b") == [0, 1, 2, 0, 2]
    with pytest.raises(ValueError, match="'abc é' holds 'c', 'é', which this model's tokenizer does not know"):
        Pieces(core).encode("abc é")


def test_barred_tokens_are_never_drawn():
    population = viot.sample(words(), lambda t: torch.zeros(len(t)), "base", particles=300, steps=2, progress=False)
    assert set(population.x0.unique().tolist()) == {0, 2, 3, 4, 5, 6}
    model = words()
    model.barred = (7,)
    assert 1 in viot.sample(model, lambda t: torch.zeros(len(t)), "base", particles=300, steps=2, progress=False).x0


def test_the_head_of_some_positions_is_that_of_all():
    net = TokenNet(5, 4, 8, 1, 2).eval()
    torch.nn.init.normal_(net.positions)
    x, at = torch.tensor([[5, 1, 5, 0], [2, 5, 5, 3]]), torch.tensor([[True, False, True, False], [False, True, False, False]])
    with torch.no_grad():
        whole = net(x)
        assert torch.allclose(net(x, at), whole[at])
        assert not torch.allclose(net(x, ~at)[:3], whole[at])
        assert whole.shape == (2, 4, 5)
        # It sees both ways.
        other = x.clone()
        other[:, -1] = 4
        assert not torch.allclose(net(other)[:, 0], whole[:, 0])
