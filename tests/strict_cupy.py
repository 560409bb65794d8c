"""A stand-in for CuPy that runs on NumPy and is as strict as CuPy 14, or stricter: device code is tested without a GPU.

``strict_cupy.cupy`` takes the place of the real module (``sys.modules["cupy"]``; the fixtures in conftest.py do that).
Its arrays keep their values in a private host array and refuse whatever CuPy refuses: to become a NumPy array unasked,
to meet one in an operator, a function or an assignment, and the names and keywords that CuPy 14.2 lacks. Those are
listed in ``cupy_api.json``, taken from CuPy with ``dir`` and ``inspect.signature``; left out there, so missing here:
rare names, and names that return something other than arrays (``r_``, ``ndarray.flat``). ``count`` says what a real
device would have paid for:

- ``h2d``, ``d2h``: copies to and from the device that the code asked for;
- ``hidden_h2d``: copies that it did not ask for: a host array or list as an index, a scalar written through one;
- ``sync``: waits for the device: ``float(x)``, ``if x``, ``print(x)``, shapes that depend on values (``x[mask]``).
"""

import collections
import json
import math
import numbers
import operator
import pathlib
import types

import numpy as np

API = json.loads(pathlib.Path(__file__).with_name("cupy_api.json").read_text())
VALUE_SHAPED = {"argwhere", "bincount", "compress", "extract", "flatnonzero", "nonzero", "unique"}  # these wait
FROM_NUMBERS = {"arange", "broadcast_shapes", "diag_indices", "empty", "eye", "full", "identity", "indices", "linspace"}
FROM_NUMBERS |= {"logspace", "ones", "tri", "tril_indices", "triu_indices", "zeros"}  # these take no array
ATOMIC = {"int32", "uint32", "uint64", "float16", "float32", "float64"}  # what `xp.add.at` can add to
SCALARS = (numbers.Number, np.generic)
count = collections.Counter()


def _wrap(result, sources=()):
    """NumPy's ``result`` as device arrays, scalars as 0-d ones; a source's own memory (``out=``) as that source."""
    if isinstance(result, (tuple, list)):
        return (list if isinstance(result, list) else tuple)(_wrap(item, sources) for item in result)
    if not isinstance(result, (np.ndarray, np.generic)):
        return result
    for source in sources:
        if isinstance(source, ndarray) and source._host is result:
            return source
    device = ndarray.__new__(ndarray)
    device._host = np.asarray(result)
    return device


def _unwrap(value, name):
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError(f"cupy.{name}: Unsupported type {np.ndarray}: a host array among device arrays")
    if type(value) in (tuple, list):
        return type(value)(_unwrap(item, name) for item in value)
    return value


def _call(function, name, args, kwargs, owner=None):
    """NumPy's ``function`` on device arrays; ``name`` (of a method: with a dot) says which keywords CuPy lacks."""
    for keyword in kwargs:
        if name in API["lacks"].get(keyword, "").split():
            raise TypeError(f"cupy.{name}: unexpected keyword argument {keyword!r}")
    if name.lstrip(".") in VALUE_SHAPED or (name == "where" and len(args) == 1):
        count["sync"] += 1
    result = function(*_unwrap(args, name), **{key: _unwrap(value, name) for key, value in kwargs.items()})
    return _wrap(result, (owner, *args, *kwargs.values()))


def _need_operands(values, name):
    """Lists, None and foreign objects are no operands; NumPy would make arrays of them."""
    for value in values:
        if not isinstance(value, (ndarray, *SCALARS)):
            raise TypeError(f"cupy.{name}: Unsupported type {type(value)}")


def _key(index, value=None):
    """The host's key for ``x[index]`` (read) or ``x[index] = value``."""
    key = []
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, (list, tuple, np.ndarray)):
            count["hidden_h2d"] += 1
            part = np.asarray(part)
        elif isinstance(part, ndarray):
            part = part._host
        if isinstance(part, np.ndarray):
            if part.dtype == bool:
                count["sync"] += 1  # the device first counts the True entries
            if isinstance(value, SCALARS):
                count["hidden_h2d"] += 1
        key.append(part)
    return tuple(key if any(part is Ellipsis for part in key) else [*key, Ellipsis])  # so x[0] is a view, no scalar


