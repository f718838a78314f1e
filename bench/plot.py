"""The plot of a run."""

from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot

COLORS = {"this fetcher": "#0f62fe", "floor": "#8d8d8d", "usual design": "#da1e28", "vkbottle relay": "#ff832b"}


def plot(rounds: dict[str, Any], delays: dict[str, list[float]], growth: dict[str, Any], path: Path) -> None:
    """Draw storms, CPU, delays and growth into one SVG."""
    pyplot.rcParams |= {"svg.hashsalt": "bench", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    figure, ((storm, cpu), (delay, memory)) = pyplot.subplots(2, 2, figsize=(9, 6), layout="constrained")
    bars(storm, rounds, "cold", "Cold storm, events/s", log=True)
    bars(cpu, {name: values for name, values in rounds.items() if name != "usual design"}, "cpu",
         "CPU per event, names warm, µs")  # fmt: skip
    for name, values in delays.items():
        shares = [(number + 1) / len(values) for number in range(len(values))]
        delay.plot([1000 * value for value in sorted(values)], shares, color=COLORS[name], label=name)
    delay.set(title="Delay from push to subscriber, ms", xscale="log", ylabel="share of events")
    delay.legend(frameon=False)
    for name, points in growth.items():
        memory.plot([size for size, _ in points], [values["memory"] for _, values in points], "o-", color=COLORS[name])
    memory.set(title="Resident memory, MiB, after so many events", xscale="log", ylim=(0, None))
    figure.savefig(path, metadata={"Date": None})


def bars(axes: Any, rounds: dict[str, Any], key: str, title: str, log: bool = False) -> None:
    """Draw medians as bars, and their spread."""
    names = list(rounds)
    heights = [median(rounds[name][key]) for name in names]
    below = [height - min(rounds[name][key]) for name, height in zip(names, heights, strict=True)]
    above = [max(rounds[name][key]) - height for name, height in zip(names, heights, strict=True)]
    drawn = axes.bar(names, heights, yerr=[below, above], color=[COLORS[name] for name in names], log=log, capsize=3)
    axes.bar_label(drawn, [f"{height:,.{0 if height >= 10 else 1}f}" for height in heights])
    axes.set(title=title)
