"""The search tree on the page: drawn without crossings, thinned honestly, and judged by its leaves and not by equal weights."""

import itertools
import math
import re
import time
from dataclasses import replace

import pytest
import torch
from test_report import check_page, made

from viot.report import page, verdict
from viot.report.search import BAR, FULL, OTHERS, PROBABLE, chosen, explored, findings, layout, levels, search
from viot.report.terminal import summary
from viot.report.verdict import standard_error, strength_advice
from viot.report.words import number, percent
from viot.tree import Tree

INF = math.inf
STEPS = (0, 10, 20, 30, 40, 50)


def grown(rollouts, groups=1, steps=STEPS, lam=1.0, reward=lambda x: 3 * math.cos(2 * x) - 0.1 * x * x, seed=0):
    """Diffusion Tree Sampling over a random walk, one rollout of each group after the other: widening 2 N^0.8, soft values by log-mean-exp."""
    g = torch.Generator().manual_seed(seed)
    noise = iter(torch.randn(rollouts * groups * len(steps) + 1, generator=g).tolist())
    coin = iter(torch.rand(rollouts * groups * len(steps) + 1, generator=g).tolist())
    parent, level, value, visits, x = [-1] * groups, [0] * groups, [0.0] * groups, [1] * groups, [0.0] * groups
    children = [[] for _ in range(groups)]
    last = len(steps) - 1
    for i in range(rollouts * groups):
        path = [i % groups]
        while level[path[-1]] < last and len(children[path[-1]]) >= 2 * visits[path[-1]] ** 0.8:
            below = children[path[-1]]
            top = max(value[c] for c in below)
            odds = [math.exp(lam * (value[c] - top)) if top > -INF else 1.0 for c in below]
            u = next(coin) * sum(odds)
            path.append(below[next((i for i, total in enumerate(itertools.accumulate(odds)) if total >= u), -1)])
        while level[path[-1]] < last:
            above = path[-1]
            parent.append(above)
            level.append(level[above] + 1)
            x.append(x[above] + next(noise))
            value.append(0.0)
            visits.append(1)
            children.append([])
            children[above].append(len(parent) - 1)
            path.append(len(parent) - 1)
        value[path[-1]] = reward(x[path[-1]])
        for node in reversed(path[:-1]):
            top = max(value[c] for c in children[node])
            mean = sum(math.exp(lam * (value[c] - top)) for c in children[node]) / len(children[node]) if top > -INF else 0.0
            value[node] = top + math.log(mean) / lam if top > -INF else -INF
            visits[node] += 1
    return Tree(
        parent=torch.tensor(parent), level=torch.tensor(level), value=torch.tensor(value, dtype=torch.float64),
        visits=torch.tensor(visits), x=torch.tensor(x)[:, None].repeat(1, 2), steps=torch.tensor(steps),
        indices=torch.arange(groups), lam=lam,
    )  # fmt: skip


def bushy(leaves, depth=5, seed=0, lam=2.0):
    """A large tree of one group at once: leaves that hang anywhere on levels of doubling size."""
    g = torch.Generator().manual_seed(seed)
    sizes = [1, *(max(2, int(leaves ** (d / depth))) for d in range(1, depth)), leaves]
    parent, level, start = [torch.tensor([-1])], [torch.zeros(1, dtype=torch.long)], 0
    for d in range(1, depth + 1):
        # Everybody has a child, so that all leaves stand at the last level.
        first = torch.arange(sizes[d - 1])
        parent.append(start + torch.cat([first, torch.randint(0, sizes[d - 1], (sizes[d] - sizes[d - 1],), generator=g)]))
        level.append(torch.full((sizes[d],), d))
        start += sizes[d - 1]
    parent, level = torch.cat(parent), torch.cat(level)
    value, visits = torch.randn(len(parent), generator=g, dtype=torch.float64), torch.ones(len(parent), dtype=torch.long)
    for d in range(depth, 0, -1):
        here = level == d
        visits.index_add_(0, parent[here], visits[here])
    return Tree(
        parent,
        level,
        value,
        visits,
        torch.randn(len(parent), 2, generator=g),
        torch.arange(0, 10 * depth + 1, 10),
        torch.zeros(1, dtype=torch.long),
        lam,
    )


