"""Which checkpoint a run resumes from: the newest that is whole.

A kill, a full disk or a second Ctrl-C while saving leaves a checkpoint in parts. Its files are archives with check sums or
lengths of their own, so that a torn one is found without loading it.
"""

from __future__ import annotations

import json
import os
import struct
import zipfile
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.trainer import OPTIMIZER_NAME, OPTIMIZER_NAME_BIN, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from grpo_math.errors import RecipeError
from grpo_math.recipe import Recipe, fields, read_yaml
from grpo_math.trainer.checkpoints import checkpoints_of, own_state

# What DeepSpeed and FSDP write in place of `optimizer.pt`: folders
SHARDED_OPTIMIZER = ("global_step*", "optimizer_*", "pytorch_model_fsdp*")


def damage_of(folder: Path, world_size: int = 1) -> str | None:
    """
    Why a run cannot go on from a checkpoint: the file that is missing or torn; None for a whole one.

    Args:
        folder: The checkpoint.
        world_size: Processes; each has a file with its random state. A checkpoint of a single process serves several.
    """
    sharded = any(path.is_dir() for pattern in SHARDED_OPTIMIZER for path in folder.glob(pattern))
    files = {path.name for path in folder.iterdir() if path.is_file()}
    needed = [TRAINER_STATE_NAME, *own_files_of(folder)]
    if not sharded:
        needed += [SCHEDULER_NAME, OPTIMIZER_NAME_BIN if OPTIMIZER_NAME_BIN in files else OPTIMIZER_NAME]
    alone, several = "rng_state.pth" in files, "rng_state_0.pth" in files
    if not (alone or several) or alone == several or (several and world_size > 1):
        needed += ["rng_state.pth"] if world_size == 1 else [f"rng_state_{rank}.pth" for rank in range(world_size)]
    missing = [name for name in needed if name not in files]
    if missing:
        return f"{missing[0]} is missing"
    if not weights_in(folder) and not sharded:
        return "no weights are in it"
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        reason = damage_of_file(path)
        if reason:
            return f"{path.relative_to(folder)} {reason}"
    return None


def weights_in(folder: Path) -> list[Path]:
    """The files with a model's or an adapter's weights, also of adapters in folders of their own."""
    paths = sorted(folder.glob("*")) + sorted(folder.glob("*/adapter_model*"))
    return [path for path in paths if path.suffix == ".safetensors" or path.name.endswith("model.bin")]


def damage_of_weights(folder: Path) -> str | None:
    """Why a folder holds no whole model or adapter; None where it does."""
    found = weights_in(folder)
    if not found:
        return "no weights are in it"
    faults = ((path.name, damage_of_file(path)) for path in [*found, *folder.glob("*.index.json")])
    return next((f"{name} {fault}" for name, fault in faults if fault), None)


def damage_of_file(path: Path) -> str | None:
    """Why a file of a checkpoint cannot be read; None where it can, or where it is of no known kind."""
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_bytes())
            if path.name == TRAINER_STATE_NAME and not isinstance(content["global_step"], int):
                return "has no global_step"
            for shard in content["weight_map"].values() if path.name.endswith(".index.json") else ():
                if not path.with_name(shard).is_file():
                    return f"names {shard}, which is missing"
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as tensors:
                tensors.keys()
        elif path.suffix in (".pt", ".pth", ".bin"):
            with zipfile.ZipFile(path) as archive:
                torn = archive.testzip()
                return f"is torn ({torn} has another check sum)" if torn else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"cannot be read ({type(error).__name__})"
    except (SafetensorError, zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, struct.error) as error:
        return f"is torn ({' '.join(str(error).split())[:60]})"
    return None


def step_of(checkpoint: str | Path) -> int:
    """The optimizer steps that a whole checkpoint has behind it."""
    return json.loads((Path(checkpoint) / TRAINER_STATE_NAME).read_bytes())["global_step"]


RECIPE = "recipe.yaml"


def stored_values(folder: Path) -> dict[str, Any]:
    """The values that a folder's run was started with; none where its recipe is not there or cannot be read."""
    try:
        return read_yaml(folder / RECIPE)
    except (RecipeError, OSError):
        return {}


# What the saved weights and the optimizer's state belong to
SAME = ("model_name_or_path", "model_revision", "use_peft", "use_dora", "use_rslora", "optim", "optim_args")
SAME_PREFIXES = ("lora_", "load_in_", "bnb_")
# What the states of optimizer and schedule bring along, so that a resume with other values trains with the checkpoint's
KEPT = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")
# How a start is made, not what is trained
OF_THE_START = ("output_dir", "resume_from_checkpoint", "disable_tqdm", "use_cpu")


