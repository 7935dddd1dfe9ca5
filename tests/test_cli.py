"""The command line: exit codes, messages, files, and runs that can be repeated."""

import json

import pytest
import torch
from helpers import viot_

import viot
from viot.calibrate import Strength
from viot.models.gaussian import GaussianMixture
from viot.registry import Entry
from viot.report.compare import judge_of
from viot.rewards import rewards
from viot.spelling import method_spec, number_or_wish, setting, split_list, which_groups

POINTS = ["--model", "gaussian", "--reward", "brightness", "--particles", "16", "--steps", "10"]


@pytest.fixture
def calls(monkeypatch):
    """Counts the network calls."""
    made, predict = [], GaussianMixture.predict
    monkeypatch.setattr(GaussianMixture, "predict", lambda self, *args: (made.append(1), predict(self, *args))[1])
    return made


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def record(folder):
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


# -- viot sample ----------------------------------------------------------------------------------------------------------------------


def test_sample_writes_everything_and_says_so(tmp_path, capsys):
    assert viot_("sample", *POINTS, "--out", tmp_path / "a", "--groups", 2, "--method", "fvd", "--set", "cap=0.4") == 0
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"run.json", "population.safetensors", "report.html"}
    out = capsys.readouterr().out
    assert "2 groups of 16 particles drawn by fvd in 10 steps" in out
    for word in (
        "mean reward",
        "best reward",
        "ESS",
        "log Z",
        "320 network rows",
        "report.html",
        f"--config {tmp_path / 'a' / 'run.json'}",
    ):
        assert word in out
    assert "\033[" not in out
    config = record(tmp_path / "a")["config"]
    assert config["method"]["cap"] == 0.4
    assert config["model"]["name"] == "gaussian"


def test_default_folder_is_a_fresh_one(tmp_path):
    for name in ("gaussian-brightness-vasr", "gaussian-brightness-vasr-2"):
        assert viot_("sample", *POINTS) == 0
        assert (tmp_path / "runs" / name / "report.html").exists()


@pytest.mark.parametrize(
    "method", ["vasr", "fkd(potential=max, ess_threshold=None)", "fvd(alpha_star=0.2)", "vasr(value={'name':'rollout','n':2})"]
)
def test_a_recorded_run_repeats_exactly(tmp_path, method):
    extra = ["--groups", "3:5", "--lam", "ess:0.4", "--seed", "7", "--budget", "250", "--batch-size", "3"]
    assert viot_("sample", *POINTS, *extra, "--method", method, "--out", tmp_path / "a") == 0
    assert viot_("sample", "--config", tmp_path / "a", "--out", tmp_path / "b") == 0
    a, b = record(tmp_path / "a"), record(tmp_path / "b")
    assert a["rewards"] == b["rewards"]
    assert {**a["config"], "lam_pilot": None} == {**b["config"], "lam_pilot": None}
    assert torch.equal(viot.Population.load(tmp_path / "a").samples, viot.Population.load(tmp_path / "b").samples)


def test_flags_override_the_record(tmp_path):
    assert viot_("sample", *POINTS, "--method", "fkd(potential=max)", "--out", tmp_path / "a") == 0
    again = ["sample", "--config", tmp_path / "a" / "run.json"]
    assert viot_(*again, "--particles", 8, "--seed", 1, "--set", "eta=0.5", "--out", tmp_path / "b") == 0
    config = record(tmp_path / "b")["config"]
    assert (config["particles"], config["seed"], config["budget"]) == (8, 1, 80)
    assert (config["method"]["potential"], config["method"]["eta"]) == ("max", 0.5)
    assert viot_(*again, "--steps", 5, "--method", "vasr", "--out", tmp_path / "c") == 0
    config = record(tmp_path / "c")["config"]
    assert (config["particles"], config["budget"], config["method"]["name"]) == (16, 80, "vasr")