def held(tree, k=32, **changes):
    """The population that a run would return with this tree."""
    g = tree.groups
    at = tree.draw(k)
    dead = torch.stack([tree.value[row].max() == -INF for row in at])
    told = {
        "samples": tree.x[at],
        "x0": tree.x[at],
        "rewards": tree.value[at],
        "log_z": torch.full((g,), torch.nan, dtype=torch.float64),
        "roots": tree.roots[at],
        "ancestors": torch.zeros(0, g, k, dtype=torch.int32),
        "trace": {"step": torch.zeros(0)},
        "config": {"lam": 1.0, "groups": list(range(g)), "steps": 50, "particles": k, "method": {"name": "dts"}},
        "tree": tree,
    }
    population = made(torch.zeros(g, k, dtype=torch.float64), **{**told, **changes})
    return replace(population, log_weights=population.log_weights.masked_fill(dead[:, None], torch.nan))


def numbers(pattern, text):
    return [float(found) for found in re.findall(pattern, text)]


def leaves_of(tree, g=0):
    return tree.leaves[tree.group[tree.leaves] == g]


def drawing(tree, g=0):
    return explored(tree, g, tree.group, tree.log_law.exp().nan_to_num(nan=0.0))


# -- the drawing ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tree", [grown(40), grown(200, lam=4.0, groups=2), bushy(900), bushy(5000)], ids=["small", "two", "bushy", "large"]
)
def test_layout_has_no_crossings(tree):
    mine = leaves_of(tree)
    value, law = tree.value, tree.log_law.exp()
    drawn = chosen(mine, law[mine], value[mine], tree.best_path()[-1])
    row, children = layout(tree.parent.tolist(), value.tolist(), drawn)
    assert sorted(row[leaf] for leaf in drawn) == list(range(len(drawn)))
    levels_of = tree.level.tolist()
    for depth in range(1, len(tree.steps)):
        here = sorted((node for node in row if levels_of[node] == depth), key=row.get)
        above = [row[int(tree.parent[node])] for node in here]
        assert above == sorted(above)
    for node, below in children.items():
        assert row[below[0]] <= row[node] <= row[below[-1]]
        assert [float(value[c]) for c in below] == sorted((float(value[c]) for c in below), reverse=True)


def test_every_line_of_a_small_tree_is_drawn():
    tree = grown(24)
    figure = drawing(tree)
    drawn = "".join(re.findall(r'class="twig (?:q\d|best)" stroke-width="[\d.]+" d="([^"]*)"', figure.partition("</figcaption>")[2]))
    assert drawn.count("M") == len(tree) - 1
    assert figure.count("<title>reward") == 24
    assert "are shown" not in figure


def test_best_path_is_bold_and_its_reward_written():
    tree = grown(300, lam=5.0)
    path, figure = tree.best_path(), drawing(tree).partition("</figcaption>")[2]
    (bold,) = re.findall(r'class="twig best" stroke-width="([\d.]+)" d="([^"]*)"', figure)
    assert float(bold[0]) >= 2.8
    assert bold[1].count("M") == len(path) - 1
    (y,) = numbers(r'<circle class="knot best" cx="[\d.]+" cy="([\d.]+)" r="5.0"/><title>reward', figure)
    ((at, told),) = re.findall(r'class="name" x="[\d.]+" y="([\d.]+)">([^<]*)<', figure)
    assert float(at) == pytest.approx(y + 4.2, abs=0.11)
    assert told == number(float(tree.value[path[-1]]))


