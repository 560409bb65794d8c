"""tinygen.training: fit against a plain loop, shards, cuts and resume, checkpoints, numbers that are not finite."""

import functools
import gc
import io
import itertools
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import strict_cupy

from tinygen import Tensor, ops, training
from tinygen.backend import device_of, to_device
from tinygen.checkpoint import digest
from tinygen.models import VAE, Autoencoder, PixelCNN, PixelRNN
from tinygen.nn import Dropout, Linear, Module, Parameter, Sequential
from tinygen.optim import SGD, Adam, RMSProp, cosine
from tinygen.training import evaluate, fit

fit = functools.partial(fit, progress=False)
RUINED = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy warns of the numbers that these tests provoke


@pytest.fixture(autouse=True)
def shards_of_16(monkeypatch):
    """Shards have 16 images for tiny networks too, so that a batch has several shards."""
    monkeypatch.setattr("tinygen.parallel.shard_size", lambda *_: 16)


class Tiny(Module):
    """Denoises four numbers; its loss uses noise, as a VAE's does."""

    unit = "nats per image"

    def __init__(self, seed=0, noise=0.1, hidden=5):
        rng = np.random.default_rng(seed)
        self.into, self.out = Linear(4, hidden, rng=rng), Linear(hidden, 4, rng=rng)
        self.noise = noise

    def loss(self, x, rng):
        x = Tensor(x.data.astype(self.into.bias.dtype)).reshape(x.shape[0], 4)
        eps = to_device(rng.standard_normal(x.shape, np.float32).astype(x.dtype), x.device)
        y = self.out(ops.tanh(self.into(x + self.noise * eps)))
        return ((y - x) ** 2).sum() / x.shape[0]


class Single(Module):
    """One parameter w = 1 and a loss given as a function of it and the images."""

    unit = "nats per image"

    def __init__(self, function, w=(1.0, 1.0)):
        self.w = Parameter(np.array(w, np.float32))
        self.function = function

    def loss(self, x, rng):
        return self.function(self.w, x)


def in_float64(model):
    for p in model.parameters():
        p.data = p.data.astype(np.float64)
    return model


@pytest.fixture
def images(rng):
    return rng.standard_normal((37, 1, 2, 2)).astype(np.float32)


def state(model, optimizer):
    return {**model.state_dict(), **{f"optimizer {k}": v for k, v in optimizer.state_dict().items()}}


def same(a, b):
    return a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() and a[k].dtype == b[k].dtype for k in a)


def without_seconds(record):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in record]


def seen_by(images, model=None, **options):
    """The indices of the images in each step, for images whose pixels are their index."""
    steps = []
    model = model or Single(lambda w, x: (w * 0).sum())
    images = np.broadcast_to(np.arange(images).reshape(-1, 1, 1, 1), (images, 1, 2, 2)).astype(np.float32)

    def prepare(part, rng):
        steps.append(part[:, 0, 0, 0].astype(int).tolist())
        return part

    fit(
        model,
        images,
        optimizer=SGD(model.parameters(), 0.1),
        rng=np.random.default_rng(0),
        prepare=prepare,
        workers=1,
        **options,
    )
    return steps


# --- the loop ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_fit_is_the_plain_loop(clip_norm, images, rng):
    """With the whole set as one batch and no noise, random numbers have no effect."""
    model, twin = (in_float64(Tiny(noise=0)) for _ in range(2))
    record = fit(
        model,
        images,
        steps=30,
        optimizer=Adam(model.parameters(), 0.05),
        rng=rng,
        batch_size=37,
        schedule=cosine,
        clip_norm=clip_norm,
        averaging=0.8,
        validation=images[:20],
        validate_every=12,
    )

    optimizer, losses, figures = Adam(twin.parameters(), 1.0), [], {}
    averages = [p.data.copy() for p in twin.parameters()]
    for t in range(1, 31):
        optimizer.zero_grad()
        loss = twin.loss(Tensor(images), rng)
        loss.backward()
        losses.append(loss.item())
        if clip_norm:
            norm = np.sqrt(sum((p.grad.data**2).sum() for p in twin.parameters()))
            for p in twin.parameters():
                p.grad.data *= min(1, clip_norm / norm)
        optimizer.lr = 0.05 * cosine((t - 0.5) / 30)
        optimizer.step()
        keep = min(0.8, t / (t + 10))
        averages = [keep * a + (1 - keep) * p.data for a, p in zip(averages, twin.parameters())]
        if t in (12, 24, 30):
            averaged = in_float64(Tiny(noise=0))
            for p, a in zip(averaged.parameters(), averages):
                p.data = a
            figures[t] = averaged.loss(Tensor(images[:20]), rng).item()

    for p, a in zip(model.parameters(), averages):  # the model ends with the averaged weights
        np.testing.assert_allclose(p.data, a, rtol=1e-4 if clip_norm else 1e-9, atol=1e-5 if clip_norm else 1e-11)
    assert [row["step"] for row in record] == [12, 24, 30]
    rtol = 1e-4 if clip_norm else 1e-9  # clipping divides by norm + 1e-6, as PyTorch does
    np.testing.assert_allclose([row["validation"] for row in record], list(figures.values()), rtol=rtol)
    means = [np.mean(losses[:12]), np.mean(losses[12:24]), np.mean(losses[24:])]
    np.testing.assert_allclose([row["train"] for row in record], means, rtol=rtol)
    seconds = [row["seconds"] for row in record]
    assert seconds == sorted(seconds) and 0 < seconds[0] and seconds[-1] < 60


