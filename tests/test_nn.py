"""tinygen.nn: the module tree, and each layer against a loop in plain NumPy."""

import re

import numpy as np
import pytest

from tinygen import Tensor, grad, gradcheck, ops
from tinygen.backend import to_device
from tinygen.models import PixelCNN
from tinygen.nn import (
    LSTM,
    BatchNorm,
    Buffer,
    ChannelNorm,
    Conv2d,
    DiagonalBiLSTM,
    Dropout,
    Embedding,
    GroupNorm,
    LayerNorm,
    Linear,
    MaskedConv2d,
    Module,
    Parameter,
    RowLSTM,
    Sequential,
    UpConv2d,
)
from tinygen.nn.recurrent import DiagonalLSTM
from tinygen.optim import SGD


def randomized(module, rng, gain=0.5):
    """Draw every parameter anew in float64, also those that start at zero and masked ones."""
    for p in module.parameters():
        p.data = gain * rng.standard_normal(p.shape)
    return module


def zeros(*shape):
    return Parameter(np.zeros(shape, np.float32))


# --- the module tree


class Leaf(Module):
    def __init__(self, n):
        self.w, self.b = zeros(n, 2), zeros(n)

    def describe(self):
        return "a leaf"


class Tree(Module):
    def __init__(self):
        self.z = Leaf(1)
        self.items = [Leaf(2), (zeros(3), [Leaf(4)])]
        self.note, self.numbers, self.fn = "no module", [1, 2], ops.relu
        self.by_name = {"q": Leaf(5), "a": zeros(6)}
        self.again = self.z
        self.last = self.items[1][0]


NAMES = "z.w z.b items.0.w items.0.b items.1.0 items.1.1.0.w items.1.1.0.b by_name.q.w by_name.q.b by_name.a".split()


def test_parameters_come_in_definition_order_and_shared_ones_once():
    tree = Tree()
    assert [name for name, _ in tree.named_parameters()] == NAMES
    assert [p is q for p, (_, q) in zip(tree.parameters(), tree.named_parameters(), strict=True)] == [True] * len(NAMES)
    assert tree.num_parameters() == 3 + 6 + 3 + 12 + 15 + 6


def test_repr_shows_the_tree_with_settings_shapes_and_counts(rng):
    model = Sequential(Conv2d(1, 2, 3, padding=1, rng=rng), ops.relu, Linear(1000, 2, rng=rng))
    lines = repr(model).splitlines()
    for parts in (
        ("Sequential", "2,022"),
        ("steps.0", "Conv2d", "stride=(1, 1)", "padding=(1, 1)", "20"),
        ("weight", "(2, 1, 3, 3)", "18"),
        ("steps.2", "Linear", "2,002"),
        ("weight", "(2, 1000)", "2,000"),
        ("bias", "(2,)", "2"),
    ):
        assert any(all(part in line for part in parts) for line in lines), parts
    twice = Sequential(Linear(2, 2, rng=rng), Linear(2, 2, rng=rng), Linear(2, 1, rng=rng))
    equal, other = (line for line in repr(twice).splitlines() if "Linear" in line)  # equal layers share a line
    assert "steps.0" in equal and "steps.1" in equal and "steps.2" in other
    assert "image_shape=(1, 28, 28), levels=2)" in repr(PixelCNN(channels=2, blocks=1, rng=rng))
    assert "mask A" in repr(MaskedConv2d("A", 1, 1, 3, rng=rng))
    assert "p=0.3" in repr(Dropout(0.3))
    assert "a leaf" in repr(Tree())


def test_state_dict_is_a_copy_and_comes_back(rng):
    tree, other = randomized(Tree(), rng), Tree()
    state = tree.state_dict()
    assert list(state) == NAMES
    other.load_state_dict(state)
    for p, q in zip(tree.parameters(), other.parameters(), strict=True):
        assert q.dtype == np.float32  # the module's own
        np.testing.assert_array_equal(p.data.astype(np.float32), q.data)
        q.data += 1
    assert other.again.w is other.z.w  # still shared
    for p, value in zip(tree.parameters(), state.values(), strict=True):
        np.testing.assert_array_equal(p.data, value)
        p.data += 1
        assert (p.data != value).all()


