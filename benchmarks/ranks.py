"""How training scales over MPI ranks: measured with one and two, projected beyond. Needs the extra ``mpi``.

The ranks take shards of 16 images in turn, then one Allreduce adds the gradients. So a step should take

    ceil(shards / ranks) * shard + rest + log2(ranks) * latency + 2 (ranks - 1) / ranks * bytes / bandwidth

``shard`` and ``rest`` (optimizer, bookkeeping) come from steps of one rank with one worker on two batches, latency
and bandwidth from an Allreduce of 8 bytes and one of the model's gradient between two ranks of this machine. Between
machines they are those of the network; the second column of projections has those of gigabit Ethernet.

    python benchmarks/ranks.py            # about two minutes
    python benchmarks/ranks.py --results  # into benchmarks/RESULTS.md
"""

import argparse
import datetime
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from report import write_section

from tinygen.backend import communicator
from tinygen.models import PixelCNN
from tinygen.optim import Adam
from tinygen.parallel import SHARD, first_rank
from tinygen.training import fit

BATCHES = (SHARD, 4 * SHARD)
ETHERNET = 50e-6, 118e6  # latency in seconds, bytes a second
ROUNDS, STEPS = 7, 4


def step_seconds(batch_size):
    """Median seconds of a training step: PixelCNN of width 32 with 7 blocks on 28 x 28, one worker per rank."""
    rng = np.random.default_rng(0)
    images = (rng.random((max(BATCHES), 1, 28, 28)) < 0.2).astype(np.float32)
    model = PixelCNN(channels=32, rng=rng)
    optimizer, times = Adam(model.parameters(), 1e-4), []
    for _ in range(ROUNDS):
        record = fit(
            model, images, steps=STEPS, optimizer=optimizer, rng=rng, batch_size=batch_size, workers=1, progress=False
        )
        times.append(record[-1]["seconds"] / STEPS)
    return statistics.median(times[1:])


def allreduce_seconds(comm, size):
    """Median seconds of an Allreduce of ``size`` float32 numbers."""
    numbers, total, times = np.ones(size, np.float32), np.empty(size, np.float32), []
    for _ in range(200):
        comm.Barrier()
        begun = time.perf_counter()
        comm.Allreduce(numbers, total)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def measure():
    """Measure in one process, or in each of two ranks; the first rank prints the results."""
    figures = {f"step {batch}": step_seconds(batch) for batch in BATCHES}
    figures["bytes"] = 4 * PixelCNN(channels=32, rng=np.random.default_rng(0)).num_parameters()
    if comm := communicator():
        figures["latency"] = allreduce_seconds(comm, 2)
        figures["allreduce"] = allreduce_seconds(comm, figures["bytes"] // 4)
    if first_rank():
        print(json.dumps(figures))


def run(ranks):
    mpiexec = Path(sys.executable).with_name("mpiexec")
    command = [mpiexec if mpiexec.exists() else "mpiexec", "-n", str(ranks), sys.executable, "-m", "mpi4py"]
    return json.loads(subprocess.check_output([*command, __file__, "--measure"], text=True).splitlines()[-1])


def report(one, two):
    """The lines of the report: what was measured, and the table."""
    small, large = (one[f"step {batch}"] for batch in BATCHES)
    shard = (large - small) / (BATCHES[1] - BATCHES[0]) * SHARD
    rest = max(0.0, small - shard)
    here = two["latency"], one["bytes"] / max(1e-9, two["allreduce"] - two["latency"])
    measured = {(BATCHES[1], 1): large, (BATCHES[1], 2): two[f"step {BATCHES[1]}"]}

    def faster(batch, ranks, latency, bandwidth):
        """The projected speed relative to one rank."""
        traffic = math.log2(ranks) * latency + 2 * (ranks - 1) / ranks * one["bytes"] / bandwidth
        shards = batch // SHARD
        return (shards * shard + rest) / (math.ceil(shards / ranks) * shard + rest + traffic)

    yield (
        f"A training step of PixelCNN (width 32, 7 blocks) with one worker a rank: a shard of {SHARD} images takes "
        f"{1e3 * shard:.1f} ms, the rest {1e3 * rest:.1f} ms; its gradient has {one['bytes'] / 1e6:.2f} MB, whose "
        f"Allreduce between two ranks of this machine takes {1e3 * two['allreduce']:.2f} ms (latency "
        f"{1e6 * here[0]:.0f} us, {here[1] / 1e9:.1f} GB/s). It stops scaling at as many ranks as shards.\n"
    )
    yield "| batch | ranks | times as fast as one: measured | projected, this machine's network | gigabit Ethernet |"
    yield "|---:|---:|---:|---:|---:|"
    for batch in BATCHES[1], 16 * BATCHES[1]:
        for ranks in 1, 2, 4, 8, 16, 32, 64, 128:
            if ranks <= 2 * batch // SHARD:
                seen = f"{large / measured[batch, ranks]:.2f}" if (batch, ranks) in measured else ""
                projected = (f"{faster(batch, ranks, *network):.2f}" for network in (here, ETHERNET))
                yield f"| {batch} | {ranks} | {seen} | {' | '.join(projected)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--results", action="store_true", help="write the section Ranks of RESULTS.md")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure()
        return
    text = "\n".join(report(run(1), run(2)))
    print(text)
    if arguments.results:
        write_section("Ranks", f"{datetime.date.today()}, `python benchmarks/ranks.py`. {text}")


if __name__ == "__main__":
    main()
