"""The state of a training run, and the checkpoint file that it is saved in."""

import contextlib
import hashlib
import json
import math

import numpy as np

from tinygen.backend import communicator
from tinygen.files import read_arrays, written
from tinygen.optim import Average
from tinygen.parallel import of_first_rank

# The attributes of a TrainingState, besides arrays, that a checkpoint holds, with their types
FIELDS = {"settings": dict, "seed": int, "step": int, "seconds": float, "losses": list, "record": list, "ended": bool}


def is_plain(value) -> bool:
    """Whether ``value`` is a number, a string, None, or a list or dict of these, so that JSON can hold it."""
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(is_plain, value.values()))
    return value is None or isinstance(value, bool | int | float | str | np.bool_ | np.integer | np.floating)


def digest(array) -> str:
    """The array's dtype, shape and a short hash of its values."""
    array = np.ascontiguousarray(array)
    return f"{array.dtype} {array.shape} {hashlib.blake2b(array, digest_size=6).hexdigest()}"


class TrainingState:
    """What a checkpoint holds: the model, its optimizer, averaged and best weights, the step and the losses.

    ``settings`` identify the run: the given ones, and all plain attributes of the optimizer and of the modules.
    """

    def __init__(self, model, optimizer, learned, averaging, seed, settings):
        self.model, self.optimizer, self.seed = model, optimizer, seed
        settings = {**settings, "averaging": averaging, "optimizer": type(optimizer).__name__}
        settings |= {f"optimizer.{k}": v for k, v in vars(optimizer).items() if is_plain(v) and k != "steps"}
        for name, module in model.named_modules("model"):
            settings[name] = type(module).__name__
            settings |= {f"{name}.{k}": v for k, v in vars(module).items() if is_plain(v)}
            settings |= {f"{name}.{k}": digest(v) for k, v in vars(module).items() if isinstance(v, np.ndarray)}
        settings["dtype"] = sorted({str(p.dtype) for p in model.parameters()})
        self.settings = json.loads(json.dumps(settings, default=float))
        self.average = None if averaging is None else Average(learned, averaging)
        self.step, self.seconds, self.losses, self.record, self.best = 0, 0.0, [0.0, 0], [], None
        self.ended = False  # True once a callback has ended training
        self.whole = True  # False within a step, whose partial changes must not be saved

    @property
    def noted(self) -> int:
        """The step of the last row of the record."""
        return self.record[-1]["step"] if self.record else 0

    @property
    def since_best(self) -> int:
        """The number of rows of the record after the one with the lowest validation loss."""
        losses = [row["validation"] for row in self.record if row["validation"] is not None]
        losses = [math.inf if math.isnan(loss) else loss for loss in losses]
        return len(losses) - 1 - losses.index(min(losses)) if losses else 0

    def add_loss(self, loss):
        self.losses = [self.losses[0] + loss, self.losses[1] + 1]

    def note(self, validation):
        train = self.losses[0] / max(1, self.losses[1])
        self.losses = [0.0, 0]
        self.record.append({"step": self.step, "seconds": self.seconds, "train": train, "validation": validation})

    @contextlib.contextmanager
    def averaged(self):
        """The model has the averaged weights within the block."""
        if self.average is not None:
            self.average.swap()
        try:
            yield
        finally:
            if self.average is not None:
                self.average.swap()

    def save(self, path):
        with written(path) as file:
            np.savez(file, **self._arrays())

    def load(self, path):
        arrays = read_arrays(path)
        try:
            fields = _fields(arrays)
        except Exception as error:  # any error of json, or a field of another type
            raise ValueError(f"{path}: damaged, or no checkpoint of fit ({error}); move it away") from error
        before = self._arrays()
        try:
            self._restore(arrays, fields)
        except ValueError as error:
            self._restore(before, _fields(before))
            raise ValueError(f"checkpoint {path}: does not belong to this run: {error}") from error

    def broadcast(self):
        """Under MPI, give every rank the state of the first one."""
        if communicator() is not None:
            arrays = of_first_rank(self._arrays())
            try:
                self._restore(arrays, _fields(arrays))
            except ValueError as error:
                raise ValueError(f"the ranks call fit with different things: {error}") from error

    def _arrays(self) -> dict:
        """The state as arrays by name."""
        with self.averaged():  # the whole state, so that load_state_dict can check it
            averages = {} if self.average is None else self.model.state_dict()
        fields = {name: getattr(self, name) for name in FIELDS}
        return {
            "run": np.array(json.dumps(fields)),
            **{f"model.{k}": v for k, v in self.model.state_dict().items()},
            **{f"optimizer.{k}": v for k, v in self.optimizer.state_dict().items()},
            **{f"average.{k}": v for k, v in averages.items()},
            **{f"best.{k}": v for k, v in (self.best or {}).items()},
        }

    def _restore(self, arrays, fields):
        """The inverse of ``_arrays``. Raises ValueError if the arrays belong to another run."""

        def part(prefix):
            return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

        both = fields["settings"], self.settings
        for name in {**both[0], **both[1]}:
            was, now = (settings.get(name) for settings in both)
            owner = name.rpartition(".")[0]
            # An attribute that only one side has was set during training, such as a recorded loss
            noted = all(owner in settings for settings in both) and not all(name in settings for settings in both)
            if json.dumps(was) != json.dumps(now) and not noted:  # as strings, in which nan equals nan
                raise ValueError(f"{name} was {was}, is {now}")
        self.optimizer.load_state_dict(part("optimizer."))
        self.best = part("best.") or None
        if self.best:
            self.model.load_state_dict(self.best)  # raises if the best weights do not fit
        if self.average is not None:
            self.model.load_state_dict(part("average."))
            self.average.values = [p.data for p in self.average.parameters]
            self.average.steps = fields["step"]
        self.model.load_state_dict(part("model."))
        for name in FIELDS:
            setattr(self, name, fields[name])


def _fields(arrays) -> dict:
    """The fields of a run, read from its arrays and checked."""
    fields = json.loads(str(arrays["run"]))
    for name, kind in FIELDS.items():
        if type(fields[name]) is not kind:
            raise ValueError(f"{name} is {fields[name]!r}")
    total, rows = fields["losses"]
    numbers = [fields["seed"], fields["step"], fields["seconds"], rows, *[row["step"] for row in fields["record"]]]
    if not min(numbers) >= 0 or not math.isfinite(total + fields["seconds"]):
        raise ValueError("a number is out of range")
    steps = [row["step"] for row in fields["record"]]
    if steps != sorted(set(steps)) or max(steps, default=0) > fields["step"]:
        raise ValueError(f"the record has the steps {steps}")
    for row in fields["record"]:
        step, seconds, train, validation = (row[key] for key in ("step", "seconds", "train", "validation"))
        if not isinstance(step, int) or not math.isfinite(seconds + train) or not isinstance(validation, float | None):
            raise ValueError(f"the record has {row}")
    return fields