def test_load_state_dict_names_every_problem_and_changes_nothing(rng):
    tree = randomized(Tree(), rng)
    before = tree.state_dict()
    state = {**before, "z.w": np.ones((1, 3)), "surprise": np.ones(1)}
    del state["by_name.a"]
    with pytest.raises(ValueError, match=r"Tree: missing by_name\.a .*unexpected surprise.*z\.w has shape \(1, 3\)"):
        tree.load_state_dict(state)
    for name, value in tree.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_to_the_device_and_back(strict, rng):
    model = Sequential(MaskedConv2d("B", 3, 6, 3, 3, rng=rng), ops.relu, RowLSTM(6, 3, 3, rng=rng))
    x = rng.standard_normal((2, 3, 4, 5), np.float32)
    host, state = model(Tensor(x)), model.state_dict()
    assert model.to("cuda") is model
    assert model.device == "cuda"
    assert all(p.device == "cuda" for p in model.parameters())
    np.testing.assert_allclose(model(Tensor(x).to("cuda")).numpy(), host.data, atol=1e-6)
    model.load_state_dict(state)
    assert model.device == "cuda"
    assert model.to("cpu").device == "cpu"
    np.testing.assert_array_equal(model(Tensor(x)).data, host.data)


def test_to_forgets_gradients(strict):
    leaf = Leaf(2)
    (leaf.w.sum() + leaf.b.sum()).backward()
    leaf.to("cuda")
    assert leaf.w.grad is None and leaf.b.grad is None


class Counted(Module):
    """Buffers as an attribute, in a list, and shared; a computed Tensor and a frozen Parameter are not buffers."""

    def __init__(self):
        self.w = zeros(2)
        self.scale = Buffer(np.ones(3, np.float32))
        self.tables, self.again = [Buffer(np.arange(4))], self.scale
        self.norm = BatchNorm(2)
        self.frozen = zeros(1)
        self.frozen.requires_grad = False
        self.last = self.w * 2
        self.array = np.ones(5)


BUFFERS = ["scale", "tables.0", "norm.running_mean", "norm.running_var"]


def test_buffers_are_saved_and_moved_but_not_learned(strict):
    model, other = Counted(), Counted()
    assert [name for name, _ in model.named_buffers()] == BUFFERS
    assert [name for name, _ in model.named_parameters()] == ["w", "norm.weight", "norm.bias", "frozen"]
    assert model.num_parameters() == 2 + 2 + 2 + 1 and "running_mean: (2,)  buffer" in repr(model)
    model.norm.running_mean.data = np.array([3.0, 4.0], np.float32)
    model.to("cuda")
    assert {b.device for _, b in model.named_buffers()} == {"cuda"}
    state = model.state_dict()
    assert list(state) == ["w", "scale", "tables.0", *[f"norm.{n}" for n in NORM], "frozen"]
    other.load_state_dict(state)
    assert other.norm.running_mean.numpy().tolist() == [3, 4] and other.tables[0].dtype == np.int64
    del state["norm.running_var"]
    with pytest.raises(ValueError, match=r"missing norm.running_var \(2,\)"):
        other.load_state_dict(state)


NORM = ["weight", "bias", "running_mean", "running_var"]


# --- plain layers


def test_linear(rng):
    layer = randomized(Linear(3, 2, rng=rng), rng)
    x = rng.standard_normal((4, 5, 3))
    expected = np.einsum("nti,oi->nto", x, layer.weight.data) + layer.bias.data
    np.testing.assert_allclose(layer(Tensor(x)).data, expected, atol=1e-14)
    with pytest.raises(ValueError, match=r"Linear: x has shape \(4, 2\)"):
        layer(Tensor(np.zeros((4, 2))))


