"""tinygen.training.fit as its users call it: modules of their own, parts that learn, what follows the training, when to
stop, what a checkpoint keeps apart."""

import functools
import json
import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from tinygen import Tensor, data, ops, parallel, training
from tinygen.distributions import Bernoulli, Gaussian
from tinygen.models import VAE, Autoencoder, PixelCNN
from tinygen.nn import BatchNorm, Linear, Module, Parameter
from tinygen.optim import SGD, Adam, Muon, RMSProp, cosine
from tinygen.training import evaluate, fit

fit = functools.partial(fit, progress=False)


@pytest.fixture(autouse=True)
def shards_of_16(monkeypatch):
    """Shards have 16 images for tiny networks too, so that a batch has several shards."""
    monkeypatch.setattr("tinygen.parallel.shard_size", lambda *_: 16)


class SmallVAE(Module):
    """README's VAE: it takes rows of pixels, and has neither unit nor image_shape."""

    def __init__(self, seed=0, pixels=12):
        rng = np.random.default_rng(seed)
        self.encoder, self.decoder = Linear(pixels, 4, rng=rng), Linear(2, pixels, rng=rng)
        self.beta = 1.0

    def loss(self, x, rng):
        q = Gaussian(*ops.split(self.encoder(x), 2, axis=1))
        return (self.beta * q.kl().sum(1) - Bernoulli(self.decoder(q.rsample(rng))).log_prob(x).sum(1)).mean()


@pytest.fixture
def rows(rng):
    return (rng.random((64, 12)) < 0.5).astype(np.float64)


def train(model, images, steps=3, optimizer=None, seed=0, **options):
    optimizer = optimizer or Adam(model.parameters(), 0.01)
    return fit(
        model,
        images,
        **{"steps": steps, "optimizer": optimizer, "rng": np.random.default_rng(seed), "batch_size": 48, **options},
    )


def bits(model):
    return b"".join(value.tobytes() for value in model.state_dict().values())


def warm(done):
    return min(1.0, 2 * done)


# -- a module of one's own


@pytest.mark.parametrize("shape", [(12,), (3, 4), (1, 3, 2, 2), ()])
def test_arrays_of_any_shape(shape, rng):
    class Own(Module):
        def __init__(self):
            self.w = Parameter(np.ones(1, np.float32))

        def loss(self, x, rng):
            seen.add((x.shape[1:], str(x.dtype), type(x), type(rng)))
            return (self.w * x).sum() / x.shape[0]

    for dtype, given in (("float64", "float32"), ("float32", "float32"), ("uint8", "uint8")):
        seen, images = set(), rng.random((20, *shape)).astype(dtype)
        record = train(Own(), images, workers=1, validation=images)
        assert seen == {(shape, given, Tensor, np.random.Generator)}
        assert np.isfinite(record[-1]["validation"])


def test_readmes_vae_trains_as_it_is(rows):
    model = SmallVAE()
    first = evaluate(model, rows, np.random.default_rng(0))
    assert train(model, rows, 300, Adam(model.parameters(), 0.02), validation=rows)[-1]["validation"] < first - 1


def test_labels_of_any_shape_in_the_dtype_of_the_model(rng):
    class Takes(SmallVAE):
        def loss(self, x, rng, labels):
            seen.add((labels.shape[1:], str(labels.dtype), type(labels)))
            return super().loss(x, rng)

    for shape, dtype, given in (((), "int64", "int64"), ((10,), "float64", "float32"), ((2, 3), "bool", "bool")):
        seen, labels = set(), np.ones((64, *shape), dtype)
        train(Takes(), rng.random((64, 12)).round(), labels=labels, workers=1)
        assert seen == {(shape, given, np.ndarray)}


class Labelled(SmallVAE):
    def loss(self, x, rng, labels):
        return super().loss(x, rng) + 0.0 * labels.sum()


