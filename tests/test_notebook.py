"""What a Jupyter notebook shows."""

import base64
import io

import pytest
from matplotlib.image import imread

CELLS = {  # each shows what its last line is
    "a figure": """
import numpy as np
from tinygen.plotting import figure
figure({"two": (np.eye(8).reshape(1, 1, 8, 8).repeat(2, 0), 2)})
""",
    "training": """
from tinygen.models import Autoencoder
from tinygen.optim import Adam
from tinygen.training import fit
rng = np.random.default_rng(0)
model = Autoencoder((1, 4, 4), code=2, channels=(2,), rng=rng)
record = fit(model, rng.random((64, 1, 4, 4)), steps=5, optimizer=Adam(model.parameters(), 0.01), rng=rng)
""",
    "a figure with pyplot": """
%matplotlib inline
figure({"two": (np.eye(8).reshape(1, 1, 8, 8).repeat(2, 0), 2)})
""",
}


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """For each name of CELLS its cell's outputs. All run in one notebook, since a kernel takes seconds to start."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS.values()])
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):  # neither the user's settings nor files among them
            patch.setenv(variable, str(tmp_path_factory.mktemp(variable)))
        patch.delenv("MPLBACKEND", raising=False)
        nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    return {name: cell.outputs for name, cell in zip(CELLS, notebook.cells)}


@pytest.mark.parametrize("name", ["a figure", "a figure with pyplot"])
def test_a_figure_is_an_image(shown, name):
    (output,) = shown[name]
    picture = imread(io.BytesIO(base64.b64decode(output.data["image/png"])), format="png")
    assert picture.shape[1] > 300 and picture.std() > 0.1


def test_training_shows_a_bar(shown):
    text = "".join(output.text for output in shown["training"] if output.name == "stderr")
    last = text.split("\r")[-1]
    assert "Autoencoder: 100%" in last and "squared error per image" in last
