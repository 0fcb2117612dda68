"""Quality of predictions: evidence against NumPy and SciPy, the conformal rank, uncertainty."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage
from scipy.stats import entropy
from torch import Tensor, nn

from autoseg.common.errors import AutosegError
from autoseg.common.files import read_json, write_json
from autoseg.image.formats import UNCERTAINTY
from autoseg.image.geometry import Geometry
from autoseg.image.image import Image, read_label
from autoseg.models.folder import CALIBRATION, FolderFiles, read_calibration, write_calibration
from autoseg.prediction.batch import Options, predict_cases
from autoseg.prediction.inputs import FoundInputs
from autoseg.prediction.output import REPORT
from autoseg.prediction.predictor import Ensemble, Predictor
from autoseg.prediction.quality import (
    CERTAIN,
    CHECK,
    DOUBT,
    FAILED,
    GOOD,
    KEY,
    LEVEL,
    OBSERVED,
    Calibration,
    Evidence,
    Observer,
    Scored,
    assess,
    calibrate,
    evidence_of,
    in_words,
    is_complete,
    load_calibration,
)
from autoseg.prediction.record import RECORD
from tests.making import REGIONS, grid, tiny_plan
from tests.prediction.making import Pointwise, model_of
from tests.prediction.scans import inputs_of, write_scans

PLAN = tiny_plan()
REGION_PLAN = tiny_plan(**REGIONS)
GRID = grid((12, 11, 10), (1.0, 2.0, 3.0))
NAMES = ("organ", "tumour")


def dice(a: Any, b: Any) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def passes(outputs: int, regions: bool) -> list[Tensor]:
    """Two passes over two patches, with clear background in one part."""
    rng = torch.Generator().manual_seed(3)
    found = []
    for _ in range(2):
        logits = 2 * torch.randn(2, outputs, 6, 8, 4, generator=rng)
        logits[:, 0, :2] += 30 * (1 - 2 * regions)
        logits[:, 1:, :2] -= 30 * regions
        found.append(logits.sigmoid() if regions else logits.softmax(1))
    return found


@pytest.mark.parametrize("plan", [PLAN, REGION_PLAN])
def test_confidence_and_agreement(plan: Any) -> None:
    regions = plan.classes.are_regions
    shares = passes(plan.classes.outputs, regions)
    observer = Observer(plan.classes, 2, False, False)
    for which in (slice(0, 1), slice(1, 2)):  # patch after patch
        for share in shares:
            observer.add(share[which])
        observer.finish(torch.stack(shares).mean(0)[which])
    both = (*shares, torch.stack(shares).sum(0) / 2)
    seen = [each.numpy()[OBSERVED] for each in both]
    hard = [each > 0.5 if regions else each.argmax(1)[:, None] == 0 for each in seen]
    for index, name in enumerate(plan.classes.output_names):
        if index == 0 and not regions:
            continue
        hard = [each[:, index] > 0.5 if regions else each.argmax(1) == index for each in seen]
        soft, agree = [], []
        for each, mask in zip(seen[:2], hard[:2], strict=True):
            likely = (each > 1 - CERTAIN).any(1) if regions else each[:, 0] < CERTAIN
            own = each[:, index]
            soft.append(2 * own[mask].sum() / (mask.sum() + own[likely].sum()))
            agree.append(dice(mask, hard[2]))
        found = observer.figures()[name]
        assert found["confidence"] == pytest.approx(np.mean(soft), abs=1e-4)
        assert found["agreement"] == pytest.approx(np.mean(agree), abs=1e-4)


def test_the_label_map_does_not_depend_on_the_observer() -> None:
    networks = [Pointwise(), Pointwise(shift=0.2)]
    values = np.random.default_rng(0).uniform(0, 2, (1, 14, 11, 9)).astype(np.float32)
    for plan in (PLAN, tiny_plan(inference={"average": "logits_float16"})):
        model = Predictor(model_of(plan, *networks), device="cpu")
        scan = model.prepare(Image(values, grid((14, 11, 9))))
        observer = model.observer(True, True)
        watched = model.segment(scan, observer=observer)
        assert watched.tobytes() == model.segment(scan).tobytes()
        assert set(observer.figures()["organ"]) == {"confidence", "agreement"}


def test_a_single_fold_is_compared_with_a_mirrored_pass() -> None:
    class Leaning(nn.Module):
        """More foreground at one end of x."""

        def forward(self, patches: Tensor) -> Tensor:
            ramp = torch.linspace(-0.2, 0.2, patches.shape[2])[:, None, None]
            return Pointwise()(patches + ramp)  # type: ignore[no-any-return]

    values = np.random.default_rng(0).uniform(0, 2, (1, 16, 16, 16)).astype(np.float32)
    for axes, keys in (([], {"confidence"}), ([0, 1], {"confidence", "agreement"})):
        plan = tiny_plan(inference={"mirror_axes": axes})
        model = Predictor(model_of(plan, Leaning()), device="cpu")
        assert model.compared == ()  # not calibrated: of no use
        model.compared = plan.inference.mirror_axes[:1]
        observer = model.observer(True, False)
        model.segment(model.prepare(Image(values, grid((16, 16, 16)))), observer=observer)
        assert set(observer.figures()["organ"]) == keys
    assert 0.5 < observer.figures()["organ"]["agreement"] < 0.95


def test_shapes_against_scipy() -> None:
    rng = np.random.default_rng(1)
    label = np.zeros(GRID.size, np.uint8)
    label[2:6, 1:4, 5:9], label[8:10, 7:10, 1:3] = 1, 2
    label[rng.integers(0, 12, 3), rng.integers(0, 11, 3), 0] = 2
    flipped = Geometry(GRID.size, GRID.spacing_mm, GRID.origin_mm, (-1, 0, 0, 0, 1, 0, 0, 0, 1))
    observer = Observer(PLAN.classes, 0, False, False)
    found = evidence_of(label, flipped, PLAN.labels, observer)
    spacing, turned = np.array(GRID.spacing_mm), label[::-1]
    centres, volumes = [], []
    for value, name in enumerate(NAMES, 1):
        mask, of = turned == value, found[name]
        assert of is not None
        box = ndimage.find_objects(mask.astype(int))[0]
        assert of["volume_ml"] == pytest.approx(mask.sum() * 6 / 1000)
        assert of["components"] == ndimage.label(mask, np.ones((3, 3, 3)))[1]
        extents = [(s.stop - s.start) * mm for s, mm in zip(box, spacing, strict=True)]
        keys = ("left_right", "front_back", "foot_head")
        assert [of[f"extent_{key}_mm"] for key in keys] == pytest.approx(extents)
        centres.append(np.array(ndimage.center_of_mass(mask)) * spacing)
        volumes.append(mask.sum())
    whole = np.average(centres, axis=0, weights=volumes)
    organ = found["organ"]
    assert organ is not None
    position = [organ[f"position_{key}_mm"] for key in keys]
    assert position == pytest.approx(centres[0] - whole, abs=1e-3)
    empty = evidence_of(np.zeros_like(label), GRID, PLAN.labels, observer)
    assert empty == {"organ": None, "tumour": None}


def evidence(confidence: float, volume: float = 10.0, **changes: float) -> dict[str, float]:
    axes = ("left_right", "front_back", "foot_head")
    sizes = {f"extent_{axis}_mm": 20.0 for axis in axes}
    places = {f"position_{axis}_mm": 0.0 for axis in axes}
    shape = {"volume_ml": volume, "components": 1.0, **sizes, **places}
    return {"confidence": confidence, **shape, **changes}


def cases(count: int, seed: int = 0) -> list[tuple[Evidence, dict[str, float | None]]]:
    """Cases whose Dice is below their confidence by up to 0.1."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        sure, volume = float(rng.uniform(0.85, 0.95)), float(np.exp(rng.normal(2.3, 0.2)))
        scored = {"organ": sure - float(rng.uniform(0, 0.1)), "tumour": None}
        found.append(({"organ": evidence(sure, volume), "tumour": None}, scored))
    return found


