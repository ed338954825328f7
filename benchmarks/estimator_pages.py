"""The page and the pictures of the estimator benchmark, from its measurements."""

from pathlib import Path

from benchmarks import common
from benchmarks.pictures import label_ends, new_figure, plain_ticks, save_figure
from benchmarks.plain import table

SCORE = ("REINFORCE", "running baseline", "leave-one-out", "GRPO without std", "GRPO")
FORMULA, EVERY, FITTED = "the reward's formula", "every completion's reward", "a fitted reward"
RATIO_NAMES = {
    "none": "none (stale samples)",
    "token": "per token",
    "clipped": "per token, clipped (PPO)",
    "sequence": "per completion (importance sampling)",
}
# Drawn lines: estimator -> colour
COLOURS = {
    "REINFORCE": "tab:gray",
    "leave-one-out": "tab:blue",
    "GRPO": "tab:green",
    "Gumbel-softmax 1": "tab:red",
    "Gumbel-softmax 0.3": "tab:orange",
    "straight-through 1": "tab:purple",
}


def bias_of(figures: dict) -> str:
    """The bias, or that it is within what the repetitions can show."""
    error = 2 * figures["bias_error"]
    return f"{figures['bias']:.2f}" if figures["bias"] > error else f"0 (± {error:.2f})"


def on_policy_table(found: dict, group: int) -> str:
    """Each estimator at one group size."""
    rows = []
    for name, entry in found.items():
        one = entry["groups"][group]
        shares = [f"{one[key]:.2f}" for key in ("scale", "direction", "noise", "cosine")]
        what = entry["differentiates"]
        rows.append(
            [name.split(", ")[0], what, entry["reward_calls"], bias_of(one), *shares, f"{one['microseconds']:.0f}"]
        )
    header = ["estimator", "differentiates", "reward calls a prompt", "bias", "scale", "direction", "noise", "cosine"]
    return table([*header, "CPU µs"], rows)


def samples_table(found: dict) -> str:
    """Noise and cosine of each estimator at every group size."""
    groups = list(next(iter(found.values()))["groups"])
    rows = [
        [name, *[f"{entry['groups'][g]['noise']:.2f} / {entry['groups'][g]['cosine']:.2f}" for g in groups]]
        for name, entry in found.items()
    ]
    return table(["noise / cosine", *[f"G = {g}" for g in groups]], rows)


def difficulty_table(found: dict, accuracies: list[float], group: int) -> str:
    """Noise by the prompt's accuracy."""
    rows = [
        [name, *[f"{one['noise']:.2f}" for one in found[name]["groups"][group]["by_prompt"]]]
        for name in found
        if name in SCORE or name.endswith(EVERY)
    ]
    return table(["noise, by the prompt's accuracy", *[f"{a:g}" for a in accuracies]], rows)


def width_table(widths: dict) -> str:
    """Cosine and direction by the width of the smooth reward."""
    names = list(next(iter(widths.values())))
    rows = [
        [f"{width:g}", *[f"{found[name]['direction']:.2f} / {found[name]['cosine']:.2f}" for name in names]]
        for width, found in widths.items()
    ]
    return table(["width", *[name.split(", ")[0] for name in names]], rows)


def off_policy_table(entries: list[dict]) -> str:
    """Direction, noise and cosine by how far the sampling policy lies behind."""
    rows = []
    for entry in entries:
        cells = [
            f"{one['direction']:.2f} / {one['noise']:.2f} / {one['cosine']:.2f}" for one in entry["estimators"].values()
        ]
        rows.append([entry["steps"], f"{entry['kl']:.2g}", *cells])
    names = [RATIO_NAMES[name] for name in entries[0]["estimators"]]
    return table(["steps ahead", "KL, nats", *names], rows)


def size_table(sizes: dict) -> str:
    """Direction and cosine by length and vocabulary."""
    names = list(next(iter(sizes.values()))["estimators"])
    rows = [
        [
            size,
            entry["completions"],
            *[
                f"{entry['estimators'][name]['direction']:.2f} / {entry['estimators'][name]['cosine']:.2f}"
                for name in names
            ],
        ]
        for size, entry in sizes.items()
    ]
    return table(["length x vocabulary", "completions", *[name.split(", ")[0] for name in names]], rows)


