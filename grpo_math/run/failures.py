"""A run that fails after it has begun: a checkpoint where there can be one, and one line with what is safe and where."""

from __future__ import annotations

import errno
import re
import shlex
import sys
from pathlib import Path

from grpo_math.recipe import Recipe
from grpo_math.run.checkpoints import damage_of, save_checkpoint
from grpo_math.run.prepare import Prepared
from grpo_math.trainer.checkpoints import checkpoints_of

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# How libraries that write files of their own say that a write failed
WRITE_FAILED = re.compile(
    r"No space left on device|Disk quota exceeded|File too large|PytorchStreamWriter|inline_container"
)


def disk_failure(error: BaseException, folder: Path) -> str | None:
    """What a full disk, or another failed access to the run's folder, was about, in one line; None for other errors."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and (seen.errno in NO_SPACE or _is_in(seen.filename, folder)):
            return f"{seen.strerror or seen}{f' ({seen.filename})' if seen.filename else ''}"
        if not isinstance(seen, OSError) and WRITE_FAILED.search(str(seen)):
            return f"a file could not be written ({' '.join(str(seen).split())[:120]})"
        seen = seen.__cause__ or seen.__context__
    return None


def _is_in(name: object, folder: Path) -> bool:
    return isinstance(name, str) and Path(name).absolute().is_relative_to(folder.absolute())


def report_disk_failure(recipe: Recipe, run: Prepared | None, cause: str) -> None:
    """One line: the cause, the newest whole checkpoint, and how to go on."""
    folder = Path(recipe.training.output_dir)
    if recipe.training.process_index == 0:
        print(f"grpo-math: error: output_dir: {folder}: {cause}. {safe_words(recipe, folder, run)}", file=sys.stderr)


def has_new_step(run: Prepared | None) -> bool:
    """Whether a step was finished since the start, or the resume: what there is to save."""
    return run is not None and run.recorder.begun and run.trainer.state.global_step > run.recorder.first_step


def save_before_failure(recipe: Recipe, run: Prepared) -> str:
    """Saves a checkpoint of the last finished step, on all processes, and says what is safe."""
    folder = run.folder
    try:
        if has_new_step(run):
            save_checkpoint(run.trainer, folder)
    except Exception as error:  # whatever fails while saving, the first failure is what the user needs to read
        return f"No checkpoint could be saved ({type(error).__name__}: {error}). {safe_words(recipe, folder, run)}"
    return safe_words(recipe, folder, run)


def safe_words(recipe: Recipe, folder: Path, run: Prepared | None) -> str:
    """What of a run is safe, and the command that goes on from it."""
    checkpoints = checkpoints_of(folder) if folder.is_dir() and run is not None and run.recorder.begun else []
    world_size = recipe.training.world_size
    newest = next((path for path in checkpoints if damage_of(path, world_size) is None), None)
    if newest is None and run is not None and run.checkpoint:
        newest = Path(run.checkpoint)
    if newest is None:
        return "No step is saved: start again"
    return (
        f"Safe: {newest}. Then go on with: grpo-math train {shlex.quote(str(newest.parent / 'recipe.yaml'))} "
        "--resume_from_checkpoint true"
    )
