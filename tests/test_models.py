"""What all models share: gradients, training steps that never wait for the device, images that are refused."""

import numpy as np
import pytest

from tinygen import Tensor, grad, gradcheck, no_grad, ops
from tinygen.backend import to_device
from tinygen.models import (
    FFJORD,
    FVSBN,
    GAN,
    GSN,
    MADE,
    NADE,
    NICE,
    RBM,
    TCVAE,
    VAE,
    Autoencoder,
    BernoulliMixture,
    CategoricalVAE,
    Diffusion,
    GatedPixelCNN,
    Glow,
    MixturePosteriorVAE,
    MixturePriorVAE,
    PixelCNN,
    PixelCNNpp,
    PixelRNN,
    PixelTransformer,
    RealNVP,
    bits_per_dim,
)
from tinygen.optim import Adam
from tinygen.training import evaluate

# Each with the number of values of a pixel, 0 where any real number is one.
BUILD = {
    "cnn": (2, lambda shape, rng: PixelCNN(shape, channels=3, blocks=1, rng=rng)),
    "cnn, levels": (5, lambda shape, rng: PixelCNN(shape, 5, channels=3, blocks=1, rng=rng)),
    "row": (2, lambda shape, rng: PixelRNN("row", shape, channels=3, layers=1, rng=rng)),
    "diagonal": (2, lambda shape, rng: PixelRNN("diagonal", shape, channels=3, layers=1, rng=rng)),
    "gated": (2, lambda shape, rng: GatedPixelCNN(shape, channels=3, layers=1, rng=rng)),
    "transformer": (
        2,
        lambda shape, rng: PixelTransformer(shape, channels=4, blocks=1, first_kernel=3, rng=rng),
    ),
    "plus plus": (
        5,
        lambda shape, rng: PixelCNNpp(shape, 5, (3, 2), 1, components=2, first_kernel=3, rng=rng),
    ),
    "mixture": (2, lambda shape, rng: BernoulliMixture(shape, 3, rng=rng)),
    "fvsbn": (2, lambda shape, rng: FVSBN(shape, rng=rng)),
    "nade": (2, lambda shape, rng: NADE(shape, hidden=5, rng=rng)),
    "nade, levels": (3, lambda shape, rng: NADE(shape, 3, hidden=5, rng=rng)),
    "made": (2, lambda shape, rng: MADE(shape, hidden=(7, 6), rng=rng)),
    "made, orders": (2, lambda shape, rng: MADE(shape, hidden=(7,), orders=3, rng=rng)),
    "ffjord": (5, lambda shape, rng: FFJORD(shape, 5, (4,), steps=1, trace="exact", rng=rng)),
    "ffjord, hutchinson": (0, lambda shape, rng: FFJORD(shape, None, (4,), steps=1, rng=rng)),
    "rbm": (2, lambda shape, rng: RBM(shape, hidden=4, steps=1, chains=0, rng=rng)),
    "vae": (2, lambda shape, rng: VAE(shape, latent=2, beta=0.5, channels=(6, 4, 4), rng=rng)),
    "vae, gaussian": (0, lambda shape, rng: VAE(shape, latent=2, likelihood="gaussian", channels=(2, 3), rng=rng)),
    "vae, weighted": (2, lambda shape, rng: VAE(shape, latent=2, channels=(3,), samples=3, rng=rng)),
    "vae, gaussians": (2, lambda shape, rng: MixturePriorVAE(shape, 2, channels=(3,), components=2, rng=rng)),
    "vae, vamp": (
        0,
        lambda shape, rng: MixturePriorVAE(shape, 2, 1.0, "gaussian", (3,), components=2, kind="vamp", rng=rng),
    ),
    "vae, posterior": (2, lambda shape, rng: MixturePosteriorVAE(shape, 2, channels=(3,), components=2, rng=rng)),
    "vae, categorical": (2, lambda shape, rng: CategoricalVAE(shape, 2, 3, channels=(3,), rng=rng)),
    "diffusion": (5, lambda shape, rng: Diffusion(shape, 5, steps=4, channels=(3, 4), rng=rng)),
    "tcvae": (2, lambda shape, rng: TCVAE(shape, latent=2, beta=3.0, images=50, channels=(3, 2), rng=rng)),
    "autoencoder": (0, lambda shape, rng: Autoencoder(shape, code=2, channels=[3], rng=rng)),
    "gan": (0, lambda shape, rng: GAN(shape, latent=2, channels=(2, 3), rng=rng)),
    "gan, wasserstein": (0, lambda shape, rng: GAN(shape, latent=2, form="wasserstein", channels=(2, 3), rng=rng)),
    "gsn": (2, lambda shape, rng: GSN(shape, (5,), walkback=2, rng=rng)),
    "nice": (5, lambda shape, rng: NICE(shape, 5, couplings=2, hidden=4, layers=1, rng=rng)),
    "real nvp": (5, lambda shape, rng: RealNVP(shape, 5, couplings=2, hidden=4, rng=rng)),
    "glow": (0, lambda shape, rng: Glow(shape, None, steps=1, hidden=4, rng=rng)),
}
every_model = pytest.mark.parametrize("name", BUILD)
# A GAN's gradient is that of two costs, each for one player: tests/test_gan.py. It has no score.
every_minimized = pytest.mark.parametrize("name", [name for name in BUILD if not name.startswith("gan")])
SENT = {"diffusion": 2, "gan": 1, "gan, wasserstein": 2, "gsn": 3}  # arrays of noise in a step, and the steps t


