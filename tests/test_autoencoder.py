"""The autoencoder: sizes for any image, and the squared error by hand; PCA against the singular values."""

import numpy as np
import pytest

from tinygen import Tensor, grad, ops
from tinygen.models import PCA, VAE, Autoencoder
from tinygen.models.networks import Residual, sizes


def test_sizes():
    assert sizes((1, 28, 28)) == [(28, 28), (14, 14), (7, 7), (4, 4), (2, 2)]
    assert sizes((3, 5, 7)) == [(5, 7), (3, 4), (2, 2), (1, 1), (1, 1)]
    assert sizes((3, 5, 7), 2) == [(5, 7), (3, 4), (2, 2)]


def test_channels(rng):
    model = Autoencoder((3, 9, 8), code=2, channels=(5, 7), rng=rng)
    shapes = [conv.weight.shape for conv in (*model.encoder.convs, *model.decoder.ups)]
    assert shapes == [(5, 3, 3, 3), (7, 5, 3, 3), (7, 5, 3, 3), (5, 3, 3, 3)]
    assert model.encoder.out.weight.shape == (2, 7 * 3 * 2) and model.decoder.into.weight.shape == (7 * 3 * 2, 2)


def test_residual_blocks_start_as_the_identity_and_then_see_five_by_five(rng):
    block = Residual(3, rng=rng)
    x = Tensor(rng.standard_normal((1, 3, 9, 9), np.float32), requires_grad=True)
    np.testing.assert_array_equal(block(x).data, x.data)
    assert np.std(Residual(64, rng=rng).first.weight.data) == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.05)
    for conv in (block.first, block.second):
        conv.weight.data = np.abs(rng.standard_normal(conv.weight.shape, np.float32))  # nothing cancels
    x = Tensor(np.abs(x.data), requires_grad=True)
    (g,) = grad(block(x)[0, 0, 4, 4], x)
    seen = np.zeros((9, 9), bool)
    seen[2:7, 2:7] = True
    np.testing.assert_array_equal(g.data[0, 1] != 0, seen)
    for p in (*block.parameters(), x):
        p.data = rng.standard_normal(p.shape, np.float32)
    y = ops.conv2d(ops.relu(x), block.first.weight, block.first.bias, padding=1)
    y = x.data + ops.conv2d(ops.relu(y), block.second.weight, block.second.bias, padding=1).data
    np.testing.assert_allclose(block(x).data, y, rtol=1e-4, atol=1e-5)


def test_blocks_stand_between_the_convolutions_of_both_sides(rng):
    """Blocks start as the identity, so outputs equal those without blocks; changing a block changes the output."""
    with pytest.raises(ValueError, match="blocks: got -1"):
        VAE(blocks=-1, rng=rng)
    plain, model = (VAE((1, 9, 8), 2, channels=(5, 7), blocks=n, rng=np.random.default_rng(1)) for n in (0, 2))
    assert model.num_parameters() - plain.num_parameters() == 2 * 2 * sum(2 * (9 * n * n + n) for n in (5, 7))
    missing = {name: value for name, value in model.state_dict().items() if name not in plain.state_dict()}
    model.load_state_dict({**missing, **plain.state_dict()})
    x, z = rng.integers(0, 2, (3, 1, 9, 8)), rng.standard_normal((3, 2), np.float32)
    coded, decoded = model.encode(x).mean.data, model.decode(z).data
    np.testing.assert_array_equal(coded, plain.encode(x).mean.data)
    np.testing.assert_array_equal(decoded, plain.decode(z).data)
    for side in (model.encoder, model.decoder):
        for i, channels in enumerate((5, 7) if side is model.encoder else (7, 5)):
            for block in side.blocks[i]:
                block.second.weight.data = rng.standard_normal((channels, channels, 3, 3), np.float32)
                assert ((model.encode(x).mean.data != coded).any(), (model.decode(z).data != decoded).any()) == (
                    side is model.encoder,
                    side is model.decoder,
                )
                block.second.weight.data *= 0


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 1, 1), (1, 5, 7), (3, 2, 17)])
def test_any_image_size(shape, rng):
    model = Autoencoder(shape, code=4, rng=rng)
    x = rng.random((2, *shape), np.float32)
    code = model.encode(x)
    assert code.shape == (2, 4)
    assert model.decode(code).shape == model.reconstruct(x).shape == x.shape
    np.testing.assert_array_equal(model.decode(code.data.astype(np.float64)).data, model.decode(code).data)
    np.testing.assert_array_equal(model.decode(code).data, model.reconstruct(x).data)
    assert model.encode((x > 0.5).astype(np.uint8)).dtype == np.float32


def test_loss_is_the_squared_error_summed_over_pixels_averaged_over_images(rng):
    model = Autoencoder((3, 4, 5), rng=rng)
    x = rng.random((6, 3, 4, 5), np.float32)
    errors = ((model.reconstruct(x).data - x) ** 2).sum((1, 2, 3))
    np.testing.assert_allclose(model.loss(x).item(), errors.mean(), rtol=1e-6)
    np.testing.assert_allclose(model.loss(Tensor(np.concatenate([x, x]))).item(), model.loss(x).item(), rtol=1e-6)
    for p in model.decoder.parameters():
        p.data[:] = 0
    np.testing.assert_allclose(model.loss(np.full_like(x, 0.5)).item(), 3 * 4 * 5 / 4, rtol=1e-6)


def test_the_narrow_code_is_the_only_way(rng):
    """Equal codes give equal reconstructions, and each entry of the code affects every pixel."""
    model = Autoencoder((1, 6, 6), code=3, rng=rng)
    code = rng.standard_normal((1, 3), np.float32)
    for k in range(3):
        moved = code.copy()
        moved[0, k] += 1
        assert (model.decode(Tensor(moved)).data != model.decode(Tensor(code)).data).all()


def test_pca_is_the_best_linear_reconstruction(rng):
    images = rng.standard_normal((200, 1, 3, 4)) @ rng.standard_normal((4, 4)) + 2
    pca, x = PCA(images, 5), images.reshape(200, 12)
    u, s, v = np.linalg.svd(x - x.mean(0), full_matrices=False)
    np.testing.assert_allclose(pca.reconstruct(images).reshape(200, 12), (u[:, :5] * s[:5]) @ v[:5] + x.mean(0))
    np.testing.assert_allclose(pca.variances, s[:5] ** 2 / 199)
    np.testing.assert_allclose(pca.encode(images).var(0, ddof=1), pca.variances)
    np.testing.assert_allclose(pca.directions @ pca.directions.T, np.eye(5), atol=1e-12)
    with pytest.raises(ValueError, match="code: got 13"):
        PCA(images, 13)
    with pytest.raises(ValueError, match="images has shape"):
        pca.encode(images.reshape(200, 1, 4, 3))
    with pytest.raises(ValueError, match="at least two images"):
        PCA(images[:1], 2)
    with pytest.raises(ValueError, match="code: got 0"):
        PCA(images, 0)
    np.testing.assert_allclose(PCA(images[..., :1, :1], 1).reconstruct(images[..., :1, :1]), images[..., :1, :1])
