"""A model's files are the same in a folder and packed."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from autoseg.common.errors import AutosegError
from autoseg.common.files import write_json
from autoseg.models.archive import Content, write_archive
from autoseg.models.folder import CARD, FINAL, ModelFiles, open_model, plan_in, qualification_in
from tests.making import tiny_plan
from tests.prediction.making import save_model

PLAN = tiny_plan()


@pytest.fixture(params=["folder", "packed"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> ModelFiles:
    folder = save_model(PLAN, tmp_path / "models" / "default", "0", "10", "all")
    save_model(PLAN, tmp_path / "models" / "lowres", "3")
    write_json(folder / "more.json", {"a": 1})
    return open_model(folder if request.param == "folder" else packed(folder, tmp_path))


def packed(folder: Path, out: Path) -> Path:
    found: dict[str, Content] = {}
    for start, below in (("", folder), ("previous_stage/", folder.parent / "lowres")):
        paths = [path for path in below.rglob("*") if path.is_file()]
        found |= {f"{start}{path.relative_to(below).as_posix()}": path for path in paths}
    write_archive(out / "model.zip", {}, found)
    return out / "model.zip"


def test_both_hold_the_same(files: ModelFiles, tmp_path: Path) -> None:
    assert files.folds() == ["0", "10", "all"]
    assert plan_in(files) == PLAN
    assert files.has("more.json")
    assert not files.has("less.json")
    assert files.json("more.json") == {"a": 1}
    folder = open_model(tmp_path / "models" / "default")
    name = f"fold_10/{FINAL}"
    tensors, state = files.checkpoint(name)
    expected, about = folder.checkpoint(name)
    assert state == about == {"plan_id": PLAN.id}
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[key], expected[key]) for key in expected)
    assert files.sha256(name) == folder.sha256(name)
    assert files.previous("lowres").folds() == ["3"]


def test_what_is_missing_is_named(files: ModelFiles) -> None:
    for read in (files.json, files.checkpoint):
        with pytest.raises(AutosegError, match=r"less\.json is missing$"):
            read("less.json")


@pytest.mark.parametrize("header", [b"{}", b'{"__metadata__": {"state": "[]"}}', b"[]", b"{" * 999])
def test_packed_weights_without_a_state_are_damaged(tmp_path: Path, header: bytes) -> None:
    content = len(header).to_bytes(8, "little") + header
    if not header.startswith(b"{"):
        content = b"\0" * 8 + b"{"
    PLAN.save(tmp_path / "plan.json")
    files: dict[str, Content] = {"plan.json": tmp_path / "plan.json", f"fold_0/{FINAL}": content}
    write_archive(tmp_path / "model.zip", {}, files)
    with pytest.raises(AutosegError, match=r"fold_0/final\.safetensors is damaged"):
        open_model(tmp_path / "model.zip").checkpoint(f"fold_0/{FINAL}")


def test_a_pickle_in_place_of_weights_is_never_read(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "evil",))

    PLAN.save(tmp_path / "plan.json")
    evil = pickle.dumps(Evil())
    write_archive(
        tmp_path / "model.zip", {}, {"plan.json": tmp_path / "plan.json", f"fold_0/{FINAL}": evil}
    )
    with pytest.raises(AutosegError, match="whose content is not what its name says"):
        open_model(tmp_path / "model.zip")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("stated", ["PRODUCT", "SERVICE", "RESEARCH", "not stated", None])
def test_what_results_are_for(stated: str | None, tmp_path: Path) -> None:
    folder = save_model(PLAN, tmp_path / "models" / "default", "0")
    assert qualification_in(open_model(folder)) == "RESEARCH"
    write_json(folder / CARD, {"content_qualification": stated} if stated else {})
    expected = stated if stated in ("PRODUCT", "SERVICE") else "RESEARCH"
    assert qualification_in(open_model(folder)) == expected


@pytest.mark.parametrize("card", [{"content_qualification": "research"}, "PRODUCTS"])
def test_an_unknown_qualification_is_refused(card: object, tmp_path: Path) -> None:
    folder = save_model(PLAN, tmp_path / "models" / "default", "0")
    write_json(folder / CARD, card)
    with pytest.raises(AutosegError, match=r"card\.json.*RESEARCH, PRODUCT, SERVICE"):
        qualification_in(open_model(folder))
