"""What a run would cost: the rows are those that the run then counts, the seconds are measured, and nothing is written or changed."""

import warnings

import pytest
import torch
from helpers import Line, close, quiet
from painter import Painter

import viot
import viot.cost
from viot import cli
from viot.cost import PHASES, Estimate, Memory, Rows, estimate
from viot.methods import FKD, VASR, BestOfN
from viot.report.words import size
from viot.value import Rollout, Smoothed, X0Samples

PARTICLE_METHODS = [
    "base", "best-of-n", "importance", "fkd", "vasr", "vasr-max", "fvd", BestOfN(n=None), FKD(schedule="every"), VASR(schedule=3),
    VASR(value=Rollout(n=2, steps=3)), VASR(value=Smoothed(X0Samples(3))),
]  # fmt: skip


def brightness(samples):
    return samples.flatten(1).mean(1)


# -- rows -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", PARTICLE_METHODS, ids=str)
@pytest.mark.parametrize("steps", [1, 4, 10])
def test_rows_are_what_the_run_counts(method, steps):
    run = {"particles": 12, "groups": 3, "steps": steps, "batch_size": 7}
    with quiet():
        population = viot.sample("gaussian", brightness, method, progress=False, **run)
    assert estimate("gaussian", brightness, method, **run).rows == Rows(population.nfe, population.decode_rows, population.reward_rows)


@pytest.mark.parametrize("method", ["base", "best-of-n", "fkd", "vasr", "fvd"])
def test_rows_of_digits(method):
    run = {"particles": 4, "steps": 6, "budget": 50}
    with quiet():
        population = viot.sample("digits", "digit:7", method, progress=False, **run)
    assert estimate("digits", "digit:7", method, **run).rows == Rows(population.nfe, population.decode_rows, population.reward_rows)


def test_answers_that_are_kept_are_timed_by_asking():
    model, asked = viot.load("names", cached=True), []
    network = model.network
    model.network = lambda x, at: (asked.append(len(x)), network(x, at))[1]
    estimate(model, lambda texts: torch.zeros(len(texts)), "base", particles=16, steps=12)
    assert len(asked) >= 2, "one probe's answers are not the next one's"


def test_what_is_counted_apart_is_told_apart():
    run = {"particles": 12, "groups": 3, "steps": 5}
    found = estimate("gaussian", brightness, "vasr", lam=viot.ess(0.5), unsteered=2, **run)
    with quiet():
        population = viot.sample("gaussian", brightness, "vasr", lam=viot.ess(0.5), progress=False, **run)
    pilot = population.config["lam_pilot"]
    assert (found.extra["pilot"].network, found.extra["pilot"].reward) == (pilot["nfe"], pilot["reward_rows"])
    assert found.extra["unsteered"] == Rows(30, 6, 6)
    assert found.finished == 36 + 36 + 6
    assert found.total == Rows(180 + 180 + 30, found.rows.decode + 36 + 6, found.rows.reward + 36 + 6)


# -- measuring ------------------------------------------------------------------------------------------------------------------------


class Watched(Line):
    """Counts the rows of every call; a call of `preview` takes ten times as long as one of `decode`."""

    def __init__(self):
        self.rows, self.shown, self.released = [], [], 0

    def predict(self, x, t, group):
        self.rows.append(len(x))
        return super().predict(x, t, group)

    def decode(self, x0, group):
        self.shown.append("decode")
        return x0

    def preview(self, x0, group):
        self.shown.append("preview")
        return x0

    def release(self):
        self.released += 1


@pytest.mark.parametrize(("batch_size", "rows"), [(None, 16), (5, 5), (100, 40)])
def test_two_steps_of_a_few_rows_are_made_and_no_more(batch_size, rows):
    model = Watched()
    found = estimate(model, close, "vasr", particles=20, groups=2, steps=50, batch_size=batch_size)
    assert model.rows == [rows, rows]
    assert model.shown == ["preview", "decode"] * 2
    assert model.released == 1
    assert found.memory.rows == rows
    assert found.rows.network == 2000


