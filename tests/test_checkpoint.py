"""Interrupted runs go on to the bit-identical answer, counts included; what is on disk is whole or absent."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import METHODS, Differentiable, Line, Tokens, differing, quiet, settings

import viot
from viot import particles
from viot.methods import FVD, VASR, make
from viot.particles import State

HERE = Path(__file__).parent


class Interrupted(Line):
    """Ctrl-C at the n-th network call."""

    def __init__(self, at=10**9):
        self.left = at

    def predict(self, x, t, group):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().predict(x, t, group)


class Judge(Differentiable):
    """Ctrl-C at the n-th scoring. Both classes are named by one name whether they interrupt or not: the configuration is the same."""

    def __init__(self, at=10**9):
        self.left = at

    def __call__(self, samples):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().__call__(samples)


def run(method, folder=None, model=None, reward=None, **changes):
    with quiet():
        return viot.sample(model or Interrupted(), reward or Judge(), method, checkpoint=folder, **settings(method, groups=2, **changes))


def interrupted(method, folder, **broken):
    try:
        run(method, folder, **broken)
    except KeyboardInterrupt:
        return True
    return False


# -- going on -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_resumed_after_an_interruption_in_the_model(method, tmp_path):
    whole = run(method)
    for at in (0, 1, 3, 5):
        assert interrupted(method, tmp_path / str(at), model=Interrupted(at))
        files = sorted(p.name for p in (tmp_path / str(at)).iterdir())
        assert files == (["state.safetensors"] if at else [])
        model = Interrupted()
        assert differing(run(method, tmp_path / str(at), model=model), whole) == []
        # It did go on, rather than start again.
        done = 10**9 - model.left
        fresh = Interrupted()
        run(method, model=fresh)
        assert done < 10**9 - fresh.left or at == 0


@pytest.mark.parametrize("method", METHODS)
def test_resumed_after_an_interruption_in_the_reward(method, tmp_path):
    whole = run(method)
    at = 0
    while interrupted(method, tmp_path / str(at), reward=Judge(at)):
        assert differing(run(method, tmp_path / str(at)), whole) == []
        at += 1
    # The last scoring, of the finished samples, was among them.
    assert at >= 1


@pytest.mark.parametrize("method", METHODS)
def test_interrupted_again_and_again(method, tmp_path):
    """Each attempt gets one step further; no row is counted twice or lost."""
    whole, attempts = run(method), 0
    while interrupted(method, tmp_path, model=Interrupted(1 + attempts % 2)):
        attempts += 1
        assert attempts < 100
    assert attempts > 1
    assert differing(run(method, tmp_path), whole) == []


VARIANTS = [
    FVD(alpha_star=0.2, rebirth_noise="all_later_steps"),
    VASR(value="smoothed", schedule="every", ess_threshold=0.5),
    VASR(value="rollout", masses="weights"),
]


@pytest.mark.parametrize("method", VARIANTS, ids=["fvd", "smoothed", "rollout"])
def test_variants_that_remember(method, tmp_path):
    whole = run(method)
    for at in (2, 5):
        assert interrupted(method, tmp_path / str(at), model=Interrupted(at))
        assert differing(run(method, tmp_path / str(at)), whole) == []


def test_tokens_and_noisy_rewards_go_on(tmp_path):
    def score(samples):
        score.left -= 1
        if score.left < 0:
            raise KeyboardInterrupt
        return torch.tensor([s.count("b") for s in samples])

    def one(folder=None, left=10**9):
        score.left = left
        return run("vasr", folder, model=Tokens(), reward=viot.rewards.Noisy(score, 0.3))

    whole = one()
    with pytest.raises(KeyboardInterrupt):
        one(tmp_path, left=3)
    assert (tmp_path / "state.safetensors").exists()
    assert differing(one(tmp_path), whole) == []
    assert differing(viot.Population.load(tmp_path), whole) == []


SCRIPT = """
    import os, signal, sys
    sys.path.insert(0, {here!r})
    from test_checkpoint import Interrupted, Judge, run

    class Killed(Interrupted):
        def predict(self, x, t, group):
            self.left -= 1
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return super(Interrupted, self).predict(x, t, group)

    Killed.__name__ = "Interrupted"
    for method, folder in zip({methods!r}, {folders!r}):
        if os.fork() == 0:
            run(method, folder, model=Killed({at}))
            os._exit(0)
        _, status = os.wait()
        assert os.WTERMSIG(status) == signal.SIGKILL, status
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_resumed_after_a_kill(tmp_path):
    """Nothing can be tidied up on SIGKILL: what the disk holds is all there is. One interpreter, a forked child per method."""
    folders = [str(tmp_path / method) for method in METHODS]
    script = textwrap.dedent(SCRIPT.format(here=str(HERE), methods=METHODS, folders=folders, at=4))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert signal.SIGKILL
    for method, folder in zip(METHODS, folders, strict=True):
        assert os.listdir(folder) == ["state.safetensors"]
        assert differing(run(method, folder), run(method)) == []