def test_clipping_is_to_the_norm(images, rng):
    """SGD with rate 1 moves by the clipped gradient: the direction of (3, 4) with norm 0.25; a short one is left."""
    model = Single(lambda w, x: 3 * w[0] + 4 * w[1])
    for clip_norm, step in ((0.25, [0.15, 0.2]), (6.0, [3, 4])):
        model.w.data = np.ones(2, np.float32)
        fit(model, images, steps=1, optimizer=SGD([model.w], 1.0), rng=rng, clip_norm=clip_norm)
        np.testing.assert_allclose(1 - model.w.data, step, rtol=1e-5)


def test_schedule_is_asked_for_the_fraction_done(images, rng):
    asked, model = [], Tiny()
    optimizer = SGD(model.parameters(), 0.5)
    fit(model, images, steps=4, optimizer=optimizer, rng=rng, schedule=lambda done: asked.append(done) or 0.1)
    assert asked[-4:] == [0.125, 0.375, 0.625, 0.875]  # the middle of each step
    assert len(asked) == 4 + training.PROBES  # asked at some fractions before, to tell a schedule from another
    assert optimizer.lr == 0.5
    assert all(p.grad is None for p in model.parameters())


def test_epochs_are_shuffled_and_complete():
    steps = seen_by(10, steps=6, batch_size=5)
    epochs = [a + b for a, b in zip(steps[::2], steps[1::2])]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, range(10)]}) == 4


def test_what_does_not_fill_a_batch_is_skipped():
    steps = seen_by(10, steps=50, batch_size=4)
    assert all(len(a + b) == 8 == len(set(a + b)) for a, b in zip(steps[::2], steps[1::2]))
    assert set(itertools.chain(*steps)) == set(range(10))  # but not always the same ones


def test_a_batch_larger_than_the_set_is_the_set():
    assert [sorted(step) for step in seen_by(10, steps=3, batch_size=64)] == [list(range(10))] * 3


def test_validation_has_the_same_noise_each_time(images, rng):
    model = Tiny()
    optimizer = SGD(model.parameters(), 1e-30)  # nothing moves
    record = fit(
        model, images, steps=6, optimizer=optimizer, rng=rng, batch_size=8, validation=images, validate_every=2
    )
    assert len({row["validation"] for row in record}) == 1
    assert len({row["train"] for row in record}) == 3


def test_no_steps(images, rng):
    model = Tiny()
    before = model.state_dict()
    assert fit(model, images, steps=0, optimizer=Adam(model.parameters(), 1), rng=rng, averaging=0.9) == []
    assert same(model.state_dict(), before)


def test_the_seed_decides(images):
    def run(seed):
        model = Tiny()
        fit(
            model,
            images,
            steps=3,
            optimizer=Adam(model.parameters(), 0.1),
            rng=np.random.default_rng(seed),
            batch_size=8,
        )
        return model.state_dict()

    assert same(run(1), run(1)) and not same(run(1), run(2))


def test_live_tensors_do_not_grow(images, rng):
    """Without the garbage collector: no cycle keeps a step's Tensors alive."""
    counts, model = [], Tiny()

    def prepare(part, rng):
        if len(counts) in (10, 100):
            counts.append(sum(issubclass(type(o), Tensor) for o in gc.get_objects()))
        else:
            counts.append(None)
        return part

    gc.collect()
    gc.disable()
    try:
        fit(
            model,
            images,
            steps=105,
            optimizer=Adam(model.parameters(), 0.1),
            rng=rng,
            batch_size=16,
            prepare=prepare,
            averaging=0.9,
            clip_norm=1.0,
            workers=1,
        )
    finally:
        gc.enable()
    assert counts[10] == counts[100]


# --- shards ------------------------------------------------------------------------------------------------------


MODELS = {
    "tiny": lambda: Tiny(),
    "vae": lambda: VAE((1, 2, 2), latent=2, rng=np.random.default_rng(1)),
    "pixelcnn": lambda: PixelCNN((1, 2, 2), channels=3, blocks=1, rng=np.random.default_rng(1)),
}


@pytest.mark.parametrize("batch_size", [7, 16, 37])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_workers_change_nothing(make, batch_size, images):
    results = []
    for workers in (1, 2, 4):
        model = make()
        optimizer = Adam(model.parameters(), 0.01)
        record = fit(
            model,
            images,
            steps=5,
            optimizer=optimizer,
            rng=np.random.default_rng(3),
            batch_size=batch_size,
            prepare=lambda part, rng: (part + 0.3 * rng.standard_normal(part.shape) > 0).astype(np.float32),
            averaging=0.9,
            clip_norm=0.1,
            validation=images,
            validate_every=3,
            workers=workers,
        )
        results.append((state(model, optimizer), without_seconds(record)))
    for weights, record in results[1:]:
        assert same(weights, results[0][0]) and record == results[0][1]


def test_each_shard_has_noise_of_its_own(rng):
    draws = []

    def prepare(part, rng):
        draws.append(rng.random())
        return part

    model = Tiny()
    images = np.zeros((40, 1, 2, 2), np.float32)
    options = dict(optimizer=SGD(model.parameters(), 0.1), rng=rng, prepare=prepare, workers=1)
    fit(model, images, steps=4, batch_size=40, validation=images, **options)
    assert len(draws) == len(set(draws)) == 3 * 5 + 1  # a shard of the validation images is tried first


@pytest.mark.parametrize("workers", [1, 3])
def test_evaluate_is_a_plain_mean(workers, images, rng):
    model = in_float64(Tiny(noise=0))
    expected = np.mean([model.loss(Tensor(images[i : i + 1]), rng).item() for i in range(37)])
    assert evaluate(model, images, rng, workers=workers) == pytest.approx(expected, rel=1e-12)
    doubled = evaluate(model, images, rng, prepare=lambda part, rng: 2 * part, workers=workers)
    assert doubled == pytest.approx(evaluate(model, 2 * images, rng), rel=1e-12) != pytest.approx(expected)


