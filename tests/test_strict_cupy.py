"""The stand-in for CuPy: it enforces every rule, counts copies and waits, and computes NumPy's numbers."""

import copy
import operator
import pickle
import sys

import numpy as np
import pytest


@pytest.fixture
def cp(strict):
    return strict.cupy


def example(xp):
    return xp.arange(12, dtype=xp.float32).reshape(3, 4) / 3


MIXING = {
    "device + host": lambda cp, x, h: x + h,
    "host + device": lambda cp, x, h: h + x,
    "host == device": lambda cp, x, h: h == x,
    "device @ host": lambda cp, x, h: x @ h.T,
    "host @ device": lambda cp, x, h: h.T @ x,
    "device += host": lambda cp, x, h: operator.iadd(x, h),
    "host += device": lambda cp, x, h: operator.iadd(h, x),
    "0-d host array": lambda cp, x, h: x + np.array(1.0),
    "device[...] = host": lambda cp, x, h: operator.setitem(x, ..., h),
    "device[...] = list": lambda cp, x, h: operator.setitem(x, 0, [1, 2, 3, 4]),
    "host[...] = device": lambda cp, x, h: operator.setitem(h, ..., x),
    "host[device]": lambda cp, x, h: h[x > 1],
    "ufunc": lambda cp, x, h: cp.maximum(x, h),
    "ufunc of a list": lambda cp, x, h: cp.exp([1.0, 2.0]),
    "ufunc of None": lambda cp, x, h: cp.add(x, None),
    "ufunc's out": lambda cp, x, h: cp.exp(x, out=h),
    "function": lambda cp, x, h: cp.where(x > 1, x, h),
    "function of host alone": lambda cp, x, h: cp.sum(h),
    "function of a list": lambda cp, x, h: cp.sum([1.0, 2.0]),
    "method": lambda cp, x, h: x.dot(h.T),
    "method's out": lambda cp, x, h: x.sum(axis=0, out=h[0]),
    "among several": lambda cp, x, h: cp.concatenate([x, h]),
    "numbers among several": lambda cp, x, h: cp.stack([x[0, 0], 1.0]),
    "full": lambda cp, x, h: cp.full((3, 4), h),
    "add.at": lambda cp, x, h: cp.add.at(x, cp.arange(3), h),
    "add.at on host": lambda cp, x, h: cp.add.at(h, 0, 1.0),
    "random": lambda cp, x, h: cp.random.default_rng(0).standard_normal(out=h),
    "numpy.asarray": lambda cp, x, h: np.asarray(x),
    "numpy.array of several": lambda cp, x, h: np.array([x, x]),
    "numpy ufunc": lambda cp, x, h: np.exp(x),
    "numpy function": lambda cp, x, h: np.sum(x),
    "numpy function of several": lambda cp, x, h: np.stack([x, x]),
    "an object": lambda cp, x, h: x * object(),
    "None": lambda cp, x, h: x == None,  # noqa: E711
}


@pytest.mark.parametrize("code", MIXING.values(), ids=MIXING)
def test_host_and_device_arrays_do_not_mix(cp, code):
    with pytest.raises(TypeError):
        code(cp, example(cp), example(np))


MISSING = {
    "block": lambda cp, x: cp.block,
    "errstate": lambda cp, x: cp.errstate,
    "vecdot": lambda cp, x: cp.vecdot,
    "insert": lambda cp, x: cp.insert,
    "r_, which would return host arrays": lambda cp, x: cp.r_,
    "random.normal": lambda cp, x: cp.random.normal,
    "linalg.vector_norm": lambda cp, x: cp.linalg.vector_norm,
    "ndarray.put": lambda cp, x: x.put,
    "ndarray.flat": lambda cp, x: x.flat,
    "ndarray.ctypes": lambda cp, x: x.ctypes,
    "flags.writeable": lambda cp, x: x.flags.writeable,
    "setting the shape": lambda cp, x: setattr(x, "shape", (12,)),
    "any other attribute": lambda cp, x: setattr(x, "note", 1),
    "ufunc.reduce": lambda cp, x: cp.maximum.reduce,
    **{
        f"Generator.{name}": lambda cp, x, name=name: getattr(cp.random.default_rng(0), name)
        for name in "normal choice permutation shuffle spawn bit_generator".split()
    },
}


@pytest.mark.parametrize("code", MISSING.values(), ids=MISSING)
def test_names_that_cupy_lacks(cp, code):
    with pytest.raises(AttributeError):
        code(cp, example(cp))


