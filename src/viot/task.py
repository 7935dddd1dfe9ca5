"""What a command line asks for: how methods, settings, strengths and groups are written there, and the task they add up to."""

from __future__ import annotations

import argparse
import ast
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .calibrate import Strength, ess, kl
from .methods import make
from .models import load, models

if TYPE_CHECKING:
    from .sample import Run


# -- spelling -------------------------------------------------------------------------------------------------------------------------


def value_of(text: str) -> Any:
    """A Python literal (3, 0.5, None, True, [1, 2], {"name": "rollout"}), or else the text itself."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text.strip()


def setting(text: str) -> tuple[str, Any]:
    """`key=value`"""
    key, equals, value = text.partition("=")
    if not equals or not key.strip().isidentifier():
        raise ValueError(f"a setting is written key=value, for example potential=max, not {text!r}")
    return key.strip(), value_of(value)


def split_list(text: str) -> list[str]:
    """The pieces of `a,b(c=1,d=2),e` at the commas outside of brackets and quotes."""
    pieces, depth, quote, start = [], 0, "", 0
    for i, c in enumerate(text):
        if quote:
            quote = "" if c == quote else quote
        elif c in "'\"":
            quote = c
        elif c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif c == "," and depth == 0:
            pieces.append(text[start:i])
            start = i + 1
    pieces = [piece.strip() for piece in [*pieces, text[start:]]]
    if not all(pieces):
        raise ValueError(f"{text!r} holds an empty entry; write names between single commas, for example fvd,vasr")
    return pieces


def method_spec(text: str) -> tuple[str, dict[str, Any]]:
    """`fkd` or `fkd(potential=max, ess_threshold=None)`: the name and the settings."""
    name, bracket, rest = text.strip().partition("(")
    if not bracket:
        return name, {}
    if not rest.endswith(")"):
        raise ValueError(f"{text!r} lacks a closing bracket; write a method with settings as fkd(potential=max)")
    inside = rest[:-1].strip()
    return name.strip(), dict(setting(piece) for piece in split_list(inside)) if inside else {}


def number_or_wish(text: str) -> float | Strength:
    """λ: a number, `ess:0.3` or `kl:2`."""
    kind, colon, value = text.partition(":")
    try:
        if not colon:
            return float(text)
        if kind in ("ess", "kl"):
            number = float(value)
            return ess(number) if kind == "ess" else kl(number)
    except ValueError as error:
        if "could not convert" not in str(error):
            raise
    raise ValueError(f"--lam takes a number, ess:SHARE or kl:NATS (for example 2.5, ess:0.3 or kl:2), not {text!r}")


def which_groups(text: str) -> int | tuple[int, ...]:
    """A count, `4`, or a range of indices, `4:8` (4, 5, 6 and 7)."""
    first, colon, last = text.partition(":")
    try:
        if not colon:
            return int(text)
        indices = tuple(range(int(first or 0), int(last)))
    except ValueError as error:
        raise ValueError(f"--groups takes a count or a range such as 4:8, not {text!r}") from error
    if not indices:
        raise ValueError(f"--groups {text} holds no group; 4:8 means the groups 4, 5, 6 and 7")
    return indices


# -- what is to be run ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """Everything that decides a run, as the command line or a record says it."""

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
    revision: str | None = None

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
        except (KeyError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{file} is not the record of a run ({type(error).__name__}: {error})") from error
        return cls(
            model=model_name(config), reward=config["reward"], method=method, settings=settings, particles=budget // steps,
            groups=tuple(config["groups"]), steps=steps, lam=config["lam"], seed=config["seed"], budget=budget,
            batch_size=config.get("batch_size"), revision=config["model"].get("config", {}).get("revision"),
        )  # fmt: skip

    def changed(self, args: argparse.Namespace) -> Task:
        """With what the command line says explicitly."""
        given = {
            k: v
            for k in ("model", "reward", "particles", "steps", "seed", "budget", "batch_size")
            if (v := getattr(args, k, None)) is not None
        }
        if getattr(args, "groups", None) is not None:
            given["groups"] = which_groups(args.groups)
        if args.lam is not None:
            given["lam"] = number_or_wish(args.lam)
        if "model" in given and given["model"] != self.model:
            given["revision"] = None
        task = self
        if getattr(args, "method", None) is not None:
            name, settings = method_spec(args.method)
            # The settings of the record go with its method.
            task = replace(task, method=name, settings={**(task.settings if name == task.method else {}), **settings})
        settings = dict(setting(text) for text in getattr(args, "set", None) or [])
        if {"particles", "steps"} & set(given) and "budget" not in given:
            given["budget"] = None
        return replace(task, **given, settings={**task.settings, **settings})

    @property
    def slug(self) -> str:
        """A folder's name for this task, without what file systems mind."""
        return safe(f"{Path(self.model).name}-{self.reward}-{self.method}")

    def load(self, device: str | None) -> Any:
        """The model."""
        import inspect

        settings = {k: v for k, v in (("device", device), ("revision", self.revision)) if v is not None}
        if device and self.model in models and not inspect.signature(models[self.model].make).parameters:
            if device != "cpu":
                raise ValueError(f"the model {self.model} runs on the CPU only; leave --device {device} out")
            settings = {}
        return load(self.model, **settings)

    def prepare(self, model: Any, **changes: Any) -> Run:
        """The run, checked, with λ solved where it is a wish."""
        from .sample import prepare

        method = make(self.method, **self.settings)
        names = ("particles", "groups", "steps", "lam", "seed", "budget", "batch_size")
        run = prepare(model, self.reward, method, **{**{k: getattr(self, k) for k in names}, **changes})
        # The record says how to find the model again, though an object was handed over here.
        run.config["model"]["name"] = self.model
        run.config.pop("own", None)
        return run


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
