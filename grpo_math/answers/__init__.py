r"""The final answer of a completion as an exact number: where the text states it, and which number it states.

The rules, in the order in which they apply:

1. **Thinking is no answer.** Text inside `<think>...</think>` is not read. Neither is text before an unopened
   `</think>` or after an unclosed `<think>`.
2. **The last marker wins.** A marker states an answer: `\boxed{18}`, `<answer>18</answer>`, `#### 18`, "the answer is
   18", `A: 18`. The last one counts, whatever its form. A marker inside another is part of it
   (`<answer>\boxed{18}</answer>`). Bold (`**18**` and other markup around nothing but a number) counts only in a text
   without such a marker. A bare last number counts only if the caller allows it, in a text without any marker.
3. **Hedging is no answer.** A hedge is two different values side by side (`18 or 20`, `5-6`, two boxes in a row). They
   may be two markers or two numbers in one marker, with only white space, punctuation or joining words between them.
   Prose between two markers makes the earlier one a draft. The same value twice is one answer.
4. **An empty marker is no answer.** If the last marker is empty or contains no number, earlier ones do not replace it.
5. **Values are exact.** Separators, currency, units, `18.0`, `36/2`, `\frac{3}{4}`, `1.8 \times 10^1` and "eighteen"
   are spellings of a `Fraction`. A percent sign is a unit. No sign is dropped, and nothing is rounded.

A real GSM8K solution ends in `She makes 9 * 2 = $<<9*2=18>>18 every day at the farmer's market.\n#### 18` (Cobbe et
al. 2021, arXiv 2110.14168).

```python
>>> from grpo_math.answers import extract
>>> extract("First \\boxed{26}. No, 9 * 2 is less, so the answer is \\boxed{$18.00}.")
Extraction(value=Fraction(18, 1), status='ok', form='boxed', span=(62, 67))
>>> extract("#### 18 or 20").status
'hedged'
```

The files import each other in one direction: `final -> reading -> hedging -> numbers -> tokens, words`. The first three
also import `markers`.
"""

from grpo_math.answers.final import Extraction, extract, first_stated, hide_thinking, statement
from grpo_math.answers.hedging import final_reading
from grpo_math.answers.markers import FORMS, Marker, Reading, Stated, check_forms, markers_from_the_end

__all__ = [
    "FORMS",
    "Extraction",
    "Marker",
    "Reading",
    "Stated",
    "check_forms",
    "extract",
    "final_reading",
    "first_stated",
    "hide_thinking",
    "markers_from_the_end",
    "statement",
]
