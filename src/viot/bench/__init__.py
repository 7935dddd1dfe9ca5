"""What the papers measured: tasks with the settings that were published for each method, and rows and tables of running them."""

from .tasks import Preset, tasks

__all__ = ["Preset", "tasks"]
