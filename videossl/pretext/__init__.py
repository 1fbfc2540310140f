"""Pretext tasks, found by the name of their file.

A new task is one new file here with `Config` and `Task`; it is listed, configurable and under the contract test at once.
"""

import importlib
import pkgutil
from types import ModuleType

from videossl.errors import UserError
from videossl.pretext.task import PretextTask


def available() -> list[str]:
    """The names of all tasks, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "task")


def load(name: str) -> type[PretextTask]:
    """The task class of that name; raises UserError naming those that exist."""
    if name not in available():
        raise UserError(f"task {name!r} is unknown; allowed: {', '.join(available())}")
    module: ModuleType = importlib.import_module(f"{__name__}.{name}")
    task: type[PretextTask] = module.Task
    return task