def check_same_training(recipe: Recipe, stored: dict[str, Any]) -> None:
    """
    The recipe goes on with the training that the checkpoint is of. Other differences become one of the recipe's notes; where
    the checkpoint's value is the one that counts, it becomes the recipe's too.

    Args:
        recipe: To resume with.
        stored: `stored_values` of the run's folder.

    Raises:
        RecipeError: For another model, adapter or optimizer.
    """
    if not stored:
        return
    known, changed, kept = fields(), [], []
    for name in dict.fromkeys([*stored, *recipe.values]):
        if name not in known or name in OF_THE_START:
            continue
        field = known[name][1]
        default = field.default if field.default_factory is MISSING else field.default_factory()
        before, now = (values.get(name, default) for values in (stored, recipe.values))
        if before == now or (
            name == "model_name_or_path" and os.path.realpath(str(before)) == os.path.realpath(str(now))
        ):
            continue
        if name in SAME or name.startswith(SAME_PREFIXES):
            raise RecipeError(
                f"{recipe.place(name)}: {name}: {now}, but the run in {recipe.training.output_dir} was trained with "
                f"{name}: {before}. Resume with that, or start afresh in another output_dir"
            )
        if name in KEPT:
            kept.append(f"{name}: {before}, not {now}")
            recipe.values[name] = before
            setattr(recipe.training, name, before)
        else:
            changed.append(f"{name}: {before} -> {now}")
    if changed:
        recipe.notes.append(f"Resumed with other settings than the run was started with: {', '.join(changed)}.")
    if kept:
        recipe.notes.append(
            f"A resume keeps the checkpoint's optimizer and schedule: {'; '.join(kept)}. For other values start afresh, with "
            f"--model_name_or_path {recipe.training.output_dir}/{PREFIX_CHECKPOINT_DIR}-N."
        )


def own_files_of(checkpoint: Path) -> list[str]:
    """What a checkpoint holds beside TRL's files, as it says itself: the options may be others at a resume."""
    names = own_state(checkpoint).get("files")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def checkpoint_of(recipe: Recipe) -> str | None:
    """
    The checkpoint to resume from: `resume_from_checkpoint: true` takes the newest whole one of the output folder, and
    says in the recipe's notes which newer ones it has passed over.

    Raises:
        RecipeError: For none, or a named one that is not whole.
    """
    wanted, place = recipe.training.resume_from_checkpoint, recipe.place("resume_from_checkpoint")
    if not wanted or wanted == "false":
        return None
    args = recipe.training
    folder = Path(args.output_dir)
    stored = stored_values(folder if wanted in (True, "true") else Path(wanted).parent)
    if wanted is not True and wanted != "true":
        if not Path(wanted).is_dir():
            raise RecipeError(f"{place}: resume_from_checkpoint: there is no folder {wanted}")
        if not (Path(wanted) / TRAINER_STATE_NAME).is_file():
            raise RecipeError(
                f"{place}: resume_from_checkpoint: {wanted} is no checkpoint (no {TRAINER_STATE_NAME}); name a folder "
                f"{PREFIX_CHECKPOINT_DIR}-N of a run"
            )
        damage = damage_of(Path(wanted), args.world_size)
        if damage:
            raise RecipeError(
                f"{place}: resume_from_checkpoint: {wanted} is not whole: {damage}; name an older one, or "
                "--resume_from_checkpoint true for the newest whole one"
            )
        check_same_training(recipe, stored)
        return wanted
    found = checkpoints_of(folder) if folder.is_dir() else []
    torn = []
    for path in found:
        damage = damage_of(path, args.world_size)
        if damage is None:
            if torn:
                recipe.notes.append(
                    f"Resumed from {path.name}, the newest whole checkpoint. Not whole: {'; '.join(torn)}."
                )
            check_same_training(recipe, stored)
            return str(path)
        torn.append(f"{path.name} ({damage})")
    raise RecipeError(
        f"{place}: resume_from_checkpoint: {folder} holds no checkpoint"
        + (f" that is whole: {'; '.join(torn[:3])}" if torn else "")
        + "; leave it out to start afresh, or name a checkpoint's folder"
    )


def goes_on_in_folder(recipe: Recipe) -> bool:
    """Whether a run goes on in the folder of the run that it resumes. Elsewhere its files are those of a new run."""
    wanted, folder = recipe.training.resume_from_checkpoint, recipe.training.output_dir
    if not wanted or wanted == "false":
        return False
    return wanted in (True, "true") or Path(os.path.realpath(wanted)).parent == Path(os.path.realpath(folder))


def save_checkpoint(trainer: Any, folder: Path) -> Path:
    """A checkpoint of the last finished step, unless there is one; all processes call it."""
    saved = folder / f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"
    if not (saved / TRAINER_STATE_NAME).is_file():
        trainer._save_checkpoint(trainer.model, trial=None)
    return saved
