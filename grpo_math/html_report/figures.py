"""The page's figures, in plotly. Colours of text and grid come from the page's style, so that light and dark both read well."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from grpo_math.html_report.runs import Run

# Legible on white and on near-black
COLOURS = ("#3b82f6", "#f97316", "#10b981", "#ec4899", "#8b5cf6", "#ca8a04", "#06b6d4", "#ef4444")
PHASES = {
    "generation": "#3b82f6",
    "rewards": "#10b981",
    "scoring": "#ca8a04",
    "training": "#8b5cf6",
    "optimizer": "#ec4899",
    "held-out": "#06b6d4",
    "rest": "#94a3b8",
}
# Metric, heading, axis
PANELS = (
    ("reward", "Mean training reward", "reward"),
    ("frac_reward_zero_std", "Groups without a signal (equal rewards)", "share of groups"),
    ("completions/mean_length", "Completion length", "tokens"),
    ("completions/clipped_ratio", "Completions cut off", "share"),
    ("entropy", "Entropy", "nats per token"),
    ("kl", "KL to the reference", "nats per token"),
    ("grad_norm", "Gradient norm", "norm"),
)


def colour_of(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last `window` values."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [(sums[i] - sums[max(0, i - window)]) / min(i, window) for i in range(1, len(sums))]


def _figure(y_title: str, height: int = 260) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    clear = "rgba(0,0,0,0)"
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 58, "r": 14, "t": 10, "b": 44},
        paper_bgcolor=clear,
        plot_bgcolor=clear,
        showlegend=False,
        font={"family": "system-ui, sans-serif", "size": 12},
        hovermode="closest",
        hoverlabel={"font": {"color": "#ffffff"}, "bgcolor": "#334155"},
    )
    figure.update_xaxes(automargin=True, zeroline=False, showgrid=False, nticks=6)
    figure.update_yaxes(title={"text": y_title}, automargin=True, zeroline=False, nticks=6, rangemode="tozero")
    return figure


def _iterations(figure: Any, runs: Sequence[Run]) -> None:
    """The axis of iterations, with room for what is drawn at its ends."""
    last = max(run.metrics[-1]["step"] for run in runs)
    figure.update_xaxes(title={"text": "iteration"}, range=[-0.03 * last, 1.03 * last])


def _blind(figure: Any, runs: Sequence[Run]) -> None:
    """A dashed line at the accuracy of the best policy that ignores the target."""
    for level in sorted({run.summary["blind"] for run in runs if isinstance(run.summary.get("blind"), float)}):
        figure.add_hline(y=level, line={"color": "#94a3b8", "dash": "dash", "width": 1.5})


def curve(runs: Sequence[Run], metric: str, y_title: str) -> Any | None:
    """A metric over the iterations, one colour a run: points faint and smoothed where they are many. None without points."""
    figure, drawn = _figure(y_title), False
    for number, run in enumerate(runs):
        steps, values = run.series(metric)
        if not values:
            continue
        drawn, colour, name = True, colour_of(number), escape(run.name)
        window = max(1, len(values) // 20)
        line = {"mode": "lines+markers" if len(values) < 20 else "lines", "line": {"color": colour, "width": 2}}
        if window > 1:
            figure.add_scatter(
                x=steps, y=values, mode="markers", marker={"color": colour, "size": 4}, opacity=0.25, hoverinfo="skip"
            )
        figure.add_scatter(x=steps, y=smoothed(values, window), name=name, **line)
    if metric == "reward":
        _blind(figure, runs)
    _iterations(figure, runs)
    return figure if drawn else None


def heldout(runs: Sequence[Run]) -> Any | None:
    """Held-out sampled accuracy with 95 % intervals, before, along and after training, and the target-blind policy."""
    figure, drawn = _figure("accuracy"), False
    for number, run in enumerate(runs):
        end = run.summary.get("steps")
        points = [(0, run.summary.get("accuracy_before")), (end, run.summary.get("accuracy_after"))]
        points = [(step, point) for step, point in points if isinstance(point, dict)]
        along = [(look["step"], look["accuracy"]) for look in run.looks if look["step"] not in (0, end)]
        points = sorted(points + along, key=lambda entry: entry[0])
        if not points:
            continue
        drawn, colour = True, colour_of(number)
        value, low, high = ([point[key] for _, point in points] for key in ("value", "low", "high"))
        figure.add_scatter(
            x=[step for step, _ in points],
            y=value,
            mode="lines+markers",
            name=escape(run.name),
            line={"color": colour, "width": 2},
            error_y={
                "type": "data",
                "array": [h - v for h, v in zip(high, value, strict=True)],
                "arrayminus": [v - b for v, b in zip(value, low, strict=True)],
                "color": colour,
                "thickness": 1.5,
            },
        )
    _blind(figure, runs)
    _iterations(figure, runs)
    return figure if drawn else None


def seconds_by_phase(run: Run) -> dict[str, float]:
    """Seconds of each phase of training; empty where the run has not measured them."""
    found = {phase: run.total(f"time/{phase}") for phase in PHASES if phase != "rest"}
    found = {phase: seconds for phase, seconds in found.items() if seconds > 0}
    rest = run.summary.get("seconds")
    # A resumed run's `seconds` are those of its last start alone
    if found and isinstance(rest, (int, float)) and not run.summary.get("resumed_at"):
        found["rest"] = max(0.0, rest - sum(found.values()))
    return found


def phases(runs: Sequence[Run]) -> Any | None:
    """Seconds by phase, one bar a run."""
    times = [seconds_by_phase(run) for run in runs]
    if not any(times):
        return None
    figure = _figure("", height=90 + 34 * len(runs))
    names = [f"run {number}" for number in range(1, len(runs) + 1)]
    for phase, colour in PHASES.items():
        figure.add_bar(
            y=names,
            x=[found.get(phase, 0.0) for found in times],
            name=phase,
            orientation="h",
            marker={"color": colour},
            hovertemplate=f"{phase}: %{{x:.1f}} s<extra></extra>",
        )
    figure.update_layout(barmode="stack", bargap=0.35)
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(title={"text": "seconds of training"})
    return figure
