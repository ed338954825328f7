"""Errors that speak to the user: each message names the place, the value and the fix. Nothing else is a user's error.

>>> raise RecipeError("recipes/gsm8k.yaml: max_step is not a field of a recipe" + nearest("max_step", ["max_steps"]))
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something that the user gave is wrong. The command line prints the message alone and exits with 2."""


class RecipeError(UserError):
    """A value in a recipe or on the command line is wrong."""


class TaskError(UserError):
    """Rows cannot be read or do not suit the task, or the task does not know a setting."""


class ModelError(UserError):
    """A model cannot be found or read."""


class PredictionError(UserError):
    """A memory prediction cannot be made."""


def nearest(name: object, known: Iterable[object]) -> str:
    """The end of an error message: "; did you mean X?" for the known name that is nearest, else nothing."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
