r"""The final answer of a completion as an exact number: where it is stated, and what is stated there.

The rules, in the order in which they are applied:

1. **Thinking is no answer.** Text inside `<think>...</think>` is not read; text before an unopened `</think>` and
   after an unclosed `<think>` is thinking too.
2. **The last marker wins.** A marker states an answer: `\boxed{18}`, `<answer>18</answer>`, `#### 18`, "the answer is
   18", `A: 18`. The last one in the text counts, whatever its form; one inside another is part of it
   (`<answer>\boxed{18}</answer>`). Bold (`**18**` and other markup around nothing but a number) is read only where no
   such marker is, and a bare last number only where the caller allows it and there is no marker at all.
3. **Hedging is no answer.** Two different values side by side (`18 or 20`, `5-6`, two boxes in a row): markers, or
   numbers in one marker, with nothing but white space, punctuation or a joining word between them. With prose between
   two markers the earlier one was a draft. The same value twice is one answer.
4. **Nothing is nothing.** If the last marker is empty or holds no number, there is no answer; earlier ones do not
   stand in.
5. **Values are exact.** Separators, currency, units, `18.0`, `36/2`, `\frac{3}{4}`, `1.8 \times 10^1`, "eighteen" are
   spellings of a `Fraction`; a percent sign is a unit; a sign is never dropped; nothing is rounded.

A real GSM8K solution ends in `She makes 9 * 2 = $<<9*2=18>>18 every day at the farmer's market.\n#### 18` (Cobbe et
al. 2021, arXiv 2110.14168).

```python
>>> from grpo_math.answers import extract
>>> extract("First \\boxed{26}. No, 9 * 2 is less, so the answer is \\boxed{$18.00}.")
Extraction(value=Fraction(18, 1), status='ok', form='boxed', span=(62, 67))
>>> extract("#### 18 or 20").status
'hedged'
```
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