def compared(a: float, b: float) -> str:
    """How a compares with b, in words that follow the figures."""
    if abs(a - b) <= 0.03 * max(a, b):
        return f"{a:.2f}, as much as {b:.2f}"
    return f"{a:.2f}, {'less' if a < b else 'more'} than {b:.2f}"


def what_it_shows(data: dict, group: int) -> str:
    """Sentences computed from the measurements."""
    smooth, sparse = (
        {name: entry["groups"][group] for name, entry in data[kind].items()} for kind in ("smooth", "sparse")
    )
    own, loo = smooth[f"Gumbel-softmax 1, {FORMULA}"], smooth["leave-one-out"]
    straight = smooth[f"straight-through 1, {FORMULA}"]
    cold = smooth[f"Gumbel-softmax 0.3, {FORMULA}"]
    narrow, wide = (data["widths"][edge(data["widths"])] for edge in (min, max))
    name = f"Gumbel-softmax 1, {FORMULA}"
    match = sparse[f"Gumbel-softmax 1, {EVERY}"]
    grpo, mean = sparse["GRPO"], sparse["GRPO without std"]
    accuracies = data["accuracies"]
    easy, hard = (
        {n: data["sparse"][n]["groups"][group]["by_prompt"][i]["noise"] for n in ("REINFORCE", "leave-one-out")}
        for i in (-1, 0)
    )
    far = data["off_policy"][-2]
    clipped, importance = far["estimators"]["clipped"], far["estimators"]["sequence"]
    fitted = sparse[f"straight-through 1, {FITTED}"]["cosine"]
    pair = data["smooth"]["GRPO"]["groups"][min(data["smooth"]["GRPO"]["groups"])]
    smooth_reinforce = smooth["REINFORCE"]["noise"]
    return "\n".join(
        [
            f"- **Where a reparameterised estimator is quieter:** with a smooth reward whose formula it may differentiate, the "
            f"noise of Gumbel-softmax at temperature 1 is {compared(own['noise'], loo['noise'])} of leave-one-out, and one "
            f"estimate's cosine is {own['cosine']:.2f} against {loo['cosine']:.2f}. It pays with bias: its mean points at "
            f"{own['direction']:.2f}, and more samples do not help.",
            f"- A lower temperature trades this bias for noise: at 0.3 the direction is {cold['direction']:.2f} and the noise "
            f"{compared(cold['noise'], loo['noise'])} of leave-one-out.",
            f"- Straight-through samples exactly, but its gradient is the formula's slope at a corner: direction "
            f"{straight['direction']:.2f}, cosine {straight['cosine']:.2f}.",
            f"- **Where it is not:** as the smooth reward narrows to the string match, the slope vanishes between the digits. "
            f"At width {min(data['widths']):g} the direction of Gumbel-softmax is {narrow[name]['direction']:.2f} and one "
            f"estimate's cosine {narrow[name]['cosine']:.2f}; leave-one-out does not notice "
            f"({narrow['leave-one-out']['cosine']:.2f}, at width {max(data['widths']):g} "
            f"{wide['leave-one-out']['cosine']:.2f}).",
            "- **A string match has no slope at all.** The pathwise rows of the first table differentiate something else: the "
            "multilinear extension, which needs the reward of every completion before the first step, or a fitted reward. "
            f"With the former the noise is {compared(match['noise'], sparse['leave-one-out']['noise'])} of leave-one-out, "
            f"and the cosine {match['cosine']:.2f}; a fitted reward with straight-through reaches {fitted:.2f}. Those reward "
            "calls, spent on leave-one-out's own samples, give "
            + " and ".join(f"{one['cosine']:.2f} (G = {count})" for count, one in data["equal_calls"].items())
            + ". And whoever has enumerated the rewards can compute the exact gradient. A language model's completions cannot "
            "be enumerated. GRPO, as published and as TRL and this project run it, is a score-function estimator.",
            f"- GRPO without std is leave-one-out times (G-1)/G: scale {mean['scale']:.2f} at G = {group}, the same direction "
            f"and noise. The std changes each prompt's weight: scale {grpo['scale']:.2f}, direction {grpo['direction']:.2f} "
            f"with the string match and {smooth['GRPO']['direction']:.2f} with the smooth reward, {pair['direction']:.2f} "
            "there in pairs (G = 2).",
            f"- A baseline is no free gain with rare rewards. With the smooth reward, REINFORCE's noise is "
            f"{compared(smooth_reinforce, loo['noise'])} of leave-one-out. With the string match it is "
            f"{compared(hard['REINFORCE'], hard['leave-one-out'])} at accuracy {accuracies[0]:g}, and "
            f"{compared(easy['REINFORCE'], easy['leave-one-out'])} at {accuracies[-1]:g}: the rare wrong completions of a "
            "confident policy have large scores, and the mean reward is not the baseline of least variance.",
            f"- PPO's clip is no estimate of the gradient far from the sampling policy, and is not meant as one: it stops what "
            f"has moved enough. {far['steps']} steps ahead its mean points at {clipped['direction']:.2f}; importance sampling "
            f"per completion at {importance['direction']:.2f} with noise {importance['noise']:.2f}. On the sampling policy "
            "itself all four are the same.",
        ]
    )


