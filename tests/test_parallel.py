"""tinygen.parallel: forked workers, and real MPI ranks where mpi4py and an mpiexec are installed."""

import importlib.util
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from tinygen import Tensor, backend, grad, ops
from tinygen.backend import communicator, flatten, split, to_device
from tinygen.models import FVSBN, VAE, Autoencoder, PixelCNN
from tinygen.nn import BatchNorm, Buffer, Linear, Module, Parameter, Sequential
from tinygen.optim import SGD, Adam
from tinygen.parallel import SHARD, first_rank, shard_size, start_workers
from tinygen.tensor import recording
from tinygen.training import evaluate, fit

MPIEXEC = Path(sys.executable).with_name("mpiexec")  # of the extra; else one of the system
MPIEXEC = str(MPIEXEC) if MPIEXEC.exists() else shutil.which("mpiexec")
needs_mpi = pytest.mark.skipif(
    not MPIEXEC or importlib.util.find_spec("mpi4py") is None, reason="mpi4py or mpiexec is not installed"
)


class Tiny(Module):
    """Squared distance of a linear map of the image from noise."""

    unit = "squared distance"

    def __init__(self, pixels=4):
        self.layer = Linear(pixels, 3, rng=np.random.default_rng(0))

    def loss(self, x, rng):
        noise = rng.standard_normal((x.shape[0], 3), np.float32)
        return ((self.layer(x.reshape(x.shape[0], -1)) - noise) ** 2).sum() / x.shape[0]


@pytest.fixture(autouse=True)
def shards_of_16(monkeypatch):
    """Shards have 16 images for tiny networks too, so that a batch has several shards."""
    monkeypatch.setattr("tinygen.parallel.shard_size", lambda *_: SHARD)


@pytest.fixture
def images(rng):
    return rng.standard_normal((50, 1, 2, 2)).astype(np.float32)


def workers_for(model, images, workers, largest_batch, most_images):
    return start_workers(model, model.parameters(), None, workers, (images,), largest_batch, most_images)


def test_flatten_and_split(rng, device):
    arrays = [to_device(rng.standard_normal(shape), device) for shape in ((2, 3), (), (4,), (0, 2))]
    flat = flatten(arrays)
    assert flat.shape == (11,)
    for part, array in zip(split(flat, arrays), arrays, strict=True):
        assert part.shape == array.shape and bool((part == array).all())
    part = split(flat, arrays)[0]
    part += 1
    assert bool((flat[:6] == arrays[0].ravel() + 1).all())  # views


# -- shards


def test_the_size_of_a_shard_follows_from_the_network(rng):
    digits = (rng.random((20, 1, 28, 28)) < 0.2).astype(np.float32)
    sizes = [
        shard_size(model, model.parameters(), (digits,), None)
        for model in (PixelCNN(rng=rng), Autoencoder(rng=rng), VAE(rng=rng), FVSBN(rng=rng))
    ]
    assert sizes == [16, 32, 32, 128]  # the last has large weights and few activations
    assert shard_size(Tiny(), [], (digits[:, :, :2, :2],), None) == 128


def test_measuring_a_network_leaves_no_trace(rng):
    model, images = Normed(), rng.standard_normal((20, 1, 2, 2)).astype(np.float32)
    before = model.state_dict()
    shard_size(model, model.parameters(), (images,), lambda x, rng: x + 1)
    assert all((value == before[name]).all() for name, value in model.state_dict().items())


@pytest.mark.parametrize("workers", [2, 3])
def test_large_shards_agree_for_any_number_of_workers(workers, rng, monkeypatch):
    monkeypatch.setattr("tinygen.parallel.shard_size", shard_size)
    images = rng.standard_normal((300, 1, 2, 2)).astype(np.float32)
    found = []
    for count in 1, workers:
        model = Tiny()
        optimizer = Adam(model.parameters(), 0.1)
        options = {"rng": np.random.default_rng(0), "batch_size": 300, "workers": count, "progress": False}
        fit(model, images, steps=3, optimizer=optimizer, **options)
        found.append(model.state_dict())
    assert all((found[0][name] == found[1][name]).all() for name in found[0])


# -- workers


