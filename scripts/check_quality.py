"""Does a model know when it is wrong? Failed predictions, false alarms, and the bounds of Dice.

    python scripts/check_quality.py models/TASK/PLAN imagesTs labelsTs [--folds 0]

Predicts scans that the model has not seen, as they are and altered (noise, blur, inversion,
shading, half of the scan empty, wrong orientation), scores them, and prints for each kind the
failed ones (mean Dice below 0.8) and what `autoseg_predict` calls good, check and failed. Then the
area under the ROC curve of its suspicion, and how often the bounds of Dice hold: for the unseen
scans, and for 20 random splits of the cross-validation. See `prediction/quality.py`.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score

from autoseg.common.arrays import members
from autoseg.common.files import read_json
from autoseg.evaluation.scores import Summary
from autoseg.image.formats import ending_of, stem_of
from autoseg.image.image import Image, read_image, read_label
from autoseg.image.label_writer import to_simpleitk
from autoseg.models.folder import SUMMARY, VALIDATION, folds_in
from autoseg.prediction.batch import predict_cases
from autoseg.prediction.inputs import FoundInputs
from autoseg.prediction.output import output_path
from autoseg.prediction.predictor import Predictor
from autoseg.prediction.quality import GOOD, assess, calibrate
from autoseg.prediction.record import RECORD

FAILS_BELOW = 0.8
SPLITS = 20
FEWEST_BOUNDED = 9  # cases, for a bound that 90 % exceed
Voxels = NDArray[np.float32]
Alter = Callable[[Voxels, np.random.Generator], Voxels]


def noise(deviations: float) -> Alter:
    """Normal noise, in standard deviations of the scan."""
    return lambda a, rng: a + rng.normal(0, deviations * a.std(), a.shape).astype(np.float32)


def blur(voxels: float) -> Alter:
    """A Gaussian filter."""
    return lambda a, rng: gaussian_filter(a, voxels)


def shading(strength: float) -> Alter:
    """Intensities that rise from one side to the other by `exp(2 * strength)`."""

    def alter(a: Voxels, rng: np.random.Generator) -> Voxels:
        axis, sign = rng.integers(3), rng.choice([-1, 1])
        ramp = np.exp(sign * strength * np.linspace(-1, 1, a.shape[axis]))
        return np.asarray(a * np.moveaxis(ramp[:, None, None], 0, axis), np.float32)

    return alter


def half(a: Voxels, rng: np.random.Generator) -> Voxels:
    """One half of the scan is empty."""
    axis, is_first = rng.integers(3), rng.integers(2)
    planes = np.moveaxis(a.copy(), axis, 0)
    planes[slice(None, len(planes) // 2) if is_first else slice(len(planes) // 2, None)] = 0
    return np.moveaxis(planes, 0, axis)


ALTERATIONS: dict[str, Alter] = {
    "noise 0.5": noise(0.5),
    "noise 1": noise(1),
    "blur 2": blur(2),
    "blur 4": blur(4),
    "inverted": lambda a, rng: a.max() + a.min() - a,
    "shading 1": shading(1),
    "half empty": half,
}
TURNS = ("PIR", "LSA", "SPL")  # instead of the plan's orientation


@dataclass(frozen=True)
class Found:
    """A prediction that was scored."""

    kind: str
    dice: Mapping[str, float | None]
    record: Mapping[str, Any]

    @property
    def has_failed(self) -> bool:
        """Whether the mean Dice is too low."""
        return float(np.mean([d for d in self.dice.values() if d is not None])) < FAILS_BELOW


def score(label: Path, truth: Path, classes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Dice of each class; None if it is in neither map."""
    found = {}
    maps = read_label(label)[0], read_label(truth)[0]
    for name, values in classes.items():
        a, b = (members(each, values) for each in maps)
        total = int(a.sum() + b.sum())
        found[name] = 2 * int((a & b).sum()) / total if total else None
    return found


def predicted(
    predictor: Predictor, kind: str, scans: Mapping[str, Path], labels: Path, alter: Alter | None
) -> Iterator[Found]:
    """Predict and score some scans, altered or not."""
    truths = {stem_of(path): path for path in labels.iterdir() if ending_of(path)}
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        inputs = {}
        for name, path in scans.items():
            inputs[name] = (path,)
            if alter is not None:
                image: Image = read_image([path])
                changed = np.ascontiguousarray(alter(image.array[0].astype(np.float32), rng))
                inputs[name] = (Path(folder, f"{name}.nrrd"),)
                sitk.WriteImage(to_simpleitk(changed, image.geometry), str(inputs[name][0]))
        out = Path(folder, "out")
        outcome = predict_cases(predictor, FoundInputs(cases=inputs), out)
        for name, record in outcome.predicted.items():
            classes = dict(list(predictor.plan.labels.items())[1:])
            dice = score(output_path(out, name), truths[name.removesuffix("_0000")], classes)
            yield Found(kind, dice, record)
        if outcome.refused:
            print(f"{kind}: {len(outcome.refused)} refused", flush=True)