def page(data: dict, group: int) -> str:
    """The page in Markdown."""
    accuracies = ", ".join(f"{a:g}" for a in data["accuracies"])
    rewards = ", ".join(f"{r:.2f}" for r in data["smooth_rewards"])
    parts = [
        "# Estimators of the policy gradient, beside the exact gradient",
        common.machine_line(),
        f"Completions of 3 digits below 6 (216), read as `a*b+c`. Four prompts (targets) have the accuracies {accuracies}. "
        f"The smooth reward, exp(-((value - target) / 4)^2 / 2), has the means {rewards}. Every estimate uses G completions "
        f"of each prompt. {data['repetitions']} repetitions of each estimator, {data['cpu_seconds']:.0f} s of CPU in all.",
        "- **bias**: distance of the mean to the exact gradient, over the latter's norm; in brackets, what the repetitions "
        "cannot resolve. **scale**: the mean's part along the exact gradient, 1 where unbiased.\n"
        "- **direction**: cosine of the mean to the exact gradient: what many samples converge to.\n"
        "- **noise**: root of the variance (the covariance's trace), over the norm of the mean: free of the scale.\n"
        "- **cosine**: of a single estimate to the exact gradient, averaged; an estimate of zero counts 0.\n"
        "- **CPU µs**: of an estimate, with sampling, reward and backward, in batches. The reward here costs nothing.",
        "![bias, noise and cosine against samples](estimators.png)",
        "![cosine against time, and against the width of the reward](estimators_time.png)",
        "## What it shows",
        what_it_shows(data, group),
        f"## String match, G = {group}",
        on_policy_table(data["sparse"], group),
        f"## Smooth reward, G = {group}",
        on_policy_table(data["smooth"], group),
        "## Group sizes",
        "String match:",
        samples_table(data["sparse"]),
        "Smooth reward:",
        samples_table(data["smooth"]),
        "## Easy and hard prompts, string match",
        difficulty_table(data["sparse"], data["accuracies"], group),
        "## From a smooth reward to a string match",
        "Direction / cosine. The pathwise estimators differentiate the reward's formula.",
        width_table(data["widths"]),
        "## Off policy, string match",
        "Leave-one-out advantages, by the ratio to the sampling policy: direction / noise / cosine. The policy has "
        "moved along its exact gradient.",
        off_policy_table(data["off_policy"]),
        "## Longer completions, string match",
        "Direction / cosine. The pathwise estimators differentiate every completion's reward.",
        size_table(data["sizes"]),
    ]
    return "\n\n".join(parts)


def drawn(found: dict, surrogate: str) -> dict[str, dict]:
    """Short name -> figures by group, of the estimators that the pictures show."""
    names = {name: name if name in SCORE else f"{name}, {surrogate}" for name in COLOURS}
    return {short: found[name]["groups"] for short, name in names.items()}