@pytest.mark.parametrize(
    "model, options, message",
    [
        (SmallVAE(), {"labels": np.zeros(64)}, r"SmallVAE.loss: is called with \(x, rng, labels\)"),
        (Labelled(), {}, r"Labelled.loss: .*without labels"),
        (Linear(12, 1, rng=np.random.default_rng(0)), {}, r"model: got Linear"),
        (SmallVAE(), {"prepare": lambda x, rng: x[:-1]}, r"prepare: gave shape \(15, 12\) for 16 images"),
        (SmallVAE(), {"validation": np.zeros((20, 11))}, r"\(16, 11\)"),
        (SmallVAE(), {"validation": np.zeros((0, 12))}, r"validation: got \(0, 12\) float64"),
        (SmallVAE(), {"validation_labels": np.zeros(3)}, r"validation: got NoneType"),
        (SmallVAE(), {"workers": 1.5}, r"workers: got 1.5"),
        (SmallVAE(), {"workers": 0}, r"workers: got 0"),
        (SmallVAE(), {"schedule": lambda done: np.nan}, r"schedule: got nan"),
        (SmallVAE(), {"schedule": lambda done: None}, r"schedule: got None"),
        (SmallVAE(), {"anneal": {"betta": cosine}}, r"anneal: SmallVAE has no attribute betta"),
        (SmallVAE(), {"anneal": {"beta": lambda done: "1"}}, r"anneal beta: got '1'"),
        (SmallVAE(), {"rng": 0}, r"rng: got 0"),
        (SmallVAE(), {"steps": None}, r"steps: got None"),
        (SmallVAE(), {"seconds": -1}, r"seconds: got -1"),
        (SmallVAE(), {"patience": 3}, r"patience: needs validation images"),
        (SmallVAE(), {"patience": 0, "validation": np.zeros((20, 12))}, r"patience: got 0"),
        (SmallVAE(), {"images": Tensor(np.zeros((20, 12)))}, r"images: got Tensor"),
        (SmallVAE(), {"images": [[0.0] * 12]}, r"images: got list"),
        (SmallVAE(), {"images": None}, r"images: got NoneType"),
        (SmallVAE(), {"optimizer": "adam"}, r"optimizer: got str"),
        (
            Labelled(),
            {"labels": np.zeros(64), "validation": np.zeros((9, 12))},
            r"validation_labels: needs labels where",
        ),
        (SmallVAE(), {"checkpoint": True}, r"checkpoint: got True"),
        (SmallVAE(), {"anneal": warm}, r"anneal: got .* needs a dict of functions"),
        (SmallVAE(), {"prepare": lambda x, rng: [["a"]] * len(x)}, r"what prepare gave is list"),
        (SmallVAE(), {"prepare": 3}, r"prepare: got 3"),
        (SmallVAE(), {"schedule": 0.1}, r"schedule: got 0.1"),
        (SmallVAE(), {"anneal": {"beta": 0.1}}, r"anneal beta: got 0.1"),
        (SmallVAE(), {"callback": []}, r"callback: got \[\]"),
        (SmallVAE(), {"images": np.zeros((20, 12), complex)}, r"images: got \(20, 12\) complex128"),
    ],
)
def test_what_is_wrong_is_found_before_the_first_step(model, options, message, rows, tmp_path, monkeypatch):
    monkeypatch.undo()  # the real size of a shard, which is found by trying the images
    before = bits(model)
    monkeypatch.setattr(parallel, "LARGEST", 16)
    with pytest.raises((ValueError, TypeError), match=message):
        options = {"images": rows, **options}
        train(model, options.pop("images"), **{"checkpoint": tmp_path / "a" / "run.npz", **options})
    assert bits(model) == before and not list(tmp_path.iterdir())


def test_a_loss_for_each_image_is_refused(rows):
    model = SmallVAE()
    model.loss = lambda x, rng: model.encoder(x).sum(1)
    with pytest.raises(ValueError, match=r"SmallVAE.loss: gave "):
        train(model, rows)


# -- a part that learns


def frozen_as_a_module(model):
    model.encoder.requires_grad = False
    return Adam(model.parameters(), 0.01)


