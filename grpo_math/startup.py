"""What must be set before torch, transformers or bitsandbytes are imported: warnings, and torch's CUDA allocator."""

import logging
import os
import sys
import warnings


def quieten() -> None:
    """Silences warnings that a user cannot act on, and progress bars where nobody sees them move."""
    # TRL 1.16 sets arguments that transformers has renamed since.
    warnings.filterwarnings("ignore", message=".*is deprecated and will be removed in v6", category=FutureWarning)
    # bitsandbytes says at import, on every CPU, that an optional kernel package is missing.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # In a log file a progress bar is one long line of carriage returns. tqdm reads this as its default, in every library.
    if sys.stderr is not None and not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")


def prefer_expandable_segments() -> None:
    """
    Asks torch's CUDA allocator for segments that can grow, unless the environment says otherwise. Blocks of many sizes then
    fragment the card less (https://docs.pytorch.org/docs/stable/notes/cuda.html).
    """
    if sys.platform == "linux" and "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
