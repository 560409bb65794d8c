"""tinygen on an NVIDIA GPU, in ten minutes: its tests on CuPy, then time, memory, copies and waits beside PyTorch.

A step is forward, backward and Adam on images of 28 x 28 that are on the device; losses and gradients from the same
weights are compared first. Both compute in float32; TF32, which CuPy does not use, is off in PyTorch. The contenders
take turns, and the device is waited for only at the ends of a turn; medians and their ratio are reported. Copies and
waits are those of a step of ``fit``, counted by CUDA's own profiler. The section GPU of benchmarks/RESULTS.md is
written again after each part.

Needs the extras ``bench``, ``test`` and ``cuda13`` (``cuda12`` for a CUDA 12 driver).

    python benchmarks/gpu.py                  # everything
    python benchmarks/gpu.py --only step/vae  # names that contain this (also: tests, fit/, sample/); writes nothing
"""

import argparse
import datetime
import functools
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parent.parent
BATCHES, SAMPLES = (64, 512), 64
TEST_SECONDS, SECONDS = 300, 540  # limit of the tests; time after which no further part begins
COLUMNS = ["work", "contender", "median ms", "tinygen / it", "peak MB", "turns"]


def missing():
    """What this machine lacks, and how to get it, in a sentence; None if nothing is missing."""
    try:
        import cupy
    except ImportError:
        return (
            "CuPy is missing: on a machine with an NVIDIA GPU, pip install -e '.[bench,test,cuda13]', or with cuda12 "
            "for a CUDA 12 driver."
        )
    if not cupy.is_available():
        return (
            "A GPU is missing: CuPy is installed but finds no CUDA device, so check the driver, and that the extra "
            "(cuda12 or cuda13) matches it."
        )
    try:
        import torch
    except ImportError:
        return "PyTorch is missing: pip install -e '.[bench]'."
    if not torch.cuda.is_available():
        return (
            f"PyTorch with CUDA is missing: {torch.__version__} finds no GPU, so install one for your driver, as "
            "pytorch.org/get-started says."
        )
    if importlib.util.find_spec("pytest") is None:
        return "pytest is missing: pip install -e '.[test]'."
    try:
        (cupy.ones(2) @ cupy.ones(2)).get()  # compiles a kernel and calls a library
    except Exception as error:
        return (
            f"A part of CUDA is missing: CuPy finds the GPU but cannot compute on it ({first_line(error)}), which "
            "pip install 'cupy-cuda13x[ctk]', or 'cupy-cuda12x[ctk]' for a CUDA 12 driver, should mend."
        )


def first_line(error):
    return f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")


def run_tests(device="cupy", seconds=TEST_SECONDS, files=()):
    """Run the tests that have ``device`` as a parameter. Returns the result in Markdown, with the failures' end."""
    command = [sys.executable, "-m", "pytest", "-k", f"[{device} or -{device}", "--tb=short", *files]
    begun, ended = time.monotonic(), ""
    with tempfile.TemporaryFile("w+") as output:
        with subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT) as process:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                ended = f"stopped after {seconds:g} s, until then "
                process.send_signal(signal.SIGINT)  # pytest then reports its results so far
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
        output.seek(0)
        lines = output.read().splitlines()
    counts = {"passed": 0, "failed": 0, "error": 0}
    counts.update((what, int(n)) for n, what in re.findall(r"(\d+) (passed|failed|error)", "\n".join(lines[-5:])))
    text = (
        f"Tests on {device}: {ended}{counts['passed']:,} passed, {counts['failed'] + counts['error']:,} failed, "
        f"in {time.monotonic() - begun:.0f} s."
    )
    if process.returncode == 0:
        return text
    end = next((i for i, line in enumerate(lines) if "short test summary" in line), len(lines))
    return "\n".join([text, "", "```", *lines[max(0, end - 15) : end + 15], "```"])  # the last failure, and all names