def test_total_seconds_go_on(tmp_path):
    assert interrupted("vasr", tmp_path, model=Interrupted(4))
    state, _ = State.load(tmp_path / "state.safetensors")
    before = state.cost["total_seconds"]
    state.but(cost={**state.cost, "total_seconds": before + 1000.0}).save(
        tmp_path / "state.safetensors", config=State.load(tmp_path / "state.safetensors")[1]["config"]
    )
    assert 1000 < run("vasr", tmp_path).seconds["total"] < 1100


# -- refusing -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 6}, "seed: 5 there, 6 here"),
        ({"lam": 2.0}, "lam: 1.0 there, 2.0 here"),
        ({"steps": 7}, "steps: 6 there, 7 here"),
        ({"particles": 9}, "particles: 8 there, 9 here"),
        ({"groups": [0, 2]}, r"groups: \[0, 1\] there, \[0, 2\] here"),
        ({"method": "importance"}, r"method\.name: .*vasr.* there, .*importance"),
        ({"method": VASR(temperature=2.0)}, "temperature"),
        ({"reward": viot.rewards.Quadratic()}, "reward: 'close' there, 'quadratic' here"),
        ({"model": "gaussian"}, r"model\.name: .*Interrupted.* there, .*gaussian.* here"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_another_configuration_is_refused(changes, named, finished, tmp_path):
    arguments = {
        "method": "vasr",
        "model": Interrupted(),
        "reward": Judge(),
        "groups": 2,
        "seed": 5,
        "steps": 6,
        "particles": 8,
        "progress": False,
    }
    with quiet():
        if finished:
            viot.sample(**arguments, checkpoint=tmp_path)
        else:
            with pytest.raises(KeyboardInterrupt):
                viot.sample(**{**arguments, "model": Interrupted(3)}, checkpoint=tmp_path)
        kept = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
        with pytest.raises(ValueError, match=f"(?s)belongs to another run.*{named}.*Use another folder"):
            viot.sample(**{**arguments, **changes}, checkpoint=tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == kept


def test_batch_size_may_change_on_the_way(tmp_path):
    assert interrupted("vasr", tmp_path, model=Interrupted(3))
    population = run("vasr", tmp_path, batch_size=3)
    assert differing(population, run("vasr")) == []


# -- finished -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_finished_run_is_read_and_not_repeated(method, tmp_path):
    first = run(method, tmp_path)
    assert not (tmp_path / "state.safetensors").exists()
    model, reward = Interrupted(0), Judge(0)
    again = run(method, tmp_path, model=model, reward=reward)
    assert (model.left, reward.left) == (0, 0)
    assert differing(again, first) == []
    assert again.seconds == first.seconds


@pytest.mark.parametrize("method", METHODS)
def test_save_and_load(method, tmp_path):
    population = run(method)
    assert population.save(tmp_path) == tmp_path
    found = viot.Population.load(tmp_path)
    assert differing(found, population) == []
    assert found.config == json.loads(json.dumps(population.config))
    assert found.exact == population.exact
    assert found.seconds == population.seconds
    assert isinstance(found, viot.Population)
    assert found.best(1).rewards.tolist() == population.best(1).rewards.tolist()
    # Saving what was loaded writes the same.
    found.save(tmp_path / "again")
    for name in ("run.json", "population.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()
    assert not list(tmp_path.rglob("*.part"))


def test_save_and_load_of_text_parts_and_dead_groups(tmp_path):
    def score(samples, group):
        b = torch.tensor([float(s.count("b")) for s in samples])
        return viot.Scores(torch.where(group == 1, -torch.inf, b), {"b": b, "odd.name": -b})

    with quiet():
        population = viot.sample(Tokens(), score, "vasr", particles=6, steps=4, groups=3, progress=False)
        population.save(tmp_path)
    found = viot.Population.load(tmp_path)
    assert found.dead_groups == [1]
    assert found.samples == population.samples
    assert set(found.parts) == {"b", "odd.name"}
    assert differing(found, population) == []
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["rewards"][1] == [None] * 6  # JSON has no −inf
    assert record["nfe"] == population.nfe
    # Control: the comparison notices.
    assert differing(replace(found, rewards=found.rewards + 1e-12), population) == ["rewards"]


# -- states on disk -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_state_round_trip(method, tmp_path):
    with quiet():
        prepared = viot.prepare(
            Line(), Differentiable(), method, **{k: v for k, v in settings(method, groups=2).items() if k != "progress"}
        )
        for state in prepared.states():
            if state.done:
                break
            state.save(tmp_path / "s", note=[1, "two"])
            found, notes = State.load(tmp_path / "s")
            assert notes == {"note": [1, "two"]}
            assert (found.step, found.cost, found.done) == (state.step, state.cost, False)
            for room in ("extra", "group"):
                ours, theirs = getattr(found, room), getattr(state, room)
                assert ours.keys() == theirs.keys()
                assert all(same(ours[k], theirs[k]) for k in ours)
            assert all(same(getattr(found, k), getattr(state, k)) for k in ("x", "log_w", "rewards", "roots"))
            assert [s.step for s in found.history] == [s.step for s in state.history]
            for a, b in zip(found.history, state.history, strict=True):
                assert same(a.ancestors, b.ancestors)
                assert a.stats.keys() == b.stats.keys()
                assert all(same(a.stats[k], b.stats[k]) for k in a.stats)


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(nan=-7.0), b.nan_to_num(nan=-7.0))


def test_a_prediction_travels_with_its_state(tmp_path):
    prepared = viot.prepare(Line(), Differentiable(), "vasr", particles=4, steps=4)
    state = prepared.method.look(prepared.problem, prepared.problem.start())
    prediction = replace(state.prediction, eps=state.x * 2, extra={"depth": state.x[..., 0]})
    state.but(prediction=prediction).save(tmp_path / "s")
    found, _ = State.load(tmp_path / "s")
    assert torch.equal(found.prediction.x0, prediction.x0)
    assert torch.equal(found.prediction.eps, prediction.eps)
    assert found.prediction.logits is None
    assert torch.equal(found.prediction.extra["depth"], prediction.extra["depth"])


def test_a_done_state_is_final(tmp_path):
    with quiet():
        prepared = viot.prepare(Line(), Differentiable(), "vasr-max", particles=4, steps=4)
        *_, last = prepared.states()
        with pytest.raises(ValueError, match="is done"):
            last.save(tmp_path / "s")
        assert not (tmp_path / "s").exists()
        (again,) = prepared.states(last)
    assert differing(prepared.population(again), prepared.population(last)) == []


def test_one_can_stop_look_and_go_on():
    whole = run("vasr", model=Line())
    arguments = {k: v for k, v in settings("vasr", groups=2).items() if k != "progress"}
    state = None
    for _ in range(6):
        fresh = viot.prepare(Line(), Judge(), "vasr", **arguments)
        state = next(iter(fresh.states(state)))
    *_, last = viot.prepare(Line(), Judge(), "vasr", **arguments).states(state)
    assert differing(fresh.population(last), whole) == []


# -- nothing half-written -------------------------------------------------------------------------------------------------------------


def test_a_failing_write_leaves_the_previous_file(tmp_path, monkeypatch):
    prepared = viot.prepare(Line(), Differentiable(), "vasr", particles=4, steps=4)
    states = prepared.states()
    path = tmp_path / "state.safetensors"
    next(states).save(path)
    before = path.read_bytes()

    def full(tensors, file, metadata=None):
        Path(file).write_bytes(b"half a fi")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(particles, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        next(states).save(path)
    assert path.read_bytes() == before
    monkeypatch.undo()
    # What is left of the failed attempt is in nobody's way.
    next(states).save(path)
    assert State.load(path)[0].step == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state.safetensors"]


def test_a_half_written_part_is_ignored(tmp_path):
    assert interrupted("vasr", tmp_path, model=Interrupted(4))
    (tmp_path / "state.safetensors.part").write_bytes(b"half a fi")
    (tmp_path / "run.json.part").write_text('{"half')
    assert differing(run("vasr", tmp_path), run("vasr")) == []
    assert not list(tmp_path.glob("*.part"))


def test_a_run_that_fails_while_it_saves_its_answer_goes_on(tmp_path, monkeypatch):
    """Killed between population.safetensors and run.json: the state is still there, and the answer comes out the same."""
    from viot import population

    def broken(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(population, "write_text", broken)
    with pytest.raises(OSError, match="No space left"):
        run("vasr", tmp_path)
    monkeypatch.undo()
    assert (tmp_path / "state.safetensors").exists()
    assert not (tmp_path / "run.json").exists()
    model = Interrupted(0)  # everything but the last scoring was done
    assert differing(run("vasr", tmp_path, model=model), run("vasr")) == []
    assert not (tmp_path / "state.safetensors").exists()
    assert differing(viot.Population.load(tmp_path), run("vasr")) == []


def test_every_method_has_a_name_of_its_own():
    assert all(make(name).name == name for name in METHODS)


def test_a_wish_for_lam_is_solved_once(tmp_path):
    """The pilot's λ is kept with the state: neither a resumed nor a finished run spends another one."""
    from exact import MODEL, REWARD

    calls = []

    def counted(x):
        calls.append(len(x))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return REWARD(x)

    task = {"particles": 16, "steps": 10, "lam": viot.kl(0.5), "checkpoint": tmp_path, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        viot.sample(MODEL, counted, "vasr", **task)
    resumed = viot.sample(MODEL, counted, "vasr", **task)
    assert calls.count(16) == len(calls) == 1 + 8 + 1 + 1, "one pilot, eight selections (one of them twice), one end"
    again = viot.sample(MODEL, counted, "vasr", **task)
    assert len(calls) == 11
    assert again.config["lam"] == resumed.config["lam"] != 1.0
    assert resumed.config["lam_pilot"]["wish"] == "kl(0.5)"


def test_another_reward_of_the_same_name_is_another_run(tmp_path):
    from exact import MODEL

    task = {"particles": 8, "steps": 6, "checkpoint": tmp_path, "progress": False}
    viot.sample(MODEL, lambda x: x[:, 0], "base", **task)
    with pytest.raises(ValueError, match="own"):
        viot.sample(MODEL, lambda x: -x[:, 0], "base", **task)
    for c in (1.0, 2.0):
        with pytest.raises(ValueError, match="own"):
            viot.sample(MODEL, lambda x, c=c: c * x[:, 0], "base", **task)
