from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.cli import predict
from autoseg.common.errors import AutosegError
from autoseg.image.image import Image
from autoseg.networks.unet import UNet, build_network
from autoseg.plan.plan import Plan
from autoseg.prediction import backends
from autoseg.prediction.backends import BACKENDS, choose_backend, to_openvino
from autoseg.prediction.model import save_previous
from autoseg.prediction.predictor import Predictor
from tests.making import CASCADE, REGIONS, grid, tiny_plan
from tests.prediction.making import Pointwise, model_of, save_model
from tests.prediction.trained import boxes, plan_of, trained_network

CPU = torch.device("cpu")
needs_openvino = pytest.mark.skipif(
    not backends.is_installed(), reason="OpenVINO is not installed (extra cpu)"
)


def scan(size: int = 12, seed: int = 0) -> Image:
    values = np.random.default_rng(seed).normal(size=(1, size, size, size)).astype(np.float32)
    return Image(values, grid((size, size, size)))


def test_the_command_offers_every_backend(capsys: pytest.CaptureFixture[str]) -> None:
    assert predict.main(["--help"]) == 0
    assert f"--backend {{{','.join(BACKENDS)}}}" in capsys.readouterr().out


def test_without_openvino_torch_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # as if it were not installed
    plan = tiny_plan()
    networks = [build_network(plan).eval()]
    assert choose_backend("auto", networks, plan, CPU).name == f"torch {torch.__version__} float32"
    with pytest.raises(AutosegError, match=r"\[cpu\]"):
        choose_backend("openvino", networks, plan, CPU)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(AutosegError, match=r"tpu.*auto, torch, openvino"):
        Predictor(model_of(tiny_plan(), Pointwise()), device="cpu", backend="tpu")


def test_the_plan_defines_the_precision() -> None:
    plan = plan_of("bfloat16")
    backend = choose_backend("torch", [trained_network()], plan, CPU)
    assert backend.name == f"torch {torch.__version__} bfloat16"
    image, _ = boxes(1, 99)
    exact = trained_network()(image)
    (logits,) = [run(image) for run in backend.networks]
    assert logits.dtype is torch.float32
    assert 0 < (logits - exact).abs().max() < 0.02 * exact.abs().max()


@needs_openvino
def test_openvino_needs_a_unet_on_the_cpu() -> None:
    plan = tiny_plan()
    assert choose_backend("auto", [Pointwise()], plan, CPU).name.startswith("torch")
    with pytest.raises(AutosegError, match="Pointwise"):
        choose_backend("openvino", [Pointwise()], plan, CPU)
    with pytest.raises(AutosegError, match="cuda"):
        choose_backend("openvino", [Pointwise()], plan, torch.device("cuda"))


@needs_openvino
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_openvino_equals_torch_for_a_trained_network(precision: str, tolerance: float) -> None:
    network, (image, label) = trained_network(), boxes(24, 1000)
    expected = torch.softmax(network(image), dim=1)
    assert (expected.argmax(dim=1) == label).double().mean() > 0.999  # it is trained
    backend = choose_backend("auto", [network], plan_of(precision), CPU)
    used = precision if backends.computes_bfloat16() else "float32"
    assert backend.name == f"openvino {backends.version()} {used}"
    got = torch.softmax(backend.networks[0](image), dim=1)
    assert (got - expected).abs().max() < tolerance
    assert (got.argmax(dim=1) == expected.argmax(dim=1)).double().mean() >= 0.9999


@needs_openvino
def test_releasing_memory_does_not_change_the_logits() -> None:
    plan, network, (image, _) = plan_of(), trained_network(), boxes(2, 7)
    (alone,) = choose_backend("openvino", [network], plan, CPU).networks
    both = choose_backend("openvino", [network, network], plan, CPU).networks
    for run in (*both, *both):
        assert torch.equal(run(image), alone(image))


@needs_openvino
def test_the_logits_of_one_call_are_not_overwritten_by_the_next() -> None:
    (run,) = choose_backend("openvino", [trained_network()], plan_of(), CPU).networks
    first, second = boxes(1, 1)[0], boxes(1, 2)[0]
    kept = run(first)
    before = kept.clone()
    run(second)
    assert torch.equal(kept, before)