REFUSED = {
    "ufunc where=": lambda cp, x: cp.log(x, where=x > 0),
    "ufunc order=": lambda cp, x: cp.add(x, x, order="C"),
    "ufunc axes=": lambda cp, x: cp.add(x, x, axes=[0, 0, 0]),
    "sum where=": lambda cp, x: cp.sum(x, where=x > 0),
    "sum initial=": lambda cp, x: cp.sum(x, initial=0),
    ".sum where=": lambda cp, x: x.sum(where=x > 0),
    ".max initial=": lambda cp, x: x.max(initial=0),
    ".std correction=": lambda cp, x: x.std(correction=1),
    "einsum out=": lambda cp, x: cp.einsum("ij->i", x, out=x[:, 0]),
    "zeros like=": lambda cp, x: cp.zeros(3, like=x),
    "argsort stable=": lambda cp, x: x.argsort(stable=True),
    "take mode=": lambda cp, x: cp.take(x, 0, mode="clip"),
    "item(i)": lambda cp, x: x.item(0),
    "as_strided writeable=": lambda cp, x: cp.lib.stride_tricks.as_strided(x, (2,), (4,), writeable=False),
    "multiply.at": lambda cp, x: cp.multiply.at(x, 0, 2.0),
    "add.at int64": lambda cp, x: cp.add.at(cp.zeros(3, int), 0, 1),
    "array as a size": lambda cp, x: cp.zeros(cp.arange(3)[1]),
    "array in a range": lambda cp, x: cp.arange(0, cp.arange(3)[1]),
    "array in range()": lambda cp, x: range(cp.arange(3)[1]),
    "array in a slice": lambda cp, x: x[: cp.arange(3)[1]],
    "round()": lambda cp, x: round(x),
    "hash()": lambda cp, x: hash(x),
    "int += float": lambda cp, x: operator.iadd(cp.arange(3), 0.5),
    "seed from a NumPy generator": lambda cp, x: cp.random.default_rng(np.random.default_rng(0)),
}


@pytest.mark.parametrize("code", REFUSED.values(), ids=REFUSED)
def test_calls_that_cupy_refuses(cp, code):
    with pytest.raises(TypeError):
        code(cp, example(cp))


def test_object_arrays_are_refused(cp):
    with pytest.raises(ValueError, match="dtype"):
        cp.asarray([None])


FREE = {
    "arithmetic": lambda cp, x: (2 * x + x / np.float32(3)) @ x.T,
    "in place": lambda cp, x: operator.imul(x, 2),
    "reductions": lambda cp, x: x.sum() + cp.max(x) + cp.linalg.norm(x),
    "comparison": lambda cp, x: cp.where(x > 1, x, 0.0),
    "views": lambda cp, x: x[0, 1:].T.reshape(-1),
    "rows": lambda cp, x: sum(x),
    "gather": lambda cp, x: x[cp.arange(2), :2],
    "fill": lambda cp, x: operator.setitem(x, slice(1), 0.0),
    "scatter": lambda cp, x: cp.add.at(x, cp.arange(2), x[:2]),
    "creation": lambda cp, x: cp.zeros_like(x) + cp.full(4, 2.0) + cp.eye(4)[0] + cp.full((), x[0, 0]),
    "random": lambda cp, x: cp.random.default_rng(0).standard_normal(3, dtype=cp.float32),
    "a deep copy": lambda cp, x: copy.deepcopy([x]),
    "asarray": lambda cp, x: cp.asarray(x, dtype=cp.float64),
    "questions": lambda cp, x: (x.shape, x.dtype, x.size, len(x), cp.ndim(x), cp.result_type(x, x)),
}
COSTS = {
    "asarray": (lambda cp, x: cp.asarray(np.ones(3)), {"h2d": 1}),
    "asarray of numbers": (lambda cp, x: cp.array([1.0, 2.0]), {"h2d": 1}),
    "get": (lambda cp, x: x.get(), {"d2h": 1}),
    "get into": (lambda cp, x: x.get(out=np.empty((3, 4))), {"d2h": 1}),
    "asnumpy": (lambda cp, x: cp.asnumpy(x), {"d2h": 1}),
    "pickle": (lambda cp, x: pickle.loads(pickle.dumps(x)), {"d2h": 1, "h2d": 1}),
    "float": (lambda cp, x: float(x[0, 0]), {"sync": 1}),
    "int": (lambda cp, x: int(x[0, 0]), {"sync": 1}),
    "bool": (lambda cp, x: not x[0, 0], {"sync": 1}),
    "item": (lambda cp, x: x[0, 0].item(), {"sync": 1}),
    "tolist": (lambda cp, x: x.tolist(), {"sync": 1}),
    "repr": (lambda cp, x: repr(x), {"sync": 1}),
    "str": (lambda cp, x: str(x), {"sync": 1}),
    "format": (lambda cp, x: f"{x[0, 0]:.3f}", {"sync": 1}),
    "max()": (lambda cp, x: max(x[0, 0], x[0, 1]), {"sync": 1}),
    "mask": (lambda cp, x: x[x > 1], {"sync": 1}),
    "mask, set": (lambda cp, x: operator.setitem(x, x > 1, x[0, 0]), {"sync": 1}),
    "nonzero": (lambda cp, x: cp.nonzero(x), {"sync": 1}),
    ".nonzero": (lambda cp, x: x.nonzero(), {"sync": 1}),
    "where(x)": (lambda cp, x: cp.where(x), {"sync": 1}),
    "unique": (lambda cp, x: cp.unique(x), {"sync": 1}),
    "host index": (lambda cp, x: x[np.array([0, 1])], {"hidden_h2d": 1}),
    "list index": (lambda cp, x: x[:, [0, 1]], {"hidden_h2d": 1}),
    "host mask": (lambda cp, x: x[np.array([True, False, True])], {"hidden_h2d": 1, "sync": 1}),
    "take": (lambda cp, x: cp.take(x, [0, 1], axis=1), {"hidden_h2d": 1}),
    "add.at, host index": (lambda cp, x: cp.add.at(x, np.array([0, 0]), x[:2]), {"hidden_h2d": 1}),
    "scattered scalar": (lambda cp, x: operator.setitem(x, cp.arange(2), 1.0), {"hidden_h2d": 1}),
}