def test_dropout_acts_only_with_an_rng(rng):
    x = Tensor(np.ones((200, 500), np.float32))
    layer = Dropout(0.3)
    assert layer(x) is x
    before = rng.bit_generator.state
    assert Dropout(0)(x, rng) is x and rng.bit_generator.state == before
    y = layer(x, rng).data
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.7)}
    assert abs((y == 0).mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / y.size)
    wide = layer(Tensor(np.ones((2, 3, 20, 20))), rng).data  # each number has its own draw, and float64 its precision
    assert all(0 < (channel == 0).mean() < 1 for channel in wide.reshape(6, 400))
    np.testing.assert_allclose(wide.max(), 1 / 0.7, rtol=1e-12)


def test_sequential_takes_functions_and_modules(rng):
    a, b = Linear(3, 4, rng=rng), Linear(4, 2, rng=rng)
    x = Tensor(rng.standard_normal((5, 3), np.float32))
    model = Sequential(a, ops.relu, lambda h: h * 2, b)
    np.testing.assert_array_equal(model(x).data, b(ops.relu(a(x)) * 2).data)
    assert model.parameters() == [a.weight, a.bias, b.weight, b.bias]


def test_embedding(rng, device):
    layer = Embedding(5, 3, rng=rng).to(device)
    rows = layer.weight.numpy()
    for indices in np.array([[0, 4], [2, 2]]), np.array([1, 2], np.uint8), [3, 0], [], 4, np.int64(1):
        y = layer(indices)
        assert np.array_equal(y.numpy(), rows[np.asarray(indices, int)]) and y.dtype == np.float32
    (g,) = grad(layer(Tensor(to_device(np.array([2, 0, 2]), device))).sum(), layer.weight)
    assert g.numpy()[:, 0].tolist() == [1, 0, 2, 0, 0]


@pytest.mark.parametrize(
    "indices,message",
    [
        ([0, 5], "Embedding: indices: got 0 to 5"),
        (np.array([-1]), "Embedding: indices: got -1 to -1"),
        (7, "Embedding: indices: got 7 to 7"),
        (np.array([1.0]), r"Embedding: indices: got shape \(1,\), dtype float64"),
    ],
)
def test_embedding_refuses(indices, message, rng):
    with pytest.raises(ValueError, match=message):
        Embedding(5, 3, rng=rng)(indices)


# --- normalization


NORMS = {  # name: (layer, shape of x, the axes over which the output is normal, the shape of a channel's numbers)
    "layer": (lambda: LayerNorm(6), (4, 5, 6), -1, (6,)),
    "layer, one row": (lambda: LayerNorm(6), (6,), -1, (6,)),
    "channels of images": (lambda: ChannelNorm(30), (4, 30, 5, 6), 1, (30, 1, 1)),
    "batch": (lambda: BatchNorm(3), (40, 3), 0, (3,)),
    "batch of images": (lambda: BatchNorm(3), (4, 3, 5, 6), (0, 2, 3), (3, 1, 1)),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms_have_mean_0_and_variance_1(name, device, rng):
    make, shape, axes, channel = NORMS[name]
    layer, x = make().to(device), 100 + 5 * rng.standard_normal(shape)
    how = {"training": True} if isinstance(layer, BatchNorm) else {}
    y = layer(Tensor(to_device(x.astype(np.float32), device)), **how)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y.numpy().mean(axes), 0, atol=1e-5)
    np.testing.assert_allclose(y.numpy().std(axes), 1, rtol=1e-3)
    expected = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)
    weight, bias = rng.standard_normal((2, *layer.weight.shape))
    layer.to("cpu")
    layer.weight.data, layer.bias.data = weight, bias
    expected = expected * weight.reshape(channel) + bias.reshape(channel)
    np.testing.assert_allclose(layer(Tensor(x), **how).data, expected, rtol=1e-9)


def test_group_norm_is_over_the_channels_of_a_group(rng):
    x = 3 + 2 * rng.standard_normal((4, 6, 3, 5))
    y = GroupNorm(2, 6)(Tensor(x)).data.reshape(4, 2, -1)
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-12)
    np.testing.assert_allclose(y.std(-1), 1, rtol=1e-4)
    np.testing.assert_allclose(GroupNorm(1, 6)(Tensor(x[:, :, 0, 0])).data, LayerNorm(6)(Tensor(x[:, :, 0, 0])).data)