def test_workers_leave_ctrl_c_to_the_first_process(images):
    with workers_for(Tiny(), images, 2, 50, 0) as workers:
        before = workers.mean((images,), [7], {})[0]
        os.kill(workers.processes[0].pid, signal.SIGINT)
        time.sleep(0.1)
        assert workers.mean((images,), [7], {})[0] == before


def test_each_worker_has_one_blas_thread(images):
    def prepare(part, rng):
        assert all(library["num_threads"] == 1 for library in threadpool_info() if library["user_api"] == "blas")
        return part

    evaluate(Tiny(), images, np.random.default_rng(0), prepare, workers=2)


@pytest.mark.parametrize("workers", [1, 2])
def test_prepare_may_change_what_it_gets(workers, images):
    def prepare(part, rng):
        part *= rng.random()
        return part

    kept = images.copy()
    figures = [evaluate(Tiny(), images, np.random.default_rng(0), prepare, workers=workers) for _ in range(2)]
    assert figures[0] == figures[1] and (images == kept).all()


def test_parameters_in_another_memory_order(rng):
    images, results = rng.standard_normal((40, 1, 15, 15)).astype(np.float32), []
    for workers in (1, 2):
        model = Tiny(225)
        model.layer.weight.data = np.asfortranarray(model.layer.weight.data)
        optimizer = SGD(model.parameters(), 0.001)
        fit(model, images, steps=6, optimizer=optimizer, rng=np.random.default_rng(0), batch_size=17, workers=workers)
        results.append(model.state_dict())
    assert all((results[0][name] == results[1][name]).all() for name in results[0])


@pytest.mark.parametrize("workers", [1, 2, 3, 9])
def test_the_mean_and_its_gradient(workers, images):
    """They are those of the shards, weighted by their numbers of images."""
    model, expected, gradient = Tiny(), 0.0, 0.0
    for i, start in enumerate(range(0, 50, SHARD)):
        part = images[start : start + SHARD]
        loss = model.loss(Tensor(part), np.random.default_rng([7, i]))
        expected += loss.item() * len(part) / 50
        gradient = gradient + flatten([g.data for g in grad(loss, model.parameters())]) * (len(part) / 50)
    with workers_for(model, images, workers, 50, 0) as workers:
        loss, flat, _, stop = workers.mean((images,), [7], {})
        assert loss == pytest.approx(expected, rel=1e-6) and not stop
        np.testing.assert_allclose(flat, gradient, rtol=1e-5, atol=1e-6)
        assert workers.mean((images,), [7], {})[0] == loss != workers.mean((images,), [8], {})[0]
        alone, nothing, _, stop = workers.mean((images,), [7], {}, gradients=False, stop=lambda: True)
        assert alone == pytest.approx(loss, rel=1e-6) and nothing.size == 0 and stop


def test_workers_see_the_present_parameters(images):
    model = Tiny()
    with workers_for(model, images, 2, 50, 0) as workers:
        before = workers.mean((images,), [7], {})[0]
        model.layer.bias.data = model.layer.bias.data + 1  # a new array, as loading and averaging make
        after = workers.mean((images,), [7], {})[0]
    with workers_for(model, images, 1, 50, 0) as workers:
        assert workers.mean((images,), [7], {})[0] == after != before


def test_parameters_of_several_dtypes(images):
    """Such models are computed in this process, each gradient in its parameter's dtype."""
    results = []
    for workers in (1, 2):
        model = Tiny()
        model.layer.bias.data = model.layer.bias.data.astype(np.float64)
        optimizer = SGD(model.parameters(), 0.1)
        fit(model, images, steps=3, optimizer=optimizer, rng=np.random.default_rng(0), workers=workers)
        assert [p.dtype for p in model.parameters()] == [np.float32, np.float64]
        results.append(model.state_dict())
    assert all((results[0][name] == results[1][name]).all() for name in results[0])


def test_more_images_than_gradients_have_slots_for(images):
    with workers_for(Tiny(), images, 2, 20, 50) as workers:
        assert np.isfinite(workers.mean((images,), [1], {}, gradients=False)[0])
        assert workers.mean((images[:20],), [1], {})[1].any()


def test_work_really_is_elsewhere(images, tmp_path):
    def prepare(part, rng):
        (tmp_path / str(os.getpid())).touch()
        return part

    evaluate(Tiny(), images, np.random.default_rng(0), prepare, workers=3)
    pids = {path.name for path in tmp_path.iterdir()}
    assert len(pids) == 3 and str(os.getpid()) in pids