@pytest.mark.parametrize("code", FREE.values(), ids=FREE)
def test_stays_on_the_device(strict, code):
    x = example(strict.cupy)
    code(strict.cupy, x)
    assert not strict.count


@pytest.mark.parametrize("code,cost", COSTS.values(), ids=COSTS)
def test_transfers_and_waits_are_counted(strict, code, cost):
    x = example(strict.cupy)
    code(strict.cupy, x)
    assert strict.count == cost


def binary(symbol):
    function = divmod if symbol == "divmod" else getattr(operator, symbol)
    return lambda xp, x: (function(x + 1, x.T[:3, :3].sum() + 1), function(x + 1, 2), function(np.float32(2), x + 1))


def assign(xp, x, key, value):
    x[key] = value
    return x


def in_place(xp, x):
    row, entry = x[1], x[0, 1:2]
    x += 1
    row *= 2
    entry -= x[2, 3]
    x[:, 2] **= 2
    x.T[0] //= 0.5
    return x, row, entry


def outputs(xp, x):
    out = xp.empty_like(x)
    xp.exp(x, out=out[:])
    x.sum(axis=0, out=out[1])
    xp.add(x[2], 1, out[2])
    return out


def mutators(xp, x):
    xp.add.at(x, (xp.array([0, 0, 1]), xp.array([1, 1, 2])), xp.array([1, 2, 3], dtype=xp.float32))
    xp.put_along_axis(x, x.argmin(axis=1)[:, None], xp.full((3, 1), -1, dtype=xp.float32), 1)
    xp.copyto(x[2], 5.0)
    x[0].fill(7)
    x[1].sort()
    return x


SAME = {
    **{symbol: binary(symbol) for symbol in "add sub mul truediv floordiv mod pow divmod lt le gt ge eq ne".split()},
    "matmul": lambda xp, x: (x @ x.T, x @ x[0], x.dot(x.T)),
    "bits": lambda xp, x: ((x > 1) & (x < 3) | ~(x > 2) ^ True, xp.arange(4) << 1, 8 >> xp.arange(4)),
    "unary": lambda xp, x: (-x, +x, abs(-x), xp.sqrt(x), xp.logaddexp(x, -x), xp.isfinite(x)),
    "scalars": lambda xp, x: (xp.exp(1.0), xp.pi * x, x * xp.float64(2), x[0, 0] * x, 1 - x, xp.inf > x),
    "reduce": lambda xp, x: (x.sum(), x.mean(axis=0), xp.var(x, 1, keepdims=True), x.argmax(), xp.any(x > 3)),
    "shape": lambda xp, x: (x.reshape(2, -1), x.T, x.transpose(1, 0), x[None].squeeze(0), xp.moveaxis(x, 0, 1)),
    "join": lambda xp, x: (xp.concatenate([x, x], axis=1), xp.stack((x, x)), xp.split(x, 2, 1), xp.tile(x, (2, 1))),
    "pad": lambda xp, x: (xp.pad(x, [(1, 0), (0, 2)]), xp.broadcast_to(x, (2, 3, 4)), xp.flip(x, 1), xp.roll(x, 1)),
    "select": lambda xp, x: (xp.where(x > 1, x, 0.0), xp.clip(x, 1, None), x.clip(1, 2), xp.maximum(x, 1), xp.tril(x)),
    "contract": lambda xp, x: (xp.einsum("ij,kj->ik", x, x), xp.tensordot(x, x, ([0, 1], [0, 1])), x.cumsum(1)),
    "create": lambda xp, x: (xp.zeros((2, 3)), xp.full(3, 2), xp.linspace(0, 1, 5), xp.ones_like(x), xp.eye(2)),
    "index": lambda xp, x: (x[0], x[0, 0], x[..., -1], x[None], x[[2, 0]], x[xp.arange(3), xp.arange(3)], x[x > 1]),
    "rows": lambda xp, x: list(x),
    "take": lambda xp, x: (xp.take(x, xp.array([2, 0]), axis=1), x.take([1]), xp.take_along_axis(x, x.argsort(1), 1)),
    "strides": lambda xp, x: (
        xp.lib.stride_tricks.as_strided(x, (2, 3, 2), (x.strides[0], x.strides[1], x.strides[1])),
        xp.lib.stride_tricks.sliding_window_view(x, (2, 2)),
    ),
    "linalg": lambda xp, x: (xp.linalg.norm(x), *xp.linalg.qr(x)),
    "equal": lambda xp, x: (xp.allclose(x, x + 1e-9), xp.array_equal(x, -x)),
    "dtype": lambda xp, x: (x.astype(int), x.astype(xp.float32, copy=False), x.view(xp.int32), x.sum(dtype=xp.int8)),
    "assign": lambda xp, x: assign(xp, x, (slice(None), 1), x[:, 2] + 1),
    "assign by array": lambda xp, x: assign(xp, x, xp.array([2, 0]), x[:2] * 2),
    "assign by mask": lambda xp, x: assign(xp, x, x > 2, 0),
    "in place": in_place,
    "outputs": outputs,
    "mutators": mutators,
}