def test_the_same_as_from_python(tmp_path):
    assert viot_("sample", *POINTS, "--lam", 2, "--out", tmp_path / "a") == 0
    population = viot.sample("gaussian", "brightness", particles=16, steps=10, lam=2.0, progress=False)
    assert record(tmp_path / "a")["rewards"] == population.record()["rewards"]
    assert record(tmp_path / "a")["config"] == json.loads(json.dumps(population.config))


def test_dry_run_calls_nothing_and_writes_nothing(tmp_path, capsys, calls):
    assert viot_("sample", *POINTS, "--lam", "kl:0.5", "--groups", 3, "--dry-run", "--out", tmp_path / "a") == 0
    out = capsys.readouterr().out
    assert "Nothing was run" in out
    assert "network rows   480" in out
    assert "reward rows    432" in out
    assert "kl(0.5), to be solved" in out
    assert not calls
    assert not list(tmp_path.iterdir())
    assert viot_("sample", *POINTS, "--groups", 3, "--out", tmp_path / "a") == 0
    assert record(tmp_path / "a")["nfe"] == 480
    assert record(tmp_path / "a")["reward_rows"] == 432


def test_unwritable_folder_is_found_before_the_first_call(tmp_path, capsys, calls):
    (tmp_path / "file").write_text("")
    for flag in (["--out", tmp_path / "file" / "a"], ["--out", tmp_path / "a", "--checkpoint", tmp_path / "file"]):
        assert viot_("sample", *POINTS, "--lam", "ess:0.3", *flag) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: cannot write into {tmp_path / 'file'}")
        assert "Traceback" not in err
    assert not calls


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "vasrr"], "unknown method 'vasrr'. Did you mean 'vasr'?"),
        (["--set", "eeta=1"], "Did you mean 'eta'?"),
        (["--set", "eta"], "a setting is written key=value"),
        (["--method", "fkd(potential=maximum)"], "potential must be 'diff', 'max', 'sum' or 'rt', not 'maximum'"),
        (["--method", "fkd(potential=max"], "lacks a closing bracket"),
        (["--reward", "brightnes"], "Did you mean 'brightness'?"),
        (["--model", "gausian"], "Did you mean 'gaussian'?"),
        (["--lam", "strong"], "--lam takes a number, ess:SHARE or kl:NATS"),
        (["--lam", "ess:3"], "ess takes a share of the particles in (0, 1), not 3"),
        (["--groups", "4:4"], "holds no group"),
        (["--groups", "four"], "--groups takes a count or a range"),
        (["--budget", "3"], "is too small"),
        (["--config", "nowhere.json"], "there is no nowhere.json"),
        (["--device", "cuda"], "runs on the CPU only"),
    ],
)
def test_mistakes_are_one_sentence(flags, message, capsys, calls):
    # A reward is told once.
    points = POINTS[:2] + POINTS[4:] if flags[0] == "--reward" else POINTS
    assert viot_("sample", *points, *flags, "--out", "a") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not calls


def test_traceback_on_request():
    with pytest.raises(ValueError, match="unknown method"):
        viot_("sample", *POINTS, "--method", "vasrr", "--traceback")


def test_usage_errors_and_help_return_codes(capsys):
    assert viot_("sample", "--partikles", "3") == 2
    assert viot_() == 2
    assert viot_("--version") == 0
    assert viot.__version__ in capsys.readouterr().out


def test_records_that_cannot_be_repeated(tmp_path, capsys):
    viot.sample("gaussian", viot.rewards.Quadratic(), particles=8, steps=5, progress=False).save(tmp_path / "own")
    (tmp_path / "other.json").write_text('{"a": 1}')
    (tmp_path / "broken.json").write_text("{")
    assert viot_("sample", "--config", tmp_path / "own") == 2
    assert "its reward (quadratic) was an object, not a name" in capsys.readouterr().err
    for name in ("other.json", "broken.json"):
        assert viot_("sample", "--config", tmp_path / name) == 2
        assert "error: " in capsys.readouterr().err