def test_evaluate_follows_its_rng(images):
    model = Tiny(noise=0.5)
    a, b, c = (evaluate(model, images, np.random.default_rng(seed), workers=2) for seed in (1, 1, 2))
    assert a == b != c


def test_an_error_in_a_worker_comes_out(images, rng):
    last = images[-5:]  # a shard that the first process does not have

    def prepare(part, rng):
        if len(part) == 5:
            raise KeyError("mine")
        return part

    model = Tiny()
    with pytest.raises(KeyError, match="mine") as error:
        evaluate(model, np.concatenate([images[:16], last]), rng, prepare, workers=2)
    assert error.traceback[-1].name == "prepare"  # as if it had happened here
    assert not multiprocessing.active_children()


# --- cuts and resume ---------------------------------------------------------------------------------------------


class Cut(Exception):
    pass


OPTIMIZERS = {
    "sgd": lambda p: SGD(p, 0.05, momentum=0.9),
    "rmsprop": lambda p: RMSProp(p, 0.01),
    "adam": lambda p: Adam(p, 0.02),
}


def run_until(images, checkpoint=None, cuts=0, seed=0, kind="adam", averaging=0.9, steps=12):
    """A run whose ``cuts``-th call of prepare fails, or a whole one; the weights, the optimizer's state, the record."""
    model = Tiny(seed)
    optimizer, calls = OPTIMIZERS[kind](model.parameters()), itertools.count(1)

    def prepare(part, rng):
        if next(calls) == cuts:
            raise Cut
        return part + rng.standard_normal(part.shape, np.float32)

    try:
        record = fit(
            model,
            images,
            steps=steps,
            optimizer=optimizer,
            rng=np.random.default_rng(seed),
            batch_size=20,
            prepare=prepare,
            schedule=cosine,
            clip_norm=1.0,
            averaging=averaging,
            validation=images,
            validate_every=5,
            checkpoint=checkpoint,
            workers=1,
        )
    finally:
        assert optimizer.lr in (0.01, 0.02, 0.05)
        assert all(p.grad is None for p in model.parameters())
    return state(model, optimizer), record


@pytest.mark.parametrize("averaging", [None, 0.9])
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("cuts", [[3], [12], [13], [27], [3, 3, 7]], ids=str)
def test_resumed_is_uninterrupted(cuts, kind, averaging, images, tmp_path, monkeypatch):
    """Cut in the second half of a step, in a validation, in the last one, and over and over again."""
    weights, record = run_until(images, kind=kind, averaging=averaging)
    monkeypatch.setattr(training, "SAVE_SECONDS", -1)  # after each step
    checkpoint = tmp_path / "new folder/run.npz"
    for number, cut in enumerate(cuts):
        with pytest.raises(Cut):
            run_until(images, checkpoint, cut, seed=number, kind=kind, averaging=averaging)
    again, resumed = run_until(images, checkpoint, seed=99, kind=kind, averaging=averaging)  # other weights and noise
    assert same(again, weights) and without_seconds(resumed) == without_seconds(record)
    seconds = [row["seconds"] for row in resumed]
    assert len(seconds) == 3 and seconds == sorted(seconds)
    assert os.listdir(checkpoint.parent) == ["run.npz"]


def test_a_finished_run_stays_as_it_is(images, tmp_path):
    weights, record = run_until(images, tmp_path / "run.npz")
    again, same_record = run_until(images, tmp_path / "run.npz", seed=5)
    assert same(weights, again) and record == same_record


def test_more_steps_go_on_from_the_last(images, tmp_path):
    """The averages were in the model at the end; training goes on from the weights themselves."""
    options = dict(rng=np.random.default_rng(0), batch_size=20, averaging=0.9, workers=1)
    whole, cut, rest = Tiny(0), Tiny(0), Tiny(1)
    fit(whole, images, steps=12, optimizer=Adam(whole.parameters(), 0.02), **options)
    options["checkpoint"] = tmp_path / "run.npz"
    options["rng"] = np.random.default_rng(0)
    fit(cut, images, steps=5, optimizer=Adam(cut.parameters(), 0.02), **options)
    fit(rest, images, steps=12, optimizer=Adam(rest.parameters(), 0.02), **options)
    assert same(whole.state_dict(), rest.state_dict())