def flat(result):
    return [leaf for item in result for leaf in flat(item)] if isinstance(result, (tuple, list)) else [result]


@pytest.mark.parametrize("code", SAME.values(), ids=SAME)
def test_results_are_numpys(cp, code):
    results, expected = flat(code(cp, example(cp))), flat(code(np, example(np)))
    assert len(results) == len(expected)
    for result, value in zip(results, expected):
        assert isinstance(result, cp.ndarray) and result.dtype == np.asarray(value).dtype
        np.testing.assert_array_equal(result.get(), value)


def test_reductions_and_single_entries_stay_device_arrays(cp):
    x = example(cp)
    for scalar in (x.sum(), cp.max(x), x[0, 0], x[0][1], cp.allclose(x, x), cp.random.default_rng(0).random()):
        assert isinstance(scalar, cp.ndarray) and scalar.shape == ()


def test_a_single_entry_is_a_view_as_on_the_device(cp):
    x = example(cp)
    entry = x[1, 2]
    entry += 10
    assert x.get()[1, 2] == entry.get() == 12


def test_results_in_given_memory_are_the_given_array(cp):
    x, out = example(cp), cp.empty((3, 4))
    assert cp.exp(x, out=out) is out and cp.add(x, 1, out) is out
    assert x.astype(cp.float32, copy=False) is x and cp.asarray(x) is x and cp.ascontiguousarray(x) is x
    assert cp.array(x) is not x and x.copy() is not x and not cp.shares_memory(cp.array(x), x)
    before = x
    x += 1
    assert x is before


def test_getting_and_sending_copy(cp):
    host = np.zeros(3)
    x = cp.asarray(host)
    host += 1
    x.get()[:] = 2
    assert x.tolist() == [0, 0, 0]
    assert x.get(out=host) is host and host.tolist() == [0, 0, 0]


def test_memory_layout(cp):
    x = example(cp)
    assert x.flags.c_contiguous and x.T.flags.f_contiguous and not x[:, 1:].flags.c_contiguous
    assert x.T.strides == (4, 16)


class Tensor:
    def __rmul__(self, other):
        return "the tensor's"


@pytest.mark.parametrize("member", [{"__array_ufunc__": None}, {"__array_priority__": 1000}])
def test_operators_leave_it_to_a_class_that_outranks_the_array(cp, member):
    assert example(cp) * type("Outranking", (Tensor,), member)() == "the tensor's"
    with pytest.raises(TypeError):
        example(cp) * Tensor()


def test_random_numbers_are_not_numpys(cp):
    draw = cp.random.default_rng(0).random
    assert (draw(3).get() != np.random.default_rng(0).random(3)).all()
    assert draw(dtype=cp.float32).dtype == draw(2, dtype=cp.float32).dtype == cp.float32
    assert cp.random.default_rng(1).random(3).tolist() == cp.random.default_rng(1).random(3).tolist()


def test_it_is_found_as_cupy(strict):
    import cupy

    assert cupy is strict.cupy and cupy.is_available()
    assert cupy.get_array_module(1, cupy.zeros(2)) is cupy and cupy.get_array_module(np.zeros(2)) is np


def test_device_fixture(device, request):
    stand_in = "strict" in request.node.callspec.id
    assert device == ("cpu" if "numpy" in request.node.callspec.id else "cuda")
    assert (sys.modules.get("cupy") is sys.modules["strict_cupy"].cupy) == stand_in