def frozen_by_requires_grad(model):
    for p in model.encoder.parameters():
        p.requires_grad = False
    return Adam(model.parameters(), 0.01)


def frozen_after(model):
    optimizer = Adam(model.parameters(), 0.01)
    for p in model.encoder.parameters():
        p.requires_grad = False
    return optimizer


def frozen_and_left_out(model):
    for p in model.encoder.parameters():
        p.requires_grad = False
    return Adam([p for p in model.parameters() if p.requires_grad], 0.01)


@pytest.mark.parametrize(
    "freeze",
    [
        lambda model: Adam(model.decoder.parameters(), 0.01),
        frozen_as_a_module,
        frozen_by_requires_grad,
        frozen_after,
        frozen_and_left_out,
    ],
)
@pytest.mark.parametrize("averaging", [None, 0.9])
def test_ways_to_freeze(freeze, averaging, rows, tmp_path):
    ends = []
    for workers, cut in ((1, False), (2, False), (1, True)):
        model = SmallVAE()
        encoder, decoder = bits(model.encoder), bits(model.decoder)
        options = {"averaging": averaging, "workers": workers}
        if cut:
            options["checkpoint"] = tmp_path / "run.npz"
            train(model, rows, 2, freeze(model), **options)
            model = SmallVAE()
        train(model, rows, 5, freeze(model), **options)
        assert bits(model.encoder) == encoder and bits(model.decoder) != decoder
        ends.append(bits(model.decoder))
    assert len(set(ends)) == 1


def test_detached_in_the_loss_it_is_named(rows):
    class Detached(SmallVAE):
        def loss(self, x, rng):
            return -Bernoulli(self.decoder(self.encoder(x)[:, :2].detach())).log_prob(x).sum(1).mean()

    model = Detached()
    with pytest.raises(ValueError, match=r"parameter encoder.weight, encoder.bias"):
        train(model, rows)
    train(model, rows, optimizer=Adam(model.decoder.parameters(), 0.01))


# -- what follows the training


def test_a_weight_that_warms_up_is_the_same_in_every_process(rows):
    """Validation uses the attribute's original value."""
    ends, records = set(), []
    for workers in (1, 2, 3):
        model = SmallVAE()
        records.append(train(model, rows, 4, workers=workers, anneal={"beta": warm}, validation=rows, validate_every=2))
        ends.add(bits(model))
        assert model.beta == 1.0
    assert len(ends) == 1
    plain = SmallVAE()
    train(plain, rows, 4, workers=1)
    assert bits(plain) not in ends
    end = evaluate(model, rows, np.random.default_rng(0))
    assert records[0][-1]["validation"] == pytest.approx(end, rel=0.1)  # with other noise, but beta 1


def test_annealed_by_hand(rng):
    """loss = beta w, so that each step moves w by the rate times beta."""

    class Weighted(Module):
        beta = 7.0

        def __init__(self):
            self.w = Parameter(np.zeros(1, np.float32))

        def loss(self, x, rng):
            return (self.beta * self.w).sum() + 0 * x.sum()

    model = Weighted()
    train(model, np.zeros((48, 2)), 4, SGD(model.parameters(), 1.0), anneal={"beta": warm}, workers=2)
    np.testing.assert_allclose(model.w.data, -(0.25 + 0.75 + 1 + 1))
    assert model.beta == 7.0


