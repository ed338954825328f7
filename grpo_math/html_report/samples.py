"""Sampled completions on the page: groups from the start, the middle and the end of training, and held-out problems."""

from __future__ import annotations

from grpo_math.html_report.runs import Run
from grpo_math.html_report.texts import cut, tag
from grpo_math.report import pick_samples, prompt_text

GROUP, WIDTH = 4, 2000  # completions shown of a group; characters of a text


def of_run(run: Run, heading: str) -> str:
    """A run's samples, folded up but for the first group; `heading` is HTML."""
    by_step: dict[int, list[dict]] = {}
    for record in run.completions:
        by_step.setdefault(record["step"], []).append(record)
    steps = sorted(by_step)
    chosen = sorted({steps[i] for i in (0, len(steps) // 2, -1)}) if steps else []
    names = {1: ["end"], 2: ["start", "end"], 3: ["start", "middle", "end"]}.get(len(chosen), [])
    parts = [
        group(f"{name}, iteration {step}", by_step[step], opened=number == 0)
        for number, (name, step) in enumerate(zip(names, chosen, strict=True))
    ]
    parts.append(heldout(run))
    content = "".join(parts)
    return f"<h3>{heading}</h3>{content}" if content else ""


def group(title: str, records: list[dict], opened: bool) -> str:
    """A prompt and completions of its group, the best and the worst among them."""
    ranked = sorted(records, key=lambda record: -(record.get("advantage") or 0.0))
    few = ranked if len(ranked) <= GROUP else [*ranked[: GROUP // 2], *ranked[-(GROUP - GROUP // 2) :]]
    shown = "".join(completion(record) for record in few)
    more = f"; the {GROUP} of highest and lowest advantage among {len(records)}" if len(records) > GROUP else ""
    return (
        f"<details{' open' if opened else ''}>{tag('summary', title + more)}"
        f"{tag('p', 'prompt', 'label')}{text_of(prompt_text(records[0].get('prompt', '')))}{shown}</details>"
    )


def completion(record: dict) -> str:
    """A completion under its rewards and its advantage."""
    figures = [f"{name} {value:.2f}" for name, value in (record.get("rewards") or {}).items() if value is not None]
    if isinstance(record.get("advantage"), (int, float)):
        figures.append(f"advantage {record['advantage']:+.2f}")
    return tag("p", " · ".join(figures) or "completion", "label") + text_of(prompt_text(record.get("completion", "")))


def heldout(run: Run) -> str:
    """Three held-out problems with a sampled completion before and after training."""
    records = run.after or run.before
    if not records:
        return ""
    parts = []
    for i in pick_samples(records):
        parts.append(tag("p", "held-out problem", "label") + text_of(prompt_text(records[i]["prompt"])))
        for name, found in (("before", run.before), ("after", run.after)):
            if found and i < len(found):
                mark = "right" if found[i]["correct"][0] else "wrong"
                parts.append(tag("p", f"{name}: {mark}", f"label {mark}") + text_of(found[i]["sampled_completion"]))
    return f"<details>{tag('summary', 'held-out problems before and after')}{''.join(parts)}</details>"


def text_of(text: object) -> str:
    """A model's or data set's text, as it is but for what could harm or hide."""
    return tag("pre", cut(str(text), WIDTH))