def calibrated(count: int, seed: int = 0) -> Calibration:
    return calibrate(PLAN.id, cases(count, seed), NAMES)


def test_only_complete_evidence_is_learned_from() -> None:
    whole = cases(1)[0][0]
    assert is_complete(whole, NAMES)
    assert not is_complete(whole, [])
    assert not is_complete({"organ": whole["organ"]}, NAMES)
    assert not is_complete(whole | {"organ": {DOUBT: 0.9}}, NAMES)  # without shapes


@pytest.mark.parametrize(("count", "rank"), [(7, None), (8, None), (9, 9), (19, 18), (100, 91)])
def test_the_margin_is_the_conformal_quantile(count: int, rank: int | None) -> None:
    gaps = sorted(
        of["organ"]["confidence"] - scored["organ"]  # type: ignore[index,operator]
        for of, scored in cases(count)
    )
    organ = calibrated(count).classes["organ"]
    assert organ.margin == (None if rank is None else gaps[rank - 1])
    assert organ.n == count
    assert calibrated(count).classes["tumour"] == replace(
        organ, n=0, usual_dice=None, margin=None, always=False, figures={}
    )


def test_bounds_hold_as_often_as_they_say() -> None:
    held = []
    for seed in range(40):
        found = calibrated(40, seed)
        for of, scored in cases(40, 1000 + seed):
            bound = assess(found, of, {})["assessment"]["dice_lower_bound"]["organ"]
            held.append(scored["organ"] >= bound)
    assert LEVEL - 0.03 < np.mean(held) < LEVEL + 0.03


