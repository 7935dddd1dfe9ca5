"""Prompts, one per group: read from files people have, and spelled as folder names."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from pathlib import Path
from typing import Any

#: What the column or field with the prompt may be called, in any case.
NAMES = ("prompt", "prompts", "text")
KINDS = (".txt", ".csv", ".tsv", ".json", ".jsonl")


def read(path: str | Path) -> list[str]:
    """The prompts of a file, in its order, repetitions included.

    .txt holds one per line; .csv and .tsv a column named prompt, prompts or text; .json and .jsonl strings, or objects with such a field.
    """
    file = Path(path)
    if file.suffix.lower() not in KINDS:
        raise ValueError(f"{file} is no file of prompts that can be read; they are {', '.join(KINDS)}")
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}; --prompts takes one with prompts ({', '.join(KINDS)})")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    return parse(text, str(file))


def parse(text: str, source: str) -> list[str]:
    """The prompts in the text of a file; its kind is that of the source's name, which errors tell."""
    kind = Path(source).suffix.lower()
    if kind == ".txt":
        found = [line.strip() for line in text.split("\n") if line.strip()]
    elif kind in (".csv", ".tsv"):
        found = _table(text, source, "\t" if kind == ".tsv" else ",")
    else:
        found = [_entry(value, source, i + 1) for i, value in enumerate(_json(text, source, kind == ".jsonl"))]
    if not found:
        raise ValueError(f"{source} holds no prompts")
    return found


def _table(text: str, source: str, delimiter: str) -> list[str]:
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    columns = list(rows.fieldnames or [])
    column = _named(columns)
    if column is None:
        if not columns:
            return []
        raise ValueError(f"{source} has no column named {' or '.join(NAMES)}; its columns are {', '.join(columns)}")
    found = []
    for row in rows:
        prompt = (row[column] or "").strip()
        if not prompt:
            raise ValueError(f"line {rows.line_num} of {source} has no {column}")
        found.append(prompt)
    return found


def _json(text: str, source: str, lines: bool) -> list[Any]:
    try:
        if lines:
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        value = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        raise ValueError(f"{source} is not valid JSON ({error})") from error
    if isinstance(value, list):
        return value
    raise ValueError(f"{source} must hold a list of prompts, or of objects with a field named {' or '.join(NAMES)}")


def _entry(value: Any, source: str, number: int) -> str:
    if isinstance(value, dict):
        field = _named(list(value))
        if field is None:
            raise ValueError(f"entry {number} of {source} has no field named {' or '.join(NAMES)}; its fields are {', '.join(value)}")
        value = value[field]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"entry {number} of {source} is not a prompt: {value!r}")
    return value.strip()


def _named(names: list[str]) -> str | None:
    known = {(name or "").strip().lower(): name for name in reversed(names)}
    return next((known[name] for name in NAMES if name in known), None)


def slug(text: str, longest: int = 40) -> str:
    """A prompt as part of a file's name: words in lower case between dashes, cut at a word where it is long; may be empty."""
    plain = "".join(c if c.isalnum() else " " for c in unicodedata.normalize("NFC", text).lower())
    out = ""
    for word in plain.split():
        longer = f"{out}-{word}" if out else word[:longest]
        if len(longer) > longest:
            break
        out = longer
    return out


def short(text: str, longest: int = 80) -> str:
    """A prompt on one line, cut at a word where it is long."""
    line = " ".join(text.split())
    if len(line) <= longest:
        return line
    return line[: longest - 1].rsplit(" ", 1)[0].rstrip(",.;:") + "…"
