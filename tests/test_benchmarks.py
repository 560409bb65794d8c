"""benchmarks/gpu.py without a GPU: what it measures with, on the stand-in for CuPy and PyTorch on the CPU; the plot."""

import functools
import re
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import strict_cupy
from conftest import DEVICES

from tinygen.models import (
    FFJORD,
    FVSBN,
    GAN,
    GSN,
    MADE,
    NADE,
    NICE,
    Diffusion,
    GatedPixelCNN,
    Glow,
    PixelCNN,
    PixelCNNpp,
    PixelRNN,
    PixelTransformer,
    RealNVP,
)

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import gpu
import report

TINY, EVEN = (1, 5, 6), (1, 8, 8)  # image shapes
OTHERS = {  # models whose loss PyTorch computes as it is: constructor, settings of both, settings of tinygen's alone
    "fvsbn": (FVSBN, {}, {"image_shape": TINY}),
    "nade": (NADE, {}, {"image_shape": TINY, "hidden": 7}),
    "made": (MADE, {}, {"image_shape": TINY, "hidden": (7,)}),
    "nice": (NICE, {"couplings": 3, "layers": 1}, {"image_shape": TINY, "hidden": 4}),
    "realnvp": (RealNVP, {"couplings": 2}, {"image_shape": EVEN, "hidden": 3}),
    "glow": (Glow, {"steps": 2}, {"image_shape": EVEN, "hidden": 3}),
    "ffjord": (FFJORD, {"steps": 2}, {"hidden": (5, 4)}),
    "diffusion": (Diffusion, {"steps": 5, "levels": 8}, {"image_shape": TINY, "channels": (2, 3, 4)}),
    "gan": (GAN, {}, {"image_shape": TINY, "channels": (2, 3, 4)}),
    "wgan": (functools.partial(GAN, form="wasserstein"), {}, {"image_shape": TINY, "channels": (2, 3, 4)}),
    "gsn": (GSN, {"walkback": 3, "noise": 0.3}, {"image_shape": TINY, "hidden": (5,)}),
    "pixelcnnpp": (PixelCNNpp, {"blocks": 1, "levels": 9}, {"image_shape": TINY, "channels": (4, 3, 2, 2)}),
}
no_gpu = pytest.mark.skipif("cupy" in DEVICES, reason="there is a GPU")


@pytest.fixture
def works(strict, monkeypatch):
    """gpu_works with tiny models and the stand-in, which gets a memory pool of 7 MB."""
    torch = pytest.importorskip("torch")
    import gpu_works
    import pytorch_models

    for name, constructor, network in [
        (
            "tiny",
            functools.partial(PixelCNN, channels=2, blocks=1),
            functools.partial(pytorch_models.pixelcnn, blocks=1),
        ),
        (
            "gated",
            functools.partial(GatedPixelCNN, channels=2, layers=2),
            functools.partial(pytorch_models.gated_pixelcnn, layers=2),
        ),
        (
            "rnn",
            functools.partial(PixelRNN, channels=2, layers=1),
            functools.partial(pytorch_models.row_pixelrnn, layers=1),
        ),
        (
            "transformer",
            functools.partial(PixelTransformer, channels=4, blocks=2, first_kernel=3),
            functools.partial(pytorch_models.transformer, blocks=2),
        ),
    ]:
        constructor = functools.partial(constructor, image_shape=TINY)
        monkeypatch.setitem(gpu_works.NETWORKS, name, (constructor, network))
        loss = functools.partial(pytorch_models.nats, network)
        monkeypatch.setitem(gpu_works.LOSSES, name, (constructor, loss))
    for name, (constructor, both, ours) in OTHERS.items():
        loss = functools.partial(getattr(pytorch_models, name), **both)
        monkeypatch.setitem(gpu_works.LOSSES, name, (functools.partial(constructor, **both, **ours), loss))
    monkeypatch.setattr(gpu_works, "gc", types.SimpleNamespace(collect=lambda: None))  # slow after many other tests
    pool = types.SimpleNamespace(free_all_blocks=lambda: None, total_bytes=lambda: 7_000_000)
    monkeypatch.setattr(strict.cupy, "get_default_memory_pool", lambda: pool, raising=False)
    for name, value in {
        "empty_cache": None,
        "reset_peak_memory_stats": None,
        "max_memory_reserved": 2_000_000,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield gpu_works
    torch.set_num_threads(before)


@no_gpu
def test_without_a_gpu_it_says_so_at_once():
    begun = time.monotonic()
    process = subprocess.run([sys.executable, gpu.__file__], capture_output=True, text=True)
    assert process.returncode == 1 and process.stdout == ""
    assert re.fullmatch(r"(CuPy|A GPU|PyTorch.*) is missing: .*\.\n", process.stderr)
    assert time.monotonic() < begun + 5  # a second, on a machine that does nothing else


def test_what_is_missing(strict, monkeypatch):
    monkeypatch.setattr(strict.cupy, "is_available", lambda: False)
    assert "finds no CUDA device" in gpu.missing()
    monkeypatch.setattr(strict.cupy, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert gpu.missing().startswith("PyTorch is missing")
    cuda = types.SimpleNamespace(is_available=lambda: False)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda, __version__="2+cpu"))
    assert "2+cpu finds no GPU" in gpu.missing()
    cuda.is_available = lambda: True
    assert gpu.missing() is None
    monkeypatch.setattr(strict.cupy, "ones", lambda n: 1 / 0)
    assert "ZeroDivisionError" in gpu.missing()
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert gpu.missing().startswith("CuPy is missing")


