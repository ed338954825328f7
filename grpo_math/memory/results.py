"""What a prediction consists of: the phases of a training step, the overhead rule and the result classes.

torch's allocator does not see the CUDA context and the libraries' kernels, and it loses memory to fragmentation. Both are
covered by `total = 1.03 * peak + 0.7 GiB`, an assumption until it has been calibrated on a card.

>>> gib(3 * GIB)
'3.00'
"""

from __future__ import annotations

import dataclasses
from typing import Any

GIB = 2**30
OVERHEAD_FACTOR, OVERHEAD_BYTES = 1.03, int(0.7 * GIB)
DEFAULT_VRAM = 8.0  # GiB
PHASES = ("load", "generation", "scoring", "training", "optimizer", "held-out")


def with_overhead(peak: int) -> int:
    """Bytes that a card must have for an allocator's peak: fragmentation, and what lies outside the allocator."""
    return int(OVERHEAD_FACTOR * peak) + OVERHEAD_BYTES


@dataclasses.dataclass
class StepMemory:
    """
    Memory of one steady training step.

    Attributes:
        peaks: Bytes at the peak of each phase.
        ops: The operation at the peak of each phase.
        parts: Bytes at the peak of each phase, split into categories.
        paged: Bytes of optimizer states in managed memory, not part of the peaks. CUDA moves them to the host when the
            card is full.
    """

    peaks: dict[str, int]
    ops: dict[str, str]
    parts: dict[str, dict[str, int]]
    paged: int

    @property
    def phase(self) -> str:
        """The phase with the highest peak."""
        return max(self.peaks, key=self.peaks.__getitem__)

    @property
    def peak(self) -> int:
        """The most bytes that torch's allocator holds at once."""
        return self.peaks[self.phase]


@dataclasses.dataclass
class Prediction(StepMemory):
    """
    Predicted peak memory of a recipe.

    Attributes:
        model: Name of the model.
        prompt_length: Tokens of the longest prompt.
        prompt_source: Where `prompt_length` comes from.
        overrides: Fields that were changed.
        vllm: vLLM on the same card (`memory.vllm.SharedCard`); the peaks hold the least that it needs.
    """

    model: str
    prompt_length: int
    prompt_source: str
    overrides: dict[str, Any]
    vllm: Any = None

    @property
    def total(self) -> int:
        """Bytes that the card must have: the peak, fragmentation, and what lies outside the allocator."""
        return with_overhead(self.peak)

    def fits(self, vram: float) -> bool:
        """Whether a card with `vram` GiB is enough."""
        return not self.too_large(vram)

    def too_large(self, vram: float) -> set[str]:
        """The phases that do not fit into `vram` GiB, with all that vLLM takes of such a card."""
        needed = dict(self.peaks)
        if self.vllm is not None:
            more = max(self.vllm.held(vram) - self.vllm.least, 0)
            needed |= {phase: needed[phase] + more for phase in self.vllm.phases(needed)}
        return {phase for phase, peak in needed.items() if with_overhead(peak) > vram * GIB}

    def as_dict(self) -> dict:
        """The attributes and the totals, for JSON."""
        return {**dataclasses.asdict(self), "phase": self.phase, "peak": self.peak, "total": self.total}


@dataclasses.dataclass
class Suggestion:
    """Overrides, their cost and the prediction with them."""

    cost: str
    changes: dict[str, Any]
    prediction: Prediction


def gib(size: float) -> str:
    """Bytes as GiB with two decimals."""
    return f"{size / GIB:.2f}"