@pytest.mark.parametrize("training", [False, True])
def test_norms_differentiate_twice(training, rng):
    x = rng.standard_normal((3, 4, 2))
    for layer, how in (
        (LayerNorm(2), {}),
        (ChannelNorm(4), {}),
        (GroupNorm(2, 4), {}),
        (BatchNorm(4), {"training": training}),
    ):
        randomized(layer, rng)

        def function(x, weight, bias, layer=layer, how=how):
            layer.weight, layer.bias = weight, bias
            return layer(x, **how)

        gradcheck(function, (x, layer.weight.data, layer.bias.data))


def test_batch_norm_follows_the_batches(rng):
    """Running averages: 0.9 of the old value plus 0.1 of the batch's mean or unbiased variance."""
    layer, mean, var = BatchNorm(2), np.zeros(2), np.ones(2)
    for _ in range(3):
        x = 1 + 3 * rng.standard_normal((5, 2, 3)).astype(np.float32)
        before = layer.running_mean.data
        layer(Tensor(x), training=True)
        mean, var = 0.9 * mean + 0.1 * x.mean((0, 2)), 0.9 * var + 0.1 * x.var((0, 2), ddof=1)
        assert layer.running_mean.data is not before
    np.testing.assert_allclose(layer.running_mean.data, mean, rtol=1e-5)
    np.testing.assert_allclose(layer.running_var.data, var, rtol=1e-5)
    assert layer.running_mean.dtype == layer.running_var.dtype == np.float32
    y = layer(Tensor(x))  # of each image by itself: evaluation does not look at the batch
    np.testing.assert_allclose(y.data, (x - mean[:, None]) / np.sqrt(var[:, None] + 1e-5), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer(Tensor(x[:1])).data, y.data[:1])
    np.testing.assert_allclose(layer.running_mean.data, mean, rtol=1e-5)


def test_sequential_tells_batch_norm_of_training(rng):
    model = Sequential(Sequential(BatchNorm(3), Dropout(0.5)), ops.relu)
    x = Tensor(5 + rng.standard_normal((8, 3)).astype(np.float32))
    model(x)
    assert not model.steps[0].steps[0].running_mean.data.any()
    model(x, rng)
    assert (model.steps[0].steps[0].running_mean.data > 0.4).all()


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda x: LayerNorm(4)(x), r"LayerNorm: x has shape \(2, 6, 3\)"),
        (lambda x: ChannelNorm(4)(x), r"ChannelNorm: x has shape \(2, 6, 3\)"),
        (lambda x: GroupNorm(2, 4)(x), r"GroupNorm: x has shape \(2, 6, 3\)"),
        (lambda x: GroupNorm(4, 6), "GroupNorm: 4 groups must divide 6 channels"),
        (lambda x: BatchNorm(3)(x), r"BatchNorm: x has shape \(2, 6, 3\)"),
        (lambda x: BatchNorm(6)(x[:1, :, 0], training=True), r"BatchNorm: x \(1, 6\) has 1 values per channel"),
        (lambda x: BatchNorm(0), "BatchNorm: channels: got 0"),
    ],
)
def test_norms_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call(Tensor(np.ones((2, 6, 3), np.float32)))


@pytest.mark.parametrize(
    "size,stride,padding,kernel",
    [((5, 6), 1, 1, 3), ((7, 4), 2, 1, 3), ((6, 6), (2, 1), (0, 1), (2, 3))],
)
def test_up_conv_is_the_convolution_turned_round(size, stride, padding, kernel, rng):
    down = randomized(Conv2d(2, 3, kernel, stride, padding, rng=rng), rng)
    x = Tensor(rng.standard_normal((2, 2, *size)), requires_grad=True)
    down.bias.data[:] = 0
    y = down(x)
    g = rng.standard_normal(y.shape)
    up = randomized(UpConv2d(3, 2, kernel, stride, padding, rng=rng), rng)
    up.weight.data = down.weight.data
    image = up(Tensor(g), size).data - up.bias.data[:, None, None]
    np.testing.assert_allclose(image, grad(y, x, g)[0].data, atol=1e-12)