@pytest.mark.parametrize("where", ["schedule", "callback"])
def test_a_model_that_is_changed_in_one_process_is_noticed(where, rows):
    def run(workers, change):
        model, calls = SmallVAE(), []
        optimizer = Adam(model.parameters(), 0.01)
        model.frozen = Module()
        model.frozen.layer = Linear(1, 1, rng=np.random.default_rng(0))

        def hook(done):
            calls.append(done)
            if len(calls) > (training.PROBES if where == "schedule" else 0):
                change(model)
            return False if where == "callback" else 1.0

        train(model, rows, 6, optimizer, workers=workers, validate_every=2, **{where: hook})

    def beta(model):
        model.beta = 0.5

    def layer(model):
        model.encoder.weight = Parameter(model.encoder.weight.data)

    def frozen(model):
        model.frozen.layer.bias.data += 1  # in place, by an assignment

    for change, name in ((beta, "model.beta"), (layer, "model.encoder.weight"), (frozen, "frozen.layer.bias")):
        with pytest.raises(RuntimeError, match=f"{name} was changed"):
            run(2, change)
    run(1, beta)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_the_loss_keeps_for_itself_is_no_change_and_no_setting(workers, rows, tmp_path):
    class Noting(SmallVAE):
        def loss(self, x, rng):
            loss = super().loss(x, rng)
            self.last, self.code, self.terms = loss.item(), self.encoder(x).detach(), {"loss": loss}
            self.calls = getattr(self, "calls", 0) + 1
            return loss

    model, plain = Noting(), SmallVAE()
    train(plain, rows, 5)
    for steps in (3, 5):  # also the second time, when the model has what it noted
        train(model, rows, steps, workers=workers, validation=rows, checkpoint=tmp_path / "run.npz")
    assert bits(model) == bits(plain) and set(model.state_dict()) == set(plain.state_dict())
    other = Noting(1)
    train(other, rows, 5, workers=workers, validation=rows, checkpoint=tmp_path / "run.npz")
    assert bits(other) == bits(plain)


# -- looking and stopping


def test_a_call_after_each_validation(rows):
    model, seen = SmallVAE(), []

    def callback(row):
        seen.append((row["step"], row["validation"], evaluate(model, rows, np.random.default_rng(0), workers=1)))

    record = train(model, rows, 7, validation=rows, validate_every=3, callback=callback, averaging=0.9, workers=2)
    assert [(row["step"], row["validation"]) for row in record] == [row[:2] for row in seen]
    assert [step for step, *_ in seen] == [3, 6, 7]
    last = evaluate(model, rows, np.random.default_rng(0), workers=1)
    assert seen[-1][2] == last  # it has the averaged weights, as the model at the end


@pytest.mark.parametrize("workers", [1, 2])
def test_a_call_may_end_training(workers, rows, tmp_path):
    model = SmallVAE()
    record = train(
        model, rows, 99, validate_every=2, callback=lambda row: row["step"] >= 4, workers=workers, averaging=0.9
    )
    shorter = SmallVAE()
    train(shorter, rows, 4, averaging=0.9)
    assert record[-1]["step"] == 4 and bits(model) == bits(shorter)
    for _ in range(2):  # ended is ended, also where the same call goes on from the file
        again = SmallVAE()
        train(again, rows, 99, validate_every=2, callback=lambda row: True, checkpoint=tmp_path / "run.npz")
        assert optimizer_steps(tmp_path / "run.npz") == 2


def optimizer_steps(checkpoint):
    with np.load(checkpoint) as file:
        return int(file["optimizer.steps"])


class Valley(Module):
    """Walks along w = 0, -1, -2, ...; its loss on the validation images is lowest where w is about -3."""

    def __init__(self):
        self.w = Parameter(np.zeros(1, np.float32))

    def loss(self, x, rng):
        return (self.w + (self.w.detach() ** 2 * 0.5 + 2 * self.w.detach()) * x.mean()).sum()


