"""Pretext tasks, found by the name of their file.

A new task is one new file here with `Config` and `Task`; it is listed, configurable and under the contract test at once.
One outside of videossl goes by the dotted name of its module, which runs only where the command line allows it. The settings
of the tasks that come with videossl stand together in `settings.py`, to be checked before torch is loaded.
"""

import difflib
import importlib
import pkgutil
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from videossl.errors import UserError

if TYPE_CHECKING:  # torch comes with the first task that is loaded
    from videossl.pretext.task import PretextTask

NOT_TASKS = ("settings", "task")

_is_import_allowed = False


def allow_import(is_allowed: bool) -> None:
    """Whether this process, and those forked from it, may import tasks from outside of videossl.

    A person says so on the command line. No config, override or checkpoint can: those come from others.
    """
    global _is_import_allowed
    _is_import_allowed = is_allowed


def available() -> list[str]:
    """The names of all tasks of videossl, sorted."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in names if name not in NOT_TASKS and not name.startswith("_"))


def check_known(name: str) -> None:
    """Raises UserError, naming those that exist, unless there is such a task or the name is that of a module outside."""
    if "." not in name and name not in available():
        near = difflib.get_close_matches(name, available(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(
            f"task {name!r} is unknown; {hint}allowed: {', '.join(available())}, or package.module of your own"
        )


def load(name: str) -> "type[PretextTask]":
    """The task class of that name, or of the module of that dotted name.

    Raises UserError naming those that exist, for a module that may not be imported, and for one that is no task.
    """
    if "." in name:
        return _load_outside(name)
    check_known(name)
    module: ModuleType = importlib.import_module(f"{__name__}.{name}")
    task: type[PretextTask] = module.Task
    return task


def _load_outside(name: str) -> "type[PretextTask]":
    from videossl.pretext.settings import TaskConfig
    from videossl.pretext.task import PretextTask

    if not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"task {name!r} is no name of a module")
    if not _is_import_allowed:
        raise UserError(
            f"task {name!r} is code outside of videossl, which a config may not run: if you trust it, give --allow-import"
        )
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # a module may raise anything, or end the program
        first = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"task {name!r} cannot be imported ({type(error).__name__}: {first}); it is looked for in the working folder too"
        ) from None
    task = getattr(module, "Task", None)
    if not (isinstance(task, type) and issubclass(task, PretextTask)):
        raise UserError(f"task {name!r}: the module has no class Task(PretextTask)")
    config = getattr(task, "Config", None)
    if not (isinstance(config, type) and issubclass(config, TaskConfig)):
        raise UserError(f"task {name!r}: its Task has no Config that is a TaskConfig")
    return task