def test_no_worker_outlives_its_block(images):
    with workers_for(Tiny(), images, 3, 50, 0) as workers:
        assert len(workers.processes) == 2 and all(p.is_alive() for p in workers.processes)
        workers = list(workers.processes)
    assert not any(p.is_alive() for p in workers) and not multiprocessing.active_children()


def test_an_error_that_only_workers_have(images, rng):
    """Its share is not lost: the first process computes it again, here with success."""
    first = os.getpid()

    def prepare(part, rng):
        if os.getpid() != first:
            raise ValueError("not here")
        return part

    expected = evaluate(Tiny(), images, np.random.default_rng(0), workers=1)
    assert evaluate(Tiny(), images, np.random.default_rng(0), prepare, workers=2) == expected


def test_a_worker_that_dies_is_named(images):
    first = os.getpid()

    def prepare(part, rng):
        if os.getpid() != first:
            os.kill(os.getpid(), signal.SIGKILL)
        return part

    with pytest.raises(RuntimeError, match="a worker process was ended from outside"):
        evaluate(Tiny(), images, np.random.default_rng(0), prepare, workers=2)
    assert not multiprocessing.active_children()


def test_a_worker_that_died_between_steps_is_named(images):
    with workers_for(Tiny(), images, 2, 50, 0) as workers:
        workers.processes[0].kill()
        workers.processes[0].join()
        with pytest.raises(RuntimeError, match="a worker process was ended from outside"):
            workers.mean((images,), [1], {})


@pytest.mark.parametrize("workers,message", [(0, "got 0"), (2, "got 2, but this process cannot fork")])
def test_workers_that_cannot_be(workers, message, images, rng, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ValueError, match=f"workers: {message}"):
        evaluate(Tiny(), images, rng, workers=workers)
    assert evaluate(Tiny(), images, rng) > 0  # with one