def test_patience_ends_and_keeps_the_best(tmp_path):
    def run(steps=99, checkpoint=None, **options):
        model = Valley()
        optimizer = SGD([model.w], 1.0)
        options = {"patience": 3, "validate_every": 1, "validation": np.ones((4, 1)), **options}
        record = train(model, np.zeros((48, 1)), steps, optimizer, checkpoint=checkpoint, workers=1, **options)
        return model.w.data.item(), record

    w, record = run()
    losses = [row["validation"] for row in record]
    assert losses == [w + 0.5 * w * w + 2 * w for w in -np.arange(1.0, 7)] and w == -3.0
    assert len(losses) == losses.index(min(losses)) + 1 + 3
    averaged = run(4, averaging=0.5)
    again = Valley()
    again.w.data[:] = averaged[0]
    figure = again.loss(Tensor(np.ones((4, 1), np.float32)), None).item()
    assert figure == pytest.approx(min(row["validation"] for row in averaged[1]))  # the best averages, not weights
    assert run(4)[0] == -3.0  # ended by its steps, it has the best weights all the same
    run(5, tmp_path / "run.npz")
    assert run(99, tmp_path / "run.npz")[0] == -3.0  # the best was before the cut
    again = run(99, tmp_path / "run.npz")
    assert again[0] == -3.0 and [row["step"] for row in again[1]] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("worst", [np.inf, np.nan])
def test_a_validation_that_is_not_finite_is_no_better_and_no_damage(worst, tmp_path):
    class Cliff(Valley):
        def loss(self, x, rng):
            y = super().loss(x, rng)
            return y + worst if x.data.mean() and self.w.data < -1.5 else y

    def run(steps):
        model = Cliff()
        options = {"patience": 2, "validate_every": 1, "validation": np.ones((4, 1)), "workers": 1}
        optimizer = SGD([model.w], 1.0)
        record = train(model, np.zeros((48, 1)), steps, optimizer, checkpoint=tmp_path / "run.npz", **options)
        return model.w.data.item(), len(record)

    run(2)
    assert run(99) == run(99) == (-1.0, 3)


def test_a_budget_in_seconds(rows):
    done, model = [], SmallVAE()

    def schedule(fraction):
        time.sleep(0.002 if len(done) >= training.PROBES else 0)
        done.append(fraction)
        return 1.0

    begun = time.monotonic()
    record = train(model, rows, None, seconds=0.3, schedule=schedule, workers=1)
    assert 0.3 <= record[-1]["seconds"] < time.monotonic() - begun < 3 and record[-1]["step"] > 3
    assert (
        sorted(done[training.PROBES :]) == done[training.PROBES :] and 0 <= done[training.PROBES] < 0.5 < done[-1] < 1
    )
    assert train(SmallVAE(), rows, 2, seconds=100.0)[-1]["step"] == 2  # whichever ends first


def test_ctrl_c_can_be_caught_and_the_same_call_goes_on(rows, tmp_path):
    def run(interrupt):
        model = SmallVAE()

        def callback(row):
            if interrupt and row["step"] == 4:
                signal.raise_signal(signal.SIGINT)

        train(model, rows, 8, callback=callback, validate_every=2, checkpoint=tmp_path / "run.npz", workers=1)
        return bits(model)

    with pytest.raises(KeyboardInterrupt, match=r"after step [45] of 8: .*run.npz is saved"):
        run(True)
    resumed = run(False)
    os.remove(tmp_path / "run.npz")
    assert resumed == run(False)


# -- nothing half-done is saved


@pytest.mark.parametrize("kind", [Adam, Muon])
def test_an_exception_within_a_step_saves_nothing_of_it(kind, rows, tmp_path, monkeypatch):
    def run(fails_at=None, checkpoint=None):
        model = SmallVAE()
        optimizer, calls = kind(model.parameters(), 0.01), []
        update = optimizer.update

        def failing(g, **state):
            calls.append(1)
            if len(calls) == fails_at:  # the third of four parameters
                raise RuntimeError("out of memory")
            return update(g, **state)

        optimizer.update = failing
        train(model, rows, 6, optimizer, averaging=0.9, checkpoint=checkpoint, workers=1)
        return bits(model)

    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    checkpoint = tmp_path / "run.npz"
    with pytest.raises(RuntimeError, match="out of memory"):
        run(4 * 4 + 3, checkpoint)
    with np.load(checkpoint) as file:
        assert json.loads(str(file["run"]))["step"] == 4
    assert run(None, checkpoint) == run()