def build(name, shape, rng, n=3, dtype=np.float64):
    """A model with all parameters drawn anew, and images for it."""
    levels, constructor = BUILD[name]
    model = constructor(shape, rng)
    for p in model.parameters():
        # Divided by the root of how many inputs are summed, or the sigmoids saturate.
        p.data = (rng.standard_normal(p.shape) / np.sqrt(max(1, p.size / len(p.data)))).astype(dtype)
    draw = rng.random if name.startswith("gan") else rng.standard_normal
    images = rng.integers(0, levels, (n, *shape)) if levels else draw((n, *shape)).astype(dtype)
    return model, images


@pytest.mark.parametrize(
    "model",
    [
        *(PixelCNN, GatedPixelCNN, PixelCNNpp, PixelRNN, PixelTransformer, FVSBN, NADE, MADE, VAE, MixturePriorVAE),
        *(MixturePosteriorVAE, CategoricalVAE, TCVAE, Diffusion, RBM, Autoencoder, NICE, RealNVP, Glow, GAN, GSN),
    ],
)
def test_defaults(model, rng):
    model = model(rng=rng)
    loss = model.loss(rng.integers(0, 2, (2, 1, 28, 28)), rng)
    assert loss.shape == () and loss.dtype == np.float32 and np.isfinite(loss.item())
    loss.backward()
    assert all(p.grad is not None and p.dtype == np.float32 for p in model.parameters())
    assert model.num_parameters() > 10_000 and "per image" in model.unit


