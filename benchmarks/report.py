"""Where results go: sections of ``RESULTS.md``, and the plot."""

import os
import re
from itertools import groupby
from pathlib import Path

from matplotlib.figure import Figure

RESULTS = Path(__file__).with_name("RESULTS.md")


def write_section(title, text):
    """Write the section ``## title`` of RESULTS.md, in place of the one it has; its other sections stay."""
    head, *sections = re.split(
        r"^(?=## )", RESULTS.read_text() if RESULTS.exists() else "# Results\n\n", flags=re.MULTILINE
    )
    new = f"## {title}\n\n{text}"
    i = next((i for i, section in enumerate(sections) if section.startswith(f"## {title}\n")), len(sections))
    sections[i : i + 1] = [new]
    temporary = RESULTS.with_name(RESULTS.name + ".part")
    temporary.write_text("\n\n".join(part.strip() for part in [head, *sections]) + "\n")
    os.replace(temporary, RESULTS)


def table(columns, rows):
    """In Markdown; all but the first two columns are numbers, on the right."""
    lines = [columns, ["---"] * 2 + ["---:"] * (len(columns) - 2), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(rows, path):
    """Bars of tinygen's time as a multiple of each other contender's, with the line at 1."""
    rows = [r for r in rows if r["ratio"] and r["contender"] != "tinygen"]
    colours = {name: f"C{i}" for i, name in enumerate(["pytorch", "pytorch channels_last", "dezero", "autograd"])}
    figure = Figure(figsize=(8, 1.2 + 0.22 * len(rows)), layout="constrained")
    ax = figure.add_subplot()
    bars, ticks, y = {}, {}, 0
    for work, group in groupby(rows, key=lambda row: row["work"]):
        top = y
        for row in group:
            bars[row["contender"]] = ax.barh(y, row["ratio"] - 1, left=1, color=colours[row["contender"]])
            y += 1
        ticks[work] = (top + y - 1) / 2
        y += 0.8  # a gap
    ax.axvline(1, color="black", linewidth=0.8)
    ax.set_xscale("log")
    ax.set_xlabel("time of tinygen / time of the other (left of 1: tinygen is faster)")
    ax.set_ylabel("work")
    ax.set_yticks(list(ticks.values()), ticks, fontsize=8)
    ax.set_ylim(y - 0.8, -1)
    figure.legend(bars.values(), bars, loc="outside upper center", ncols=4)
    figure.savefig(path, dpi=150)