@pytest.mark.parametrize("name", ["autoencoder", "vae", "tiny", "gated", "rnn", "transformer", *OTHERS])
def test_models_agree_with_pytorch(name, works):
    contenders = works.training(name, 2, theirs="cpu")
    convolutional = ["autoencoder", "vae", "tiny", "gated", "realnvp", "glow", "diffusion", "gan", "wgan"]
    convolutional += ["pixelcnnpp", "transformer"]
    assert ("pytorch channels_last" in contenders) == (name in convolutional)


@pytest.mark.parametrize("name", ["tiny", *OTHERS])
def test_a_different_weight_is_found(name, works, monkeypatch):
    built = works.built

    def changed(constructor):
        model, weights = built(constructor)
        weights[0] = 1.05 * weights[0]
        return model, weights

    monkeypatch.setattr(works, "built", changed)
    with pytest.raises(ValueError, match=r"the loss of tinygen|gradient \d+ .* of tinygen"):
        works.training(name, 2, theirs="cpu")


@pytest.mark.parametrize("name", ["vae", "nice", "realnvp", "glow", "ffjord", "wgan", "gsn"])
def test_other_noise_is_found(name, works, monkeypatch):
    noise_of = works.noise_of
    monkeypatch.setattr(works, "noise_of", lambda model, n: [a[::-1].copy() for a in noise_of(model, n)])
    with pytest.raises(ValueError, match=r"the loss of tinygen|gradient \d+ .* of tinygen"):
        works.training(name, 2, theirs="cpu")


def test_rows_of_a_step_and_of_sampling(works):
    waits = []  # one at each end of what is timed
    options = {"rounds": 1, "turn": 0.001, "wait": lambda: waits.append(1)}
    rows = list(works.rows_of("step/tiny/2", works.training("tiny", 2, theirs="cpu"), **options))
    assert [row["contender"] for row in rows] == ["tinygen", "pytorch", "pytorch channels_last"]
    assert [row["peak_bytes"] for row in rows] == [7_000_000, 2_000_000, 2_000_000]
    assert rows[0]["ratio"] == 1 and all(row["median_s"] > 0 for row in rows)
    assert rows[1]["ratio"] == rows[0]["median_s"] / rows[1]["median_s"]
    assert len(waits) >= 2 * 3 and len(waits) % 2 == 0
    for name in "tiny", "vae":
        rows = list(works.rows_of(f"sample/{name}", works.drawing(name, 2, theirs="cpu"), **options))
        assert [row["contender"] for row in rows] == ["tinygen", "pytorch"]


def test_a_timed_step_neither_copies_nor_waits(works):
    run = works.training("tiny", 2, theirs="cpu")["tinygen"].run
    strict_cupy.count.clear()
    run(3)
    assert not +strict_cupy.count, strict_cupy.count