def test_what_is_unusual_is_checked_or_has_failed() -> None:
    found = calibrated(60)
    qualities = [assess(found, of, {})["quality"] for of, _ in cases(200, 7)]
    assert qualities.count(GOOD) >= 0.93 * 200
    usual = assess(found, {"organ": evidence(0.9), "tumour": None}, {})
    assert usual["quality"] == GOOD
    assert usual["assessment"]["why"] == []
    assert 0.7 < usual["assessment"]["dice_lower_bound"]["organ"] < 0.9
    assert usual["assessment"]["dice_lower_bound"]["tumour"] is None
    assert usual["assessment"]["n"] == {"organ": 60, "tumour": 0}
    assert usual["assessment"]["usual_dice"]["organ"] == pytest.approx(0.85, abs=0.03)
    failures: list[tuple[dict[str, dict[str, float] | None], str]] = [
        ({"organ": evidence(0.2), "tumour": None}, "confidence"),
        ({"organ": evidence(0.9, agreement=0.2), "tumour": None}, "agreement"),
        ({"organ": evidence(0.9, volume=0.1), "tumour": None}, "volume ml"),
        ({"organ": evidence(0.9, position_left_right_mm=99.0), "tumour": None}, "left right"),
        ({"organ": None, "tumour": None}, "not found"),
    ]
    for of, word in failures:
        failed = assess(found, of, {})
        assert failed["quality"] == FAILED
        assert word in failed["assessment"]["why"][0]
        assert set(failed["assessment"]["dice_lower_bound"].values()) == {None}
    other = assess(found, {"organ": evidence(0.9), "tumour": None}, {"spacing": "is 9 mm"})
    assert (other["quality"], other["assessment"]["dice_lower_bound"]["organ"]) == (CHECK, None)


def test_few_cases_are_less_suspicious() -> None:
    few, many = calibrated(7), calibrated(100)
    assert few.limit >= 4
    strange: Evidence = {"organ": evidence(0.9, volume=25.0), "tumour": None}
    suspicion = [assess(of, strange, {})["assessment"]["suspicion"] for of in (few, many)]
    assert all(math.isfinite(each) for each in suspicion)


def test_calibrations_of_a_folder(tmp_path: Path) -> None:
    model = model_of(PLAN, Pointwise(), folder=tmp_path)
    model = replace(model, files=FolderFiles(tmp_path))
    assert "not calibrated" in str(load_calibration(model))
    write_calibration(tmp_path, "temperature", {"value": 2})
    found = calibrated(10)
    from dataclasses import asdict

    write_calibration(tmp_path, KEY, asdict(found))
    assert load_calibration(model) == found
    assert read_calibration(FolderFiles(tmp_path))["temperature"] == {"value": 2}
    write_calibration(tmp_path, KEY, asdict(replace(found, plan_id="other")))
    assert "other" in str(load_calibration(model))
    write_calibration(tmp_path, KEY, {"plan_id": 3})
    with pytest.raises(AutosegError, match=CALIBRATION):
        load_calibration(model)
    name, of = next(iter(found.classes.items()))
    usual = next(iter(of.figures.values()))
    for figures in ({"other": usual}, {DOUBT: replace(usual, spread=0.0)}):
        changed = replace(found, classes={name: replace(of, figures=figures)})
        write_calibration(tmp_path, KEY, asdict(changed))
        with pytest.raises(AutosegError, match=CALIBRATION):
            load_calibration(model)
    write_calibration(tmp_path, KEY, None)
    assert list(read_calibration(FolderFiles(tmp_path))) == ["temperature"]
    write_json(tmp_path / CALIBRATION, [1])
    with pytest.raises(AutosegError, match=CALIBRATION):
        load_calibration(model)


