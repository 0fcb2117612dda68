"""Packed models with one thing wrong in them, through autoseg_predict: refused in one line."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autoseg.common.errors import AutosegError
from autoseg.models.archive import MANIFEST, write_archive
from autoseg.prediction.model import load_model
from tests.dataset.making import write_scan
from tests.faults.commands import everything_in, refusal
from tests.making import tiny_plan
from tests.prediction.making import save_model
from tests.zips import make_zip

WEIGHTS = "fold_0/final.safetensors"
Files = dict[str, bytes]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The files of a packed model, but for its manifest."""
    plan = tiny_plan()
    folder = save_model(plan, tmp_path_factory.mktemp("model"), "0", "1")
    steps = [{"name": "organ", "keep_largest": [1]}]
    learned = {"format_version": 1, "plan_id": plan.id, "steps": steps}
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.*")}
    found = {name: path.read_bytes() for name, path in there.items()}
    return found | {"postprocessing.json": json.dumps(learned).encode()}


def split(weights: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of safetensors and what follows it."""
    (size,) = struct.unpack_from("<Q", weights)
    return json.loads(weights[8 : 8 + size]), weights[8 + size :]


def joined(header: object, body: bytes, size: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + body


def bad_weights(whole: bytes) -> Iterator[tuple[str, bytes]]:
    """Weights that are damaged, or are of another network."""
    header, body = split(whole)
    first, second = sorted(name for name in header if name != "__metadata__")[:2]
    of_first = header[first]
    for length in (0, 4, 8, 20, len(whole) // 2, len(whole) - 1):
        yield f"cut-{length}", whole[:length]
    for size in (0, 1, 2**31, 2**63, 2**64 - 1):
        yield f"header-of-{size}", joined(header, body, size)
    start, stop = of_first["data_offsets"]
    for offsets in ([0, 2**62], [stop, start], [-1, 4], [2**64, 2**64 + 4], [0], "x", None):
        yield f"offsets-{offsets}", joined(_with(header, first, data_offsets=offsets), body)
    overlapping = header[second]["data_offsets"]
    yield "overlap", joined(_with(header, first, data_offsets=overlapping), body)
    for dtype in ("F64", "F16", "I32", "U8", "Q9", None, 1):
        yield f"type-{dtype}", joined(_with(header, first, dtype=dtype), body)
    if of_first["dtype"] == "F32":
        yield "type-of-same-size", joined(_with(header, first, dtype="I32"), body)
    for shape in ([], [1], [2**40, 2**40], [-1], [0], "x", [*of_first["shape"][::-1], 1]):
        yield f"shape-{shape}", joined(_with(header, first, shape=shape), body)
    lacking = {name: value for name, value in header.items() if name != first}
    yield "tensor-missing", joined(lacking, body)
    yield "tensor-renamed", joined({f"{n}x" if n == first else n: header[n] for n in header}, body)
    for state in ("", "{", "[]", "null", "1", '{"plan_id": 1}', '{"plan_id": "x"}', "[" * 9999):
        yield f"state-{state[:9]}", joined(header | {"__metadata__": {"state": state}}, body)
    others: tuple[Any, ...] = ({}, None, [], "x", {"state": 1})
    for metadata in others:
        yield f"metadata-{metadata}", joined(header | {"__metadata__": metadata}, body)


def _with(header: dict[str, Any], name: str, **changes: Any) -> dict[str, Any]:
    return header | {name: header[name] | changes}


def bad_models(files: Files) -> Iterator[tuple[str, Files]]:
    """The files of models whose manifest fits them, but that are no models."""
    for name in files:
        if name not in ("postprocessing.json", "fold_1/final.safetensors"):
            kept = {n: c for n, c in files.items() if n != name}
            yield f"without-{name}", kept if name != WEIGHTS else {"plan.json": files["plan.json"]}
        for length in (0, 1, len(files[name]) // 2, len(files[name]) - 2):
            yield f"{name}-cut-{length}", files | {name: files[name][:length]}
        for other in files:
            if other != name and {name[-5:], other[-5:]} != {"nsors"}:
                yield f"{name}-is-{other}", files | {name: files[other]}
    for damage, content in bad_weights(files[WEIGHTS]):
        yield f"weights-{damage}", files | {WEIGHTS: content}
    plan = json.loads(files["plan.json"])
    for key, value in (("labels", {"background": [0], "x": [1]}), ("channels", ["CT", "PET"])):
        yield f"plan-{key}", files | {"plan.json": json.dumps(plan | {key: value}).encode()}
    others: tuple[Any, ...] = ([], {}, {"format_version": 2}, {"format_version": 1}, "x", None)
    for learned in others:
        content = json.dumps(learned).encode()
        yield f"learned-{learned}", files | {"postprocessing.json": content}


def test_models_that_are_none(files: Files, tmp_path: Path) -> None:
    write_scan(tmp_path / "in" / "scan.nii.gz", np.arange(1000.0).reshape(10, 10, 10))
    path = tmp_path / "model.zip"
    words = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "-m", str(path)]
    every = list(bad_models(files))
    for name, content in every:
        make_zip(path, content)
        before = everything_in(tmp_path)
        told = refusal("predict", *words, "--device", "cpu", "--backend", "torch")
        assert str(path) in told, name
        assert everything_in(tmp_path) == before, name
    assert len(every) >= 80


def weights_or_refusal(path: Path) -> dict[str, torch.Tensor] | str:
    try:
        return dict(load_model(path, None, CPU).networks[0].state_dict())
    except AutosegError as error:
        return str(error)


def test_archives_with_bytes_changed(files: Files, tmp_path: Path) -> None:
    """Wherever a byte changes, the archive is refused, or what is read of it is the same."""
    path = tmp_path / "model.zip"
    write_archive(path, {}, dict(files))
    whole = path.read_bytes()
    good = load_model(path, None, CPU).networks[0].state_dict()
    rng = np.random.default_rng(0)
    for place in [*rng.integers(0, len(whole), 150), *range(len(whole) - 22, len(whole))]:
        content = bytearray(whole)
        content[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        found = weights_or_refusal(path)
        if isinstance(found, str):
            assert str(path) in found
        else:
            assert all(torch.equal(found[name], tensor) for name, tensor in good.items())
    for length in range(0, len(whole), len(whole) // 60):
        path.write_bytes(whole[:length])
        with pytest.raises(AutosegError, match=r"model\.zip"):
            load_model(path, None, CPU)


def test_a_manifest_of_other_files(files: Files, tmp_path: Path) -> None:
    path = make_zip(tmp_path / "model.zip", files)
    with zipfile.ZipFile(path) as file:
        listed = json.loads(file.read(MANIFEST))
    others: tuple[Any, ...] = (None, [], {}, "x", 1, {"plan.json": None}, {"plan.json": {}})
    for value in others:
        make_zip(path, files, json.dumps(listed | {"files": value}).encode())
        with pytest.raises(AutosegError, match=r"model\.zip"):
            load_model(path, None, CPU)


def test_a_plan_of_a_network_that_no_machine_holds(tmp_path: Path) -> None:
    """Nothing is reserved for it before the weights are seen not to fit."""
    plan = tiny_plan(network={"features": [1 << 16, 1 << 16]})
    weights = save_model(tiny_plan(), tmp_path, "0", plan_id=plan.id) / WEIGHTS
    plan.save(tmp_path / "plan.json")
    with pytest.raises(AutosegError, match=f"{weights} does not fit the plan"):
        load_model(tmp_path, None, CPU)