@pytest.mark.parametrize(
    "model, settings, message",
    [
        (Autoencoder, {"channels": ()}, r"channels: got \(\)"),
        (VAE, {"channels": (4, 2.5)}, r"channels: got \(4, 2.5\)"),
        (VAE, {"beta": -1}, r"beta: got -1"),
        (VAE, {"likelihood": "poisson"}, "likelihood: got 'poisson'"),
        (PixelCNN, {"first_kernel": 2.5}, "first_kernel: got 2.5"),
        (PixelCNN, {"kernel": "3"}, "kernel: got '3'"),
        (PixelCNN, {"first_kernel": 4}, "first_kernel: got 4"),
        (PixelCNN, {"kernel": 4}, "kernel: got 4"),
        (PixelRNN, {"first_kernel": (7, 7)}, "first_kernel: got \\(7, 7\\)"),
        (PixelRNN, {"first_kernel": 4}, "first_kernel: got 4"),
        (GatedPixelCNN, {"first_kernel": 4}, "first_kernel: got 4"),
        (GatedPixelCNN, {"kernel": 2}, "kernel: got 2"),
        (GatedPixelCNN, {"kernel": 0}, "kernel: got 0"),
        (GatedPixelCNN, {"layers": -1}, "layers: got -1"),
        (GatedPixelCNN, {"first_kernel": 1}, "first_kernel: got 1"),
        (GatedPixelCNN, {"classes": -1}, "classes: got -1"),
        (PixelTransformer, {"heads": 3}, "CausalSelfAttention: 3 heads must divide 32 channels"),
        (PixelTransformer, {"heads": 0}, "heads: got 0"),
        (PixelTransformer, {"kernel": 2}, "kernel: got 2"),
        (PixelTransformer, {"blocks": -1}, "blocks: got -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(model, settings, message, rng):
    with pytest.raises(ValueError, match=message):
        model(**settings, rng=rng)


@every_model
@pytest.mark.parametrize("shape", [(1, 4, 3), (3, 2, 4)])
def test_loss_and_gradients_are_the_same_on_every_device(name, shape, rng, device):
    model, x = build(name, shape, rng)
    results = []
    for where in ("cpu", device):
        model.to(where)
        for p in model.parameters():
            p.grad = None
        loss = model.loss(to_device(x, where), np.random.default_rng(1))
        loss.backward()
        results.append([loss.numpy(), *(p.grad.numpy() for p in model.parameters())])
    for host, there in zip(*results, strict=True):
        np.testing.assert_allclose(there, host, rtol=1e-9, atol=1e-12)


@every_model
@pytest.mark.parametrize("shape", [(1, 4, 3), (3, 2, 4)])
def test_a_training_step_never_waits_for_the_device(name, shape, rng, strict):
    model, x = build(name, shape, rng, dtype=np.float32)
    model.to("cuda")
    x, before, optimizer = to_device(x, "cuda"), model.state_dict(), Adam(model.parameters(), 0.01)
    strict.count.clear()
    model.loss(x, rng).backward()
    optimizer.step()
    sent = SENT.get(name, isinstance(model, RBM | VAE | NICE | RealNVP | FFJORD))
    assert +strict.count == ({"h2d": sent} if sent else {})  # the noise, which comes from the host
    assert any((value != before[name]).any() for name, value in model.state_dict().items())


@every_minimized
@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 1, 2)])
def test_a_whole_model_differentiates_twice(name, shape, rng, monkeypatch):
    monkeypatch.setattr(ops, "relu", ops.softplus)  # no kinks; the ReLU is tested where it is defined
    model, x = build(name, shape, rng, n=2)

    gradcheck(lambda: model.loss(x, np.random.default_rng(1)), (), parameters=model)


@every_minimized
def test_learning_makes_the_loss_smaller(name, rng):
    model = BUILD[name][1]((1, 5, 4), rng)
    _, x = build(name, (1, 5, 4), rng, n=8)
    optimizer = Adam(model.parameters(), 0.02)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = model.loss(x, np.random.default_rng(1))  # the same noise, or it would hide what is learned
        loss.backward()
        optimizer.step()
        # The RBM's loss is a difference that only the gradient of means something
        losses.append((model.score(x, rng).mean() if isinstance(model, RBM) else loss).item())
    assert np.mean(losses[-5:]) < 0.95 * losses[0]


@every_model
@pytest.mark.parametrize(
    "shape,message",
    [
        ((2, 1, 3, 4), r"images has shape \(2, 1, 3, 4\)"),
        ((2, 3, 4, 3), r"images has shape \(2, 3, 4, 3\)"),
        ((4, 3), r"images has shape \(4, 3\)"),
        ((0, 1, 4, 3), "images: the batch is empty"),
    ],
)
def test_images_of_another_shape_are_refused(name, shape, message, rng):
    model, _ = build(name, (1, 4, 3), rng)
    with pytest.raises(ValueError, match=message):
        model.loss(np.zeros(shape), rng)


@every_model
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_images_that_are_not_finite_are_refused(name, value, rng):
    model, x = build(name, (1, 4, 3), rng)
    x = x.astype(np.float32)
    x[1, 0, 2, 1] = value
    with pytest.raises(ValueError, match="images: some values are not finite"):
        model.loss(x, rng)


@every_model
@pytest.mark.parametrize("shape", [(28, 28), (1, 28), (1, 1, 28, 28), (0, 4, 4), (1, 4, 0), (1, -4, 4)])
def test_image_shapes_are_refused(name, shape, rng):
    with pytest.raises(ValueError, match=r"image_shape: got \(.*\)"):
        BUILD[name][1](shape, rng)


def test_images_may_be_lists_tensors_and_booleans(rng):
    model, x = build("cnn", (1, 4, 3), rng)
    expected = model.log_prob(x).data
    for same in (x.tolist(), Tensor(x), x.astype(bool), x.astype(np.uint8), x.astype(np.float64)):
        np.testing.assert_array_equal(model.log_prob(same).data, expected)


