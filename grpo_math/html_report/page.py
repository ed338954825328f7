"""The page: sections made of tables, figures and texts, all escaped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from grpo_math.errors import UserError
from grpo_math.files import write_whole
from grpo_math.html_report import figures, samples
from grpo_math.html_report.runs import Run
from grpo_math.html_report.style import STYLE
from grpo_math.html_report.texts import clean, tag
from grpo_math.report import HEADINGS, outcome_lines, rows_before_after

# Nothing is loaded, sent or framed; plotly draws with inline scripts and styles
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
GIB = 2**30
SHOWN_ABOVE = ("Verdict", "Why nothing")  # in the header
PLOTLY = {"responsive": True, "displayModeBar": False}


def write_page(runs: Sequence[Run], path: Path) -> None:
    """
    Writes the page, whole.

    Args:
        runs: With names that differ ([`named`]); the first is what the others are compared with.

    Raises:
        UserError: where plotly is not installed.
        OSError: where the file cannot be written.
    """
    write_whole(path, html_of(runs))


def html_of(runs: Sequence[Run]) -> str:
    """The page's text."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise UserError("the HTML page needs plotly: pip install -e '.[report]' (or pip install plotly)") from error
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared"
    parts = [
        header(runs, title),
        section("Held-out accuracy", *map(accuracy, runs)),
        section("Paired differences", differences(runs)) if len(runs) > 1 else "",
        section("Curves", curves(runs)),
        section("Recipe" if len(runs) == 1 else "Recipe differences", recipes(runs)),
        section("Samples", *(samples.of_run(run, chip(number, run)) for number, run in enumerate(runs))),
        section("Time by phase", time_by_phase(runs)),
        section("Memory", memory(runs)),
    ]
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>{escape(clean(title))}</title><style>{STYLE}</style><script>{get_plotlyjs()}</script></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A section, or nothing where it has no content."""
    content = "".join(parts)
    return f"<section>{tag('h2', title)}{content}</section>" if content else ""


def chip(number: int, run: Run) -> str:
    """A run's name behind its colour."""
    return f'<span class="chip"><i style="background:{figures.colour_of(number)}"></i>{escape(clean(run.name))}</span>'


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = True) -> str:
    """A table that scrolls by itself; cells are HTML."""
    head = "".join(f"<th>{cell}</th>" for cell in headings)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    kind = ' class="numbers"' if numbers else ""
    return f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def header(runs: Sequence[Run], title: str) -> str:
    """What ran, and the verdict of each run."""
    cards = []
    for number, run in enumerate(runs):
        summary, recipe = run.summary, run.recipe
        facts = [
            str(summary.get("model") or recipe.get("model_name_or_path") or ""),
            str(summary.get("task") or recipe.get("task") or ""),
            f"{run.metrics[-1]['step']} iterations",
            f"G = {recipe['num_generations']}" if "num_generations" in recipe else "",
            f"seed {recipe['seed']}" if "seed" in recipe else "",
            f"{summary['seconds']:.0f} s of training" if isinstance(summary.get("seconds"), (int, float)) else "",
        ]
        verdict = summary.get("verdict")
        text = verdict.get("text") if isinstance(verdict, dict) else None
        if text is None:
            text = "no verdict: accuracy was not measured before and after" if summary else "not finished"
        warned = "".join(tag("p", str(finding), "warning") for finding in summary.get("findings") or [])
        cards.append(
            f'<div class="card">{chip(number, run)}{tag("p", text, "verdict")}{warned}'
            f"{tag('p', ' · '.join(fact for fact in facts if fact), 'facts')}</div>"
        )
    return f'<header>{tag("h1", title)}<div class="cards">{"".join(cards)}</div></header>'


def accuracy(run: Run) -> str:
    """Before, after, change; the outcomes."""
    if not (run.summary.get("accuracy_before") or run.summary.get("accuracy_after")):
        return ""
    rows = [[escape(clean(cell)) for cell in row] for row in rows_before_after(run.summary)]
    lines = "".join(tag("p", line, "facts") for line in outcome_lines(run.summary) if not line.startswith(SHOWN_ABOVE))
    note = f"{run.summary.get('heldout_n')} problems, 95 % intervals"
    if run.summary.get("blind_how"):
        note += f"; ignoring the target: {run.summary['blind_how']}"
    return f"<h3>{escape(clean(run.name))}</h3>{tag('p', note, 'facts')}{table(HEADINGS, rows)}{lines}"


def differences(runs: Sequence[Run]) -> str:
    """Accuracy after training of each run minus the first one's, on the same problems."""
    from grpo_math.evaluation import paired_difference

    first, rows, left_out = runs[0], [], []
    for number, run in enumerate(runs[1:], 1):
        if not first.after or not run.after:
            left_out.append(f"{run.name}: not measured after training.")
        elif [r["prompt"] for r in first.after] != [r["prompt"] for r in run.after]:
            left_out.append(f"{run.name}: measured on other problems.")
        else:
            cells = []
            for share in (lambda r: sum(r["correct"]) / len(r["correct"]), lambda r: r["greedy"]):
                cells.append(str(paired_difference([share(r) for r in first.after], [share(r) for r in run.after])))
            rows.append([chip(number, run), *cells])
    note = tag("p", f"After training, minus {first.name}; by problem, 95 % intervals.", "facts")
    found = table(["", "sampled", "greedy"], rows) if rows else ""
    return note + found + "".join(tag("p", line, "facts") for line in left_out)