@needs_openvino
def test_several_threads_can_use_one_network() -> None:
    (run,) = choose_backend("openvino", [trained_network()], plan_of(), CPU).networks
    images = [boxes(1, seed)[0] for seed in range(12)]
    expected = [run(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for got, wanted in zip(pool.map(run, images), expected, strict=True):
            assert torch.equal(got, wanted)


@needs_openvino
def test_openvino_uses_as_many_threads_as_torch() -> None:
    network = backends.OpenVinoNetwork(
        trained_network(), plan_of().sampling.patch_size, torch.float32, frees=False
    )
    threads = network.compiled()[0].get_property("INFERENCE_NUM_THREADS")
    assert threads == torch.get_num_threads()


@needs_openvino
@pytest.mark.parametrize("changes", [{}, REGIONS], ids=["classes", "regions"])
def test_folds_mirror_images_and_regions_are_averaged_as_in_torch(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    plan = tiny_plan(**changes, inference={"mirror_axes": [0, 2]})
    folder = save_model(plan, tmp_path, "0", "1")
    patches = torch.from_numpy(scan(8).array)[None]
    found = {}
    for name in ("torch", "openvino"):
        predictor = Predictor(folder, device="cpu", mirror=True, backend=name)
        assert predictor.backend_name.startswith(name)
        found[name] = predictor.probabilities(patches)
    assert torch.allclose(found["torch"], found["openvino"], atol=1e-5)


@needs_openvino
def test_both_stages_of_a_cascade_run_in_openvino(tmp_path: Path) -> None:
    low, full = tiny_plan(name="tiny-3d_lowres"), tiny_plan(**CASCADE)
    save_model(low, tmp_path / low.name, "0")
    folder = save_model(full, tmp_path / full.name, "0")
    save_previous(folder, low)
    found = {}
    for name in ("torch", "openvino"):
        predictor = Predictor(folder, device="cpu", backend=name)
        assert predictor.previous is not None
        assert predictor.previous.backend_name.startswith(name)
        found[name] = predictor.predict(scan())
    assert len(np.unique(found["torch"])) > 1
    assert (found["torch"] == found["openvino"]).mean() > 0.999


@needs_openvino
def test_openvino_runs_without_telemetry(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from autoseg.prediction.backends import core_of, openvino\n"
        "print(core_of(0).available_devices, hasattr(openvino(), 'convert_model'))\n"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry')])\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.splitlines() == ["['CPU'] True", "[]"]
    assert list(tmp_path.iterdir()) == []


SWITCHES = st.fixed_dictionaries(
    {
        "residual": st.booleans(),
        "down": st.sampled_from(["strided", "max_pool"]),
        "norm": st.sampled_from(["batch", "instance"]),
        "norm_epsilon": st.sampled_from([1e-5, 1e-3]),
        "activation": st.sampled_from(["relu", "leaky_relu"]),
        "activation_first": st.booleans(),
        "convolution_bias": st.booleans(),
        "deep_supervision": st.booleans(),
    }
)
FLAT: dict[str, Any] = {
    "features": [2, 4, 4],
    "strides": [[1, 1, 1], [2, 2, 1], [2, 2, 2]],
    "kernels": [[3, 3, 1], [3, 3, 1], [3, 3, 3]],
    "blocks_encoder": [1, 2, 1],
    "blocks_decoder": [2, 1],
}
SLICES: dict[str, Any] = {
    "strides": [[1, 1, 1], [2, 2, 1]],
    "kernels": [[3, 3, 1], [3, 3, 1]],
}


def perturbed(plan: Plan, seed: int) -> UNet:
    """A network without any parameter or statistic that is 0 or 1."""
    torch.manual_seed(seed)
    network = build_network(plan).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for name, statistic in network.named_buffers():
            if "running" in name:
                statistic.copy_(torch.rand_like(statistic) + 0.5)
    return network


def check(plan: Plan, seed: int = 0) -> None:
    """OpenVINO in float32 equals torch in float64 up to rounding, at any batch size."""
    network, patch = perturbed(plan, seed), plan.sampling.patch_size
    run = backends.OpenVinoNetwork(network, patch, torch.float32, frees=False)
    exact = perturbed(plan, seed).double()
    for batch in (1, 3):
        patches = torch.randn(batch, plan.input_channels, *patch)
        expected = exact(patches.double())
        got = run(patches)
        assert got.shape == expected.shape
        assert (got - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())


@needs_openvino
@settings(max_examples=12, deadline=None)
@given(SWITCHES, st.integers(0, 2**31))
def test_openvino_equals_torch_for_every_network_of_a_plan(
    network: dict[str, Any], seed: int
) -> None:
    check(tiny_plan(network=network), seed)


@needs_openvino
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("down", ["strided", "max_pool"])
def test_anisotropic_kernels_and_strides(residual: bool, down: str) -> None:
    network = FLAT | {"residual": residual, "down": down}
    check(tiny_plan(sampling={"patch_size": [8, 12, 6]}, network=network))


@needs_openvino
def test_slices_and_several_channels() -> None:
    overlap = {"overlap": [4, 4, 0]}
    sampling = {"patch_size": [12, 16, 1]}
    two = {"channels": ["CT", "MRI"], "configuration": "2d"}
    check(tiny_plan(sampling=sampling, network=SLICES, inference=overlap, **two))


@needs_openvino
def test_input_and_output_have_names() -> None:
    network = build_network(tiny_plan()).eval()
    graph = to_openvino(backends.openvino(), network, (8, 8, 8))
    assert graph.input("patches").get_partial_shape().to_string() == "[?,1,8,8,8]"
    assert graph.output("logits").get_partial_shape().to_string() == "[?,3,8,8,8]"