class ndarray:
    """CuPy's array. Operators, and members that need no rule of their own, are added below."""

    __slots__ = ("_host",)
    __array_priority__ = 100
    __array_ufunc__ = None  # numpy.exp(x) raises, and `host + x` comes to our __radd__, which raises
    __hash__ = None

    def __init__(self, shape, dtype=float):
        self._host = np.empty(shape, dtype)

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def __array_function__(self, function, types, args, kwargs):
        raise TypeError(f"numpy.{function.__name__} called on a device array")

    def __getitem__(self, index):
        return _wrap(self._host[_key(index)])

    def __setitem__(self, index, value):
        _need_operands([value], "ndarray.__setitem__")
        self._host[_key(index, value)] = _unwrap(value, "ndarray")

    @property
    def base(self):
        return self._host.base

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __deepcopy__(self, memo):
        return self.copy()

    def __reduce__(self):  # pickling goes over the host
        return array, (self.get(),)

    def get(self, stream=None, order="C", out=None, blocking=True):
        count["d2h"] += 1
        if out is None:
            return self._host.copy(order)
        out[...] = self._host
        return out

    def item(self):
        count["sync"] += 1
        return self._host.item()

    def take(self, indices, axis=None, out=None):
        if isinstance(indices, (list, tuple, np.ndarray)):
            count["hidden_h2d"] += 1
            indices = _wrap(np.asarray(indices))
        return _call(self._host.take, ".take", (indices, axis, out), {})

    @property
    def flags(self):  # NumPy's `writeable` is none of CuPy's
        return types.SimpleNamespace(**{f"{order}_contiguous": self._host.flags[order.upper()] for order in "cf"})


def _outranks(other):
    """As CuPy decides it: who opts out of NumPy's ufuncs, or has none and a higher priority, computes ``x + other``."""
    if isinstance(other, ndarray):
        return False
    if hasattr(other, "__array_ufunc__"):
        return other.__array_ufunc__ is None
    return getattr(other, "__array_priority__", 0) > ndarray.__array_priority__


def _operator(name, function):
    """``x + other``; or, with a reflected or in-place ``function``, ``other + x`` and ``x += other``."""

    def method(self, *other):
        if any(_outranks(value) for value in other):
            return NotImplemented
        _need_operands(other, f"ndarray.{name}")
        return _wrap(function(self._host, *_unwrap(other, name)), (self,))  # `+=` writes into self and returns it

    setattr(ndarray, name, method)


for _name in "add sub mul truediv floordiv mod pow matmul lshift rshift and or xor divmod".split():
    _plain = divmod if _name == "divmod" else getattr(operator, f"__{_name}__")
    _operator(f"__{_name}__", _plain)
    _operator(f"__r{_name}__", lambda x, other, plain=_plain: plain(other, x))
    if _name not in ("matmul", "divmod"):  # CuPy has no `@=`: Python turns it into x = x @ y
        _operator(f"__i{_name}__", getattr(operator, f"__i{_name}__"))
for _name in "lt le eq ne gt ge neg pos abs invert".split():
    _operator(f"__{_name}__", getattr(operator, f"__{_name}__"))


def _waiting(convert):
    def method(self, *args):
        count["sync"] += 1
        return convert(self._host, *args)

    return method


for _convert in (bool, int, float, complex, repr, str, format):
    setattr(ndarray, f"__{_convert.__name__}__", _waiting(_convert))
ndarray.tolist = _waiting(np.ndarray.tolist)


def _method(name):
    return lambda self, *args, **kwargs: _call(getattr(self._host, name), f".{name}", args, kwargs, owner=self)


def _attribute(name):
    return property(lambda self: _wrap(getattr(self._host, name)))


for _name in API["ndarray"].split():
    _plain = getattr(np.ndarray, _name, None)  # an older NumPy lacks some names
    if _plain and not hasattr(ndarray, _name):
        setattr(ndarray, _name, _method(_name) if callable(_plain) else _attribute(_name))