def plot(figure: Any) -> str:
    import plotly.io

    return plotly.io.to_html(figure, full_html=False, include_plotlyjs=False, config=PLOTLY)


def curves(runs: Sequence[Run]) -> str:
    """The panels that any run has something to show in."""
    panels = []
    found = [("Held-out accuracy, sampled", figures.heldout(runs))]
    found += [(heading, figures.curve(runs, metric, axis)) for metric, heading, axis in figures.PANELS]
    for heading, figure in found:
        if figure is not None:
            panels.append(f'<div class="panel"><h3>{heading}</h3>{plot(figure)}</div>')
    legend = "".join(chip(number, run) for number, run in enumerate(runs))
    blind = any(isinstance(run.summary.get("blind"), float) for run in runs)
    dashed = '<span class="chip"><i class="dashed"></i>best policy that ignores the target</span>' if blind else ""
    return f'<div class="legend">{legend}{dashed}</div><div class="panels">{"".join(panels)}</div>'


def recipes(runs: Sequence[Run]) -> str:
    """One run: its settings. Several: the settings that differ."""
    keys = dict.fromkeys(key for run in runs for key in run.recipe)

    def shown(run: Run, key: str) -> str:
        if key not in run.recipe:
            return '<span class="facts">not set</span>'
        return f"<code>{escape(clean(json.dumps(run.recipe[key], ensure_ascii=False, default=str)))}</code>"

    if len(runs) > 1:
        keys = [key for key in keys if len({shown(run, key) for run in runs}) > 1]
        if not keys:
            return tag("p", "The recipes do not differ.", "facts")
    rows = [[f"<code>{escape(clean(str(key)))}</code>", *(shown(run, key) for run in runs)] for key in keys]
    if not rows:
        return ""
    headings = ["field", *(chip(number, run) for number, run in enumerate(runs))]
    found = table(headings, rows, numbers=False)
    return found if len(runs) > 1 else f"<details><summary>{len(rows)} settings</summary>{found}</details>"


def time_by_phase(runs: Sequence[Run]) -> str:
    """A bar and a row of seconds for each run."""
    figure = figures.phases(runs)
    if figure is None:
        return ""
    times = [figures.seconds_by_phase(run) for run in runs]
    names = [phase for phase in figures.PHASES if any(phase in found for found in times)]
    swatch = '<span class="chip"><i style="background:{}"></i>{}</span>'
    headings = ["", *(swatch.format(figures.PHASES[phase], phase) for phase in names), "s an iteration"]
    rows = []
    for number, (run, found) in enumerate(zip(runs, times, strict=True)):
        whole = sum(found.values()) or 1.0
        cells = [f"{found[p]:.1f} s ({found[p] / whole:.0%})" if p in found else "-" for p in names]
        each = f"{whole / max(1, run.metrics[-1]['step']):.2f}" if found else "-"
        rows.append([f"{number + 1}: {chip(number, run)}", *cells, each])
    return f'<div class="panel wide">{plot(figure)}</div>{table(headings, rows)}'


def memory(runs: Sequence[Run]) -> str:
    """Predicted peaks by phase, and the measured peaks."""
    predicted = [run.memory for run in runs]
    phases = list(dict.fromkeys(phase for found in predicted if found for phase in found["peaks"]))
    columns = [("memory/device_peak", "measured on the GPU"), ("memory/process_peak", "measured in main memory")]
    columns = [(metric, label) for metric, label in columns if any(run.series(metric)[1] for run in runs)]
    if not phases and not columns and not any(run.memory_note for run in runs):
        return ""
    rows = []
    for number, (run, found) in enumerate(zip(runs, predicted, strict=True)):
        cells = [f"{found['peaks'][p] / GIB:.2f}" if found and p in found["peaks"] else "-" for p in phases]
        if phases:
            cells.append(f"{found['total'] / GIB:.2f}" if found else "-")
        for metric, _ in columns:
            values = run.series(metric)[1]
            cells.append(f"{max(values) / GIB:.2f}" if values else "-")
        rows.append([chip(number, run), *cells])
    headings = ["GiB", *phases, *(["predicted total"] if phases else []), *(label for _, label in columns)]
    note = (
        "Predicted: torch's allocator in each phase; the total adds fragmentation and the CUDA context."
        if phases
        else ""
    )
    notes = [note, *(f"{run.name}: {run.memory_note}" for run in runs if run.memory_note)]
    return table(headings, rows) + "".join(tag("p", line, "facts") for line in notes if line)
