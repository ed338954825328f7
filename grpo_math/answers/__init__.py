r"""The final answer of a completion as an exact number: where the text states it, and which number it states.

The rules, in the order in which they apply:

1. **Thinking is no answer.** Text inside `<think>...</think>` is not read. Neither is text before an unopened
   `</think>` or after an unclosed `<think>`.
2. **Another problem is no answer.** Where a heading such as `Question:` or `User:` follows an answer in a box, a tag or
   `####`, the text ends there; in a text without these, after "the answer is" or bold. `A: 9` may answer a part of the
   problem, so that the text goes on.
3. **The last marker decides.** A marker states an answer: `\boxed{18}`, `<answer>18</answer>`, `#### 18`, "the answer is
   18", `A: 18`. A marker inside another is part of it. A box, a tag or `####` stands against a later phrase or `A:`
   unless words of correction ("wait", "but", "again") stand between them. In a text without such a marker other labels
   (`Result:`, `答案：`) count, then bold and other markup around a number, then, if the caller allows it, the last number.
4. **A heading is no marker.** `#### Explanation`, `#### 2. Money`, "the answer is easy", "the answer is 100% correct",
   "some say the answer is 18" and a label in front of a whole solution state nothing.
5. **An empty marker is no answer.** If the deciding marker is empty or states no number, earlier ones do not replace it.
6. **Hedging is no answer.** Two different values side by side are a hedge: in one marker (`18 or 20`, a list), after it
   (`18. Or maybe 20`), or in two markers with only punctuation and joining words between them. Prose between two
   markers makes the earlier one a draft. The same value again is one answer.
7. **Values are exact.** Separators, currency, units, `18.0`, `36/2`, `\frac{3}{4}`, `1.8 \times 10^1` and "eighteen"
   are spellings of a `Fraction`. An equation must be true and states its last side. A percent sign is a unit. No sign
   is dropped, and nothing is rounded. "At least 18", "not 18", `18x` and `18 \pm 1` state no value.

A real GSM8K solution ends in `She makes 9 * 2 = $<<9*2=18>>18 every day at the farmer's market.\n#### 18` (Cobbe et
al. 2021, arXiv 2110.14168).

```python
>>> from grpo_math.answers import extract
>>> extract("First \\boxed{26}. No, 9 * 2 is less, so the answer is \\boxed{$18.00}.")
Extraction(value=18, status='ok', form='boxed', span=(62, 67), rule='last marker')
>>> extract("#### 18 or 20").status
'hedged'
```

The files import each other in one direction: `final -> reading -> choice, parts -> numbers -> tokens, words`. The first
three also import `markers`.
"""

from grpo_math.answers.choice import final_reading
from grpo_math.answers.final import NOTHING, RULES, extract, first_stated, hide_thinking
from grpo_math.answers.markers import FORMS, Extraction, Marker, Reading, check_forms, markers_from_the_end

__all__ = [
    "FORMS",
    "NOTHING",
    "RULES",
    "Extraction",
    "Marker",
    "Reading",
    "check_forms",
    "extract",
    "final_reading",
    "first_stated",
    "hide_thinking",
    "markers_from_the_end",
]
