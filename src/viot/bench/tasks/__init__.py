"""Tasks by name; a file for each field."""

from __future__ import annotations

# Each registers its own, in the order in which they are listed.
from . import text_to_image, captions, text, plane, digits, pareto, cifar10, analyses, noise  # isort: skip
from ..preset import Preset, tasks

__all__ = ["Preset", "analyses", "captions", "cifar10", "digits", "noise", "pareto", "plane", "tasks", "text", "text_to_image"]
