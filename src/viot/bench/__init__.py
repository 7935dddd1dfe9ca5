"""What the papers measured: tasks with the settings that were published for each method."""

from .tasks import Preset, tasks

__all__ = ["Preset", "tasks"]
