"""Rows by several processes of one thread each."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from ..console import notes
from .desk import Desk, make_row
from .plan import Bench, Cell


def spread(args: argparse.Namespace, todo: list[Cell], jobs: int) -> Generator[tuple[str, float], None, None]:
    """Make the rows by so many processes of one thread each; yields file and seconds of every row that is done.

    A process asks for its next row when it has none: each is given out once. What it reads of the model is loaded anew in each.
    """
    context, left = multiprocessing.get_context("spawn"), deque(cell.file for cell in todo)
    # Pipes are of another class on every system.
    busy: dict[Any, BaseProcess] = {}
    try:
        for _ in range(jobs):
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(there, args), daemon=True)
            process.start()
            there.close()
            busy[here] = process
        while busy:
            ready: list[Any] = wait(list(busy))
            for line in ready:
                try:
                    told = line.recv()
                except EOFError:
                    busy[line].join()
                    raise ChildProcessError(
                        f"a process of the bench ended with exit code {busy[line].exitcode} (too little memory?). The same command goes on from "
                        f"its rows; --jobs {jobs - 1} asks for fewer at a time"
                    ) from None
                if isinstance(told, Exception):
                    raise told
                if told is not None:
                    yield told
                if left:
                    line.send(left.popleft())
                else:
                    line.send(None)
                    busy.pop(line).join()
    finally:
        for process in busy.values():
            process.terminate()
            process.join()


def _last() -> None:
    """End when the first process is gone, however it ended: a row that nobody waits for might be made beside the next bench's."""
    if (first := multiprocessing.parent_process()) is not None:
        wait([first.sentinel])
        os._exit(1)


def _work(line: Any, args: argparse.Namespace) -> None:
    """A process: makes the rows that it is given until there are no more."""
    # Ctrl-C reaches every process of a terminal: the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_last, daemon=True).start()
    try:
        with notes():
            bench = Bench.asked(args)
            desk = Desk.of(bench, args.device)
            desk.references = bench.references(desk.model)
            cells = {cell.file: cell for cell in bench.cells}
            line.send(None)
            while (file := line.recv()) is not None:
                line.send((file, make_row(bench, cells[file], desk)))
    except (EOFError, BrokenPipeError):
        # Nobody asks for rows any more.
        return
    except (ValueError, TypeError, RuntimeError, ImportError, OSError) as error:
        line.send(error)
