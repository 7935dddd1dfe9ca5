"""The task that a command line, a preset or a record adds up to: everything that decides a run."""

from __future__ import annotations

import argparse
import inspect
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import prompts
from .bench import tasks
from .calibrate import Strength
from .methods import make
from .models import load, models
from .spelling import method_spec, number_or_wish, setting, which_groups

if TYPE_CHECKING:
    from .sample import Run

#: What `viot.load` is told beside the name and has a flag of its own here; the rest is written --call key=value.
FLAGS = {"prompt": "--prompt", "negative_prompt": "--negative-prompt", "dtype": "--dtype", "device": "--device"}
#: What a pipeline's own call asks for and viot says in other words.
OURS = {"num_inference_steps": "--steps", "num_images_per_prompt": "--particles", "generator": "--seed"}


@dataclass(frozen=True)
class Task:
    """Everything that decides a run, as the command line, a preset or a record says it.

    `loading` is what `viot.load` is told beside the model's name: prompt (a list), the pipeline's other keywords, dtype, revision.
    `unsteered` draws of the plain model are made per group to look at beside the answer; None = a few where the model follows prompts.
    """

    model: str = "digits"
    reward: str = "digit:7"
    method: str = "vasr"
    settings: dict[str, Any] = field(default_factory=dict)
    particles: int = 64
    groups: int | tuple[int, ...] | None = None
    steps: int = 50
    lam: float | Strength = 1.0
    seed: int = 0
    budget: int | None = None
    batch_size: int | None = None
    loading: dict[str, Any] = field(default_factory=dict)
    unsteered: int | None = None
    preset: str | None = None

    # -- where it comes from ------------------------------------------------------------------------------------------------------

    @classmethod
    def asked(cls, args: argparse.Namespace) -> Task:
        """What the command line asks for: a record, a preset or the defaults, and the flags over it."""
        method, config = getattr(args, "method", None), getattr(args, "config", None)
        if config and args.task:
            raise ValueError("--config and --task both say what to run; give one of them")
        if config:
            task = cls.recorded(config)
        elif args.task:
            known = tasks[args.task].make()
            task = cls(model=known.model, reward=known.reward, particles=known.particles, steps=known.steps, preset=args.task)
            task = task.by(method or cls.method, args)
            if known.prompts is not None and not (args.prompt or args.prompts):
                task = replace(task, loading={"prompt": known.prompts()})
        else:
            task = cls()
        return task.changed(args)

    def by(self, text: str, args: argparse.Namespace) -> Task:
        """The same task by this method: with what its preset, if it has one, says of it."""
        name, settings = method_spec(text)
        if self.preset is None:
            return replace(self, method=name, settings=settings)
        lam, published = tasks[self.preset].make().published(name)
        return replace(self, method=name, settings={**published, **settings}, lam=lam if args.lam is None else self.lam)

    @classmethod
    def recorded(cls, path: str) -> Task:
        """The task of a run.json, or of a folder that holds one."""
        from .report.words import model_name, obstacle

        file = Path(path) / "run.json" if Path(path).is_dir() else Path(path)
        if not file.exists():
            raise FileNotFoundError(f"there is no {file}; --config takes the run.json of an earlier run, or its folder")
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            config = record.get("config", record)
            if (why := obstacle(config)) is not None:
                raise ValueError(f"{file}: {why}")
            settings = dict(config["method"])
            method, steps, budget = settings.pop("name"), config["steps"], config["budget"]
            told = config["model"].get("load")
            loading = told if told is not None else {"revision": config["model"].get("config", {}).get("revision")}
            beside = record.get("unsteered", {}).get("config", {}).get("particles", 0)
        except (KeyError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{file} is not the record of a run ({type(error).__name__}: {error})") from error
        return cls(
            model=model_name(config) if told is None else config["model"]["name"], reward=config["reward"], method=method,
            settings=settings, particles=budget // steps, groups=tuple(config["groups"]), steps=steps, lam=config["lam"],
            seed=config["seed"], budget=budget, batch_size=config.get("batch_size"),
            loading={k: v for k, v in loading.items() if v is not None}, unsteered=beside, preset=config.get("task"),
        )  # fmt: skip

    def changed(self, args: argparse.Namespace) -> Task:
        """With what the command line says explicitly."""
        plain = ("model", "reward", "particles", "steps", "seed", "budget", "batch_size", "unsteered")
        given = {k: v for k in plain if (v := getattr(args, k, None)) is not None}
        if args.groups is not None:
            given["groups"] = which_groups(args.groups)
        if args.lam is not None:
            given["lam"] = number_or_wish(args.lam)
        loading = dict(self.loading)
        if given.get("model", self.model) != self.model:
            # Which of its versions was meant is no longer.
            loading = {k: v for k, v in loading.items() if k not in ("revision", "variant")}
        told = _loading(args)
        if told.get("prompt", self.prompts) != self.prompts and "groups" not in given:
            # Other prompts, other groups: those of the record went with its own.
            given["groups"] = None
        task = self
        if getattr(args, "method", None) is not None:
            name, settings = method_spec(args.method)
            # The settings of the record go with its method.
            task = replace(task, method=name, settings={**(task.settings if name == task.method else {}), **settings})
        settings = dict(setting(text) for text in getattr(args, "set", None) or [])
        if {"particles", "steps"} & set(given) and "budget" not in given:
            given["budget"] = None
        return replace(task, **given, settings={**task.settings, **settings}, loading={**loading, **told})

    # -- what follows from it -----------------------------------------------------------------------------------------------------

    @property
    def prompts(self) -> list[str]:
        return self.loading.get("prompt") or []

    @property
    def slug(self) -> str:
        """A folder's name for this task, without what file systems mind."""
        return safe(f"{self.preset}-{self.method}" if self.preset else f"{Path(self.model).name}-{self.reward}-{self.method}")

    def load(self, device: str | None) -> Any:
        """The model."""
        settings = {**self.loading, **({} if device is None else {"device": device})}
        if self.model in models and not inspect.signature(models[self.model].make).parameters:
            if settings.pop("device", "cpu") != "cpu":
                raise ValueError(f"the model {self.model} runs on the CPU only; leave --device {device} out")
            if settings:
                raise self._refusal(next(iter(settings)))
        if device is not None:
            try:
                torch.empty(0, device=device)
            except (AssertionError, RuntimeError) as error:
                raise ValueError(f"there is no device {device!r} here: {str(error).splitlines()[0]}") from error
        try:
            model = load(self.model, **settings)
        except TypeError as error:
            unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if unknown is None or unknown[1] not in settings:
                raise
            raise self._refusal(unknown[1]) from error
        if self.prompts and not getattr(model, "prompts", None):
            raise self._refusal("prompt")
        return model

    def _refusal(self, key: str) -> ValueError:
        """The error for something that this model is told and cannot be told."""
        if key == "prompt":
            return ValueError(
                f"the model {self.model} follows no prompts: leave them out, or choose one that does, such as --model captions or "
                f"--model stable-diffusion-v1-5/stable-diffusion-v1-5"
            )
        return ValueError(f"the model {self.model} takes no {key}; leave {FLAGS.get(key, f'--call {key}=…')} out")

    def prepare(self, model: Any, scorer: Callable | None = None, **changes: Any) -> Run:
        """The run, checked, with λ solved where it is a wish. `scorer` is the reward itself, where it has been made already."""
        from .sample import prepare

        method = make(self.method, **self.settings)
        names = ("particles", "groups", "steps", "lam", "seed", "budget", "batch_size")
        run = prepare(model, self.reward if scorer is None else scorer, method, **{**{k: getattr(self, k) for k in names}, **changes})
        # The record says how to find the model again, though an object was handed over here.
        run.config["reward"] = self.reward
        run.config["model"]["name"] = self.model
        run.config.pop("own", None)
        if self.loading:
            run.config["model"]["load"] = dict(self.loading)
        if self.preset:
            run.config["task"] = self.preset
        return run

    def draws(self, model: Any, particles: int) -> int:
        """How many draws of the plain model per group are wanted beside a run of so many particles."""
        few = max(1, min(4, particles // 8)) if getattr(model, "prompts", None) else 0
        draws = few if self.unsteered is None else self.unsteered
        if draws < 0:
            raise ValueError(f"--unsteered takes a number of draws per group, or 0 for none, not {draws}")
        return draws

    def beside(self, model: Any, run: Run) -> Run | None:
        """A small run of the plain model with the same seed, to look at beside the steered one; None where none is wanted."""
        draws = self.draws(model, run.problem.K)
        if not draws or self.method == "base":
            return None
        # The same chain without steering: its noise is that of the method's undisturbed particles.
        noise = [v for name in ("eta", "eta_base") if (v := getattr(run.method, name, None)) is not None]
        plain = replace(self, method="base", settings={"eta": noise[0]} if noise else {}, particles=draws, budget=None)
        return plain.prepare(model, lam=run.problem.lam)


def _loading(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags say to `viot.load`."""
    told: dict[str, Any] = {}
    for text in args.call or []:
        key, value = setting(text, example="guidance_scale=5")
        if flag := {**FLAGS, **OURS}.get(key):
            raise ValueError(f"--call {key}=… is written {flag} here")
        told[key] = value
    asked = [*(prompts.read(args.prompts) if args.prompts else []), *(args.prompt or [])]
    if any(not prompt.strip() for prompt in args.prompt or []):
        raise ValueError("--prompt takes words; for an unconditional draw leave it out")
    if asked:
        told["prompt"] = asked
    if args.negative_prompt is not None:
        told["negative_prompt"] = args.negative_prompt
    if args.dtype is not None:
        told["dtype"] = args.dtype
    return told


# -- folders --------------------------------------------------------------------------------------------------------------------------


def writable(folder: Path) -> Path:
    """Make the folder and try to write into it: better now than after an hour of network calls."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / ".viot-write-test"
        trial.write_bytes(b"")
        trial.unlink()
    except OSError as error:
        raise PermissionError(f"cannot write into {folder} ({error.strerror or error}); give another folder to --out") from error
    return folder


def fresh(folder: Path) -> Path:
    """The folder, or with a number behind it if it holds something already."""
    tries, n = folder, 1
    while tries.exists():
        n += 1
        tries = folder.with_name(f"{folder.name}-{n}")
    return tries


def safe(text: str) -> str:
    """A name without what file systems mind."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in text).strip("-")