@pytest.mark.parametrize("size", [(4, 5), (7, 5), (5, 7)])
def test_up_conv_refuses_sizes_it_does_not_reach(size, rng):
    layer = UpConv2d(1, 1, 3, stride=2, padding=1, rng=rng)
    x = Tensor(np.zeros((1, 1, 3, 3), np.float32))
    assert layer(x).shape == (1, 1, 5, 5)
    assert layer(x, (6, 5)).shape == (1, 1, 6, 5)
    with pytest.raises(ValueError, match=rf"\(5, 5\) .* not \({size[0]}, {size[1]}\)"):
        layer(x, size)


@pytest.mark.parametrize(
    "layer,shape",
    [
        (lambda rng: Linear(96, 96, rng=rng, gain=2.0), (200, 96)),
        (lambda rng: Conv2d(96, 96, 3, padding=1, rng=rng, gain=2.0), (2, 96, 20, 20)),
        (lambda rng: MaskedConv2d("B", 96, 96, 3, rng=rng, gain=2.0), (2, 96, 20, 20)),
        (lambda rng: MaskedConv2d("B", 96, 96, 3, 3, rng=rng, gain=2.0), (2, 96, 20, 20)),
        (lambda rng: UpConv2d(96, 96, 4, stride=2, padding=1, rng=rng, gain=2.0), (2, 96, 20, 20)),
    ],
    ids=["linear", "conv", "masked", "masked, groups", "up"],
)
def test_a_deep_relu_stack_keeps_the_scale(layer, shape, rng):
    x = Tensor(rng.standard_normal(shape, np.float32))
    for _ in range(8):
        x = ops.relu(layer(rng)(x))
        if x.shape[2:] == (40, 40):
            x = x[:, :, 10:30, 10:30]
    centre = x.data[..., 8:12, 8:12] if x.ndim == 4 else x.data  # further out they see zeros around the image
    assert 0.2 < (centre**2).mean() < 5  # a factor 2 in the variance of the weights would be 2^8


# --- masked convolution


def masked_loop(x, layer, mask, groups):
    """Definition of van den Oord et al.: six nested loops, colours in a pixel in the order of their groups."""
    w, b = layer.weight.data, layer.bias.data
    (n, cin, height, width), (cout, _, kh, kw) = x.shape, w.shape
    y = np.zeros((n, cout, height, width)) + b[:, None, None]
    for r, c, i, j in np.ndindex(height, width, kh, kw):
        rr, cc = r + i - kh // 2, c + j - kw // 2
        if not (0 <= rr < height and 0 <= cc < width) or (rr, cc) > (r, c):
            continue
        for o, k in np.ndindex(cout, cin):
            mine, other = o // (cout // groups), k // (cin // groups)
            if (rr, cc) < (r, c) or other < mine or (mask == "B" and other == mine):
                y[:, o, r, c] += w[o, k, i, j] * x[:, k, rr, cc]
    return y


@pytest.mark.parametrize("mask", "AB")
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("kernel,size", [(3, (3, 4)), (1, (2, 2)), ((1, 3), (2, 4)), ((5, 3), (4, 3)), (7, (1, 1))])
def test_masked_conv(mask, groups, kernel, size, rng):
    if (mask, groups, kernel) == ("A", 1, 1):
        with pytest.raises(ValueError, match=r"a layer's inputs: got .*0.*"):  # it would see nothing
            MaskedConv2d(mask, 3, 6, kernel, groups, rng=rng)
        return
    layer = randomized(MaskedConv2d(mask, 3, 6, kernel, groups, rng=rng), rng)
    x = rng.standard_normal((2, 3, *size))
    np.testing.assert_allclose(layer(Tensor(x)).data, masked_loop(x, layer, mask, groups), atol=1e-12)


