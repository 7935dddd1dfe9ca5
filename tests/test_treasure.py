"""TReASURe: its rules recomputed by hand on a masked world that can be enumerated, its cost, its budget, and what every option does."""

import itertools
import math
from dataclasses import dataclass, replace

import pytest
import torch
from helpers import Line, Tokens, close, differing, quiet
from masked import MarkovTokens

import viot
from viot.cost import Rows, planned
from viot.methods import TReASURe
from viot.methods.brood import Brood, born, first_positions, hitting_times, split, times_of
from viot.model import Grid, Prediction
from viot.particles import copies
from viot.testing import check_method

GEN = torch.Generator().manual_seed(3)
V, L = 5, 7
FIRST = torch.rand(V, generator=GEN, dtype=torch.float64) + 0.1
MOVE = torch.rand(V, V, generator=GEN, dtype=torch.float64) ** 2 + 0.02
WORLD = MarkovTokens((FIRST / FIRST.sum()).tolist(), (MOVE / MOVE.sum(1, keepdim=True)).tolist(), length=L)
SMALL = MarkovTokens(length=4)
MASK = WORLD.mask


def pairs(texts):
    """Rewards that a single letter does not decide: pairs of neighbours, some of them rare."""
    worth = {"ad": 1.0, "da": 0.7, "ce": 1.4, "eb": 0.4, "bb": -0.5}
    return torch.tensor([sum(worth.get(a + b, 0.0) for a, b in itertools.pairwise(s)) for s in texts], dtype=torch.float64)


def prepared(method, model=WORLD, reward=pairs, **changes):
    return viot.prepare(model, reward, method, **{"particles": 16, "steps": L, "seed": 1, **changes})


def run(method, model=WORLD, reward=pairs, **changes):
    with quiet():
        return viot.sample(model, reward, method, **{"particles": 16, "steps": L, "seed": 1, "progress": False, **changes})


class Heard:
    """A reward that remembers what it was asked about."""

    def __init__(self, reward=pairs):
        self.reward, self.asked = reward, []

    def __call__(self, texts):
        self.asked.append(list(texts))
        return self.reward(texts)


class Asked(MarkovTokens):
    """A world that remembers what it was asked about."""

    def __init__(self, world):
        vars(self).update(vars(world))
        self.rows, self.times = [], []

    def predict(self, x, t, group):
        self.rows.append(x.clone())
        self.times.append(t.clone())
        return super().predict(x, t, group)


class Given(MarkovTokens):
    """A world whose groups begin with other tokens in other places; −1 is free."""

    def __init__(self, *starts, world=WORLD):
        vars(self).update(vars(world))
        self.starts = torch.tensor(starts)

    def prior(self, n, generator, group):
        x = self.starts[group % len(self.starts)]
        return torch.where(x < 0, self.mask, x)


def live(state, g=0):
    return state.x[g][state.log_w[g] > -math.inf]


def log_p(x, world=WORLD):
    return world.predict(x, None, None).logits.log_softmax(-1)


def fill(x, like=None, world=WORLD):
    """Masks filled with the likeliest token of `like`."""
    return torch.where(x == world.mask, log_p(x if like is None else like, world).argmax(-1), x)


# -- the rules ----------------------------------------------------------------------------------------------------------------------------


def test_children_are_scored_by_their_parents_completion():
    """R1: K likeliest tokens at one masked position, each put into the parent's own completion; one network row per parent."""
    model, reward = Asked(WORLD), Heard()
    others = 0
    start, *states = [None, *prepared(TReASURe(beams=1), model, reward).states()]
    parents = torch.full((1, L), MASK)
    for state, asked, scored in zip(states, model.rows, reward.asked, strict=False):
        assert start is None
        assert torch.equal(asked, parents), "one row for each parent, and no other"
        assert len(scored) == 4 * len(parents)
        known, children = {}, scored
        for x in parents:
            mine, children = children[:4], children[4:]
            p, whole = log_p(x[None])[0], fill(x[None])[0]
            options = []
            for at in torch.nonzero(x == MASK)[:, 0].tolist():
                tokens = p[at].argsort(descending=True)[:4]
                filled = whole.repeat(4, 1)
                filled[:, at] = tokens
                options.append((at, tokens, WORLD.decode(filled, None)))
            at, tokens, texts = next(o for o in options if o[2] == mine)
            for token, text in zip(tokens, texts, strict=True):
                y = x.clone()
                y[at] = token
                known[tuple(y.tolist())] = max(known.get(tuple(y.tolist()), -math.inf), float(pairs([text])))
                others += WORLD.decode(fill(y[None]), None) != [text]
        kept = live(state)
        best = sorted(known.values(), reverse=True)[:4]
        assert state.rewards[0][state.log_w[0] > -math.inf].tolist() == best
        assert [known[tuple(y)] for y in kept.tolist()] == best
        parents = kept
    # Control: a completion by the child's own probabilities is another one, often.
    assert others > 5