def test_bars_are_the_law():
    tree = grown(60, lam=2.0)
    law = tree.log_law.exp()[leaves_of(tree)]
    bars = sorted(numbers(rf'class="odds [a-z0-9]+" stroke-width="[\d.]+" d="M{BAR} [\d.]+h([\d.]+)"', drawing(tree)))
    want = sorted(v for v in ((FULL - BAR) * law / law.max()).tolist() if v > 0.3)
    assert bars == pytest.approx(want, abs=0.006)
    assert sum(bars) * float(law.max()) / (FULL - BAR) == pytest.approx(1, abs=0.03)
    assert f">{percent(float(law.max()))}</text>" in drawing(tree)


def test_thinning_keeps_the_likely_and_the_best_and_says_so():
    tree = bushy(3000)
    mine, law, best = leaves_of(tree), tree.log_law.exp(), tree.best_path()[-1]
    drawn = chosen(mine, law[mine], tree.value[mine], best)
    assert best in drawn
    likely = mine[law[mine].argsort(descending=True)[:PROBABLE]].tolist()
    assert set(likely) <= set(drawn)
    assert PROBABLE + OTHERS <= len(drawn) <= PROBABLE + OTHERS + 1
    figure = drawing(tree)
    assert figure.count("<title>reward") == len(drawn)
    assert f"Only {len(drawn)} of 3\u202f000 finished samples are shown: the {PROBABLE} most probable" in figure
    assert f"They hold {percent(float(law[drawn].sum()))} of the probability" in figure


def test_one_leaf():
    figure = drawing(grown(1)).partition("</figcaption>")[2]
    assert figure.count("<title>reward") == 1
    assert "100 %" in figure
    words = check_page(page(held(grown(1), k=4)))
    assert "From noise to 1 finished sample:" in words


def test_impossible_samples_are_dashed_and_have_no_bar():
    tree = grown(60, reward=lambda x: -INF if x < 0.5 else -x * x)
    figure = drawing(tree)
    possible = int((tree.value[leaves_of(tree)] > -INF).sum())
    assert 0 < possible < 60
    assert len(re.findall('class="odds [^"]*" stroke-width="[^"]*" d="M794', figure)) <= possible
    assert "value −∞, never drawn" in figure
    assert "twig never" in figure
    assert "left out of the means" in levels(tree, 0, tree.group)
    check_page(page(held(tree)))


def test_a_group_without_a_possible_sample():
    tree = grown(20, groups=2)
    tree.value[tree.group == 1] = -INF
    assert "No finished sample is possible" in drawing(tree, 1)
    assert "twig best" not in drawing(tree, 1)
    words = check_page(page(held(tree)))
    assert "Group 1 died" in words
    tree.value[:] = -INF
    population = held(tree)
    assert verdict(population).level == "doubt"
    check_page(page(population))


def test_levels_are_counted():
    tree = grown(50)
    cells = re.findall(r"<td>([^<]*)</td>", levels(tree, 0, tree.group))
    rows = [cells[i : i + 7] for i in range(0, len(cells), 7)]
    assert [row[0] for row in rows] == ["noise", "step 10", "step 20", "step 30", "step 40", "step 50"]
    assert [int(row[1]) for row in rows] == tree.level.bincount().tolist()
    assert rows[0][2] == rows[1][1]
    assert [row[3] for row in (rows[0], rows[-1])] == ["50", "1"]
    assert rows[-1][2] == "–"
    assert rows[-1][6] == number(float(tree.value[tree.leaves].max()))


def test_large_trees_are_fast_and_their_page_small():
    tree = bushy(30000)
    population = held(tree)
    begin = time.perf_counter()
    text = page(population)
    assert time.perf_counter() - begin < 2
    assert len(text) < 400_000
    check_page(text)


# -- the page -------------------------------------------------------------------------------------------------------------------------


def test_page_shows_the_trees_of_the_first_groups():
    population = held(grown(30, groups=6))
    text = page(population)
    words = check_page(text)
    for name in ("Search tree", "Best reward so far", "How the draws spread", "effective leaves", "distinct samples", "finished samples"):
        assert name in words
    assert text.count('<figure class="tree search">') == 4
    assert "and 2 more groups in population.tree" in words
    assert "makes no selection" not in words
    assert "effective sample size" not in words
    assert "ESS" not in words
    for i in range(4):
        assert f"What the search explored, group {i}" in words