def draw(data: dict, group: int, folder: Path) -> None:
    """`estimators.png` and `estimators_time.png`."""
    kinds = {"sparse": ("string match", EVERY), "smooth": ("smooth reward", FORMULA)}
    draw_samples(data, kinds, folder / "estimators.png")
    draw_time(data, kinds, group, folder / "estimators_time.png")


def draw_samples(data: dict, kinds: dict[str, tuple[str, str]], path: Path) -> None:
    """Bias, noise and cosine against completions of a prompt."""
    figure = new_figure(13, 7.5)
    axes = figure.subplots(2, 3, sharex=True)
    figure.subplots_adjust(left=0.05, right=0.88, bottom=0.08, top=0.91, wspace=0.2, hspace=0.2)
    titles = {"bias": "bias (GRPO's is its scale)", "noise": "noise", "cosine": "cosine of one estimate"}
    for row, (kind, (title, surrogate)) in enumerate(kinds.items()):
        lines = drawn(data[kind], surrogate)
        groups = list(next(iter(lines.values())))
        for axis, key in zip(axes[row], titles, strict=True):
            for name, by_group in lines.items():
                y = [by_group[g][key] for g in groups]
                if key == "bias":  # what the repetitions cannot resolve is drawn as zero
                    y = [b if b > 2 * by_group[g]["bias_error"] else 0 for b, g in zip(y, groups, strict=True)]
                axis.plot(groups, y, "o-", color=COLOURS[name], markersize=4)
            axis.set_xscale("log", base=2)
            plain_ticks(axis, "x", groups)
            axis.set_title(f"{title}: {titles[key]}", fontsize=10)
            axis.grid(alpha=0.2)
        axes[row][1].set_yscale("log")
        plain_ticks(axes[row][1], "y", (0.3, 0.5, 1, 2, 4))
        label_ends(axes[row][2], {name: by_group[groups[-1]]["cosine"] for name, by_group in lines.items()}, COLOURS)
    for axis in axes[1]:
        axis.set_xlabel("completions of a prompt (G)")
    figure.suptitle(
        "Estimators beside the exact gradient. Pathwise ones differentiate every completion's reward (above), "
        "the reward's formula (below)",
        fontsize=10,
    )
    save_figure(figure, path)


def draw_time(data: dict, kinds: dict[str, tuple[str, str]], group: int, path: Path) -> None:
    """Cosine against CPU time, and against the width of the smooth reward."""
    figure = new_figure(14, 4.4)
    axes = figure.subplots(1, 3)
    figure.subplots_adjust(left=0.05, right=0.9, bottom=0.13, top=0.9, wspace=0.62)
    for axis, (kind, (title, surrogate)) in zip(axes, kinds.items(), strict=False):
        lines = drawn(data[kind], surrogate)
        for name, by_group in lines.items():
            x = [by_group[g]["microseconds"] for g in by_group]
            axis.plot(x, [by_group[g]["cosine"] for g in by_group], "o-", color=COLOURS[name], markersize=4)
        axis.set_xscale("log")
        plain_ticks(axis, "x", (10, 20, 50, 100, 200))
        axis.set(xlabel="CPU µs an estimate", ylabel="cosine of one estimate")
        axis.set_title(f"{title}: cosine against time", fontsize=10)
        axis.grid(alpha=0.2)
        last = max(next(iter(lines.values())))
        label_ends(axis, {name: by_group[last]["cosine"] for name, by_group in lines.items()}, COLOURS)
    widths = data["widths"]
    names = {name.split(", ")[0]: name for name in next(iter(widths.values()))}
    for short, name in names.items():
        y = [found[name]["cosine"] for found in widths.values()]
        axes[2].plot(list(widths), y, "o-", color=COLOURS[short], markersize=4)
    axes[2].set_xscale("log", base=2)
    plain_ticks(axes[2], "x", list(widths))
    axes[2].set(xlabel="width of the reward (left: a string match)", ylabel="cosine of one estimate")
    axes[2].set_title(f"smooth reward's width, G = {group}", fontsize=10)
    axes[2].grid(alpha=0.2)
    label_ends(axes[2], {short: widths[max(widths)][name]["cosine"] for short, name in names.items()}, COLOURS)
    save_figure(figure, path)