def test_each_level_reveals_one_token_and_changes_none():
    """R2."""
    states = list(prepared(TReASURe()).states())
    assert len(states) == L + 1
    before = torch.full((1, L), MASK)
    for level, state in enumerate(states[:-1], 1):
        x = live(state)
        assert ((x == MASK).sum(-1) == L - level).all()
        extends = ((before[None] == MASK) | (before[None] == x[:, None])).all(-1)
        assert extends.any(1).all()
        dates = state.extra["appeared"][0][state.log_w[0] > -math.inf]
        assert torch.equal(dates.sort(-1).values[:, -level:], torch.arange(1, level + 1, dtype=torch.int32).expand(len(x), -1))
        assert torch.equal(dates < 0, x == MASK)
        before = x
    assert states[-1].done
    assert (states[-1].x != MASK).all()


@pytest.mark.parametrize("order", ["random", "confident", "entropy"])
def test_a_beam_of_one_is_greedy_decoding(order):
    """R3: in the order in which its tokens appeared, each the likeliest; and that order is the one that was asked for."""
    population = run(TReASURe(width=1, branch=1, order=order, beams=1), groups=6)
    for x0, dates in zip(population.x0[:, 0], population.appeared[:, 0], strict=True):
        x = torch.full((1, L), MASK)
        for at in dates.argsort().tolist():
            p = log_p(x)[0]
            if order != "random":
                doubt = 1 - p.exp().amax(-1) if order == "confident" else -(p.exp() * p).sum(-1)
                assert at == int(torch.where(x[0] == MASK, doubt, math.inf).argmin())
            x[0, at] = p[at].argmax()
        assert torch.equal(x[0], x0)
    orders = {tuple(d.tolist()) for d in population.appeared[:, 0]}
    assert (len(orders) > 3) == (order == "random")