def test_counts_are_of_one_step(works):
    def count(function):
        strict_cupy.count.clear()
        function()
        seen = strict_cupy.count
        names = {"copies to the device": seen["h2d"], "copies from it": seen["d2h"], "waits": seen["sync"]}
        return {**names, "kernels": strict_cupy.count["h2d"]}  # of which the stand-in has none

    expected = {"copies to the device": 1, "copies from it": 0, "waits": 0, "kernels": 1}
    assert works.counted("tiny", 2, count=count) == expected
    assert works.counted("tiny", 2, count=lambda function: {**count(function), "kernels": 0}) is None


def test_what_the_profiler_saw(works):
    trace = {  # categories and names as in PyTorch's traces: how many
        ("kernel", "cupy_add__float32_float32_float32"): 5,
        ("cuda_driver", "cuLaunchKernel"): 5,
        ("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)"): 2,
        ("gpu_memcpy", "Memcpy DtoH (Device -> Pageable)"): 1,
        ("gpu_memcpy", "Memcpy DtoD (Device -> Device)"): 4,
        ("cuda_runtime", "cudaMemcpyAsync"): 7,
        ("cuda_runtime", "cudaStreamSynchronize"): 1,
        ("cuda_runtime", "cudaDeviceSynchronize"): 1,
        ("cuda_runtime", "cudaEventSynchronize"): 1,
        ("cuda_runtime", "cudaMemcpy"): 1,
    }
    events = [{"cat": category, "name": name} for (category, name), n in trace.items() for _ in range(n)]
    expected = {"kernels": 5, "copies to the device": 2, "copies from it": 1, "waits": 4}
    assert works.tally([{"ph": "M", "name": "process_name"}, *events]) == expected


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@no_gpu
def test_the_profiler_sees_no_kernel_without_a_gpu(works):
    assert works.counted("tiny", 2, device="cpu") is None


def test_the_section(works, monkeypatch, tmp_path, capsys):
    """Everything but the GPU: one part works, one fails, one comes too late."""
    monkeypatch.setattr(report, "RESULTS", tmp_path / "RESULTS.md")
    report.RESULTS.write_text(before := "# Results\n\n## Speed\n\nFast.\n")

    def step():
        contenders = works.training("tiny", 2, theirs="cpu")
        return works.rows_of("step/tiny/2", contenders, rounds=1, turn=0.001, wait=lambda: None)

    def late():
        monkeypatch.setattr(gpu, "SECONDS", -1)
        return ["`fit`, tiny: 1 copies."]

    parts = {"step/tiny/2": step, "step/bad/2": lambda: 1 / 0, "fit/tiny": late, "sample/tiny": step}
    assert not gpu.run(parts, time.monotonic(), functools.partial(gpu.write, "A GPU."))
    text = report.RESULTS.read_text()
    assert text.startswith(before) and "## GPU\n\nA GPU.\n" in text
    rows = re.findall(r"^\| step/tiny/2 \| (.*?) \| [\d.]+ \| [\d.]+ \| (\d+) \| 1 \|$", text, re.MULTILINE)
    assert rows == [("tinygen", "7"), ("pytorch", "2"), ("pytorch channels_last", "2")]
    assert re.search(r"^step/bad/2: not measured .*ZeroDivisionError", text, re.MULTILINE)
    assert "`fit`, tiny: 1 copies." in text and re.search("^sample/tiny: not measured", text, re.MULTILINE)
    out, err = capsys.readouterr()
    assert "step/tiny/2" in out and "ZeroDivisionError" in err


