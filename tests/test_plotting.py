"""tinygen.plotting: where images are placed in a picture."""

import copy
import pickle

import numpy as np
import pytest

from tinygen import Tensor
from tinygen.models import VAE
from tinygen.plotting import draw_images, figure, manifold, tile


def test_tile_places_images_row_by_row_with_gaps():
    images = np.arange(1, 4, dtype=np.float32)[:, None, None, None] * np.ones((3, 1, 2, 3), np.float32)
    expected = np.ones((7, 9))
    expected[:2, 6:] = 2
    expected[5:, :3] = 3
    np.testing.assert_array_equal(tile(images, columns=2), expected)


def test_tile_keeps_colours_last():
    images = np.zeros((1, 3, 2, 2), np.uint8)
    images[0, 2, 0, 1] = 9
    picture = tile(images, 1)
    assert picture.shape == (2, 2, 3) and picture[0, 1, 2] == 9 and picture.sum() == 9


def test_draw_images_on_an_axis(rng):
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    draw_images(ax, rng.random((4, 1, 5, 6)), 2, "four")
    assert ax.get_title() == "four" and ax.images[0].get_array().shape == (13, 15)
    assert ax.images[0].cmap(1.0)[:3] == (0, 0, 0)  # ink is dark


@pytest.mark.parametrize("values, limits", [((0.2, 0.6), (0, 1)), ((-0.5, 0.1), (-0.5, 1)), ((0, 255), (0, 255))])
def test_greys_mean_the_same_in_every_panel(values, limits):
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    draw_images(ax, np.reshape(values, (2, 1, 1, 1)), 2)
    assert ax.images[0].get_clim() == limits


def test_figure_has_a_panel_for_each_grid(rng, tmp_path):
    drawn = figure({"four": (rng.random((4, 1, 5, 6)), 2, ["upper", "lower"]), "one": (rng.random((1, 3, 3, 6)), 1)})
    assert [ax.get_title() for ax in drawn.axes] == ["four", "one"]
    assert [ax.images[0].get_array().shape[:2] for ax in drawn.axes] == [(13, 15), (3, 6)]
    assert [text.get_text() for text in drawn.axes[0].texts] == ["upper", "lower"]
    upper, lower = (text.get_position()[1] for text in drawn.axes[0].texts)
    assert 0 < upper < 5 and 8 < lower < 13  # each is within its row
    drawn.savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()


def test_a_figure_can_be_copied():
    drawn = figure({"one": (np.eye(8)[None, None], 1)})
    for other in (copy.deepcopy(drawn), pickle.loads(pickle.dumps(drawn))):
        other.axes[0].set_title("another")
        assert other._repr_png_() != drawn._repr_png_()


def test_a_figure_has_room_for_its_tallest_grid():
    low, tall, endless = (np.zeros((8, 1, 3, 6)), 8), (np.zeros((3, 1, 5, 6)), 1), (np.zeros((640, 1, 5, 6)), 1)
    sizes = [figure(p).get_size_inches() for p in ({"a": low}, {"a": tall}, {"b": low, "a": tall}, {"a": endless})]
    widths, heights = np.transpose(sizes)
    assert heights[0] < heights[1] == heights[2] < heights[3] < 5 * widths[3]  # it is never endless
    assert widths[0] == widths[1] < widths[2]


def test_manifold_goes_right_with_the_first_dimension_and_up_with_the_second(rng, monkeypatch):
    vae = VAE(image_shape=(1, 4, 4), latent=2, rng=rng)
    monkeypatch.setattr(VAE, "decode", lambda self, z: Tensor(z).reshape(-1, 1, 1, 2))
    z = manifold(vae, 3).reshape(3, 3, 2)
    quantile = 0.967421566  # of 5/6
    np.testing.assert_allclose(z[0, :, 0], [-quantile, 0, quantile], atol=1e-6)
    np.testing.assert_allclose(z[:, 0, 1], [quantile, 0, -quantile], atol=1e-6)


def test_manifold_needs_two_dimensions(rng):
    with pytest.raises(ValueError, match="5 latent dimensions"):
        manifold(VAE(image_shape=(1, 4, 4), latent=5, rng=rng))