def test_records_of_predictions(tmp_path: Path) -> None:
    scans = write_scans(tmp_path / "in", "a", "b")
    model = Predictor(model_of(PLAN, Pointwise()), device="cpu")
    predict_cases(
        model,
        FoundInputs(cases=inputs_of(scans)),
        tmp_path / "plain",
        options=Options(quality=False),
    )
    plain = read_json(tmp_path / "plain" / RECORD)["cases"]["a"]
    assert not {"quality", "assessment"} & set(plain)
    predict_cases(model, FoundInputs(cases=inputs_of(scans)), tmp_path / "none")
    none = read_json(tmp_path / "none" / RECORD)["cases"]["a"]
    assert none["quality"] is None
    assert "not calibrated" in none["assessment"]["why"][0]
    sure = none["assessment"]["evidence"]
    assert 0 < sure["organ"]["confidence"] < 1
    assert "volume_ml" not in sure["organ"]  # without a calibration
    observer = Observer(PLAN.classes, 0, False, False)
    label_map, its_grid = read_label(tmp_path / "none" / "a.nii.gz")
    shapes = evidence_of(label_map, its_grid, PLAN.labels, observer)
    found = {name: shape and shape | sure[name] for name, shape in shapes.items()}
    known: list[Scored] = [(found, {"organ": 0.8, "tumour": 0.7})] * 10
    model.calibration = calibrate(PLAN.id, known, NAMES)
    predict_cases(model, FoundInputs(cases=inputs_of(scans)), tmp_path / "out")
    case = read_json(tmp_path / "out" / RECORD)["cases"]["a"]
    assert case["quality"] == GOOD
    assert case["assessment"]["dice_lower_bound"] == pytest.approx({"organ": 0.8, "tumour": 0.7})
    assert (case["assessment"]["level"], case["assessment"]["n"]["organ"]) == (LEVEL, 10)
    for name in ("plain", "none"):
        label = (tmp_path / name / "a.nii.gz").read_bytes()
        assert label == (tmp_path / "out" / "a.nii.gz").read_bytes()
    both = Ensemble([model, model])
    outcome = predict_cases(both, FoundInputs(cases=inputs_of(scans)), tmp_path / "both")
    assert outcome.predicted["a"]["quality"] is None


@pytest.mark.parametrize("plan", [PLAN, tiny_plan(**REGIONS)])
def test_uncertainty_is_the_entropy_of_the_mean(plan: Any, tmp_path: Path) -> None:
    scans = write_scans(tmp_path / "in", "a")
    slope = 0.5 if plan is PLAN else 0.1
    network = Pointwise(classes=plan.classes.outputs, slope=slope)
    model = Predictor(model_of(plan, network), device="cpu")
    out = tmp_path / "out"
    predict_cases(
        model,
        FoundInputs(cases=inputs_of(scans)),
        out,
        options=Options(uncertainty=True, save_probabilities=True),
    )
    import blosc2

    shares = np.asarray(blosc2.open(str(out / "a.probabilities.b2nd"), mode="r")[:], np.float64)
    found = sitk.ReadImage(str(out / f"a{UNCERTAINTY}"))
    assert found.GetSpacing() == pytest.approx(read_label(out / "a.nii.gz")[1].spacing_mm)
    values = sitk.GetArrayFromImage(found).T
    assert values.dtype == np.float32
    assert (values == values.astype(np.float16)).all()
    pairs = np.stack([shares, 1 - shares])
    expected = entropy(pairs).sum(0) if plan.classes.are_regions else entropy(shares)
    assert values == pytest.approx(expected, abs=5e-3)
    assert values.max() > 0.1


def test_the_report_of_a_run(tmp_path: Path) -> None:
    scans = write_scans(tmp_path / "in", "a", "b <i>")
    model = Predictor(model_of(PLAN, Pointwise()), device="cpu")
    out = tmp_path / "out"
    refused = {"c": "c: no scan"}
    predict_cases(
        model,
        FoundInputs(cases=inputs_of(scans), refused=refused),
        out,
        options=Options(report=True),
    )
    page = (out / REPORT).read_text()
    assert page.count("data:image/webp;base64,") == 2
    assert "b &lt;i&gt;" in page
    assert "<i>" not in page
    assert "c: no scan" in page
    assert "not calibrated" in page
    assert "http://" not in page
    assert "https://" not in page
    predict_cases(
        model, FoundInputs(cases=inputs_of(scans)), out, options=Options(report=True)
    )  # all were there already
    assert (out / REPORT).read_text().count("data:image/webp;base64,") == 2


def test_voxels_of_a_microscope_have_a_volume() -> None:
    label = np.zeros((4, 4, 4), np.uint8)
    label[1:3, 1:3, 1:3] = 1
    tiny = replace(GRID, size=(4, 4, 4), spacing_mm=(4e-6, 4e-6, 4e-6))
    found = evidence_of(label, tiny, PLAN.labels, Observer(PLAN.classes, 0, False, False))
    shape = next(filter(None, found.values()))
    assert shape["volume_ml"] == pytest.approx(8 * 4e-6**3 / 1000)
    assert shape["extent_left_right_mm"] == pytest.approx(8e-6)


def test_a_model_that_was_weak_in_its_cross_validation_is_named() -> None:
    def lines(*dice: float | None) -> list[str]:
        about = {"suspicion": 0.1, "why": [], "usual_dice": dict(zip("abc", dice, strict=False))}
        return list(in_words({"case": {"quality": "good", "assessment": about}}))

    assert len(lines(0.5, None, 0.9)) == 2
    *others, last = lines(0.49, 0.9, 0.1)
    assert others == lines(0.5)
    assert "a, c" in last