SCRIPT = """
import os, sys
import numpy as np
from tinygen.models import VAE
from tinygen.optim import Adam
from tinygen.training import fit
folder, name = sys.argv[1:]
model = VAE((1, 4, 4), latent=2, rng=np.random.default_rng(0))
def prepare(part, rng):
    os.write(1, b"step\\n")
    os.read(0, 1)  # waits for a byte, or the end, of the input
    return (rng.random(part.shape) < part).astype(np.float32)
images = np.random.default_rng(1).random((40, 1, 4, 4), np.float32)
optimizer = Adam(model.parameters(), 0.01)
record = fit(model, images, steps=60, optimizer=optimizer, rng=np.random.default_rng(2), batch_size=20, prepare=prepare,
             averaging=0.9, checkpoint=f"{folder}/{name}.npz", workers=2)
np.savez(f"{folder}/{name}-end.npz", *model.state_dict().values(), np.array([row["train"] for row in record]))
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to another process")
def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path):
    def command(name, stdin):
        arguments = [sys.executable, "-c", SCRIPT, str(tmp_path), name]
        return subprocess.Popen(arguments, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    whole = command("whole", subprocess.DEVNULL)
    cut = command("run", subprocess.PIPE)
    for _ in range(20):
        assert cut.stdout.readline() == "step\n"
        cut.stdin.write(".")
        cut.stdin.flush()
    cut.send_signal(signal.SIGINT)  # two parts a step: in step 10 or 11, which now wait for us
    _, errors = cut.communicate(timeout=60)
    assert cut.returncode == -signal.SIGINT
    found = re.search(r"^KeyboardInterrupt: .*after step (\d+) of 60: .* is saved", errors, re.M)
    assert found and 5 <= int(found[1]) < 60
    assert not (tmp_path / "run-end.npz").exists()
    with np.load(tmp_path / "run.npz") as file:
        assert f'"step": {found[1]}' in str(file["run"])

    rest = command("run", subprocess.DEVNULL)
    for process in (whole, rest):
        assert (process.communicate(timeout=60), process.returncode)[1] == 0
    assert same(*({**np.load(tmp_path / f"{name}-end.npz")} for name in ("whole", "run")))
    assert len(list(tmp_path.iterdir())) == 4


def interrupting(times):
    def prepare(part, rng):
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)
        return part

    return prepare


def test_ctrl_c_without_a_checkpoint(images, rng):
    model = Tiny()
    optimizer = SGD(model.parameters(), 0.1)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="interrupted after step 1 of 9: nothing was saved"):
        fit(model, images, steps=9, optimizer=optimizer, rng=rng, prepare=interrupting(1), workers=1, batch_size=16)
    assert signal.getsignal(signal.SIGINT) is before


def test_second_ctrl_c_does_not_wait(images, rng):
    model = Tiny()
    optimizer = SGD(model.parameters(), 0.1)
    before = signal.getsignal(signal.SIGINT), model.state_dict()
    with pytest.raises(KeyboardInterrupt):
        fit(model, images, steps=9, optimizer=optimizer, rng=rng, prepare=interrupting(2), workers=1)
    assert signal.getsignal(signal.SIGINT) is before[0] and same(model.state_dict(), before[1])


def test_ctrl_c_in_the_last_step_ends_what_comes_after_fit_too(images, rng, tmp_path):
    model, path = Tiny(), tmp_path / "run.npz"
    optimizer = SGD(model.parameters(), 0.1)
    with pytest.raises(KeyboardInterrupt, match=r"interrupted after step 1 of 1: .*run.npz is saved"):
        fit(
            model,
            images[:16],
            steps=1,
            optimizer=optimizer,
            rng=rng,
            prepare=interrupting(1),
            workers=1,
            checkpoint=path,
        )
    with np.load(path) as file:
        assert json.loads(str(file["run"]))["step"] == 1


def test_in_another_thread(images):
    """Only the main thread may handle signals."""
    records = []

    def work():
        model = Tiny()
        records.append(
            fit(model, images, steps=2, optimizer=SGD(model.parameters(), 0.1), rng=np.random.default_rng(0))
        )

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(records[0]) == 1


# --- checkpoints -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error, expected", [(OSError("disk full"), "warns"), (KeyboardInterrupt(), "raises")], ids=["disk", "ctrl-c"]
)
def test_a_failing_write_leaves_the_old_file(error, expected, images, tmp_path, monkeypatch):
    checkpoint = tmp_path / "run.npz"
    run_until(images, checkpoint, steps=3)
    before = checkpoint.read_bytes()

    def half(file, **arrays):
        file.write(before[: len(before) // 2])
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", half)
        with pytest.raises(type(error)) if expected == "raises" else pytest.warns(UserWarning, match="run.npz"):
            run_until(images, checkpoint, steps=6)
    assert os.listdir(tmp_path) == ["run.npz"] and checkpoint.read_bytes() == before
    run_until(images, checkpoint, steps=6)
    assert checkpoint.read_bytes() != before


def test_nothing_in_it_is_pickled(images, tmp_path):
    run_until(images, tmp_path / "run.npz", steps=3)
    with np.load(tmp_path / "run.npz", allow_pickle=False) as file:
        arrays = dict(file)
    assert {a.dtype.kind for a in arrays.values()} <= set("fiuU") and len(arrays) == 1 + 1 + 4 * 4


class Bomb:
    def __reduce__(self):
        return os.mkdir, (self.path,)


def damages(whole: bytes, tmp_path):
    """Contents of files that are not checkpoints, as bytes by name."""
    bomb, buffer, plain, other = Bomb(), io.BytesIO(), io.BytesIO(), io.BytesIO()
    bomb.path = str(tmp_path / "exploded")
    np.savez(buffer, run=np.array([bomb], dtype=object))
    np.save(plain, np.zeros(3))
    np.savez(other, weights=np.zeros(3))
    yield from {"empty": b"", "text": b"not a checkpoint\n", "object": buffer.getvalue()}.items()
    yield from {"npy": plain.getvalue(), "other": other.getvalue(), "half": whole[: len(whole) // 2]}.items()
    for missing in ("json", "step"):
        with np.load(io.BytesIO(whole)) as file:
            arrays = dict(file)
        arrays["run"] = np.array("[1, 2" if missing == "json" else str(arrays["run"]).replace('"step"', '"stop"'))
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        yield missing, buffer.getvalue()


def test_a_damaged_checkpoint_is_refused(images, tmp_path):
    checkpoint = tmp_path / "run.npz"
    run_until(images, checkpoint, steps=3)
    whole = checkpoint.read_bytes()
    for name, content in damages(whole, tmp_path):
        checkpoint.write_bytes(content)
        assert refused(images, checkpoint, "damaged, or no"), name
        assert checkpoint.read_bytes() == content
    assert not (tmp_path / "exploded").exists()


@RUINED
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_any_flipped_byte_is_refused_or_harmless(images, tmp_path):
    """Changing any byte of a zip file is noticed, except those without meaning (dates)."""
    checkpoint = tmp_path / "run.npz"
    weights, _ = run_until(images, checkpoint, steps=3)
    whole, harmless = checkpoint.read_bytes(), 0
    tried = sorted({*range(0, len(whole), 61), *range(140)})
    for i in tried:
        checkpoint.write_bytes(whole[:i] + bytes([whole[i] ^ 0xFF]) + whole[i + 1 :])
        if not refused(images, checkpoint, ""):
            harmless += 1
            model = Tiny(5)
            optimizer = Adam(model.parameters(), 0.02)
            run = empty_run(model, optimizer, images)
            run.load(checkpoint)
            run.average.swap()
            assert same(state(model, optimizer), weights), i
    assert harmless < len(tried) / 3


def empty_run(model, optimizer, images, averaging=0.9):
    """With the settings of ``run_until``."""
    settings = {"batch_size": 20, "clip_norm": 1.0, "validate_every": 5, "patience": float("inf")}
    settings |= {"images[0]": digest(images), "validation[0]": digest(images)}
    settings |= {"frozen": [], "prepare": "run_until.<locals>.prepare", "schedule": training._probed("lr", cosine)}
    return training.TrainingState(model, optimizer, model.parameters(), averaging, 1, settings)


def refused(images, checkpoint, why, make=Tiny, averaging=0.9, optimizer=Adam):
    """Whether fit refuses the file in one sentence that names it, without changing anything."""
    model = make(7)
    optimizer = optimizer(model.parameters(), 0.02)
    before = state(model, optimizer)
    run = empty_run(model, optimizer, images, averaging)
    try:
        run.load(checkpoint)
    except ValueError as error:
        assert str(checkpoint) in str(error) and why in str(error), error
    else:
        return False
    assert same(state(model, optimizer), before) and (run.seed, run.step, run.record) == (1, 0, [])
    with pytest.raises(ValueError, match=re.escape(str(checkpoint))):
        fit(
            model,
            images,
            steps=3,
            optimizer=optimizer,
            rng=np.random.default_rng(0),
            averaging=averaging,
            checkpoint=checkpoint,
        )
    assert same(state(model, optimizer), before)
    return True


class Renamed(Tiny):
    def __init__(self, seed):
        super().__init__(seed)
        self.first = self.into
        self.second = self.out
        del self.into, self.out


def test_a_checkpoint_of_another_run_is_refused(images, tmp_path):
    checkpoint = tmp_path / "run.npz"
    run_until(images, checkpoint, steps=3)
    why = "does not belong to this run"
    wider = functools.partial(Tiny, hidden=6)
    assert refused(images, checkpoint, why, wider)
    assert refused(images, checkpoint, why, Renamed)
    assert refused(images, checkpoint, why, optimizer=RMSProp)
    assert refused(images, checkpoint, "averaging was 0.9, is None", averaging=None)
    os.remove(checkpoint)
    run_until(images, checkpoint, steps=3, averaging=None)
    assert refused(images, checkpoint, "averaging was None, is 0.9", averaging=0.9)
    assert refused(images, checkpoint, why, Renamed, averaging=None)
    assert not refused(images, checkpoint, "", averaging=None)


def test_a_part_of_another_model_changes_nothing(images, tmp_path):
    """The averages fit but the weights do not: the model is unchanged, whichever is checked first."""
    checkpoint = tmp_path / "run.npz"
    run_until(images, checkpoint, steps=3)
    with np.load(checkpoint) as file:
        arrays = dict(file)
    arrays["model.out.bias"] = np.zeros(7, np.float32)
    np.savez(checkpoint, **arrays)
    assert refused(images, checkpoint, "out.bias has shape (7,)")


# --- numbers that are not finite ---------------------------------------------------------------------------------


def fit_single(function, images, rng, workers=1, **options):
    model = Single(function)
    optimizer = SGD([model.w], 0.5)
    try:
        fit(model, images, steps=5, optimizer=optimizer, rng=rng, batch_size=20, workers=workers, **options)
    finally:
        assert optimizer.lr == 0.5
        assert optimizer.steps == 0 or np.isfinite(model.w.data).all()


@RUINED
@pytest.mark.parametrize("workers", [1, 2])
def test_not_finite_in_the_loss(workers, images, rng):
    message = r"step 0: the loss is not finite, first in Log \(inputs \(2,\)\)"
    with pytest.raises(FloatingPointError, match=message):
        fit_single(lambda w, x: ops.log(w - 3).sum(), images, rng, workers)


@RUINED
def test_not_finite_names_the_parameter(images, rng):
    with pytest.raises(FloatingPointError, match=r"step 0: the loss is not finite, first in Div with parameter w"):
        fit_single(lambda w, x: (w / 0).sum(), images, rng)


@RUINED
def test_not_finite_in_a_gradient_only(images, rng):
    """The root of 0 is 0, its derivative infinite."""
    message = r"step 0: the gradient of w is not finite, first in Div"
    with pytest.raises(FloatingPointError, match=message):
        fit_single(lambda w, x: ops.sqrt(w * 0).sum(), images, rng)


@RUINED
def test_not_finite_later(images, rng):
    """1 - 0.5 a step: after two steps w is 0, in whose logarithm the third one fails; the weights stay as they were."""
    model = Single(lambda w, x: w.sum() + 0 * ops.log(w).sum())
    with pytest.raises(FloatingPointError, match=r"step 2: the loss is not finite, first in Log with parameter w"):
        fit(model, images, steps=5, optimizer=SGD([model.w], 0.5), rng=rng)
    assert model.w.data.tolist() == [0, 0]


@RUINED
def test_not_finite_parameter(images, rng):
    model = Tiny()
    model.out.weight.data[1, 2] = np.inf
    with pytest.raises(FloatingPointError, match=r"step 0: parameter out\.weight is not finite"):
        fit(model, images, steps=5, optimizer=SGD(model.parameters(), 0.5), rng=rng)


@RUINED
def test_not_finite_image(images, rng):
    model, before = Tiny(), Tiny().state_dict()
    images[30] = np.nan
    with pytest.raises(
        FloatingPointError, match=r"step 0: the loss is not finite, first in an input of shape \(16, 4\)"
    ):
        fit(model, images, steps=5, optimizer=SGD(model.parameters(), 0.5), rng=rng)
    assert same(model.state_dict(), before)
    vae = VAE((1, 2, 2), likelihood="gaussian", latent=2, rng=rng)
    with pytest.raises(ValueError, match="images: some values are not finite"):
        fit(vae, images, steps=5, optimizer=SGD(vae.parameters(), 0.5), rng=rng)


@RUINED
def test_a_norm_that_overflows(images, rng):
    with pytest.raises(FloatingPointError, match="step 0: the norm of the gradient is not finite"):
        fit_single(lambda w, x: (w * 1e25).sum(), images, rng)


@RUINED
def test_on_a_device_it_is_found_at_the_next_look(strict, images, rng, monkeypatch, tmp_path):
    """In between nothing waits for the device, and no checkpoint of ruined weights is written."""
    monkeypatch.setattr(training, "CHECK_STEPS", 4)
    monkeypatch.setattr(training, "SAVE_SECONDS", -1)
    model = Single(lambda w, x: w.sum() + 0 * ops.log(w).sum()).to("cuda")  # from step 5 on, see above
    model.w.data += 1.5
    with pytest.raises(FloatingPointError, match=r"step 4 to 7: parameter w is not finite"):
        fit(model, images, steps=50, optimizer=SGD([model.w], 0.5), rng=rng, checkpoint=tmp_path / "run.npz")
    with np.load(tmp_path / "run.npz") as file:
        assert file["model.w"].tolist() == [0.5, 0.5]


# --- arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(batch_size=0), r"batch_size: got 0"),
        (dict(batch_size=-3), r"batch_size: got -3"),
        (dict(steps=-1), r"steps: got -1"),
        (dict(validate_every=0), r"validate_every: got 0"),
        (dict(workers=0), r"workers: got 0"),
        (dict(averaging=1.5), r"averaging: got 1\.5"),
        (dict(images=np.zeros((0, 1, 2, 2), np.float32)), r"images: got \(0, 1, 2, 2\) float32"),
        (dict(validation=np.zeros((0, 1, 2, 2), np.float32)), r"validation: got \(0, 1, 2, 2\) float32"),
        (dict(optimizer=SGD(Tiny().parameters(), 1)), r"optimizer: needs parameters of this model only"),
        (dict(optimizer=lambda p: SGD([*p, Parameter(np.ones(1, np.float32))], 1)), r"optimizer: needs parameters of"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit(options, message, images, rng):
    model = Tiny()
    options = {"images": images, "steps": 2, "optimizer": lambda p: SGD(p, 1), "rng": rng} | options
    if not isinstance(options["optimizer"], SGD):
        options["optimizer"] = options["optimizer"](model.parameters())
    before = model.state_dict()
    with pytest.raises(ValueError, match=message):
        fit(model, options.pop("images"), **options)
    assert same(model.state_dict(), before)


def test_evaluate_arguments(images, rng):
    with pytest.raises(ValueError, match=r"images: got \(0, 1, 2, 2\)"):
        evaluate(Tiny(), images[:0], rng)
    with pytest.raises(ValueError, match="workers: got 0"):
        evaluate(Tiny(), images, rng, workers=0)


# --- the progress bar --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("progress", [True, False])
def test_progress_is_shown_on_a_terminal(progress, terminal, images, rng, monkeypatch):
    text = io.StringIO()
    text.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", text)
    model = Tiny()
    optimizer = SGD(model.parameters(), 0.01)
    fit(model, images, steps=3, optimizer=optimizer, rng=rng, batch_size=64, progress=progress)
    shown = text.getvalue()
    if progress:  # three batches of all 37
        last = re.split("[\r\n]+", shown.rstrip())[-1]
        assert last.startswith("Tiny") and "111/111" in last and re.search(r"\d nats per image", last), last
        assert terminal or "\r" not in shown.strip()  # a file gets lines, each whole
    else:
        assert not shown


# --- on the device -----------------------------------------------------------------------------------------------


GREY = (1, 3, 3)
DEVICE_MODELS = {
    "autoencoder": lambda rng: Autoencoder(GREY, code=2, rng=rng),
    "vae": lambda rng: VAE(GREY, latent=2, rng=rng),
    "pixelcnn": lambda rng: PixelCNN(GREY, channels=2, blocks=1, rng=rng),
    "pixelcnn colour": lambda rng: PixelCNN((3, 3, 3), levels=4, channels=3, blocks=1, rng=rng),
    "row": lambda rng: PixelRNN("row", GREY, channels=2, layers=1, rng=rng),
    "diagonal": lambda rng: PixelRNN("diagonal", GREY, channels=2, layers=1, rng=rng),
}


@pytest.mark.parametrize("make", DEVICE_MODELS.values(), ids=DEVICE_MODELS)
def test_device_run_equals_the_host_run(make, device, monkeypatch, rng):
    """Both devices give the same numbers; on the stand-in a step makes one copy and waits only to read the loss."""
    monkeypatch.setattr(training, "CHECK_STEPS", 3)
    counter = strict_cupy.count
    results = []
    for where in ("cpu", device):
        model = make(np.random.default_rng(4)).to(where)
        shape = model.image_shape
        images = np.random.default_rng(5).integers(0, getattr(model, "levels", 2), (24, *shape)).astype(np.uint8)
        optimizer, counts = Adam(model.parameters(), 0.01), []

        def prepare(part, rng, counts=counts):
            counts.append(dict(counter))
            return part[..., ::-1].copy()

        record = fit(
            model,
            images,
            steps=6,
            optimizer=optimizer,
            rng=np.random.default_rng(6),
            batch_size=12,
            prepare=prepare,
            averaging=0.5,
            clip_norm=1.0,
            schedule=cosine,
            validate_every=100,
        )
        assert device_of(model.parameters()[0].data) == where
        results.append((model.state_dict(), record))
        if where == "cuda":
            for before, after in ((0, 1), (1, 2), (3, 4), (4, 5)):  # the steps that nobody looks at
                spent = {k: n - counts[before].get(k, 0) for k, n in counts[after].items()}
                moved = spent.pop("h2d", 0)
                assert moved <= (2 if isinstance(model, VAE) else 1) and not any(spent.values()), spent
    (host, _), (there, device_record) = results
    for name, value in host.items():
        np.testing.assert_allclose(there[name], value, rtol=2e-4, atol=2e-5, err_msg=name)
    assert [row["step"] for row in device_record] == [6]
    assert np.isfinite(device_record[0]["train"])


def test_device_record_and_evaluate(strict, images, rng):
    """Between readings losses are unknown, but every row of the record has one."""
    model = Tiny(noise=0).to("cuda")
    optimizer = SGD(model.parameters(), 0.01)
    record = fit(
        model, images, steps=5, optimizer=optimizer, rng=rng, batch_size=20, validation=images, validate_every=2
    )
    assert [row["step"] for row in record] == [2, 4, 5]
    assert all(row["train"] > 0 and row["validation"] > 0 for row in record)
    host = Tiny(noise=0)
    host.load_state_dict(model.state_dict())
    expected = evaluate(host, images, rng)
    assert record[-1]["validation"] == pytest.approx(expected, rel=1e-5)
    assert evaluate(model, images, rng) == pytest.approx(expected, rel=1e-5)


def test_a_run_moves_between_devices(strict, images, tmp_path):
    """Training resumes on one device from a checkpoint written on the other."""
    options = dict(rng=np.random.default_rng(0), batch_size=16, averaging=0.9, checkpoint=tmp_path / "run.npz")
    here, there = Tiny(0), Tiny(1).to("cuda")
    fit(here, images, steps=3, optimizer=Adam(here.parameters(), 0.02), **options)
    fit(there, images, steps=3, optimizer=Adam(there.parameters(), 0.02), **options)
    assert same(here.state_dict(), there.state_dict())
    assert all(device_of(p.data) == "cuda" for p in there.parameters())


def test_a_changed_call_does_not_go_on_from_the_old_checkpoint(images, tmp_path, capsys):
    def call(steps=4, rate=0.01, batch_size=8, clip_norm=None, images=images, weight_decay=0.0, settings=""):
        model = Tiny(0)
        model.setting = settings
        optimizer = Adam(model.parameters(), rate)
        optimizer.weight_decay = weight_decay
        fit(
            model,
            images,
            steps=steps,
            optimizer=optimizer,
            rng=np.random.default_rng(0),
            batch_size=batch_size,
            clip_norm=clip_norm,
            checkpoint=tmp_path / "run.npz",
        )
        return model.state_dict()

    first = call()
    assert "going on" not in capsys.readouterr().err
    again = call()
    assert f"going on from {tmp_path / 'run.npz'}, step 4 of 4" in capsys.readouterr().err
    assert all((first[name] == again[name]).all() for name in first)
    for changed, why in [
        ({"rate": 0.02}, "lr was 0.01, is 0.02"),
        ({"weight_decay": 0.1}, "weight_decay was 0.0, is 0.1"),
        ({"batch_size": 9}, "batch_size was 8, is 9"),
        ({"clip_norm": 1.0}, "clip_norm was inf, is 1.0"),
        ({"images": images[1:]}, r"images\[0\] was float32 \(37, 1, 2, 2\) .*, is float32 \(36, 1, 2, 2\)"),
        ({"steps": 3}, "is at step 4 already, steps is 3"),
        ({"settings": "p=0.2"}, "model.setting was , is p=0.2"),
    ]:
        with pytest.raises(ValueError, match=why):
            call(**changed)
    call(batch_size=np.int64(8), rate=np.float64(0.01))  # the same numbers
    longer = call(steps=6)
    assert any((longer[name] != first[name]).any() for name in first)


@pytest.mark.parametrize("before, now", [(0.5, 0.2), (0.5, None), (None, 0.5)])
def test_a_checkpoint_knows_the_dropout_deep_inside(before, now, images, tmp_path):
    def call(p):
        model = Tiny(0)
        model.inner = Sequential(ops.relu, Sequential(*([] if p is None else [Dropout(p)])))
        optimizer = SGD(model.parameters(), 0.1)
        fit(model, images, steps=1, optimizer=optimizer, rng=np.random.default_rng(0), checkpoint=tmp_path / "a.npz")

    call(before)
    call(before)
    found = r"model\.inner\.steps\.1\.steps\.0(\.p)? was (0\.5|None|Dropout), is (0\.2|Dropout|None)"
    with pytest.raises(ValueError, match=found):
        call(now)


def test_a_checkpoint_that_cannot_be_written_is_noticed_at_once(images, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    model, asked = Tiny(0), []
    with pytest.raises(OSError, match="file"):
        fit(
            model,
            images,
            steps=3,
            optimizer=SGD(model.parameters(), 0.1),
            rng=np.random.default_rng(0),
            schedule=lambda done: asked.append(done) or 1.0,
            checkpoint=tmp_path / "file" / "run.npz",
        )
    assert len(asked) == training.PROBES  # before training, to tell this schedule from another


def test_images_are_an_array(rng):
    model = Tiny(0)
    with pytest.raises(ValueError, match=r"images: got tuple"):
        fit(model, ([], []), steps=1, optimizer=SGD(model.parameters(), 0.1), rng=rng)


def explained(loss, **options):
    """The error of fit for a loss of one parameter w = 10 that is not finite, or whose gradient is not."""

    class Model(Module):
        unit = "nats per image"

        def __init__(self):
            self.w = Parameter(np.full(3, 10, np.float32))

        def loss(self, x, rng):
            return loss(self.w)

    model = Model()
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError) as error:
        fit(
            model,
            np.zeros((4, 1, 1, 1)),
            steps=2,
            optimizer=SGD(model.parameters(), options.pop("lr", 0.1)),
            rng=np.random.default_rng(0),
            **options,
        )
    return str(error.value)


@RUINED
def test_a_number_that_is_not_finite_is_followed_to_its_origin():
    hidden = explained(lambda w: ops.where(w.data > 0, w, (w * 0).log()).sum() + (ops.sqrt(w - 11)).sum())
    assert "step 0: the loss is not finite, first in Sqrt (" in hidden  # not Log, whose infinities nobody used
    assert "the loss is not finite, first in Sum" in explained(lambda w: (w * 2e37).sum())  # the last step itself
    partly = explained(lambda w: (w - np.array([11, 0, 0])).log().sum())
    assert "the loss is not finite, first in Log (" in partly
    gradient = explained(lambda w: (1 / (w * 10).exp()).sum())
    assert "the gradient of w is not finite, first in Exp" in gradient


@RUINED
def test_parameters_that_overflow_in_the_last_step_are_noticed_and_not_saved(tmp_path):
    path = tmp_path / "run.npz"
    said = explained(lambda w: (w * w).sum(), lr=1e38, checkpoint=path)
    assert "parameter w is not finite" in said
    with np.load(path) as file:
        assert np.isfinite(file["model.w"]).all()


def test_an_exception_in_a_callback_loses_nothing(images, tmp_path):
    model, path = Tiny(0), tmp_path / "run.npz"

    def prepare(x, rng):
        prepare.calls += 1
        if prepare.calls == 6:
            raise RuntimeError("the disk with the images is gone")
        return x

    prepare.calls = 0
    with pytest.raises(RuntimeError, match="gone"):
        fit(
            model,
            images,
            steps=9,
            optimizer=Adam(model.parameters(), 0.01),
            rng=np.random.default_rng(0),
            batch_size=8,
            prepare=prepare,
            checkpoint=path,
            workers=1,
        )
    with np.load(path) as file:
        assert json.loads(str(file["run"]))["step"] == 5
        np.testing.assert_array_equal(
            file["model." + next(iter(model.state_dict()))], next(iter(model.state_dict().values()))
        )


@pytest.mark.parametrize(
    "options,message",
    [
        ({"clip_norm": -1}, r"clip_norm: got -1"),
        ({"steps": 2.5}, "steps: got 2.5"),
        ({"batch_size": 2.5}, "batch_size: got 2.5"),
    ],
)
def test_fit_refuses(options, message, images, rng):
    model = Tiny(0)
    with pytest.raises(ValueError, match=message):
        fit(model, images, **{"steps": 1, **options}, optimizer=SGD(model.parameters(), 0.1), rng=rng)


def test_labels_go_with_their_images(rng):
    """Whatever the order and the worker: image and label are the same number here."""

    class Compares(Linear):
        unit = "differences"

        def loss(self, x, rng, labels):
            assert x.shape[0] == len(labels)
            return (x.reshape(-1) - Tensor(labels)).sum() ** 2 + 0 * self.weight.sum() + 0 * self.bias.sum()

    numbers = rng.permutation(100).astype(np.float32)
    images, model = numbers.reshape(-1, 1, 1, 1), Compares(1, 1, rng=rng)
    held_out = {"validation": images[::-1], "validation_labels": numbers[::-1]}
    for workers in (1, 3):
        record = fit(
            model,
            images,
            labels=numbers,
            steps=4,
            optimizer=SGD(model.parameters(), 0.1),
            rng=rng,
            batch_size=40,
            workers=workers,
            progress=False,
            **held_out,
        )
        assert record[-1]["train"] == record[-1]["validation"] == 0
        assert evaluate(model, images, rng, labels=numbers, workers=workers) == 0
        assert evaluate(model, images, rng, labels=numbers[::-1], workers=workers) > 0


@pytest.mark.parametrize(
    "given,message",
    [
        ({"labels": np.zeros(7)}, r"^labels: got \(7,\) float64"),
        ({"labels": list("abcdefgh")}, r"^labels: got \(8,\) <U1"),
        (
            {"labels": np.zeros(8), "validation": np.zeros((3, 1, 2, 2)), "validation_labels": [1, 2]},
            r"^validation_labels: got \(2,\) int64",
        ),
    ],
)
def test_labels_of_another_number_are_refused(given, message, rng):
    model = Autoencoder((1, 2, 2), code=2, rng=rng)
    with pytest.raises(ValueError, match=message):
        fit(model, np.zeros((8, 1, 2, 2)), steps=1, optimizer=SGD(model.parameters(), 0.1), rng=rng, **given)
    if "validation" not in given:
        with pytest.raises(ValueError, match=message):
            evaluate(model, np.zeros((8, 1, 2, 2)), rng, **given)