def test_seconds_are_rows_times_what_each_takes():
    each = {"network": 2.0, "guess decode": 0.5, "guess reward": 0.25, "decode": 3.0, "reward": 1.0, "moving": 0.125}
    found = Estimate(Rows(40, 12, 12), {"unsteered": Rows(8, 2, 2)}, each, 6, 9.0, Memory(False, None, 4, 0))
    # Six finished samples, four and the two unsteered ones; the other eight are guesses on the way.
    expected = {"network": 96.0, "decode": 6 * 3.0 + 8 * 0.5, "reward": 6 * 1.0 + 8 * 0.25, "moving": 6.0}
    assert found.seconds == {**expected, "total": sum(expected.values())}
    assert tuple(found.seconds)[:-1] == PHASES


def test_the_time_is_of_the_right_size(monkeypatch):
    """With a clock that every network call moves by its rows, the estimate of the whole run is exact."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    class Slow(Line):
        def predict(self, x, t, group):
            now[0] += len(x)
            return super().predict(x, t, group)

    run = {"particles": 6, "groups": 2, "steps": 7}
    found = estimate(Slow(), close, "vasr", **run)
    assert found.seconds["network"] == found.seconds["total"] == 12 * 7
    with quiet():
        assert viot.sample(Slow(), close, "vasr", progress=False, **run).seconds["network"] == 12 * 7


def test_an_estimate_changes_no_draw_and_warns_of_nothing():
    model = Painter(["a red disc", "a blue disc"])

    def nan_at_first(samples):
        return torch.full((len(samples),), torch.nan).where(torch.arange(len(samples)) > 0, 1.0)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimate(model, nan_at_first, particles=4, steps=5)
    run = viot.prepare(model, brightness, particles=4, steps=5)
    viot.cost.measure(run)
    assert run.problem.evaluate.cost.nfe == 0
    with quiet():
        a, b = run.finish(progress=False), viot.sample(model, brightness, particles=4, steps=5, progress=False)
    assert torch.equal(a.samples, b.samples)
    assert a.nfe == b.nfe


def test_a_reward_that_has_no_opinion_of_noise_has_its_cost_all_the_same():
    found = estimate("gaussian", lambda samples: torch.full((len(samples),), torch.nan), particles=4, steps=5)
    assert found.rows.network == 20
    assert found.seconds["network"] > 0


def test_what_the_run_holds_grows_with_the_particles():
    few, many = (estimate(Painter(size=48), brightness, particles=k, steps=5).memory for k in (10, 1000))
    assert many.held == 100 * few.held
    # At least its states and finished pictures.
    assert many.held >= 1000 * 4 * (3 * 12 * 12 + 3 * 48 * 48)
    assert viot.cost.resident() > 10**7
    assert viot.cost.most_resident() >= viot.cost.resident() // 2


@pytest.mark.parametrize(
    ("bytes_", "text"), [(0, "0 B"), (812, "812 B"), (2048, "2.0 KiB"), (150 * 2**20, "150 MiB"), (3 * 2**40, "3.0 TiB")]
)
def test_bytes_as_people_read_them(bytes_, text):
    assert size(bytes_) == text


# -- the command ----------------------------------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--model", "gaussian", "--reward", "brightness", "--particles", "16", "--steps", "10", "--groups", "2", "--lam", "ess:0.5"]
    assert cli.main(["cost", *flags, "--method", "fkd(potential=max)", "--unsteered", "3", "--out", str(tmp_path / "a")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = {line[0]: line[1] for line in lines if line and line[0] in PHASES}
    assert rows == {"network": "700", "decode": "198", "reward": "198", "moving": "700"}
    text = " ".join(" ".join(line) for line in lines)
    assert "fkd (potential=max)" in text
    assert "320 network rows of them for the pilot that solves λ" in text
    assert "60 network rows of them for unsteered draws" in text
    assert "measured on 16 rows at a time" in text
    assert "nothing was written" in text
    assert not list(tmp_path.iterdir())


def test_mistakes_are_those_of_sample(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["cost", "--method", "vasrr"]) == 2
    assert "Did you mean 'vasr'?" in capsys.readouterr().err
    assert cli.main(["cost", "--model", "gaussian", "--prompt", "a cat"]) == 2
    assert "follows no prompts" in capsys.readouterr().err