def coverage(bounds: list[tuple[float | None, float | None]]) -> str:
    """How many known bounds hold."""
    known = [dice >= bound for bound, dice in bounds if bound is not None and dice is not None]
    return f"{np.mean(known):.1%} of {len(known)}" if known else "none promised"


def validation_cases(folder: Path) -> list[tuple[Any, dict[str, float | None]]]:
    """Evidence and Dice of each case of the cross-validation."""
    found = []
    for fold in folds_in(folder):
        path = folder / f"fold_{fold}"
        if (path / SUMMARY).is_file():
            record = read_json(path / VALIDATION / RECORD)["cases"]
            for case in Summary.load(path / SUMMARY).cases:
                dice = {name: case.value(name, "Dice") for name in case.classes}
                found.append((record[case.case]["assessment"]["evidence"], dice))
    return found


def show_splits(folder: Path, found: list[Found]) -> None:
    """Calibrate on random parts of the cross-validation; test on the others, and on `found`.

    A part is a half, or as many cases as a bound needs.
    """
    cases, draw = validation_cases(folder), random.Random(0)
    held: dict[str, list[float]] = defaultdict(list)
    for _ in range(SPLITS):
        shuffled = draw.sample(cases, len(cases))
        count = max(len(cases) // 2, FEWEST_BOUNDED)
        first, rest = shuffled[:count], shuffled[count:]
        calibration = calibrate("", first, list(first[0][1]))
        unseen = [(of.record["assessment"]["evidence"], of.dice) for of in found]
        for what, tested in (("the other cases", rest), ("unseen scans", unseen)):
            bounds = [
                (assess(calibration, evidence, {})["assessment"]["dice_lower_bound"][name], one)
                for evidence, dice in tested
                for name, one in dice.items()
            ]
            known = [one >= bound for bound, one in bounds if None not in (bound, one)]
            held[what] += [float(np.mean(known))] if known else []
    for what, shares in filter(lambda item: item[1], held.items()):
        ends = f"{min(shares):.1%} to {max(shares):.1%}"
        print(f"bounds hold, {SPLITS} splits, {what}: mean {np.mean(shares):.1%} ({ends})")


def main() -> None:
    """Print one line for each kind, then the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--folds", nargs="+")
    parser.add_argument("--scans", type=int, default=120, help="half of them are altered")
    given = parser.parse_args()
    paths = sorted(path for path in given.images.iterdir() if ending_of(path))
    draw = random.Random(0)
    clean = draw.sample(paths, min(len(paths), given.scans // 2))
    kinds = [*ALTERATIONS, *(f"orientation {code}" for code in TURNS)]
    each = -(-given.scans // (2 * len(kinds)))
    found: list[Found] = []
    for kind in ["clean", *kinds]:
        chosen = clean if kind == "clean" else draw.sample(paths, min(each, len(paths)))
        code = kind.split()[1] if kind.startswith("orientation") else None
        predictor = Predictor(given.model, given.folds, "cpu", orientation=code)
        scans = {stem_of(path): path for path in chosen}
        new = list(predicted(predictor, kind, scans, given.labels, ALTERATIONS.get(kind)))
        found += new
        counts = Counter(of.record["quality"] for of in new)
        failed = sum(of.has_failed for of in new)
        print(f"{kind:16} {len(new):3} scans, {failed:3} failed; {dict(counts)}", flush=True)
    suspicion = [of.record["assessment"]["suspicion"] for of in found]
    truth = [of.has_failed for of in found]
    if len(set(truth)) > 1:
        area = roc_auc_score(truth, suspicion)
        print(f"area under the ROC curve, {len(found)} scans: {area:.4f}")
    flagged = [of.record["quality"] != GOOD for of in found]
    sound = [flag for flag, of in zip(flagged, found, strict=True) if of.kind == "clean"]
    missed = [not flag for flag, failed in zip(flagged, truth, strict=True) if failed]
    print(
        f"clean scans flagged: {np.mean(sound):.1%}; failed ones called good: {np.mean(missed):.1%}"
    )
    unseen = [of for of in found if of.kind == "clean"]
    for name in unseen[0].dice:
        bounds = [
            (of.record["assessment"]["dice_lower_bound"][name], of.dice[name]) for of in unseen
        ]
        print(f"bounds of {name} hold for clean scans: {coverage(bounds)}")
    show_splits(given.model, unseen)


if __name__ == "__main__":
    main()