def test_a_beam_that_holds_everything_finds_the_maximum():
    """R3: for any reward; a narrow one need not."""
    found = {81: 0, 1: 0}
    for seed in range(8):
        table = torch.randn(81, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        number = {s: i for i, s in enumerate(SMALL.strings())}

        def reward(texts, table=table, number=number):
            return table[[number[s] for s in texts]]

        for width in found:
            population = run(TReASURe(width=width, branch=3, beams=1), SMALL, reward, particles=200, steps=4)
            found[width] += population.rewards[0, 0] == table.max()
            if width == 81:
                assert torch.equal(population.rewards[0], table.sort(descending=True).values)
    assert found[81] == 8
    assert found[1] < 4


@pytest.mark.parametrize(("width", "branch", "calls"), [(2, 4, 13), (4, 4, 25), (8, 4, 45), (3, 2, 1 + 2 + 3 * 5), (1, 5, 7), (9, 1, 7)])
def test_what_a_beam_costs(width, branch, calls):
    """R4: Σ min(M, K^level) network rows, K rewards for each."""
    assert calls == sum(min(width, branch**level) for level in range(L))
    method = TReASURe(width=width, branch=branch, beams=1)
    population = run(method, groups=2)
    assert population.nfe == 2 * calls
    assert population.reward_rows == 2 * calls * branch


OPTIONS = [
    {}, {"order": "confident"}, {"order": "entropy", "positions": 2}, {"expand": "sample", "shared": True}, {"reveal": 3}, {"score": "own"},
    {"score": "samples", "fills": 3}, {"prune": "resample"}, {"prune": "resample", "branch": 1, "expand": "sample"}, {"faithful": 1.0},
    {"dedupe": False, "beams": 1, "positions": 3}, {"score": "own", "reveal": 2, "prune": "resample"},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_contract(options):
    """Saved and resumed at every level, alone and among others, in slices, under another global seed: the same answer, bit for bit."""
    check_method(TReASURe(**options))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_rows_are_what_was_planned(options):
    """Copies save rows, and nothing else: without any, exactly."""
    model = Given([-1] * 7, [-1, 2, -1, -1, -1, 0, -1])
    ready = prepared(TReASURe(**options), model, groups=2)
    plan, population = planned(ready), ready.finish(progress=False)
    spent = Rows(population.nfe, population.decode_rows, population.reward_rows)
    assert population.nfe <= 2 * population.config["budget"]
    assert spent.network <= plan.network
    assert spent.reward <= plan.reward
    assert spent.decode <= plan.decode
    if options.get("positions", 1) == 1:
        assert (spent.network, spent.reward) == (plan.network, plan.reward)
    # One more beam would not have fitted.
    method = TReASURe(**options)
    if method.beams is None and method.draws:
        assert all(method.price(n)[0] > 112 - b * method.price(n)[0] for n, b in ((7, int(last(ready)[0])), (5, int(last(ready)[1]))))


def last(ready):
    return next(iter(ready.states())).group["beams"]


def test_wider_beams_do_not_do_worse():
    """R5: with positions in common, the mean best reward grows with M; so does the share of the possible."""
    means, orders = [], []
    for width in (1, 2, 4, 8):
        population = run(TReASURe(width=width, branch=3, beams=1, shared=True), groups=60, particles=20)
        means.append(population.rewards[:, 0])
        orders.append(population.appeared[:, 0])
    assert all(torch.equal(order, orders[0]) for order in orders)
    for narrow, wide in itertools.pairwise(means):
        gain = wide - narrow
        assert gain.mean() > -2 * gain.std() / 60**0.5
    gain = means[-1] - means[0]
    assert gain.mean() > 4 * gain.std() / 60**0.5
    # All sequences of a beam then have one order, and otherwise not.
    for shared in (True, False):
        *_, state, _ = prepared(TReASURe(beams=1, shared=shared), groups=10).states()
        assert (len(state.extra["appeared"].flatten(0, 1).unique(dim=0)) == 10) == shared


def test_the_completion_is_near_the_mean_of_all_completions():
    """R6: |E_∏p[r] − r(fill)| ≤ Lip Σ (1 − max p), for children of 300 random states and rewards; the bound is not idle."""
    strings = torch.tensor(list(itertools.product(range(3), repeat=4)))
    apart = (strings[:, None] != strings[None]).sum(-1)
    tight, generator = 0.0, torch.Generator().manual_seed(0)
    for _ in range(300):
        reward = torch.randn(81, generator=generator, dtype=torch.float64)
        slope = float((reward[:, None] - reward[None]).abs()[apart == 1].max())
        x = torch.randint(0, 3, (1, 4), generator=generator)
        masks = torch.randperm(4, generator=generator)[: int(torch.randint(2, 5, (), generator=generator))]
        x[0, masks] = SMALL.mask
        p = log_p(x, SMALL).exp()[0]
        brood = born(x, fill(x, world=SMALL), log_p(x, SMALL), masks[None, :1], torch.tensor([[3]]), None, SMALL.mask, None, 0)
        assert len(brood.x) == 3
        for y, filled in zip(brood.x, brood.fill, strict=True):
            law = torch.ones(81, dtype=torch.float64)
            for i in range(4):
                law *= p[i, strings[:, i]] if y[i] == SMALL.mask else (strings[:, i] == y[i]).double()
            gap = abs(float(law @ reward - reward[(strings == filled).all(-1)]))
            bound = slope * float((1 - p.amax(-1))[y == SMALL.mask].sum())
            assert gap <= bound + 1e-12
            tight = max(tight, gap / bound)
    assert tight > 0.5


# -- times ------------------------------------------------------------------------------------------------------------------------------


def off_binomial(times, masked, share, start):
    """How many standard errors the frequencies of the number still masked at `share` lie from the binomial law."""
    still = (times[:, :masked] <= share).sum(-1)
    q, n = share / start, len(times)
    worst = 0.0
    for k in range(masked + 1):
        p = math.comb(masked, k) * q**k * (1 - q) ** (masked - k)
        if p * n > 10:
            worst = max(worst, abs(float((still == k).double().mean()) - p) / (p * (1 - p) / n) ** 0.5)
    return worst


@pytest.mark.parametrize(("masked", "share", "start"), [(7, 0.4, 1.0), (5, 0.1, 1.0), (7, 0.3, 0.6)])
def test_times_of_first_hitting(masked, share, start):
    """R7: the number of masks at any time is binomial. With the same power for each it is not."""
    u = torch.rand(20_000, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    times = hitting_times(torch.full((20_000,), masked), u, start)
    assert (times[:, :masked].diff(dim=-1) < 0).all()
    assert (times[:, masked:] == 0).all()
    assert off_binomial(times, masked, share, start) < 4.5
    wrong = start * (u.log() / masked).cumsum(-1).exp()
    assert off_binomial(wrong, masked, share, start) > 10


def test_first_hitting_draws_have_the_law_of_infinitely_many_steps():
    """R7: beams of one sequence and one child that is drawn: the model's joint law, to which the ancestral chain's tends."""
    world, n = MarkovTokens(), 4000
    number = (world.V ** torch.arange(2, -1, -1))[None]
    truth = world.joint.flatten()
    assert (world.law(300).flatten() - truth).abs().max() < 0.002
    assert (world.law(2).flatten() - truth).abs().max() > 0.01
    for expand, close_to in (("sample", True), ("top", False)):
        ready = prepared(TReASURe(width=1, branch=1, expand=expand), world, particles=n, steps=3)
        *_, state, _ = ready.states()
        assert state.x.shape == (1, n, 3)
        share = torch.bincount((state.x[0] * number).sum(-1), minlength=27) / n
        off = (share - truth).abs() / (truth * (1 - truth) / n).sqrt()
        assert (off.max() < 4) == close_to


def test_the_network_is_told_when_the_next_token_appears():
    """In the model's own times: here σ² · 1000, backwards. Every beam has its own; a level's are earlier than those of the level before."""
    sigmas = torch.linspace(1, 0, 9, dtype=torch.float64)
    curved = Grid(1000 * sigmas[:-1] ** 2, 1 - sigmas, sigmas)
    assert torch.allclose(times_of(curved, sigmas[:-1]), curved.times)
    between = times_of(curved, torch.tensor([0.9375, 2.0, 0.0], dtype=torch.float64))
    assert torch.allclose(between, torch.stack([curved.times[:2].mean(), curved.times[0], curved.times[-1]]))
    assert times_of(replace(curved, times=torch.arange(8, 0, -1)), torch.tensor([0.94])).tolist() == [8]
    model = Asked(WORLD)
    *_, state, _ = prepared(TReASURe(width=1, branch=1), model, steps=20).states()
    told = torch.stack(model.times, 1)
    hits = state.group["hits"][0]
    assert told.shape == hits.shape == (45, 7)
    # (The grid ends at its last entry before 0.)
    assert torch.allclose(told, hits.clamp_min(1 / 20), atol=1e-12)
    assert (hits.diff(dim=-1) < 0).all()
    assert abs(float(hits[:, 0].mean()) - 7 / 8) < 4 * float(hits[:, 0].std()) / 45**0.5


# -- the answer ---------------------------------------------------------------------------------------------------------------------------


def test_the_last_score_is_the_reward():
    """R8; the answer is sorted by it, without copies, and equally weighted."""
    *_, before, after = prepared(TReASURe(), groups=3).states()
    there = before.log_w > -math.inf
    assert torch.equal(before.rewards[there], pairs(WORLD.decode(before.x[there], None)))
    population = run(TReASURe(), groups=3)
    assert torch.equal(population.x0, after.x)
    for g in range(3):
        assert torch.equal(population.rewards[g], pairs(population.samples[g]))
        mine = population.weights[g] > 0
        assert population.rewards[g][mine].diff().max() <= 0
        assert len({s for s, m in zip(population.samples[g], mine.tolist(), strict=True) if m}) == mine.sum() <= 16
        assert set(population.samples[g]) <= set(WORLD.decode(before.x[g], None))
        assert population.rewards[g, 0] == before.rewards[g][there[g]].max()
    assert not population.exact
    assert population.log_z.isnan().all()
    assert population.roots.max() < 4
    assert population.appeared is not None


def test_the_same_seed_the_same_answer():
    """R9."""
    assert differing(run(TReASURe()), run(TReASURe())) == []
    assert "x0" in differing(run(TReASURe()), run(TReASURe(), seed=2))


@dataclass(frozen=True)
class DropsLater(TReASURe):
    """Merges copies as they come, whatever their score."""

    def pruned(self, problem, state, origin, brood, scores, log_p):
        late = copies(torch.cat([(origin // self.width)[:, None], brood.x], -1))
        return super().pruned(problem, state, origin, brood, torch.where(late, -99.0, scores), log_p)


@pytest.mark.parametrize(("kind", "right"), [(TReASURe, True), (DropsLater, False)])
def test_merging_copies_keeps_the_best_score(kind, right):
    """R9: of random children with copies, each beam keeps the best score, and none twice."""
    generator, lost = torch.Generator().manual_seed(4), 0
    for _ in range(20):
        problem = prepared(TReASURe(beams=3)).problem
        state = TReASURe(beams=3).plant(problem)
        x = torch.randint(0, 2, (48, L), generator=generator) * (torch.arange(L) < 3)
        scores = torch.randn(48, generator=generator, dtype=torch.float64)
        origin = torch.arange(12).repeat_interleave(4)
        brood = Brood(origin, x, x, torch.zeros(48, dtype=torch.float64))
        kept, empty = kind(beams=3).pruned(problem, state, origin, brood, scores, torch.zeros(48, dtype=torch.float64))
        for beam, (places, none) in enumerate(zip(kept.view(3, 4), empty.view(3, 4), strict=True)):
            chosen = places[~none]
            assert not copies(x[chosen]).any()
            lost += scores[chosen].max() < scores[16 * beam : 16 * beam + 16].max()
            # (A copy is dropped for a better one of its kind alone.)
            if right:
                assert torch.equal(scores[chosen], scores[chosen].sort(descending=True).values)
    assert (lost == 0) == right


def test_copies_only_take_place():
    with_copies, without = (run(TReASURe(positions=2, dedupe=d, beams=1), groups=60).rewards[:, 0] for d in (False, True))
    gain = without - with_copies
    assert gain.mean() > -2 * gain.std() / 60**0.5
    states = [s for s in prepared(TReASURe(positions=2, dedupe=False, beams=1), groups=8).states() if not s.done]
    assert any(copies(live(s, g)).any() for s in states for g in range(8)), "there are copies to be merged"
    for state in prepared(TReASURe(positions=2, beams=1), groups=8).states():
        assert not any(copies(live(state, g)).any() for g in range(8))


def test_given_tokens_stay():
    starts = [[-1] * 7, [-1, 2, -1, -1, -1, 0, -1], [1, 1, 3, -1, -1, 4, -1], [0, 1, 2, 3, 4, 0, 1]]
    model = Given(*starts)
    whole = run(TReASURe(), model, groups=4)
    for g, start in enumerate(torch.tensor(starts)):
        given = start >= 0
        assert (whole.x0[g][:, given] == start[given]).all()
        assert (whole.appeared[g][:, given] == 0).all()
        assert torch.equal(whole.appeared[g][:, ~given].sort(-1).values[0], torch.arange(1, int((~given).sum()) + 1, dtype=torch.int32))
        alone = run(TReASURe(), model, groups=[g])
        k = min(alone.shape[1], whole.shape[1])
        assert torch.equal(alone.x0[0, :k], whole.x0[g, :k])
        assert alone.nfe <= 112
    # Fewer masks, more beams; and nothing to search where there is none.
    ready = prepared(TReASURe(), model, groups=4)
    assert last(ready).tolist() == [112 // 25, 112 // 17, 112 // 9, 1]
    assert run(TReASURe(), model, groups=[3]).nfe == 0
    assert (whole.weights[3] > 0).sum() == 1
    for state in ready.states():
        assert state.cost["nfe"] <= 4 * 112


# -- options ------------------------------------------------------------------------------------------------------------------------------


def test_children_are_shared_by_positions():
    key, free = torch.tensor([[0.3, 0.1, 0.2, 0.4]]).repeat(3, 1), torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 0, 1]]).bool()
    at, there = first_positions(key, free, 2, torch.tensor([0, 0, 0]))
    assert [row[t].tolist() for row, t in zip(at, there, strict=True)] == [[1, 2], [2, 0], [3]]
    assert split(5, there).tolist() == [[3, 2], [3, 2], [5, 0]]
    assert first_positions(key, free, 2, torch.tensor([1, 2, 5]))[0][:2].tolist() == [[2, 0], [3, 2]]
    first = next(iter(prepared(TReASURe(positions=2, branch=3, beams=1)).states()))
    places = (live(first) != MASK).nonzero()[:, 1]
    assert places.bincount().sort().values[-2:].tolist() == [1, 2]


def test_beams_of_a_fixed_order_begin_at_different_places():
    first = next(iter(prepared(TReASURe(order="confident", width=1, branch=1)).states()))
    doubt = 1 - log_p(torch.full((1, L), MASK)).exp().amax(-1)[0]
    assert (live(first) != MASK).nonzero()[:, 1].tolist() == doubt.argsort(stable=True).tolist()
    # More than that many would repeat them.
    assert first.group["beams"].tolist() == [7]


def test_tokens_without_replacement():
    x, p = torch.full((4000, L), MASK), log_p(torch.full((1, L), MASK))
    u = torch.rand(4000, 1, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    brood = born(x, fill(x), p.expand(4000, -1, -1), torch.full((4000, 1), 2), torch.full((4000, 1), 2), u, MASK, None, 0)
    drawn = brood.x[:, 2].view(-1, 2)
    assert (drawn[:, 0] != drawn[:, 1]).all()
    assert torch.equal(brood.log_p, p[0, 2][brood.x[:, 2]])
    q = p[0, 2].exp()
    for a, b in itertools.permutations(range(V), 2):
        exact = float(q[a] * q[b] / (1 - q[a]))
        share = float(((drawn[:, 0] == a) & (drawn[:, 1] == b)).double().mean())
        assert abs(share - exact) < 4.5 * (exact * (1 - exact) / 4000) ** 0.5


def test_impossible_tokens_are_no_children():
    class Sure(MarkovTokens):
        def predict(self, x, t, group):
            found = super().predict(x, t, group)
            return replace(found, logits=torch.where(torch.arange(3) == 1, -math.inf, found.logits))

    population = run(TReASURe(branch=3), Sure(), lambda s: torch.tensor([float(t.count("b")) for t in s]), steps=3)
    assert not any("b" in s for s in population.samples[0])

    class Lost(MarkovTokens):
        def predict(self, x, t, group):
            return replace(super().predict(x, t, group), logits=torch.full((len(x), 3, 3), math.nan))

    with pytest.raises(ValueError, match="without any possible token"):
        run(TReASURe(), Lost(), steps=3)


def test_times_follow_the_tokens_that_appear():
    """The network is told when the next token appears: with three per level, of the first, the fourth and the seventh."""
    told = []

    class Timed(MarkovTokens):
        def predict(self, x, t, group):
            told.append(t.unique().tolist())
            return super().predict(x, t, group)

    states = list(prepared(TReASURe(reveal=3, beams=1), Timed(length=7), steps=7).states())
    hits = states[0].group["hits"][0, 0]
    assert told == [[pytest.approx(float(hits[i]))] for i in (0, 3, 6)]


def test_surest_is_the_network_whatever_the_temperature():
    class Sure(MarkovTokens):
        """Says that it is surest of the last masks, and its logits that of the first."""

        def predict(self, x, t, group):
            found = super().predict(x, t, group)
            return replace(found, extra={"sure": torch.arange(self.L).expand(len(x), -1) / self.L})

    population = run(TReASURe(width=1, branch=1, order="confident", beams=1), Sure(length=5), steps=5)
    assert population.appeared[0, 0].tolist() == [5, 4, 3, 2, 1]
    assert run(TReASURe(width=1, branch=1, order="confident", beams=1), MarkovTokens(length=5), steps=5).appeared[0, 0].tolist() != [
        5,
        4,
        3,
        2,
        1,
    ]


def test_several_tokens_per_level():
    """The child's own, and the two others that its parent is surest of; a third of the levels, fewer calls."""
    states = list(prepared(TReASURe(reveal=3, beams=1)).states())
    assert len(states) == 4
    assert run(TReASURe(reveal=3, beams=1)).nfe == 1 + 4 + 4
    p = log_p(torch.full((1, L), MASK))[0]
    value, token = p.max(-1)
    for x, score in zip(live(states[0]), states[0].extra["cumlogp"][0], strict=True):
        shown = torch.nonzero(x != MASK)[:, 0]
        assert len(shown) == 3
        own = next(
            i
            for i in shown.tolist()
            if set(torch.where(torch.arange(L) == i, -9.0, value).topk(2).indices.tolist()) | {i} == set(shown.tolist())
        )
        assert all(x[i] == token[i] for i in shown.tolist() if i != own)
        assert float(score) == pytest.approx(float(sum(p[i, x[i]] for i in shown)), abs=1e-12)


def test_scores_by_the_childs_own_completion():
    """A call of each child but the finished; those of the kept are used again."""
    ready = prepared(TReASURe(score="own", beams=1))
    for level, state in enumerate(ready.states(), 1):
        if not state.done:
            there = state.log_w > -math.inf
            assert torch.equal(state.rewards[there], pairs(WORLD.decode(fill(state.x[there]), None)))
            assert state.cost["nfe"] == 1 + 4 + 16 * (min(level, 6) - 1)
            if level < 7:
                assert torch.equal(state.prediction.logits[there], WORLD.predict(state.x[there], None, None).logits)


def test_scores_by_sampled_completions():
    """The mean over fills by the parent's probabilities: as there are more of them, its expectation; with few, something else."""
    reward = Heard()
    next(iter(prepared(TReASURe(score="samples", fills=3, beams=1), reward=reward).states()))
    assert [len(asked) for asked in reward.asked] == [12]
    # A single one is drawn too, and not the likeliest.
    single = Heard()
    next(iter(prepared(TReASURe(score="samples", fills=1, beams=1), reward=single).states()))
    likeliest = Heard()
    next(iter(prepared(TReASURe(beams=1), reward=likeliest).states()))
    assert len(single.asked[0]) == len(likeliest.asked[0])
    assert list(single.asked[0]) != list(likeliest.asked[0])
    off = {}
    for fills in (1, 1500):
        state = next(
            iter(
                prepared(
                    TReASURe(score="samples", fills=fills, beams=1), SMALL, lambda s: torch.tensor([t.count("c") for t in s]), steps=4
                ).states()
            )
        )
        p = log_p(torch.full((1, 4), SMALL.mask), SMALL)[0].exp()[:, 2]
        x, there = state.x[0], state.log_w[0] > -math.inf
        expected = torch.where(x == SMALL.mask, p, (x == 2).double()).sum(-1)
        off[fills] = float((state.rewards[0] - expected)[there].abs().max())
    assert off[1500] < 0.1 < off[1]


def test_pruning_by_chance():
    """M draws ∝ exp(λ Δscore + γ Δlog p), systematically: within one of M times that. The next level weighs the differences."""
    method, lam, gamma = TReASURe(prune="resample", width=200, branch=5, beams=1, shared=True, faithful=0.5), 1.3, 0.5
    ready = prepared(method, particles=500, lam=lam)
    before = None
    for level, state in enumerate(ready.states()):
        x = state.x[0]
        if level == 0:
            at = int(torch.nonzero(x[0] != MASK)[0, 0])
            root = torch.full((1, L), MASK)
            filled = fill(root).repeat(V, 1)
            filled[:, at] = torch.arange(V)
            mass = (lam * pairs(WORLD.decode(filled, None)) + gamma * log_p(root)[0, at]).softmax(0)
            assert ((torch.bincount(x[:, at], minlength=V) - 200 * mass).abs() < 1).all()
        if level == 1:
            # All five children of the 200, weighed by what they are worth more than their parents.
            at = int(torch.nonzero((x[0] != MASK) & (before[0][0] == MASK))[0, 0])
            parents, scores = before
            p, children = log_p(parents), parents.repeat_interleave(V, 0)
            children[:, at] = torch.arange(V).repeat(200)
            gain = pairs(WORLD.decode(fill(children, parents.repeat_interleave(V, 0)), None)) - scores.repeat_interleave(V)
            mass = (lam * gain + gamma * p[:, at].flatten()).softmax(0)
            code = V + 1
            number = (x * code ** torch.arange(L)).sum(-1)
            for y in children.unique(dim=0):
                ours = (children == y).all(-1)
                assert abs(int((number == (y * code ** torch.arange(L)).sum()).sum()) - 200 * float(mass[ours].sum())) < 1
            assert (200 * mass - 1).abs().max() > 0.5
            break
        before = x, state.rewards[0]


def test_faithfulness_raises_the_likelihood():
    log_joint = WORLD.joint.log()
    likely, reward = [], []
    for gamma in (0.0, 0.3, 3.0):
        population = run(TReASURe(faithful=gamma, beams=1), groups=30)
        likely.append(log_joint[tuple(population.x0[:, 0].T)])
        reward.append(population.rewards[:, 0].mean())
        assert torch.allclose(population.weights[population.weights > 0], 1 / (population.weights > 0).sum(-1, keepdim=True).double().max())
    for low, high in itertools.pairwise(likely):
        assert (high - low).mean() > 3 * (high - low).std() / 30**0.5
    assert reward[0] > reward[1] > reward[2]
    # log p of the tokens, one by one, is that of the whole.
    *_, state, _ = prepared(TReASURe()).states()
    there = state.log_w > -math.inf
    assert torch.allclose(state.extra["cumlogp"][there], log_joint[tuple(state.x[there].T)])


def test_the_sign_of_lambda():
    up, down, blind = (run(TReASURe(), groups=8, lam=lam) for lam in (2.0, -2.0, 0.0))
    assert (down.rewards[:, 0] <= down.rewards.amin(-1)).all()
    assert down.rewards[:, 0].max() < blind.rewards[:, 0].mean() < up.rewards[:, 0].min()
    # With nothing to maximise the likeliest sequences are left.
    log_joint = WORLD.joint.log()
    ranks = log_joint[tuple(blind.x0[0].T)]
    assert ranks.diff().max() <= 1e-12
    assert ranks[0] >= log_joint.flatten().topk(20).values[-1]


def test_blocks_are_revealed_one_after_the_other():
    class Blocks(MarkovTokens):
        def __init__(self):
            vars(self).update(vars(WORLD))

        def predict(self, x, t, group):
            found = super().predict(x, t, group)
            return Prediction(found.x0, logits=found.logits, extra={"block": (torch.arange(L) // 3).expand(len(x), -1)})

    for options in ({}, {"positions": 4}, {"score": "own"}, {"order": "entropy"}):
        dates = run(TReASURe(**options), Blocks()).appeared[0]
        assert (dates[:, :3] <= 3).all()
        assert (dates[:, 6] == 7).all()
    assert run(TReASURe(reveal=2), Blocks()).nfe <= 112
    assert (run(TReASURe(), WORLD).appeared[0][:, :3] > 3).any()


# -- beside the rules ---------------------------------------------------------------------------------------------------------------------


def test_only_for_tokens():
    with pytest.raises(TypeError, match=r"treasure reveals tokens one by one.*Line has Gaussian.*dts-star"):
        viot.prepare(Line(), close, "treasure")
    model = Line()
    with pytest.raises(TypeError, match="Categorical"):
        viot.sample(model, close, "treasure", progress=False)
    assert model.calls == 0


def test_a_budget_that_is_too_small_names_one_that_is_not():
    with pytest.raises(
        ValueError, match=r"one beam of treasure costs 25 \(width 4, 7 masked tokens, 1 revealed per level\).*particles ≥ 4 or budget ≥ 25"
    ):
        prepared(TReASURe(), particles=3)
    assert run(TReASURe(), particles=4).nfe == 25
    with pytest.raises(ValueError, match="costs 85"):
        prepared(TReASURe(score="own", branch=4), particles=11)
    assert prepared(TReASURe(width=1), particles=1).problem.budget == 7


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"width": 0}, "width ≥ 1"),
        ({"beams": 0}, "beams ≥ 1"),
        ({"reveal": 0}, "reveal ≥ 1"),
        ({"positions": 5}, "branch ≥ 5"),
        ({"order": "left"}, "'entropy', not 'left'"),
        ({"score": "best"}, "'resubstitute'"),
        ({"prune": "all"}, "'resample'"),
        ({"expand": "all"}, "'sample'"),
        ({"faithful": -1.0}, "faithful must be ≥ 0"),
    ],
)
def test_settings_that_cannot_be(options, match):
    with pytest.raises(ValueError, match=match):
        TReASURe(**options)


@pytest.mark.parametrize("options", [{}, {"prune": "resample"}, {"score": "samples"}], ids=str)
def test_what_is_forbidden(options):
    """A guess that breaks a constraint is the last choice; a finished sequence that does has no weight; a dead group is named."""

    def odd(texts, group):
        rewards = torch.where(torch.tensor([t.count("a") == 1 for t in texts]), pairs(texts), -math.inf)
        return torch.where(group == 1, -math.inf, rewards)

    population = run(TReASURe(**options), reward=odd, groups=3)
    assert population.dead_groups == [1]
    allowed = torch.tensor([[s.count("a") == 1 for s in group] for group in population.samples])
    assert ((population.weights > 0) <= allowed)[[0, 2]].all()
    assert (population.weights[[0, 2]] > 0).any(-1).all()
    with pytest.raises(viot.DeadPopulation, match="every particle of every group is dead"):
        run(TReASURe(**options), reward=lambda texts: torch.full((len(texts),), -math.inf))


def test_noisy_and_combined_rewards():
    def score(texts):
        return viot.Scores(pairs(texts), {"pairs": pairs(texts), "length": torch.tensor([float(len(t)) for t in texts])})

    population = run(TReASURe(), reward=score, groups=2)
    assert torch.equal(population.parts["pairs"], population.rewards)
    assert (population.parts["length"] == 7).all()
    noisy = viot.rewards.Noisy(pairs, 0.5)
    among = run(TReASURe(), reward=noisy, groups=3)
    assert differing(run(TReASURe(), reward=noisy, groups=3, batch_size=5), among) == []
    alone = run(TReASURe(), reward=noisy, groups=[2])
    k = min(alone.shape[1], among.shape[1])
    assert torch.equal(alone.rewards[0, :k], among.rewards[2, :k])
    assert not torch.equal(alone.rewards[0], pairs(alone.samples[0]))


def test_a_stopped_run_goes_on(tmp_path):
    """Interrupted at any network call, from its checkpoint: the same answer, at the same cost."""

    class Stops(Tokens):
        left = 10**9

        def predict(self, x, t, group):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().predict(x, t, group)

    def reward(texts):
        return torch.tensor([t.count("b") + 0.3 * t.count("c") for t in texts])

    def go(at, folder):
        model = Stops()
        model.left = at
        return viot.sample(model, reward, "treasure", particles=8, steps=6, groups=2, checkpoint=folder, progress=False)

    whole = go(10**9, tmp_path / "whole")
    for at in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            go(at, tmp_path / str(at))
        assert differing(go(10**9, tmp_path / str(at)), whole) == []


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_nothing_mixes_devices(options):
    from test_devices import AWAY, Pretend
    from test_devices import Tokens as Away

    class Blocks(Away):
        def predict(self, x, t, group):
            assert {x.device, t.device, group.device} == {AWAY}
            return replace(super().predict(x, t, group), extra={"block": torch.zeros_like(x)})

    def reward(texts):
        return torch.tensor([float(t.count("b")) for t in texts])

    with quiet(), Pretend():
        away = viot.sample(Blocks("random"), reward, TReASURe(**options), particles=8, steps=4, groups=2, progress=False)
    here = type("Here", (Away,), {"device": torch.device("cpu"), "predict": lambda self, x, t, group: plain(x)})("random")
    assert torch.equal(away.rewards, run(TReASURe(**options), here, reward, particles=8, steps=4, groups=2, seed=0).rewards)


def plain(x):
    return Prediction(torch.where(x == 4, 0, x), logits=torch.zeros(len(x), 3, 4))