@pytest.mark.parametrize("mask,groups", [("A", 1), ("B", 1), ("A", 3), ("B", 3)])
def test_masked_weights_are_zero_and_stay_zero(mask, groups, rng):
    layer = MaskedConv2d(mask, 6, 9, 3, groups, rng=rng)
    later = np.zeros((9, 6, 3, 3), bool)
    later[:, :, 1, 2] = later[:, :, 2] = True
    mine, other = np.arange(9)[:, None] * groups // 9, np.arange(6) * groups // 6
    later[:, :, 1, 1] = other >= mine if mask == "A" else other > mine
    optimizer = SGD(layer.parameters(), 0.1, momentum=0.9)
    for _ in range(3):
        assert (layer.weight.data[later] == 0).all()
        assert (layer.weight.data[~later] != 0).all()
        optimizer.zero_grad()
        (layer(Tensor(rng.standard_normal((2, 6, 4, 4), np.float32))) ** 2).sum().backward()
        assert (layer.weight.grad.data[later] == 0).all()
        optimizer.step()


def test_masked_conv_counts_only_the_inputs_it_sees(rng):
    w = MaskedConv2d("B", 64, 64, 7, rng=rng).weight.data
    seen = w[w != 0]
    assert seen.size == 64 * 64 * 25
    np.testing.assert_allclose(seen.var(), 1 / (64 * 25), rtol=0.02)


@pytest.mark.parametrize(
    "arguments,message",
    [
        (("C", 1, 1, 3), "mask: got 'C'"),
        (("A", 1, 1, 4), r"kernel_size: got \(4, 4\)"),
        (("A", 1, 1, (3, 2)), r"kernel_size: got \(3, 2\)"),
        (("A", 3, 8, 3, 3), "3 and 8 channels, 3 groups must divide both"),
        (("A", 2, 6, 3, 3), "2 and 6 channels, 3 groups must divide both"),
    ],
)
def test_masked_conv_refuses(arguments, message, rng):
    with pytest.raises(ValueError, match="MaskedConv2d: " + message):
        MaskedConv2d(*arguments, rng=rng)


