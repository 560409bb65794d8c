"""The state of a training run, and the file it survives in."""

import contextlib
import json
import os
from pathlib import Path

import numpy as np

from tinygen.backend import communicator
from tinygen.nn import Module
from tinygen.optim import Average
from tinygen.parallel import of_first_rank

FIELDS = ("settings", "seed", "step", "seconds", "losses", "record")  # of a run, beside its arrays


def _described(module, name):
    """What a module and all below show as their settings, such as a probability of dropout, by their places."""
    found = {name: str(module.describe())}
    for below, child in module.children():
        if isinstance(child, Module):
            found |= _described(child, f"{name}.{below}")
    return found


class Run:
    """A model, its optimizer and averaged weights, how far training is and how it went: all that a checkpoint holds."""

    def __init__(self, model, optimizer, averaging, seed, **settings):
        self.model, self.optimizer, self.seed = model, optimizer, seed
        of_optimizer = {key: getattr(optimizer, key) for key in ("lr", "weight_decay")}
        settings = {"optimizer": type(optimizer).__name__, **of_optimizer, "averaging": averaging, **settings}
        settings |= _described(model, "model")
        self.settings = {k: v.item() if isinstance(v, np.generic) else v for k, v in settings.items()}  # JSON's numbers
        self.average = None if averaging is None else Average(model.parameters(), averaging)
        self.step, self.seconds, self.losses, self.record = 0, 0.0, [0.0, 0], []

    @property
    def noted(self) -> int:
        """The step of the last row of the record."""
        return self.record[-1]["step"] if self.record else 0

    def add_loss(self, loss):
        self.losses = [self.losses[0] + loss, self.losses[1] + 1]

    def note(self, validation):
        train = self.losses[0] / max(1, self.losses[1])
        self.losses = [0.0, 0]
        self.record.append({"step": self.step, "seconds": self.seconds, "train": train, "validation": validation})

    @contextlib.contextmanager
    def averaged(self):
        """The averaged weights in the model, for a while."""
        if self.average is not None:
            self.average.swap()
        try:
            yield
        finally:
            if self.average is not None:
                self.average.swap()

    def save(self, path):
        """Written to a temporary name and renamed: at any moment the file is whole, the old one or the new one."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".part")
        try:
            with open(temporary, "wb") as file:
                np.savez(file, **self._arrays())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def load(self, path):
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            fields = json.loads(str(arrays["run"]))
            if missing := set(FIELDS) - set(fields):
                raise KeyError(*missing)
        except Exception as error:  # a damaged file may fail anywhere in zipfile, numpy or json
            raise ValueError(f"checkpoint {path}: damaged or no checkpoint of fit ({error}); move it away") from error
        before = self._arrays()
        try:
            self._restore(arrays)
        except ValueError as error:
            self._restore(before)
            raise ValueError(f"checkpoint {path}: does not belong to this run: {error}") from error

    def broadcast(self):
        """Under MPI every rank goes on from where the first one is."""
        if communicator() is not None:
            try:
                self._restore(of_first_rank(self._arrays()))
            except ValueError as error:
                raise ValueError(f"the ranks call fit with different things: {error}") from error

    def _arrays(self) -> dict:
        """All of it, by name."""
        with self.averaged():
            averages = {} if self.average is None else self.model.state_dict()
        fields = {name: getattr(self, name) for name in FIELDS}
        return {
            "run": np.array(json.dumps(fields)),
            **{f"model.{k}": v for k, v in self.model.state_dict().items()},
            **{f"optimizer.{k}": v for k, v in self.optimizer.state_dict().items()},
            **{f"average.{k}": v for k, v in averages.items()},
        }

    def _restore(self, arrays):
        """The inverse; ValueError where they are of another run."""

        def part(prefix):
            return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

        fields = json.loads(str(arrays["run"]))
        self.model.load_state_dict(part("model."))
        for name in {**self.settings, **fields["settings"]}:
            was, now = (settings.get(name) for settings in (fields["settings"], self.settings))
            if was != now:
                raise ValueError(f"{name} was {was}, is {now}")
        self.optimizer.load_state_dict(part("optimizer."))
        if self.average is not None:
            self.model.load_state_dict(part("average."))
            self.average.values = [p.data for p in self.model.parameters()]
            self.average.steps = fields["step"]
            self.model.load_state_dict(part("model."))
        for name in FIELDS:
            setattr(self, name, fields[name])