def test_interrupted_runs_go_on_from_their_checkpoint(tmp_path, capsys, monkeypatch):
    command = ["sample", *POINTS, "--out", tmp_path / "a", "--checkpoint", tmp_path / "kept"]
    predict, seen = GaussianMixture.predict, []

    def stop(self, *args):
        seen.append(1)
        if len(seen) == 6:
            raise KeyboardInterrupt
        return predict(self, *args)

    monkeypatch.setattr(GaussianMixture, "predict", stop)
    assert viot_(*command) == 130
    assert f"The same command goes on from {tmp_path / 'kept'}" in capsys.readouterr().err
    assert not (tmp_path / "a" / "run.json").exists()
    assert viot_(*command) == 0
    assert len(seen) == 6 + 5
    unbroken = viot.sample("gaussian", "brightness", particles=16, steps=10, progress=False)
    assert record(tmp_path / "a")["rewards"] == unbroken.record()["rewards"]
    seen[:] = [1] * 5
    assert viot_("sample", *POINTS, "--seed", 1) == 130
    assert "With --checkpoint FOLDER it could be resumed" in capsys.readouterr().err


def test_steering_warnings_are_notes_told_once(tmp_path, capsys):
    assert viot_("sample", *POINTS, "--method", "importance", "--lam", 60, "--out", tmp_path / "a") == 0
    captured = capsys.readouterr()
    assert captured.err.count("note: fewer than 2 effective particles") == 1
    assert "Warning" not in captured.err
    assert "✗ Doubt it" in captured.out
    assert "would keep about 30 %" not in captured.out


def test_a_population_that_dies_exits_with_its_sentence(capsys, monkeypatch):
    monkeypatch.setitem(rewards.entries, "never", Entry(lambda: lambda samples: torch.full((len(samples),), -torch.inf), "dead"))
    assert viot_("sample", "--model", "gaussian", "--reward", "never", "--particles", 4, "--steps", 5) == 2
    assert "every particle of every group is dead" in capsys.readouterr().err


def test_an_earlier_run_is_replaced_with_a_note(tmp_path, capsys):
    for _ in range(2):
        assert viot_("sample", *POINTS, "--out", tmp_path / "a") == 0
    assert "holds an earlier run; it is replaced" in capsys.readouterr().err


# -- viot compare ---------------------------------------------------------------------------------------------------------------------


def test_compare_is_one_table_of_equal_budgets(tmp_path, capsys):
    methods = "base,fvd,fkd(potential=max, ess_threshold=None),vasr-max"
    flags = [
        "--model",
        "gaussian",
        "--reward",
        "brightness",
        "--budget",
        200,
        "--steps",
        10,
        "--groups",
        2,
        "--lam",
        "ess:0.5",
        "--seed",
        3,
    ]
    assert viot_("compare", "--methods", methods, *flags, "--out", tmp_path / "c") == 0
    out = capsys.readouterr().out
    saved = json.loads((tmp_path / "c" / "compare.json").read_text(encoding="utf-8"))
    names = split_list(methods)
    assert [r["method"] for r in saved["rows"]] == names
    assert all(r["nfe"] == 400 for r in saved["rows"])
    assert all(name in out for name in names)
    assert [r["ess"] is None for r in saved["rows"]] == [True, False, False, True]
    folders = {"base", "fvd", "fkd-potential-max--ess_threshold-None", "vasr-max"}
    assert {p.name for p in (tmp_path / "c").iterdir()} == {"compare.json", "compare.html", *folders}
    # One λ for all of them.
    assert {record(tmp_path / "c" / f)["config"]["lam"] for f in folders} == {saved["task"]["lam"]}
    page = (tmp_path / "c" / "compare.html").read_text(encoding="utf-8")
    assert page.count('<circle class="dot"') == sum(2 * r["particles"] for r in saved["rows"])
    assert all(f'href="{f}/report.html"' in page for f in folders)
    assert "http" not in page


def test_compare_finds_mistakes_in_any_method_first(capsys, calls):
    assert viot_("compare", "--methods", "vasr,fkd(potental=max)", *POINTS, "--lam", "ess:0.5") == 2
    assert "Did you mean 'potential'?" in capsys.readouterr().err
    assert not calls


