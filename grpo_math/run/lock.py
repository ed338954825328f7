"""One run a folder: the main process holds a lock on `output_dir` from start to end."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from tqdm.auto import tqdm

from grpo_math.errors import RecipeError
from grpo_math.recipe import Recipe
from grpo_math.run.checks import no_folder_left

try:
    import fcntl
except ImportError:  # not on Windows, where runs are not kept apart
    fcntl = None

LOCK = ".run.lock"
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def only_run_in(recipe: Recipe) -> Iterator[None]:
    """
    Keeps other runs out of the recipe's `output_dir`; the kernel gives the lock back however the process ends.

    Folders that were made for it and that hold nothing at the end are removed.

    Raises:
        RecipeError: Where another run holds the lock.
    """
    folder = Path(recipe.training.output_dir)
    if fcntl is None or recipe.training.process_index != 0:
        yield
        return
    made = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    with no_folder_left(folder):
        file = _locked_file(recipe, folder / LOCK)
    try:
        yield
    finally:
        if file is not None:
            (folder / LOCK).unlink(missing_ok=True)
            file.close()
        for path in made:
            with contextlib.suppress(OSError):  # no longer there, or not empty
                path.rmdir()


def _locked_file(recipe: Recipe, path: Path):
    """The open lock file; None where the file system has no locks, which is said."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115  (open as long as the run)
        except FileNotFoundError:  # a run that ends has removed the folder, which was empty
            if path.is_symlink():
                raise
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = " ".join(file.read(200).split()) or "another process"
            file.close()
            raise RecipeError(
                f"{recipe.place('output_dir')}: output_dir: {recipe.training.output_dir} is in use by another run ({holder}); "
                "wait for its end, or name another folder"
            ) from error
        except OSError as error:
            file.close()
            if error.errno not in UNSUPPORTED:
                raise
            tqdm.write(
                f"{path.parent} is on a file system without locks ({error.strerror}): start no second run in it."
            )
            return None
        # The run before may have removed the file between our opening and our locking it, or does so now
        if _is_file_at(file, path):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            return file
        file.close()


def _is_file_at(file, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