def test_bits_per_dim_by_hand():
    assert bits_per_dim(3 * 4 * 5 * 8 * np.log(2), (3, 4, 5)) == 8
    np.testing.assert_allclose(bits_per_dim(np.array([784 * np.log(2), 81.3]), (1, 28, 28)), [1, 0.149605], rtol=1e-5)


@every_model
def test_gradients_reach_the_images(name, rng):
    """Gradients reach images that are a Tensor that requires grad, as for a classifier's saliency map."""
    model, images = build(name, (1, 3, 3), rng, n=2)
    for p in model.parameters():  # some start at zero
        p.data = rng.standard_normal(p.shape, np.float32)
    x = Tensor(images.astype(np.float32), requires_grad=True)
    (g,) = grad(model.loss(x, np.random.default_rng(0)), x)
    assert g.shape == x.shape and np.isfinite(g.data).all() and (g.data != 0).any((1, 2, 3)).all()


@pytest.mark.parametrize("levels", [2, 5])
def test_a_pixels_logits_have_gradients_in_the_pixels_before_alone(levels, rng):
    model = PixelCNN((1, 4, 4), levels, channels=4, blocks=1, rng=rng)
    for p in model.parameters():
        p.data = rng.standard_normal(p.shape, np.float32)
    x = Tensor(rng.integers(0, levels, (1, 1, 4, 4)).astype(np.float32), requires_grad=True)
    (g,) = grad(model.logits(x)[0, 0, 0, 2, 1], x)
    before = np.arange(16).reshape(4, 4) < 9
    assert (g.data[0, 0][before] != 0).sum() > 4 and not g.data[0, 0][~before].any()


@pytest.mark.parametrize("name", [*(name for name in BUILD if not name.startswith("gan")), "classes"])
def test_what_every_model_promises(name, rng, monkeypatch):
    """loss trains, score reports one number for each image, whether steps are recorded or not; evaluate averages it."""
    monkeypatch.setitem(BUILD, "classes", (2, lambda shape, rng: GatedPixelCNN(shape, channels=2, classes=2, rng=rng)))
    model, x = build(name, (1, 4, 4), rng)
    labels = np.array([0, 1, 1]) if model.classes else None
    scores = model.score(x, np.random.default_rng(3), labels)
    assert scores.shape == (len(x),)
    with no_grad():
        again, loss = model.score(x, np.random.default_rng(3), labels), model.loss(x, np.random.default_rng(4), labels)
    np.testing.assert_array_equal(scores.data, again.data)
    assert loss.item() == model.loss(x, np.random.default_rng(4), labels=labels).item()
    if hasattr(model, "bound"):
        bound = model.bound(x, np.random.default_rng(3))
        np.testing.assert_array_equal(scores.data, -bound.total.data)
        assert all(term.shape == (len(x),) for term in bound)
    elif hasattr(model, "log_prob"):  # exact: no noise
        np.testing.assert_allclose(scores.data, -model.log_prob(x, labels).data)
    mean = evaluate(model, x, np.random.default_rng(5), workers=1, labels=labels)
    seed = int(np.random.default_rng(5).integers(2**63))
    np.testing.assert_allclose(
        mean, model.score(x, np.random.default_rng([seed, 0, 0]), labels).data.mean(), rtol=1e-12
    )
    if hasattr(model, "sample"):
        drawn = model.sample(2, rng) if labels is None else model.sample(2, rng, labels[:2])
        assert drawn.shape == (2, 1, 4, 4)
    if hasattr(model, "complete"):
        mask = rng.random((1, 4, 4)) < 0.5
        keep = np.broadcast_to(mask, x.shape)
        completed = model.complete(x, rng, mask) if labels is None else model.complete(x, rng, mask, labels)
        assert completed.shape == x.shape and (completed[keep] == x[keep]).all()


@every_model
def test_labels_are_refused_by_models_without_classes(name, rng):
    model, x = build(name, (1, 4, 4), rng)
    for call in (model.loss, getattr(model, "score", model.loss)):
        with pytest.raises(ValueError, match="labels: the model was built without classes"):
            call(x, rng, np.zeros(3, int))
    with pytest.raises(ValueError, match="labels: the model was built without classes"):
        evaluate(model, x, rng, labels=np.zeros(3, int))
