"""Scaled dot-product attention against a loop over queries, and its derivative against that of the definition."""

import numpy as np
import pytest

from tinygen import Tensor, grad, gradcheck, no_grad, ops
from tinygen.backend import to_device
from tinygen.ops import attention
from tinygen.ops.attention import attention_by_definition

SHAPES = {  # batch, queries, keys, d, e
    "square": ((2,), 5, 5, 3, 2),
    "heads": ((2, 3), 4, 4, 2, 2),
    "no batch": ((), 3, 3, 2, 4),
    "one": ((1,), 1, 1, 1, 1),
    "few keys": ((2,), 5, 3, 2, 2),
    "one key": ((2,), 4, 1, 2, 2),
    "empty batch": ((0,), 3, 3, 2, 2),
}
CASES = [
    (*shape, causal) for shape in SHAPES.values() for causal in (False, True) if not causal or shape[1] == shape[2]
]
each_case = pytest.mark.parametrize("batch,queries,keys,d,e,causal", CASES)


def draw(rng, batch, queries, keys, d, e, dtype=np.float64):
    return tuple(rng.standard_normal((*batch, *s)).astype(dtype) for s in ((queries, d), (keys, d), (keys, e)))


def loop(q, k, v, causal):
    """Query by query, from the equation."""
    y = np.zeros((*q.shape[:-1], v.shape[-1]))
    for i in np.ndindex(*q.shape[:-1]):
        seen = i[-1] + 1 if causal else k.shape[-2]
        w = np.exp(k[i[:-1]][:seen] @ q[i] / np.sqrt(q.shape[-1]))
        y[i] = w @ v[i[:-1]][:seen] / w.sum()
    return y


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of two queries and, where the batch allows it, several of its entries."""
    monkeypatch.setattr(attention, "QUERIES", 2)
    monkeypatch.setattr(attention, "WEIGHTS", (12, 12))


@each_case
@pytest.mark.parametrize("blocks", ["whole", "small"])
def test_values(blocks, batch, queries, keys, d, e, causal, rng, device, request):
    if blocks == "small":
        request.getfixturevalue("small_blocks")
    arrays = draw(rng, batch, queries, keys, d, e)
    y = ops.scaled_dot_product_attention(*(to_device(a, device) for a in arrays), is_causal=causal)
    assert y.device == device
    np.testing.assert_allclose(y.numpy(), loop(*arrays, causal), atol=1e-13)


@each_case
def test_derivatives(batch, queries, keys, d, e, causal, rng, small_blocks):
    arrays = draw(rng, batch, queries, keys, d, e)
    gradcheck(lambda *xs: ops.scaled_dot_product_attention(*xs, causal), arrays, order=2)


@each_case
def test_the_fast_derivative_is_that_of_the_definition(batch, queries, keys, d, e, causal, rng, device, small_blocks):
    arrays = draw(rng, batch, queries, keys, d, e)
    xs = [Tensor(to_device(a, device), requires_grad=True) for a in arrays]
    ys = [
        ops.scaled_dot_product_attention(*xs, is_causal=causal),
        attention_by_definition(*(x.reshape(int(np.prod(batch)), *x.shape[-2:]) for x in xs), causal).reshape(
            *batch, queries, e
        ),
    ]
    g = to_device(rng.standard_normal(ys[0].shape), device)
    for found, expected in zip(*(grad(y, xs, g) for y in ys)):
        np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-13)
    for i in range(3):  # one input alone
        inputs = [x if i == j else x.detach() for j, x in enumerate(xs)]
        (alone,) = grad(ops.scaled_dot_product_attention(*inputs, is_causal=causal), xs[i], g)
        np.testing.assert_allclose(alone.numpy(), grad(ys[1], xs[i], g)[0].numpy(), atol=1e-13)


def test_one_array_as_query_key_and_value(rng):
    gradcheck(lambda x: ops.scaled_dot_product_attention(x, x, x, True), rng.standard_normal((2, 4, 3)), order=2)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("causal", [False, True])
def test_large_scores_are_a_choice_of_one_key(dtype, causal):
    """Scores of 1000 and -1000: each query takes the value of the key that fits best; the last key fits least."""
    q = Tensor(np.full((1, 3, 1), 1000, dtype), requires_grad=True)
    k = Tensor(np.array([[[0], [1], [-1]]], dtype), requires_grad=True)
    v = Tensor(np.array([[[1], [2], [3]]], dtype), requires_grad=True)
    y = ops.scaled_dot_product_attention(q, k, v, causal)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.data.ravel(), [1, 2, 2] if causal else [2, 2, 2])
    gq, gk, gv = (g.data.ravel() for g in grad(y.sum(), [q, k, v]))
    np.testing.assert_array_equal(gv, [1, 2, 0] if causal else [0, 3, 0])
    assert not gq.any() and not gk.any()


@pytest.mark.parametrize("positions", [130, 300])
def test_several_blocks_of_the_usual_size(positions, rng):
    arrays = draw(rng, (3,), positions, positions, 4, 4)
    for causal in (False, True):
        y = ops.scaled_dot_product_attention(*arrays, is_causal=causal).data
        np.testing.assert_allclose(y, loop(*arrays, causal), atol=1e-13)


def test_memory_is_bounded(rng):
    """What is kept for the backward pass, and what is used on the way, is far less than all weights."""
    import tracemalloc

    arrays = draw(rng, (8,), 784, 784, 8, 8, np.float32)
    weights = 8 * 784 * 784 * 4
    tracemalloc.start()
    try:
        xs = [Tensor(a, requires_grad=True) for a in arrays]
        grad(ops.scaled_dot_product_attention(*xs, is_causal=True).sum(), xs)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < weights / 5


@pytest.mark.parametrize(
    "shapes,causal,error,message",
    [
        (((2, 3, 4), (2, 5, 3), (2, 5, 1)), False, ValueError, r"k has shape \(2, 5, 3\), needs \(2, S, 4\)"),
        (((2, 3, 4), (2, 5, 4), (2, 5, 1)), True, ValueError, r"k has shape \(2, 5, 4\), needs \(2, 3, 4\)"),
        (((2, 3, 4), (2, 5, 4), (2, 3, 1)), False, ValueError, r"v has shape \(2, 3, 1\), needs \(2, 5, e\)"),
        (((2, 3, 4), (1, 3, 4), (2, 3, 4)), False, ValueError, r"k has shape \(1, 3, 4\)"),
        (((4,), (4,), (4,)), False, ValueError, r"q has shape \(4,\), needs \(..., T, d\)"),
        (((2, 3, 4), (2, 0, 4), (2, 0, 4)), False, ValueError, "needs at least one key"),
        (((3, 4), (3, 4), (3, 4)), 1, TypeError, "is_causal: got 1"),
    ],
)
def test_what_does_not_fit_is_refused(shapes, causal, error, message):
    with pytest.raises(error, match=message):
        ops.scaled_dot_product_attention(*map(np.ones, shapes), is_causal=causal)


def test_dtypes_are_not_mixed(rng):
    q, k, v = draw(rng, (2,), 3, 3, 2, 2)
    with pytest.raises(TypeError, match="are float32, float64, float64: needs one"):
        ops.scaled_dot_product_attention(q.astype(np.float32), k, v)


def test_nothing_is_kept_where_nothing_is_recorded(rng):
    with no_grad():
        y = ops.scaled_dot_product_attention(*draw(rng, (2,), 3, 3, 2, 2))
    assert not y.requires_grad