# --- recurrent layers


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def cell(a, c):
    """Gates (..., 4h) in the order i, f, g, o."""
    i, f, g, o = np.split(a, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def test_lstm_is_the_textbook_loop(rng):
    layer = randomized(LSTM(3, 4, rng=rng), rng)
    x, h, c = rng.standard_normal((2, 6, 3)), *rng.standard_normal((2, 2, 4))
    y, (h_last, c_last) = layer(Tensor(x), (Tensor(h), Tensor(c)))
    for t in range(6):
        h, c = cell(x[:, t] @ layer.weight_input.data.T + h @ layer.weight_state.data.T + layer.bias.data, c)
        np.testing.assert_allclose(y.data[:, t], h, atol=1e-14)
    np.testing.assert_allclose(h_last.data, h, atol=1e-14)
    np.testing.assert_allclose(c_last.data, c, atol=1e-14)


def test_lstm_in_two_halves_is_the_whole(rng):
    layer = randomized(LSTM(3, 4, rng=rng), rng)
    x = Tensor(rng.standard_normal((2, 7, 3)))
    whole, (h, c) = layer(x)
    first, state = layer(x[:, :3])
    second, (h2, c2) = layer(x[:, 3:], state)
    np.testing.assert_allclose(np.concatenate([first.data, second.data], 1), whole.data, atol=1e-14)
    np.testing.assert_allclose([h2.data, c2.data], [h.data, c.data], atol=1e-14)
    zero = Tensor(np.zeros((2, 4)))
    np.testing.assert_array_equal(layer(x, (zero, zero))[0].data, whole.data)


def test_lstm_starts_remembering_and_names_a_wrong_shape(rng):
    layer = LSTM(3, 2, rng=rng)
    np.testing.assert_array_equal(layer.bias.data, [0, 0, 1, 1, 0, 0, 0, 0])
    for shape in [(2, 3), (2, 5, 4)]:
        with pytest.raises(ValueError, match=re.escape(f"LSTM: x has shape {shape}")):
            layer(Tensor(np.zeros(shape, np.float32)))


def gate_input(layer, groups, columns):
    """The input-to-state part at a pixel. ``columns``: inputs (N, C), left neighbours (or None), then the pixel."""
    w, b = layer.input.weight.data, layer.input.bias.data
    four_h, channels = w.shape[:2]
    hidden, per_gate = four_h // 4, four_h // 4 // groups
    a = np.zeros((columns[-1].shape[0], four_h))
    for group, gate, k in np.ndindex(groups, 4, per_gate):
        row = (group * 4 + gate) * per_gate + k  # the convolution's order: the mask cuts its output by colour
        total = b[row]
        for tap, x in enumerate(columns):
            if x is not None:
                seen = channels if tap < len(columns) - 1 else (group + 1) * channels // groups
                total = total + x[:, :seen] @ w[row, :seen, 0, tap]
        a[:, gate * hidden + group * per_gate + k] = total
    return a


def row_lstm_loop(x, layer, groups):
    n, _, height, width = x.shape
    ws = layer.weight_state.data
    hidden = ws.shape[1]
    h, c = (np.zeros((n, hidden, height, width)) for _ in range(2))
    for r, j in np.ndindex(height, width):
        a = gate_input(layer, groups, [x[:, :, r, j - 1] if j else None, x[:, :, r, j]])
        for tap in (-1, 0, 1):
            if 0 <= j + tap < width:
                above = h[:, :, r - 1, j + tap] if r else np.broadcast_to(layer.h0.data, (n, hidden))
                a = a + above @ ws[:, :, tap + 1].T
        c_above = c[:, :, r - 1, j] if r else np.broadcast_to(layer.c0.data, (n, hidden))
        h[:, :, r, j], c[:, :, r, j] = cell(a, c_above)
    return h


def diagonal_loop(x, layer, groups, from_right=False):
    """One direction: c comes from the previous neighbour in the row, h from that neighbour and the one above."""
    n, _, height, width = x.shape
    ws = layer.weight_state.data
    h, c = (np.zeros((n, ws.shape[1], height, width)) for _ in range(2))
    step = -1 if from_right else 1
    for r in range(height):
        for j in list(range(width))[::step]:
            a, c_before, before = gate_input(layer, groups, [x[:, :, r, j]]), 0, j - step
            if r:
                a = a + h[:, :, r - 1, j] @ ws[:, :, 0].T
            if 0 <= before < width:
                a, c_before = a + h[:, :, r, before] @ ws[:, :, 1].T, c[:, :, r, before]
            h[:, :, r, j], c[:, :, r, j] = cell(a, c_before)
    return h


SIZES = [(3, 3), (2, 5), (5, 2), (1, 1), (1, 4), (4, 1)]


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_row_lstm_is_the_loop_over_pixels(size, groups, rng):
    layer = randomized(RowLSTM(6, 3, groups, rng=rng), rng)
    x = rng.standard_normal((2, 6, *size))
    np.testing.assert_allclose(layer(Tensor(x)).data, row_lstm_loop(x, layer, groups), atol=1e-13)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_diagonal_lstm_is_the_loop_over_pixels(size, groups, rng):
    layer = randomized(DiagonalLSTM(6, 3, groups, rng=rng), rng)
    x = rng.standard_normal((2, 6, *size))
    y = layer(Tensor(x.transpose(2, 1, 3, 0))).data.transpose(3, 1, 0, 2)
    np.testing.assert_allclose(y, diagonal_loop(x, layer, groups), atol=1e-13)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_diagonal_bilstm_adds_the_right_direction_one_row_down(size, groups, rng):
    layer = randomized(DiagonalBiLSTM(6, 3, groups, rng=rng), rng)
    x = rng.standard_normal((2, 6, *size))
    expected = diagonal_loop(x, layer.left, groups)
    expected[:, :, 1:] += diagonal_loop(x, layer.right, groups, from_right=True)[:, :, :-1]
    np.testing.assert_allclose(layer(Tensor(x)).data, expected, atol=1e-13)


def seen_by(layer, height, width):
    """(pixel, pixel): which inputs the outputs depend on. All weights are positive, so no dependence cancels."""
    for p in layer.parameters():
        p.data = 0.1 * np.ones(p.shape)
    pixels = height * width
    x = Tensor(np.full((pixels, 2, height, width), 0.1), requires_grad=True)
    y = layer(x)
    one_output_an_image = np.eye(pixels).reshape(pixels, 1, height, width) * np.ones((1, y.shape[1], 1, 1))
    return (grad(y, x, one_output_an_image)[0].data.sum(1) != 0).reshape(pixels, pixels)


@pytest.mark.parametrize("height,width", [(4, 7), (7, 3)])
@pytest.mark.parametrize(
    "kind,sees",
    [
        (RowLSTM, lambda up, left: up >= 0 and -up <= left <= up + 1),
        (DiagonalBiLSTM, lambda up, left: up > 0 or (up == 0 and left >= 0)),
    ],
    ids=["row: a triangle", "diagonal: everything before"],
)
def test_context_of_image_lstms(kind, sees, height, width, rng):
    pixels = list(np.ndindex(height, width))
    expected = [[sees(r - rr, c - cc) for rr, cc in pixels] for r, c in pixels]
    np.testing.assert_array_equal(seen_by(kind(2, 2, rng=rng), height, width), expected)


@pytest.mark.parametrize("kind", [RowLSTM, DiagonalBiLSTM])
def test_image_lstms_differentiate_twice(kind, rng):
    layer = randomized(kind(3, 3, 3, rng=rng), rng)
    gradcheck(layer, rng.standard_normal((2, 3, 2, 3)))


@pytest.mark.parametrize("height,width", [(4, 4), (2, 5), (5, 2), (1, 3), (3, 1)])
def test_a_diagonal_scan_computes_the_pixels_of_the_image_alone(height, width, rng, monkeypatch):
    scan, seen = ops.lstm_scan, []
    monkeypatch.setattr(ops, "lstm_scan", lambda *inputs: seen.append(inputs[-1]) or scan(*inputs))
    DiagonalLSTM(2, 3, rng=rng)(Tensor(rng.standard_normal((height, 2, width, 4), np.float32)))
    pixels = {(t, row) for t, (start, stop) in enumerate(seen[0]) for row in range(start, stop)}
    assert pixels == {(row + column, row) for row in range(height) for column in range(width)}


def test_normalization_of_large_float16_and_of_no_images(rng):
    x = Tensor(np.array([[0, 200, 400, 600]], np.float16))
    np.testing.assert_allclose(LayerNorm(4)(x).numpy(), [[-1.342, -0.447, 0.447, 1.342]], atol=2e-3)
    assert GroupNorm(2, 4)(Tensor(np.zeros((0, 4, 3), np.float32))).shape == (0, 4, 3)


def test_a_module_is_frozen_and_thawed(rng):
    layers = Sequential(Linear(2, 3, rng=rng), Linear(3, 1, rng=rng))
    layers.steps[0].requires_grad = False
    assert [p.requires_grad for p in layers.parameters()] == [False, False, True, True] and layers.requires_grad
    assert not layers.steps[0].requires_grad
    layers.requires_grad = True
    assert all(p.requires_grad for p in layers.parameters())


def test_a_parameter_is_not_changed_in_place():
    p = Parameter(np.ones(2, np.float32))
    with pytest.raises(TypeError, match=r"write p.data -= step"):
        p -= 0.1
    with pytest.raises(TypeError, match=r"as in x.data -= g.data"):
        p.data -= Tensor(np.ones(2, np.float32))
    assert p.data.tolist() == [1, 1]


def test_two_parameters_of_one_name_are_refused(rng):
    module = Module()
    module.d = {1: Linear(1, 1, rng=rng), "1": Linear(1, 1, rng=rng)}
    with pytest.raises(ValueError, match=r"two of its parameters or buffers have the name d\.1\.weight"):
        module.state_dict()
    with pytest.raises(ValueError, match="Module has no parameters"):
        Module().device  # noqa: B018