def test_page_without_a_tree_has_no_such_section():
    population = made()
    assert search(population) == ""
    words = check_page(page(population))
    assert "Search tree" not in words
    assert "effective sample size" in words


def test_page_of_a_maximiser_shows_no_law():
    tree = replace(grown(400), lam=INF)
    best = tree.leaves[tree.value[tree.leaves].argsort(descending=True)[:32]][None]
    config = {"lam": 1.0, "groups": [0], "steps": 50, "method": {"name": "dts-star"}}
    population = held(tree, exact=False, x0=tree.x[best], rewards=tree.value[best], roots=tree.roots[best], config=config)
    words = check_page(page(population))
    assert "Candidates, not draws: dts-star" in words
    assert "32 distinct samples of 32, from 400 finished ones found" in words
    assert "How the draws spread" not in words
    assert "effective leaves" not in words
    assert "always following the best child" in words
    assert f"the {PROBABLE} of highest reward" in words


def test_best_of_a_tree_is_still_a_page():
    population = held(grown(80, groups=2))
    check_page(page(population.best(3)))
    check_page(page(population.draw(5)))


# -- the verdict ----------------------------------------------------------------------------------------------------------------------


def test_findings_count_leaves_and_not_weights():
    tree = grown(100, groups=2, lam=3.0)
    population = held(tree)
    seen = findings(population)
    assert seen.found.tolist() == [100, 100]
    for g in range(2):
        p = tree.log_law.exp()[leaves_of(tree, g)]
        assert seen.effective[g].item() == pytest.approx(1 / float(p.square().sum()))
        assert int(seen.distinct[g]) == len({tuple(row) for row in population.x0[g].tolist()})
        assert int(seen.tried[g]) == int((tree.group[tree.level == 1] == g).sum())
    assert population.ess.tolist() == pytest.approx([32, 32])


def test_a_tree_that_draws_one_sample_is_doubted():
    tree = grown(100, reward=lambda x: 40 * x)
    population = held(tree)
    found = verdict(population)
    assert found.level == "doubt"
    assert "about 1 finished sample of 100" in found.headline
    assert "fewer than 2 effective leaves of 100" in strength_advice(population)


def test_a_few_effective_leaves_ask_for_care():
    tree = grown(150, reward=lambda x: 1.5 * x)
    seen = findings(held(tree))
    assert 2 < float(seen.effective) < 10
    found = verdict(held(tree))
    assert found.level == "caution"
    assert "share few samples" in found.headline
    assert "ESS" not in " ".join([found.headline, *found.reasons])


def test_a_broad_tree_is_believed():
    population = held(grown(400))
    found = verdict(population)
    assert found.level == "believe"
    assert "effective leaves of 400 found" in found.headline
    assert strength_advice(population) is None
    text = summary(population)
    assert "ESS" not in text
    assert f"{int(findings(population).distinct)} of 32 samples" in text


def test_draws_of_one_noise_ask_for_care():
    tree = grown(300)
    found = verdict(held(tree, roots=torch.zeros(1, 32, dtype=torch.long)))
    assert found.level == "caution"
    assert "share one draw of noise" in found.headline


def test_weak_steering_of_a_tree():
    tree = grown(100, reward=lambda x: 0.01 * math.tanh(x))
    assert "hardly felt" in strength_advice(held(tree))
    # A reward that saturates: all rewards alike, yet far from what the model gives.
    tree.value[0] = -1.0
    assert strength_advice(held(tree)) is None


def test_standard_error_of_a_tree_is_what_repetition_shows():
    runs = [held(grown(100, seed=seed)) for seed in range(60)]
    means = torch.stack([run.mean()[0] for run in runs])
    predicted = torch.tensor([standard_error(run) for run in runs]).square().mean().sqrt()
    assert float(predicted) == pytest.approx(float(means.std()), rel=0.3)
    assert "judged by how the draws of noise differ" in verdict(runs[0]).reasons[0]
