"""Checkpoints of strangers: no code runs, and each refusal is one line."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autoseg.export import untrusted
from autoseg.export.untrusted import CheckpointError, read_untrusted
from autoseg.models.checkpoint import load_checkpoint

WEIGHTS = {"a.weight": torch.ones(2, 1, 3, 3, 3), "b.num_batches_tracked": torch.tensor(3)}
GOOD: dict[str, Any] = {
    "network_weights": WEIGHTS | {"a.all_modules.0.weight": WEIGHTS["a.weight"]},
    "logging": {"dice": [np.float64(0.5), np.float32(1)]},
    "current_epoch": 7,
    "init_args": {"configuration": "3d_fullres", "device": torch.device("cuda")},
    "trainer_name": "nnUNetTrainer",
    "inference_allowed_mirroring_axes": (0, 2),
}


class Calls:
    """Unpickling this calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.fixture
def convert(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[[Path], str]:
    """Run the other program in this process, without its limits: its message, or nothing."""
    monkeypatch.setattr(untrusted, "limit_resources", lambda size: None)

    def run(path: Path) -> str:
        target = tmp_path / "out.safetensors"
        monkeypatch.setattr(sys, "argv", ["program", str(path), str(target)])
        status, said = untrusted.main(), capsys.readouterr().err
        assert (status, said == "", target.exists()) in [(0, True, True), (2, False, False)]
        assert len(said.splitlines()) <= 1
        return said

    return run


def saved(path: Path, **changes: Any) -> Path:
    torch.save(GOOD | changes, path)
    return path


def test_only_weights_and_facts_leave_the_process(tmp_path: Path) -> None:
    target = tmp_path / "weights.safetensors"
    read_untrusted(saved(tmp_path / "a.pth"), target)
    tensors, state = load_checkpoint(target)
    assert tensors.keys() == WEIGHTS.keys()
    assert torch.equal(tensors["a.weight"], WEIGHTS["a.weight"])
    assert state == {
        "trainer_name": "nnUNetTrainer",
        "configuration": "3d_fullres",
        "mirror_axes": [0, 2],
        "epochs": 7,
    }


def test_the_process_refuses_other_globals(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", logging=Calls(os.system, f"touch {tmp_path / 'touched'}"))
    with pytest.raises(CheckpointError, match=r"posix.system|nt.system"):
        read_untrusted(path, tmp_path / "out")
    assert not (tmp_path / "touched").exists()


@pytest.mark.skipif(not untrusted.without_network(), reason="this machine has no such command")
def test_the_process_has_no_network() -> None:
    code = "import socket; socket.create_connection(('127.0.0.1', 9), 1)"
    command = [*untrusted.without_network(), sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "unreachable" in done.stderr


@pytest.mark.parametrize("where", ["network_weights", "logging", "init_args"])
@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (os.system, "touch {}"),
        (eval, "open('{}', 'w')"),
        (os.mkdir, "{}"),
        (Path, "{}"),
        (np.load, "{}"),
        (torch.load, "{}"),
        (getattr, "{}"),
    ],
)
def test_calls_are_refused(
    convert: Any, tmp_path: Path, function: Callable[..., Any], arguments: str, where: str
) -> None:
    touched = tmp_path / "touched"
    given = Calls(function, arguments.format(touched), *(["x"] if function is getattr else []))
    assert "asks for" in convert(saved(tmp_path / "a.pth", **{where: given}))
    assert not touched.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'touch x'\ntR.",
        b"(S'touch x'\nios\nsystem\n.",
        b"\x80\x02\x82\x01.",
        b"Pname\n.",
        b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        b"\x80\x02X\xff\xff\xff\x7f.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x02K\x03tR.",
        b"",
        pickle.dumps([1]),
    ],
)
def test_own_opcodes_are_refused(convert: Any, tmp_path: Path, content: bytes) -> None:
    with (
        zipfile.ZipFile(saved(tmp_path / "a.pth")) as old,
        zipfile.ZipFile(tmp_path / "b.pth", "w") as new,
    ):
        for name in old.namelist():
            new.writestr(name, content if name.endswith("data.pkl") else old.read(name))
    assert convert(tmp_path / "b.pth")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(1).expand(10**6, 10**6),
        torch.ones(3, dtype=torch.int32),
        torch.ones(3, dtype=torch.complex64),
        torch.eye(3).to_sparse(),
        torch.full((3,), float("nan")),
        torch.ones(3, device="meta"),
        torch.ones((1,) * 6),
        "text",
        {"a": 1},
    ],
    ids=range(9),
)
def test_other_tensors_are_refused(convert: Any, tmp_path: Path, tensor: Any) -> None:
    assert "'c'" in convert(saved(tmp_path / "a.pth", network_weights=WEIGHTS | {"c": tensor}))


@pytest.mark.parametrize(
    "changes",
    [
        {"network_weights": {}},
        {"network_weights": [1]},
        {"network_weights": {"a\nb": torch.ones(1)}},
        {"trainer_name": 3},
        {"trainer_name": "a\nb"},
        {"init_args": None},
        {"inference_allowed_mirroring_axes": (0, 7)},
    ],
)
def test_other_facts_are_refused(convert: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    assert convert(saved(tmp_path / "a.pth", **changes))


@pytest.mark.parametrize("seed", range(20))
def test_damage_never_ends_in_a_traceback(convert: Any, tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    content = np.frombuffer(saved(tmp_path / "a.pth").read_bytes(), np.uint8).copy()
    if seed % 2:
        content = content[: rng.integers(len(content))]
    else:
        content[rng.integers(len(content), size=50)] = rng.integers(256, size=50)
    (tmp_path / "a.pth").write_bytes(content.tobytes())
    convert(tmp_path / "a.pth")