def test_the_command(works, monkeypatch, tmp_path, capsys):
    """The description names a GPU that is not there; ``--only`` writes nothing."""
    import torch

    runtime = types.SimpleNamespace(driverGetVersion=lambda: 13010, runtimeGetVersion=lambda: 12090)
    monkeypatch.setattr(strict_cupy.cupy, "cuda", types.SimpleNamespace(runtime=runtime), raising=False)
    monkeypatch.setattr(strict_cupy.cupy, "__version__", "14.2.0", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "Some GPU")
    monkeypatch.setattr(gpu, "missing", lambda: None)
    monkeypatch.setattr(gpu, "parts", lambda: {"fit/vae": lambda: ["Fitted."], "fit/tiny": lambda: 1 / 0})
    monkeypatch.setattr(report, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setenv("CUPY_TF32", "1")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--only", "vae"])
    gpu.main()
    assert "Fitted." in capsys.readouterr().out and not report.RESULTS.exists()
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="not all parts could be measured"):
        gpu.main()
    text = report.RESULTS.read_text()
    assert re.search(
        r"`python benchmarks/gpu.py`\. Some GPU, driver .* \(CUDA 13\.1\); .*cupy 14\.2\.0 with CUDA 12\.9\.", text
    )
    assert "\n\nFitted.\n\nfit/tiny: not measured" in text
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32


def test_parts(works):
    names = list(gpu.parts())
    assert names[0] == "tests" and len(names) == len(set(names))
    assert all(f"fit/{name}" in names for name in works.MODELS)
    assert set(works.MODELS) <= set(works.LOSSES)


def test_tests_of_one_device(tmp_path):
    path = tmp_path / "test_few.py"
    path.write_text(
        "import pytest, time\n"
        "@pytest.mark.parametrize('device', ['numpy', 'cupy'])\n"
        "@pytest.mark.parametrize('x', [1, 2])\n"
        "def test_one(x, device):\n"
        "    assert x == 1, 'what is wrong'\n"
        "def test_cupy(): assert False\n"
        "@pytest.mark.parametrize('device', ['slow'])\n"
        "def test_slow(device): time.sleep(60)\n"
    )
    text = gpu.run_tests("cupy", files=[path])
    assert text.startswith("Tests on cupy: 1 passed, 1 failed, in ")
    assert "what is wrong" in text and re.search(r"^FAILED .*test_few.py::test_one\[2-cupy\]", text, re.MULTILINE)
    assert "```" in text and text.count("FAILED") == 1
    text = gpu.run_tests("strict", files=[Path(__file__).with_name("test_parallel.py")])
    assert re.fullmatch(r"Tests on strict: [1-9]\d* passed, 0 failed, in \d+ s\.", text)
    assert gpu.run_tests("slow", 1, [path]).startswith("Tests on slow: stopped after 1 s, until then 0 passed, 0 fail")


def test_plot(tmp_path, monkeypatch):
    """Sampling, far faster than a loop without a cache, has an axis of its own."""
    figures = []
    monkeypatch.setattr(report.Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    ratios = {
        ("step/pixelcnn-h16", "pytorch"): 0.9,
        ("step/pixelcnn-h16", "autograd"): 0.01,
        ("op/conv3x3-16", "pytorch channels_last"): 2.0,
        ("op/lstm", "pytorch"): 3.0,
        ("sample/pixelcnn-h32", "pytorch"): 0.004,
        ("workers/pixelcnn-h32", "1 worker"): None,
        ("step/vae", "tinygen"): 1.0,
    }
    rows = [{"work": work, "contender": name, "ratio": ratio} for (work, name), ratio in ratios.items()]
    report.plot(rows, tmp_path / "speed.png")
    steps, operations, samples = figures[0].axes
    assert [ax.get_xscale() for ax in figures[0].axes] == ["linear", "linear", "log"]
    assert steps.get_xlim() == operations.get_xlim() and steps.get_xlim()[1] > 3  # bars of one scale, and all fit
    assert "without a cache" in samples.get_title() and "250" in samples.texts[0].get_text()
    assert [len(ax.get_yticklabels()) for ax in figures[0].axes] == [1, 2, 1]  # a label for each work
    assert [bar.get_width() for bar in steps.patches] == [0.9, 0.01]
    legend = figures[0].legends[0]
    colours = {text.get_text(): bar.get_facecolor() for text, bar in zip(legend.get_texts(), legend.legend_handles)}
    assert len(set(colours.values())) == 3
    assert [bar.get_facecolor() for bar in steps.patches] == [colours["pytorch"], colours["autograd"]]
    assert operations.patches[0].get_facecolor() == colours["pytorch channels_last"]
