"""A description of the machine, and measurements of time and memory on it."""

import functools
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from threadpoolctl import ThreadpoolController

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
STATUS = Path("/proc/self/status")  # Linux alone has it
BLAS = ThreadpoolController()


def description(*packages):
    """The processor, its cores, and the versions of Python and of the packages."""
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    processor = named[1] if named else platform.processor() or platform.machine()
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    return f"{processor}, {CORES} cores; Python {platform.python_version()}, {', '.join(versions)}"


def timed(function, *arguments):
    begun = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - begun


def matmul_peak():
    """Operations per second of float32 matrix products, 1024 x 1024, with one BLAS thread, times the cores."""
    a = np.random.default_rng(0).standard_normal((1024, 1024), np.float32)
    with BLAS.limit(limits=1, user_api="blas"):
        return CORES * 2 * 1024**3 / min(timed(np.matmul, a, a) for _ in range(30))


def memory(field):
    """Bytes of memory of this process: ``VmRSS`` now, ``VmHWM`` at most so far."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", STATUS.read_text())[1])


def fresh(expression):
    """The value of an expression on the names in ``works``, computed in a new process."""
    command = [sys.executable, "-c", f"import json; from works import *; print(json.dumps({expression}))"]
    output = subprocess.run(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(output)


def import_seconds(*modules):
    """Medians of 7 imports, each in a new interpreter, without the time that it takes to start."""

    process = functools.partial(subprocess.run, check=True)

    def start(module):
        return statistics.median(timed(process, [sys.executable, "-c", f"import {module}"]) for _ in range(7))

    bare = start("sys")
    return [start(module) - bare for module in modules]
