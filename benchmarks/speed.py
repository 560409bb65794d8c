"""Time of training steps, single operations and sampling: tinygen against other engines on the same CPU.

A step is forward, backward and Adam on 64 images of 28 x 28 (FFJORD: 256 points of a plane), from the same weights in
all engines; a single operation is forward and backward. Before timing, losses and gradients are compared. The
contenders take turns of about two seconds, a slow one a single turn of one step; medians, minima and the ratio of
medians are reported. Peak memory is measured in a new process. Needs the extra ``bench``.

    python benchmarks/speed.py                        # everything, about a quarter of an hour
    python benchmarks/speed.py --only step/pixelcnn   # names that contain this
    python benchmarks/speed.py --results              # into benchmarks/RESULTS.md and speed.png
"""

import argparse
import datetime
import json
import shlex
import sys
from pathlib import Path

from machine import CORES, STATUS, description, fresh, import_seconds, matmul_peak
from report import RESULTS, plot, table, write_section

try:
    from contenders import measure, summaries
    from works import BATCH, CONVOLUTIONAL, POINTS, WORKERS, WORKS, check, flops
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: this needs the extra bench, pip install -e '.[bench]'") from None

TURN = 2  # seconds of a contender's turn
COLUMNS = ["work", "contender", "median ms", "min ms", "tinygen / it", "peak MB", "of matmul peak", "turns"]


def rows_of(work, rounds, matmul):
    """The rows of a work; ``matmul``: the machine's peak in operations per second."""
    contenders = WORKS[work]()
    if work.startswith(("step/", "op/")):
        check(work, contenders)
    step = work.startswith("step/")
    for row in summaries(work, measure(contenders, rounds, TURN)):
        yield {
            **row,
            "peak_bytes": fresh(f"peak({work!r}, {row['contender']!r})") if step and STATUS.exists() else None,
            "matmul_share": flops(work) / row["median_s"] / matmul if work in CONVOLUTIONAL else None,
        }


def cells(row):
    """A row as the table shows it."""
    ratio, memory, share = row["ratio"], row["peak_bytes"], row["matmul_share"]
    return [
        row["work"],
        row["contender"],
        f"{1e3 * row['median_s']:.2f}",
        f"{1e3 * row['min_s']:.2f}",
        "" if ratio is None else f"{ratio:.3f}",
        "" if memory is None else f"{memory / 1e6:.0f}",
        "" if share is None else f"{share:.1%}",
        str(row["turns"]),
    ]


def line(cells):
    return f"{cells[0]:<29} {cells[1]:<22} " + " ".join(f"{c:>{len(name)}}" for c, name in zip(cells[2:], COLUMNS[2:]))


def remarks(rows, only):
    """What the table does not say, in sentences."""
    medians = {(row["work"], row["contender"]): row["median_s"] for row in rows}
    one, two, busy = (
        medians.get(("workers/pixelcnn-h32", name)) for name in ("1 worker", "2 workers", "2 workers, busy core")
    )
    if two:
        yield f"Two workers are {one / two:.2f} times as fast as one; a busy core slows them {busy / two:.2f} times."
    widths = [median for (work, _), median in medians.items() if work.startswith("sample/width")]
    if len(widths) > 1:
        yield f"Sampling a pixel: the slowest width takes {max(widths) / min(widths):.2f} times as long as the fastest."
    if only in "import":
        ours, numpy = import_seconds("tinygen", "numpy")
        yield f"`import tinygen` takes {1e3 * ours:.0f} ms, `import numpy` alone {1e3 * numpy:.0f} ms."
    if only in "memory" and STATUS.exists():
        early, late = fresh("growth()")
        yield f"A tiny PixelCNN's process has {early / 1e6:.1f} MB after 100 steps, {late / 1e6:.1f} MB after 1,000."


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default="", help="works whose name contains this; also: import, memory")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (default 5)")
    parser.add_argument("--json", help="file for the rows")
    parser.add_argument("--plot", help="file for a plot of the ratios")
    parser.add_argument("--results", action="store_true", help="write the section Speed of RESULTS.md, and its plot")
    arguments = parser.parse_args()
    matmul = matmul_peak()
    header = (
        f"{description('numpy', 'torch', 'dezero', 'autograd')}. Batch {BATCH}, for points {POINTS}; {CORES} threads "
        f"for PyTorch and BLAS, {WORKERS} workers for tinygen. Matrix product's peak: {matmul / 1e9:.0f} GFLOP/s."
    )
    print(header, line(COLUMNS), sep="\n")
    rows = []
    for work in WORKS:
        if arguments.only in work:
            for row in rows_of(work, arguments.rounds, matmul):
                rows.append(row)
                print(line(cells(row)), flush=True)
    sentences = list(remarks(rows, arguments.only))
    print(*sentences, sep="\n")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=1))
    if arguments.plot:
        plot(rows, arguments.plot)
    if arguments.results:
        plot(rows, RESULTS.with_name("speed.png"))
        command = shlex.join(["python", "benchmarks/speed.py", *sys.argv[1:]])
        text = [
            f"{datetime.date.today()}, `{command}`. {header}",
            table(COLUMNS, map(cells, rows)),
            *sentences,
            "![Time of tinygen as a multiple of the others'](speed.png)",
        ]
        write_section("Speed", "\n\n".join(text))


if __name__ == "__main__":
    main()
