"""Tasks and rewards in a file of one's own: `my_task.py`, `my_rewards.py:brevity`.

>>> load_file("my_task.py").__name__
'my_task'
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from grpo_math.errors import TaskError


def is_file_name(name: object) -> bool:
    """Whether a task's name is a Python file."""
    return isinstance(name, str) and name.endswith(".py")


def split_reward(name: str) -> tuple[str, str] | None:
    """`my_rewards.py:brevity` -> file and function; None for any other name."""
    file, colon, function = name.rpartition(":")
    return (file, function) if colon and is_file_name(file) else None


def absolute(name: str, beside: Path) -> str:
    """A file's name as seen from the current folder, else from the folder `beside` (the recipe's), made absolute.

    Raises:
        TaskError: where there is no such file in either.
    """
    for folder in (Path.cwd(), beside):
        path = folder / Path(name).expanduser()
        if path.is_file():
            return str(path.resolve())
    raise TaskError(f"there is no file {name}, neither in {Path.cwd()} nor in {beside.absolute()}")


def load_file(name: str) -> ModuleType:
    """A Python file as a module; once, by its path.

    The module is found again under the file's name, as worker processes need for what they unpickle. Its folder comes last
    on Python's path: it may import what lies beside it, and hides no installed package.

    Raises:
        TaskError: where the file is missing, raises, or has the name of another module.
    """
    path = Path(name).expanduser().resolve()
    module_name = path.stem
    if not path.is_file():
        raise TaskError(f"there is no file {name}")
    if not module_name.isidentifier():
        raise TaskError(f"{name}: the file's name must be a Python name, with letters, digits and underscores only")
    present = sys.modules.get(module_name)
    if present is not None and _file_of(present) == path:
        return present
    spec = None if present is not None else importlib.util.find_spec(module_name)
    if present is not None or (spec is not None and spec.origin and Path(spec.origin).resolve() != path):
        raise TaskError(f"{name}: Python has another module with the name {module_name}; rename the file")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's file does
        del sys.modules[module_name]
        raise TaskError(f"{name} cannot be imported: {type(error).__name__}: {' '.join(str(error).split())}") from error
    return module


def _file_of(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(os.fspath(file)).resolve() if file else None