def test_workers_end_where_their_parent_is_killed(tmp_path):
    """Each has closed its copies of the others' pipes, so all of them notice that the first process ended."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, numpy as np, tinygen.parallel\n"
        "from tinygen.parallel import start_workers\n"
        "from tinygen.models import PixelCNN\n"
        "model = PixelCNN((1, 2, 2), channels=2, blocks=0, rng=np.random.default_rng(0))\n"
        "images = np.zeros((48, 1, 2, 2), np.uint8)\n"
        "tinygen.parallel.shard_size = lambda *_: 16\n"
        "with start_workers(model, model.parameters(), None, 3, (images,), 48, 0) as workers:\n"
        "    print(*[p.pid for p in workers.processes], flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    pids, end = [int(pid) for pid in done.stdout.split()], time.monotonic() + 10
    while any(_running(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.02)
    assert len(pids) == 2 and not any(_running(pid) for pid in pids)


def _running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


# -- buffers


class Normed(Module):
    """A linear map of the normalized image, whose batches count only in training; and buffers that stay as they are."""

    unit = "squared distance"

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.body = Sequential(Linear(4, 5, rng=rng), BatchNorm(5), ops.relu, Linear(5, 3, rng=rng))
        self.scale = Buffer(np.array([0.1, 0.3, 0.7], np.float32))
        self.mask = Buffer(np.array([0, -np.inf], np.float32))
        self.table = Buffer(np.arange(3))

    def loss(self, x, rng):
        y = self.body(x.reshape(x.shape[0], -1), rng if recording() else None)
        return ((y * self.scale - self.scale) ** 2).sum() / x.shape[0]


def trained(images, workers, steps=5, seed=0, **options):
    model = Normed(seed)
    optimizer = SGD(model.parameters(), 0.05)
    rng = np.random.default_rng(seed)
    fit(model, images, steps=steps, optimizer=optimizer, rng=rng, batch_size=37, workers=workers, **options)
    return model.state_dict()


def test_buffers_are_the_same_for_any_number_of_workers(images):
    states = [trained(images, workers, validation=images, validate_every=2) for workers in (1, 2, 3)]
    assert all(states[0][name].tobytes() == s[name].tobytes() for s in states[1:] for name in states[0])
    assert (states[0]["body.steps.1.running_mean"] != 0).all()
    for name in "scale", "mask", "table":
        assert states[0][name].tobytes() == Normed().state_dict()[name].tobytes()


@pytest.mark.parametrize("workers", [1, 2])
def test_buffers_become_the_mean_of_what_the_shards_leave(workers, images):
    model, means = Normed(), 0.0
    for start in range(0, 37, SHARD):
        part, alone = images[start : min(37, start + SHARD)], Normed()
        alone.loss(Tensor(part), np.random.default_rng(0))
        means = means + alone.body.steps[1].running_mean.data * (len(part) / 37)
    with workers_for(model, images, workers, 37, 50) as workers:
        workers.change_buffers(workers.mean((images[:37],), [7], {})[2])
        np.testing.assert_allclose(model.body.steps[1].running_mean.data, means, rtol=1e-5)
        before = model.state_dict()
        workers.mean((images,), [7], {}, gradients=False)
    assert all((before[name] == value).all() for name, value in model.state_dict().items())


def test_buffers_survive_a_checkpoint(images, tmp_path):
    whole = trained(images, 1, steps=9, averaging=0.9)
    trained(images, 2, steps=4, averaging=0.9, checkpoint=tmp_path / "run.npz")
    resumed = trained(images, 1, steps=9, seed=1, averaging=0.9, checkpoint=tmp_path / "run.npz")
    assert all(whole[name].tobytes() == resumed[name].tobytes() for name in whole)


def test_evaluation_changes_no_buffer(images, rng):
    model = Normed()
    model.loss = lambda x, rng: model.body(x.reshape(x.shape[0], -1), rng).sum()  # even one that forgets the difference
    before = model.state_dict()
    evaluate(model, images[:48], rng, workers=1)
    assert all((before[name] == value).all() for name, value in model.state_dict().items())


def test_an_unused_parameter_is_named(images, rng):
    for workers in 1, 2:
        model = Tiny()
        model.extra = {"scale": Parameter(np.ones(2, np.float32)), "shift": Parameter(np.ones(1, np.float32))}
        optimizer = SGD(model.parameters(), 0.1)
        with pytest.raises(ValueError, match=r"parameter extra\.scale, extra\.shift"):
            fit(model, images, steps=1, optimizer=optimizer, rng=rng, workers=workers)


# -- ranks


def test_alone():
    assert communicator() is None and first_rank()


def test_sum_over_ranks_on_a_device(strict, monkeypatch):
    """Through NCCL, on the device: nothing is copied to the host."""
    calls = []

    class Group:
        def all_reduce(self, array, total):
            total[...] = 2 * array

    def init_process_group(size, rank, use_mpi):
        calls.append((size, rank, use_mpi))
        return Group()

    monkeypatch.setitem(sys.modules, "cupyx.distributed", types.SimpleNamespace(init_process_group=init_process_group))
    backend._nccl.cache_clear()
    x = to_device(np.arange(3.0), "cuda")
    strict.count.clear()
    comm = types.SimpleNamespace(size=2, rank=1)
    for _ in range(2):
        total = backend.sum_over_ranks(x, comm)
    assert calls == [(2, 1, True)] and not strict.count
    assert (backend.to_host(total) == [0, 2, 4]).all()
    backend._nccl.cache_clear()


SCRIPT = """
import hashlib, os, signal, sys, time
import numpy as np
from tinygen.models import PixelCNN
from tinygen.optim import Adam
from tinygen.backend import communicator
from tinygen.checkpoint import TrainingState
from tinygen.parallel import first_rank
from tinygen.training import evaluate, fit

folder, workers, steps, how = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
rank = communicator().rank if communicator() else 0
images = (np.random.default_rng(0).random((100, 1, 6, 6)) < 0.3).astype(np.float32)

def prepare(part, rng):
    if how == "raise" and rank == 1:
        raise ValueError("the second rank has a problem")
    if how == "interrupt" and rank == 1:
        signal.raise_signal(signal.SIGINT)
    return part

if how == "interrupt":  # while the first rank is saving, the others must not end it
    save = TrainingState.save
    TrainingState.save = lambda state, path: (time.sleep(1), save(state, path))