def test_an_exception_between_steps_loses_nothing(rows, tmp_path):
    def run(raises, checkpoint=None):
        model = SmallVAE()

        def callback(row):
            if raises and row["step"] == 3:
                raise OSError("the plot")

        options = {"averaging": 0.9, "validate_every": 3, "callback": callback, "checkpoint": checkpoint, "workers": 2}
        train(model, rows, 6, validation=rows, **options)
        return bits(model)

    with pytest.raises(OSError, match="the plot"):
        run(True, tmp_path / "run.npz")
    with np.load(tmp_path / "run.npz") as file:
        assert json.loads(str(file["run"]))["step"] == 3
    assert run(False, tmp_path / "run.npz") == run(False)


def test_parameters_that_are_not_finite_are_not_saved(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    model, checkpoint = SmallVAE(), tmp_path / "run.npz"
    optimizer = SGD(model.parameters(), 0.01)
    step = optimizer.step

    def breaking():
        step()
        if optimizer.steps == 3:
            model.decoder.bias.data[0] = np.nan

    optimizer.step = breaking
    with pytest.raises(FloatingPointError, match=r"step 3: parameter decoder.bias is not finite"):
        train(model, rows, 6, optimizer, checkpoint=checkpoint)
    assert optimizer_steps(checkpoint) == 2


def test_a_save_that_fails_warns_and_training_goes_on(rows, tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    plain = SmallVAE()
    train(plain, rows, 4, validate_every=2)

    def callback(row):
        if row["step"] == 2:
            os.remove(folder / "run.npz")
            folder.rmdir()
            folder.write_text("a file where the folder was")

    model = SmallVAE()
    with pytest.warns(UserWarning, match=r"cannot be written \(.*run.npz.*training goes on"):
        train(model, rows, 4, validate_every=2, callback=callback, checkpoint=folder / "run.npz")
    assert bits(model) == bits(plain)


# -- the same run or none


class Wider(SmallVAE):
    """Another class with the same parameters."""


@pytest.mark.parametrize(
    "kind, settings, other",
    [
        (SGD, {"momentum": 0.9}, {"momentum": 0.8}),
        (RMSProp, {"alpha": 0.9}, {"alpha": 0.99}),
        (RMSProp, {"eps": 1e-8}, {"eps": 1e-6}),
        (Adam, {"betas": (0.9, 0.999)}, {"betas": (0.9, 0.99)}),
        (Adam, {"eps": 1e-8}, {"eps": 1e-4}),
        (Muon, {"momentum": 0.9}, {"momentum": 0.95}),
        (Muon, {"weight_decay": 0.1}, {"weight_decay": 0.0}),
    ],
)
def test_another_optimizer_is_refused(kind, settings, other, rows, tmp_path):
    def run(settings):
        model = SmallVAE()
        train(model, rows, 2, kind(model.parameters(), 0.01, **settings), checkpoint=tmp_path / "run.npz")

    run(settings)
    run(settings)
    with pytest.raises(ValueError, match=rf"does not belong to this run: optimizer\.{next(iter(other))} was"):
        run(other)


CHANGED = {"images", "labels", "validation", "validation_labels"}


def other_prepare(x, rng):
    return x


@pytest.mark.parametrize(
    "change, message",
    [
        ({"schedule": lambda done: 1 - done}, "schedule was .*, is"),
        ({"schedule": lambda done: cosine(done) if done < 0.5 else 1.1 * cosine(done)}, "schedule was .*, is"),
        ({"schedule": None}, "schedule was .*, is None"),
        ({"anneal": {"beta": cosine}}, "anneal beta was .*, is"),
        ({"images": lambda x: x[::-1]}, r"images\[0\] was float64 \(64, 12\) \w+, is float64 \(64, 12\) \w+"),
        ({"images": lambda x: x.astype(np.float32)}, r"images\[0\] was float64 .*, is float32"),
        ({"labels": lambda labels: labels + 1}, r"images\[1\] was"),
        ({"validation": lambda x: x[1:]}, r"validation\[0\] was"),
        ({"validation_labels": lambda labels: labels + 1}, r"validation\[1\] was"),
        ({"prepare": other_prepare}, "prepare was NoneType, is other_prepare"),
        ({"model": Wider}, "model was Labelled, is OtherLabelled"),
        ({"model": np.float64}, r"dtype was \['float32'\], is \['float64'\]"),
        ({"model": 0.5}, "model.beta was 1.0, is 0.5"),
        ({"model": "mask"}, r"model.mask was float64 \(2,\) \w+, is float64 \(2,\) \w+"),
        ({"model": "bias"}, r"dtype was \['float32'\], is \['float32', 'float64'\]"),
        ({"model": "frozen"}, r"frozen was \[\], is \['encoder.weight', 'encoder.bias'\]"),
        ({"batch_size": 47}, "batch_size was 48, is 47"),
        ({"clip_norm": 2.0}, "clip_norm was 1.0, is 2.0"),
        ({"averaging": 0.5}, "averaging was 0.9, is 0.5"),
        ({"patience": 9}, "patience was 5, is 9"),
        ({"validate_every": 2}, "validate_every was 1, is 2"),
    ],
)
def test_another_run_is_refused(change, message, rows, tmp_path):
    class OtherLabelled(Labelled):
        """The same parameters."""

    def run(**change):
        model = OtherLabelled() if change.get("model") is Wider else Labelled()
        if change.get("model") is np.float64:
            for p in model.parameters():
                p.data = p.data.astype(np.float64)
        if change.get("model") == 0.5:
            model.beta = 0.5
        model.mask, model.nan, model.long = np.zeros(2), float("nan"), np.longdouble(1)
        if change.get("model") == "mask":
            model.mask = np.ones(2)
        if change.get("model") == "bias":
            model.encoder.bias.data = model.encoder.bias.data.astype(np.float64)
        if change.get("model") == "frozen":
            model.encoder.requires_grad = False
        change.pop("model", None)
        labels = np.arange(64)
        options = {"images": rows, "labels": labels, "validation": rows, "validation_labels": labels}
        options |= {"schedule": cosine, "anneal": {"beta": warm}, "clip_norm": 1.0, "averaging": 0.9, "patience": 5}
        options |= {"validate_every": 1, "workers": 1}
        for name, value in change.items():  # a function of what it was, or the new value
            options[name] = value(options[name]) if name in CHANGED else value
        train(model, options.pop("images"), 2, **options, checkpoint=tmp_path / "run.npz")

    run()
    run()
    before = (tmp_path / "run.npz").read_bytes()
    with pytest.raises(ValueError, match=rf"run.npz: does not belong to this run: {message}"):
        if "validation" in change:
            change = {**change, "validation_labels": lambda labels: labels[1:]}
        run(**change)
    assert (tmp_path / "run.npz").read_bytes() == before


@pytest.mark.parametrize(
    "field, value",
    [
        ("step", -1),
        ("step", 1.5),
        ("step", "3"),
        ("seconds", "long"),
        ("seconds", float("nan")),
        ("losses", [1.0]),
        ("losses", ["a", "b"]),
        ("record", [{}]),
        ("record", [3]),
        ("record", [{"step": 9, "seconds": 0.1, "train": 1.0, "validation": None}]),
        ("record", [{"step": 1, "seconds": 0.1, "train": None, "validation": None}]),
        ("settings", [1]),
        ("seed", None),
    ],
)
def test_malformed_fields_are_damage(field, value, rows, tmp_path):
    checkpoint = tmp_path / "run.npz"
    train(SmallVAE(), rows, 2, checkpoint=checkpoint)
    with np.load(checkpoint) as file:
        arrays = dict(file)
    arrays["run"] = np.array(json.dumps({**json.loads(str(arrays["run"])), field: value}))
    np.savez(checkpoint, **arrays)
    model = SmallVAE(1)
    before = bits(model)
    with pytest.raises(ValueError, match=r"run.npz: damaged"):
        train(model, rows, 3, checkpoint=checkpoint)
    assert bits(model) == before


# -- the same bits everywhere


def end(images):
    model = PixelCNN((1, 6, 6), channels=32, blocks=1, rng=np.random.default_rng(0))
    train(model, images, 2, Adam(model.parameters(), 0.01), workers=1)
    return bits(model)


def blas_threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_a_daemon_has_the_same_bits(rng):
    """A process of a multiprocessing.Pool is a daemon, which may not have children."""
    images = rng.integers(0, 2, (64, 1, 6, 6))
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(end, (images,)) == end(images)


def test_two_fits_in_threads_have_the_same_bits_and_leave_blas_as_it_was(rng):
    images, before, ends = rng.integers(0, 2, (64, 1, 6, 6)), blas_threads(), {}
    begun, over = threading.Event(), threading.Event()

    def first():
        with parallel.one_blas_thread:
            begun.set()
            over.wait(60)

    def second():
        begun.wait(60)

        def callback(row):  # the first one leaves while the second one trains
            over.set()
            thread.join(60)
            ends["threads"] = blas_threads()

        model = PixelCNN((1, 6, 6), channels=32, blocks=1, rng=np.random.default_rng(0))
        train(model, images, 2, Adam(model.parameters(), 0.01), workers=1, validate_every=1, callback=callback)
        ends["bits"] = bits(model)

    thread = threading.Thread(target=first)
    thread.start()
    second()
    assert ends["threads"] == {1}
    assert blas_threads() == before
    assert ends["bits"] == end(images)


@pytest.mark.parametrize("pixels", [12, 12_000])  # few, or more than a pipe has room for
def test_a_worker_that_is_stopped_does_not_hang_the_run(pixels, monkeypatch):
    monkeypatch.setattr(parallel, "IDLE_SECONDS", 1)
    model, images = SmallVAE(pixels=pixels), np.zeros((48, pixels))
    with parallel.start_workers(model, model.parameters(), None, 2, (images,), 48, 0) as workers:
        assert np.isfinite(workers.mean((images,), [1], {})[0])
        os.kill(workers.processes[0].pid, signal.SIGSTOP)
        with pytest.raises(RuntimeError, match=r"worker process \d+ .* 1 s"):
            workers.mean((images,), [1], {})


def test_buffers_are_of_the_step_that_is_saved(rows, tmp_path):
    """An exception in the optimizer leaves the file of the step before, its buffers too."""

    class Normed(Module):
        def __init__(self):
            self.norm, self.out = BatchNorm(12), Linear(12, 1, rng=np.random.default_rng(0))

        def loss(self, x, rng):
            return (self.out(self.norm(x, rng)) ** 2).mean()

    def run(fails_at, checkpoint=None):
        model = Normed()
        optimizer = SGD(model.parameters(), 0.01)
        step = optimizer.step

        def failing():
            if optimizer.steps == fails_at:
                raise RuntimeError
            step()

        optimizer.step = failing
        train(model, rows, 4, optimizer, checkpoint=checkpoint, workers=1)
        return bits(model)

    with pytest.raises(RuntimeError):
        run(2, tmp_path / "run.npz")
    assert run(None, tmp_path / "run.npz") == run(None)


# -- hints


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy warns of the overflow that is provoked
def test_large_numbers_are_hinted_at(rng):
    grey = rng.integers(0, 256, (64, 1, 4, 4)).astype(np.float32)
    model = Autoencoder((1, 4, 4), code=2, channels=(4,), rng=rng)
    with pytest.raises(FloatingPointError, match=r"images: some are 25\d"):
        train(model, grey, 300, SGD(model.parameters(), 0.1))


def test_the_models_take_their_own_images(rng):
    images = data.digits().train_images[:64]
    for model in (VAE(latent=2, channels=(2, 2), rng=rng), PixelCNN(channels=2, blocks=0, rng=rng)):
        with pytest.raises(ValueError, match="images: values from 0 to 255"):
            train(model, images)
        train(model, images, 1, prepare=data.binarize_dynamic)