class ufunc:
    def __init__(self, host):
        self._host, self.__name__, self.nin = host, host.__name__, host.nin

    def __call__(self, *args, **kwargs):
        if wrong := set(kwargs) - {"out", "dtype", "casting", "axes", "axis"}:  # the last two are matmul's
            raise TypeError(f"cupy.{self.__name__}: Wrong arguments {sorted(wrong)}")
        _need_operands(args[: self.nin], self.__name__)
        return _call(self._host, self.__name__, args, kwargs)

    def at(self, a, indices, b):
        if self.__name__ not in API["ufunc.at"].split() or a.dtype.name not in ATOMIC:
            raise TypeError(f"cupy.{self.__name__}.at is not supported for {a.dtype}")
        _need_operands([a, b], f"{self.__name__}.at")
        self._host.at(a._host, _key(indices, b), _unwrap(b, self.__name__))


def _function(name, host):
    def function(*args, **kwargs):
        if name in FROM_NUMBERS:
            if any(isinstance(arg, ndarray) for arg in (args[:1] if name == "full" else args)):
                raise TypeError(f"cupy.{name}: a device array where a number is needed")
        elif args and isinstance(args[0], (tuple, list)) and not all(isinstance(item, ndarray) for item in args[0]):
            raise TypeError(f"cupy.{name}: a list of numbers is no device array")
        result = _call(host, name, args, kwargs)
        return _wrap(np.bool_(result)) if name in ("allclose", "array_equal", "array_equiv") else result

    return function


def array(obj, dtype=None, copy=True, order="K", *, blocking=False):
    if isinstance(obj, ndarray):
        return _wrap((np.array if copy else np.asarray)(obj._host, dtype, order=order), (obj,))
    count["h2d"] += 1
    host = np.array(obj, dtype, order=order)
    if host.dtype.kind not in "biufc":
        raise ValueError(f"Unsupported dtype {host.dtype}")
    return _wrap(host)


def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
    return array(a, dtype, bool(copy), order or "K")


class Generator:
    """CuPy's names only; and other numbers than NumPy's generator draws from the same seed, as on the device."""

    def __init__(self, seed=None):
        self._host = np.random.Generator(np.random.Philox(seed))


def _draw(name):
    def method(self, *args, **kwargs):
        result = _call(getattr(self._host, name), f"Generator.{name}", args, kwargs)
        return result if isinstance(result, ndarray) else _wrap(np.asarray(result, kwargs.get("dtype")))

    return method


for _name in API["Generator"].split():
    setattr(Generator, _name, _draw(_name))


def _module(name, host=None, **members):
    """The module ``name``: the names listed for it, with NumPy's behaviour, and ``members``."""
    module = types.ModuleType(name)
    for key in API.get(name, "").split():
        if hasattr(host, key):
            twin = getattr(host, key)
            if isinstance(twin, np.ufunc):
                twin = ufunc(twin)
            elif callable(twin) and not isinstance(twin, type):  # not: constants, dtypes
                twin = _function(key, twin)
            setattr(module, key, twin)
    vars(module).update(members)
    return module


cupy = _module("cupy", np, ndarray=ndarray, ufunc=ufunc, array=array, asarray=asarray, take=ndarray.take)
cupy.is_available = lambda: True
cupy.asnumpy = lambda a, **kwargs: a.get(**kwargs) if isinstance(a, ndarray) else np.asarray(a)
cupy.get_array_module = lambda *args: cupy if any(isinstance(arg, ndarray) for arg in args) else np
cupy.random = _module("cupy.random", Generator=Generator, default_rng=Generator)
cupy.linalg = _module("cupy.linalg", np.linalg)
cupy.lib = _module("cupy.lib", stride_tricks=_module("cupy.lib.stride_tricks", np.lib.stride_tricks))


def _erf(x):
    if not isinstance(x, ndarray):
        raise TypeError(f"cupyx.scipy.special.erf: Unsupported type {type(x)}")
    return _wrap(np.vectorize(math.erf, otypes=[x.dtype])(x._host))


special = types.SimpleNamespace(erf=_erf)  # cupyx.scipy.special