model = PixelCNN((1, 6, 6), channels=4, blocks=1, rng=np.random.default_rng(rank if how == "seeds" else 0))
record = fit(
    model, images, steps=steps, optimizer=Adam(model.parameters(), 0.01), rng=np.random.default_rng(rank),
    batch_size=40, prepare=prepare, averaging=0.9, validation=images[:30], validate_every=50, workers=workers,
    checkpoint=f"{folder}/{'run' if rank == 0 else 'not-mine'}.npz",
)
digest = hashlib.sha1(b"".join(p.numpy().tobytes() for p in model.parameters())).hexdigest()
def noisy(part, rng):
    return (part + rng.random(part.shape) > 0.9).astype(np.uint8)

figure = evaluate(model, images, np.random.default_rng(rank), noisy, workers)
with open(f"{folder}/{how}-{rank}.txt", "w") as file:
    print(digest, record[-1]["step"], record[-1]["train"], record[-1]["validation"], figure, first_rank(), file=file)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)

    def run(ranks, workers, steps, how="train"):
        command = [sys.executable, *(["-m", "mpi4py"] if ranks > 1 else []), path, tmp_path, workers, steps, how]
        start = [MPIEXEC, "-n", ranks] if ranks > 1 else []
        done = subprocess.run([str(part) for part in start + command], capture_output=True, text=True, timeout=120)
        rows = [(tmp_path / f"{how}-{rank}.txt") for rank in range(ranks)]
        return done, [row.read_text().split() if row.exists() else None for row in rows]

    return run


def figures(row):
    return [float(number) for number in row[2:5]]


@needs_mpi
@pytest.mark.parametrize("ranks,workers", [(2, 1), (2, 2), (3, 1), (4, 1)])
def test_ranks_train_as_one_process_does(ranks, workers, script, tmp_path):
    """Three shards per step: two ranks get different numbers, and one of four gets none."""
    _, (alone,) = script(1, 1, 100)
    (tmp_path / "run.npz").unlink()
    done, rows = script(ranks, workers, 100)
    assert done.returncode == 0, done.stderr
    assert len({tuple(row[:5]) for row in rows}) == 1  # bit-identical parameters, the same figures
    assert figures(rows[0]) == pytest.approx(figures(alone), rel=1e-5)
    assert [row[5] for row in rows] == ["True"] + ["False"] * (ranks - 1)
    assert (tmp_path / "run.npz").exists() and not (tmp_path / "not-mine.npz").exists()


@needs_mpi
def test_the_first_ranks_parameters_and_checkpoint_count(script, tmp_path):
    """The ranks begin with different parameters and seeds, and are interrupted and resumed."""
    _, whole = script(2, 1, 60, "seeds")
    (tmp_path / "run.npz").unlink()
    script(2, 1, 25, "seeds")
    done, rows = script(2, 1, 60, "seeds")
    assert done.stderr.count("going on from") == 1 and "step 25 of 60" in done.stderr
    assert rows == whole and rows[0][0] == rows[1][0]


@needs_mpi
def test_a_rank_that_raises_ends_all_with_its_error(script):
    begun = time.monotonic()
    done, rows = script(2, 1, 10**6, "raise")
    assert time.monotonic() - begun < 10
    assert done.returncode != 0 and "ValueError: the second rank has a problem" in done.stderr and rows == [None, None]


@needs_mpi
def test_ctrl_c_on_one_rank_stops_all_after_the_same_step(script, tmp_path):
    done, _ = script(2, 1, 10**6, "interrupt")
    assert done.returncode != 0 and "interrupted after step 1 of 1000000" in done.stderr
    with np.load(tmp_path / "run.npz") as file:
        assert '"step": 1,' in str(file["run"])


@needs_mpi
def test_one_rank_is_alone():
    code = "from tinygen.parallel import first_rank; from tinygen.backend import communicator; import mpi4py.MPI"
    command = [MPIEXEC, "-n", "1", sys.executable, "-m", "mpi4py", "-c", f"{code}; print(communicator(), first_rank())"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "None True\n"


@needs_mpi
def test_the_quickstart_on_two_ranks(tmp_path):
    """Only one rank prints and draws."""
    script = Path(__file__).parent.parent / "demos" / "quickstart.py"
    command = [MPIEXEC, "-n", "2", sys.executable, "-m", "mpi4py", script, "--minutes", "0.02", "--out", tmp_path]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("training VAE") == done.stdout.count("picture: ") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["quickstart.png"]