def description():
    """The GPU, and the versions of the software that uses it."""
    import cupy
    import machine
    import torch

    driver = ""
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True).stdout.split("\n")[0].strip()
    newest, used = (
        f"{version // 1000}.{version % 1000 // 10}"
        for version in (cupy.cuda.runtime.driverGetVersion(), cupy.cuda.runtime.runtimeGetVersion())
    )
    return (
        f"{torch.cuda.get_device_name(0)}, driver {driver or 'unknown'} (CUDA {newest}); "
        f"{machine.description('numpy', 'torch')} with CUDA {torch.version.cuda}, cupy {cupy.__version__} with CUDA "
        f"{used}."
    )


def parts():
    """{name: function that yields a part's rows and sentences}, the most important first."""
    import gpu_works as works

    def tests():
        yield run_tests()

    def step(name, batch):
        return works.rows_of(f"step/{name}/{batch}", works.training(name, batch))

    def sample(name):
        return works.rows_of(f"sample/{name}", works.drawing(name, SAMPLES))

    def count(name):
        counts = works.counted(name, BATCHES[0])
        figures = "not available, since the profiler sees no kernels"
        if counts:
            figures = ", ".join(f"{n:g} {what}" for what, n in counts.items())
        yield f"`fit`, {name}, a step of {BATCHES[0]} images between looks at the loss: {figures}."

    small, large = BATCHES
    return {
        "tests": tests,
        **{f"step/{name}/{small}": functools.partial(step, name, small) for name in works.MODELS},
        **{f"fit/{name}": functools.partial(count, name) for name in works.MODELS},
        **{f"sample/{name}": functools.partial(sample, name) for name in works.SAMPLED},
        **{f"step/{name}/{large}": functools.partial(step, name, large) for name in works.MODELS},
    }


def run(parts, begun, save):
    """Measure all parts, calling ``save(rows, sentences)`` after each, and return whether all could be measured."""
    rows, sentences, good = [], [], True
    for name, part in parts.items():
        try:
            found = list(part()) if time.monotonic() < begun + SECONDS else [f"{name}: not measured, time was over."]
        except Exception as error:  # time on a GPU is scarce: go on with the other parts
            traceback.print_exc()
            found, good = [f"{name}: not measured ({first_line(error)})."], False
        for item in found:
            print(item if isinstance(item, str) else line(cells(item)), flush=True)
            (sentences if isinstance(item, str) else rows).append(item)
        save(rows, sentences)
    return good


def cells(row):
    """A row as the table shows it."""
    return [
        row["work"],
        row["contender"],
        f"{1e3 * row['median_s']:.2f}",
        f"{row['ratio']:.3f}",
        f"{row['peak_bytes'] / 1e6:.0f}",
        str(row["turns"]),
    ]


def line(cells):
    return f"{cells[0]:<31} {cells[1]:<22} " + " ".join(f"{c:>{len(name)}}" for c, name in zip(cells[2:], COLUMNS[2:]))


def write(header, rows, sentences):
    from report import table, write_section

    write_section("GPU", "\n\n".join([header, table(COLUMNS, map(cells, rows)), *sentences]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default="", help="parts whose name contains this; writes nothing")
    arguments = parser.parse_args()
    os.environ["CUPY_TF32"] = "0"  # before CuPy is imported
    if sentence := missing():
        raise SystemExit(sentence)
    import gpu_works
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    begun, command = time.monotonic(), shlex.join(["python", "benchmarks/gpu.py", *sys.argv[1:]])
    header = (
        f"{datetime.date.today()}, `{command}`. {description()} A step's last number is its batch; sampling is of "
        f"{SAMPLES} images, in PyTorch with the whole network for each pixel. float32 on both sides, TF32 off; before "
        f"timing, losses agree to 1e-4 and gradients to {gpu_works.TOLERANCE:g} of each one's largest number. Peak MB: "
        "what CuPy's memory pool and PyTorch's allocator hold."
    )
    print(header, flush=True)
    print(line(COLUMNS), flush=True)
    chosen = {name: part for name, part in parts().items() if arguments.only in name}
    save = functools.partial(write, header) if not arguments.only else lambda *_: None
    if not run(chosen, begun, save):
        raise SystemExit("not all parts could be measured, see above")


if __name__ == "__main__":
    main()
