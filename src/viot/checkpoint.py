"""Runs that can be interrupted: the newest state on disk, and the answer once there is one."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .calibrate import Strength
from .particles import State, notes_of
from .population import Population


class Checkpoint:
    """A folder that holds the newest state of a run, or its answer once there is one."""

    #: What may differ between the interrupted run and the one that goes on: it changes no draw.
    FREE = ("batch_size", "versions")

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.config = folder, config
        self.state = folder / "state.safetensors"
        self.waiting: State | None = None
        self.written, self.took = -math.inf, 0.0

    def _check(self, found: dict[str, Any]) -> None:
        ours = json.loads(json.dumps(self.config))
        differ = list(differences({k: v for k, v in ours.items() if k not in self.FREE}, found))
        if differ:
            more = f", and {len(differ) - 4} more" if len(differ) > 4 else ""
            raise ValueError(
                f"the checkpoint in {self.folder} belongs to another run ({'; '.join(differ[:4])}{more}). Use another folder, or remove this one."
            )

    def load(self, device: torch.device) -> State | Population | None:
        """The state to go on from, or the finished answer, or nothing."""
        if (self.folder / "run.json").exists():
            population = Population.load(self.folder)
            self._check(population.config)
            return population
        if not self.state.exists():
            return None
        state, notes = State.load(self.state, device)
        self._check(notes["config"])
        return state

    @classmethod
    def recall(cls, folder: Path, wish: Strength) -> Strength:
        """The wish, with the λ that an interrupted run in this folder had already spent a pilot on."""
        config: dict[str, Any] = {}
        if (folder / "run.json").exists():
            config = json.loads((folder / "run.json").read_text(encoding="utf-8"))["config"]
        elif (folder / "state.safetensors").exists():
            config = notes_of(folder / "state.safetensors")["config"]
        if config.get("lam_pilot", {}).get("wish") != str(wish):
            return wish
        return dataclasses.replace(wish, found={key: config[key] for key in ("lam", "lam_pilot")})

    def keep(self, state: State) -> None:
        """Write the state, unless writing took so long that doing it every time would slow the run: then every now and then."""
        self.waiting = state
        if time.perf_counter() - self.written > 10 * self.took:
            self.flush()

    def flush(self) -> None:
        """Write the newest state, if it has not been."""
        if self.waiting is not None:
            start = time.perf_counter()
            self.waiting.save(self.state, config=self.config)
            self.waiting, self.written = None, time.perf_counter()
            self.took = self.written - start

    def finish(self, population: Population) -> None:
        self.waiting = None
        population.save(self.folder)
        self.state.unlink(missing_ok=True)


def differences(ours: Any, found: Any, where: str = "") -> Iterator[str]:
    """Where two configurations differ, in words: the innermost entries alone."""
    if isinstance(ours, dict) and isinstance(found, dict):
        for key in dict.fromkeys((*ours, *(found if where else ()))):
            yield from differences(ours.get(key), found.get(key), f"{where}.{key}" if where else key)
    elif ours != found:
        there, here = (text if len(text := repr(value)) < 60 else f"{text[:57]}…" for value in (found, ours))
        yield f"{where}: {there} there, {here} here"