def test_compare_goes_on_when_one_method_dies(tmp_path, capsys, monkeypatch):
    def die(self, problem, state=None):
        raise viot.DeadPopulation("every particle of every group is dead <at step 3>")
        yield

    monkeypatch.setattr(viot.methods.VASR, "run", die)
    assert viot_("compare", "--methods", "importance,vasr", *POINTS, "--out", tmp_path / "c") == 0
    captured = capsys.readouterr()
    assert "note: vasr: every particle" in captured.err
    assert "died" in captured.out
    saved = json.loads((tmp_path / "c" / "compare.json").read_text(encoding="utf-8"))
    assert [r["method"] for r in saved["rows"]] == ["importance"]
    assert list(saved["died"]) == ["vasr"]
    assert "&lt;at step 3&gt;" in (tmp_path / "c" / "compare.html").read_text(encoding="utf-8")
    assert viot_("compare", "--methods", "vasr", *POINTS, "--out", tmp_path / "d") == 2


def test_the_judge_is_of_rewards_that_ask_for_classes():
    assert judge_of("brightness") is None
    assert judge_of("digit:7") is not None


# -- viot list, viot cite -------------------------------------------------------------------------------------------------------------


def test_list_shows_every_registered_name(capsys):
    assert viot_("list") == 0
    out = capsys.readouterr().out
    for registry in (viot.models.models, viot.methods.methods):
        assert all(f"\n{name} " in out for name in registry)
    assert "digit:7" in out
    assert viot_("list", "resampling") == 0
    out = capsys.readouterr().out
    assert "systematic" in out
    assert "gaussian" not in out
    assert viot_("list", "nonsense") == 2


def test_cite(capsys):
    for name, eprint in (("fvd", "2604.06779"), ("vasr-max", "2604.06779"), ("fkd(potential=max)", "2501.06848")):
        assert viot_("cite", name) == 0
        out = capsys.readouterr().out
        assert f"eprint        = {{{eprint}}}" in out
        assert out.count("{") == out.count("}")
    assert viot_("cite", "base") == 2
    assert "baseline without a paper" in capsys.readouterr().err
    assert viot_("cite", "vassr") == 2
    assert "Did you mean 'vasr'?" in capsys.readouterr().err


# -- spelling -------------------------------------------------------------------------------------------------------------------------


def test_methods_are_spelled_with_their_settings():
    assert split_list("fvd, vasr,fkd(potential=max,schedule=[0.2, 0.4]),best-of-n(n=4)") == [
        "fvd", "vasr", "fkd(potential=max,schedule=[0.2, 0.4])", "best-of-n(n=4)",
    ]  # fmt: skip
    assert method_spec("fkd(potential=max, schedule=[0.2, 0.4], ess_threshold=None)") == (
        "fkd", {"potential": "max", "schedule": [0.2, 0.4], "ess_threshold": None},
    )  # fmt: skip
    assert method_spec("vasr") == method_spec("vasr()") == ("vasr", {})
    assert method_spec("x(a='b,(c')") == ("x", {"a": "b,(c"})
    assert setting("value={'name': 'rollout', 'n': 4}") == ("value", {"name": "rollout", "n": 4})
    for wrong in ("fvd,,vasr", "a,"):
        with pytest.raises(ValueError, match="empty entry"):
            split_list(wrong)


def test_strengths_and_groups():
    assert number_or_wish("2.5") == 2.5
    assert number_or_wish("ess:0.3") == Strength("ess", 0.3)
    assert number_or_wish("kl:2") == Strength("kl", 2.0)
    assert which_groups("4") == 4
    assert which_groups("4:8") == (4, 5, 6, 7)


def test_a_flag_that_is_given_twice_is_said(capsys):
    assert viot_("sample", *POINTS, "--reward", "jpeg") == 2
    assert "--reward: given twice, brightness and jpeg; several rewards are one in Python" in capsys.readouterr().err
