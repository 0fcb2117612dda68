"""How sure is a prediction? good, check or failed, and a lower bound of the Dice of each class.

While a scan is segmented, an `Observer` sums what each network's probabilities say of each class:

    confidence  the expected Dice if the probabilities are right: 2 E|A and B| / E(|A| + |B|)
    agreement   Dice between the label map of each pass (fold, mirrored pass) and their mean's

`evidence_of` adds the shape of each class in the label map. The same figures of every case of the
cross-validation, predicted by the fold that has not seen it, are in `validation/predictions.json`.
From these and their Dice `calibrate` learns what is usual, and how far confidence is above Dice:

    suspicion   the least usual figure of the shapes and the largest doubt (1 - confidence), root
                of the sum of squares in spreads; 1: exceeded by 3 % of the cross-validation.
    bound       confidence minus its split-conformal margin: 90 % of scans like those of the
                cross-validation have a higher Dice. None if there are too few cases for that.

Confidence is averaged over folds and not taken from their mean, so that it has the same
distribution for several folds as for the one that predicted a case of the cross-validation.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import xlogy
from torch import Tensor

from autoseg.common import arrays
from autoseg.common.arrays import Doubles, Floats, LabelMap, Triple
from autoseg.common.errors import AutosegError, raise_if
from autoseg.common.files import dataclass_from_json
from autoseg.image.geometry import Geometry, Turn, orientation_of
from autoseg.image.image import PATIENT
from autoseg.models.folder import CALIBRATION, read_calibration
from autoseg.networks.devices import one_thread
from autoseg.plan.labels import Classes, ClassValues
from autoseg.prediction.fit import Differences, margin_of
from autoseg.prediction.model import Model
from autoseg.prediction.native_grid import Save
from autoseg.prediction.studies import TEXT

MOST_REASONS, MOST_ROWS = 4, 40  # of a case, of the table
# Only some voxels of a patch are observed: all would cost 30 % of a small network's time.
OBSERVED = (..., slice(None, None, 2), slice(None, None, 2), slice(None, None, 4))
CERTAIN = 0.999  # of the background: such voxels are left out
KEY = "quality"  # in calibration.json
GOOD, CHECK, FAILED = "good", "check", "failed"
LEVEL = 0.9  # of the bound
USUAL = 0.97  # of the cases of the cross-validation are not suspicious
FAILED_FROM = 2.0  # suspicion
FEWEST_CASES = 5  # to calibrate
SMALLEST_LIMIT = 4.0  # spreads; closer figures are usual in any case
ABSENT = 20.0  # spreads, for a class that no case lacks
WEAK = 0.5  # a class with a lower median Dice in the cross-validation is named in a warning

DOUBT = "confidence"
QUARTILES, IQR_OF_NORMAL = (0.25, 0.5, 0.75), 1.349
AXES = ("left_right", "front_back", "foot_head")
# Figures of a class -> the smallest spread that matters, after `_scaled`.
FIGURES = {
    DOUBT: 0.01,
    "volume_ml": 0.1,
    "components": 0.7,
    **{f"extent_{axis}_mm": 0.1 for axis in AXES},
    **{f"position_{axis}_mm": 2.0 for axis in AXES},  # of its centre from that of all classes
}
Assessed = dict[str, Any]
Evidence = dict[str, dict[str, float] | None]  # class -> its figures; None: it does not occur
Scored = tuple[Evidence, Mapping[str, float | None]]  # and the Dice of each class
# Whether the networks say it, and what in words -> how far from usual, in spreads.
Unusual = dict[tuple[bool, str], float]


class Observer:
    """Sums what the networks say about one scan while it is segmented; holds no volume of floats.

    Args:
        classes: what the networks' outputs are.
        averaged: the number of passes in the mean, to which a further one may be compared.
        logits: whether passes are logits, not probabilities.
        maps: whether to keep `uncertainty`.

    Attributes:
        uncertainty: the entropy of the mean probabilities in nats (x, y, z), float16.
    """

    def __init__(self, classes: Classes, averaged: int, logits: bool, maps: bool) -> None:
        self.classes, self.averaged, self.logits, self.maps = classes, averaged, logits, maps
        self.uncertainty: NDArray[np.float16] | None = None
        self._passes: list[tuple[Tensor, list[Tensor]]] = []  # masks and sums in these patches
        self._sums: list[Tensor] = []  # (pass, sum, output) of each batch of patches

    @one_thread()
    def add(self, found: Tensor) -> None:
        """Add one pass over patches (B, output, *patch); nothing waits for the device."""
        shares, likely, masks = self._seen(found)
        sums = [_total(shares * masks), _total(shares * likely), _total(masks)]
        self._passes.append((masks, sums))

    @one_thread()
    def finish(self, mean: Tensor) -> None:
        """Compare the passes over the same patches with their mean."""
        _, _, usual = self._seen(mean)
        size, passes = _total(usual), self._passes
        found = [torch.stack([*sums, _total(masks & usual), size]) for masks, sums in passes]
        self._sums.append(torch.stack(found))
        self._passes = []

    def _seen(self, found: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of every few voxels: probabilities, where the background is not certain, and masks there.

        All are (B, output, *part of the patch), or with one output.
        """
        regions, shares = self.classes.are_regions, found[OBSERVED]
        if self.logits:
            shares = shares.sigmoid() if regions else shares.softmax(1)
        if regions:
            likely, masks = (shares > 1 - CERTAIN).any(1, keepdim=True), shares > 0.5
        else:
            outputs = torch.arange(self.classes.outputs, device=found.device)
            likely = shares[:, :1] < CERTAIN
            masks = shares.max(1, keepdim=True)[1] == outputs.view(-1, 1, 1, 1)
        return shares, likely, masks & likely

    def entropies(self, size: Triple, view: Turn) -> Save:
        """Takes all probabilities by planes, as `label_map` saves them, for `uncertainty`."""
        self.uncertainty = np.zeros(size, np.float16)
        out = view.array(self.uncertainty)
        total = np.zeros(())

        def write(index: int, rows: slice, shares: Floats) -> None:
            nonlocal total
            own = -xlogy(shares, shares)
            if self.classes.are_regions:
                own -= xlogy(1 - shares, 1 - shares)
            total = own if index == 0 else total + own
            if index == self.classes.outputs - 1:
                out[rows] = total

        return write

    def figures(self) -> dict[str, dict[str, float]]:
        """Confidence and agreement of each class; empty if no pass was observed."""
        if not self._sums:
            return {}
        sums = torch.stack(self._sums).cpu().numpy().astype(np.float64).sum(axis=0)
        inside, mass, own, both, mean = sums.swapaxes(0, 1)  # (pass, output)
        found = {"confidence": _ratio(inside, mass, own)[: self.averaged].mean(0)}
        compared = _ratio(both, own, mean)[0 if self.averaged > 1 else 1 :]
        if len(compared):
            found["agreement"] = compared.mean(0)
        return {
            name: {what: round(float(values[index]), 4) for what, values in found.items()}
            for index, name in enumerate(self.classes.output_names)
        }


def _total(voxels: Tensor) -> Tensor:
    """The sum of each output."""
    return voxels.sum((0, 2, 3, 4)).float()


def _ratio(both: Doubles, one: Doubles, other: Doubles) -> Doubles:
    """Dice; 0 where both are empty."""
    return np.asarray(2 * both / np.maximum(one + other, 1e-9))


def evidence_of(
    label: LabelMap, geometry: Geometry, labels: ClassValues, observer: Observer
) -> Evidence:
    """The figures of each class: what the networks say, and its shape along the patient's axes."""
    turn = Turn.between(orientation_of(geometry), PATIENT)
    label, spacing = turn.array(label), np.array(turn.triple(geometry.spacing_mm))
    known, boxes = observer.figures(), arrays.value_boxes(label)
    found: Evidence = {
        name: _shape_of(label, values, arrays.union_of_boxes(map(boxes.get, values)), spacing)
        for name, values in list(labels.items())[1:]
    }
    volume = sum(shape["volume_ml"] for shape in found.values() if shape)
    for place in (f"position_{axis}_mm" for axis in AXES):
        centre = sum(of["volume_ml"] * of[place] for of in found.values() if of) / (volume or 1)
        for shape in filter(None, found.values()):
            shape[place] = round(shape[place] - centre, 4)
    return {name: shape and shape | known.get(name, {}) for name, shape in found.items()}


def _shape_of(
    label: LabelMap, values: Sequence[int], box: arrays.Box | None, spacing: Doubles
) -> dict[str, float] | None:
    if box is None:
        return None
    inside = arrays.members(label[box], values)
    found = {
        "volume_ml": float(
            f"{np.count_nonzero(inside) * spacing.prod() / 1000:.6g}"
        ),  # microscopes
        "components": arrays.connected_components(inside)[1],
    }
    centre = arrays.centre_of(inside, box) * spacing
    for axis, voxels, mm, place in zip(AXES, inside.shape, spacing, centre, strict=True):
        found[f"extent_{axis}_mm"] = float(f"{voxels * mm:.6g}")
        found[f"position_{axis}_mm"] = place
    return found


@dataclass(frozen=True)
class Usual:
    """A figure in the cross-validation: range, and on its scale median and spread."""

    low: float
    high: float
    median: float
    spread: float


@dataclass(frozen=True)
class ClassCalibration:
    """What the cross-validation says about one class.

    Attributes:
        n: the cases in which it was predicted and that have a Dice.
        usual_dice: the median over all cases that have one; None without any.
        margin: from confidence to the bound of Dice; None: too few cases for the level.
        always: whether it was predicted in every case.
        figures: of these cases; empty if there are none.
    """

    n: int
    usual_dice: float | None
    margin: float | None
    always: bool
    figures: dict[str, Usual]


@dataclass(frozen=True)
class Calibration:
    """What the cross-validation of a model says: `quality` in `calibration.json`.

    Attributes:
        plan_id: the plan of the models.
        cases: their number.
        level: the share of scans that have a higher Dice than their bound.
        limit: how unusual, in spreads, a share `USUAL` of the cases is at most.
        classes: without the background.
    """

    plan_id: str
    cases: int
    level: float
    limit: float
    classes: dict[str, ClassCalibration]

    def unusual(self, evidence: Evidence) -> Unusual:
        """How far each figure is from usual."""
        found: Unusual = {}
        for name, of in self.classes.items():
            figures = evidence.get(name) or {}
            if not figures and of.always:
                found[False, f"{name} was not found"] = ABSENT
            for key, usual in of.figures.items() if figures else ():
                value, what = figures[key], f"{key.replace('_', ' ')} of {name}"
                if key == DOUBT and figures.get("agreement", 1.0) < value:
                    value, what = figures["agreement"], f"agreement on {name}"
                far = (_scaled(key, value) - usual.median) / usual.spread
                text = f"{what}: {value:.3g} (usual: {usual.low:.3g} to {usual.high:.3g})"
                found[key == DOUBT, text] = max(-far, 0.0) if key == DOUBT else abs(far)
        return found


def assess(calibration: Calibration | str, evidence: Evidence, differs: Differences) -> Assessed:
    """The `quality` of a prediction and its `assessment`, for its record.

    Args:
        calibration: of the model, or why there is none: then the quality is None.
        evidence: of the label map.
        differs: what is unlike the training scans.
    """
    about: dict[str, Any] = {"why": [calibration], "dice_lower_bound": None, "evidence": evidence}
    if isinstance(calibration, str):
        return {"quality": None, "assessment": about}
    unusual = sorted(calibration.unusual(evidence).items(), key=lambda item: -item[1])
    suspicion = _combined(dict(unusual)) / calibration.limit
    quality = FAILED if suspicion > FAILED_FROM else CHECK if suspicion > 1 or differs else GOOD
    least = min(calibration.limit / 2, unusual[0][1]) if suspicion > 1 else math.inf
    reasons = [text for (_, text), far in unusual if far >= least][:MOST_REASONS]
    # A bound holds for scans like those of the cross-validation.
    about |= {
        "suspicion": round(suspicion, 3),
        "why": [*(f"{what} differs from the training scans" for what in differs), *reasons],
        "dice_lower_bound": {
            name: round(max(figures[DOUBT] - of.margin, 0.0), 3)
            if quality == GOOD and of.margin is not None and (figures := evidence[name])
            else None
            for name, of in calibration.classes.items()
        },
        "level": calibration.level,
        "n": {name: of.n for name, of in calibration.classes.items()},
        "usual_dice": {name: of.usual_dice for name, of in calibration.classes.items()},
    }
    return {"quality": quality, "assessment": about}


def bounds_text(assessment: Mapping[str, Any]) -> str:
    """The lower bounds in words."""
    bounds = assessment.get("dice_lower_bound") or {}
    known = [f"{name} {bound:.2f}" for name, bound in bounds.items() if bound is not None]
    promise = f"Dice above {', '.join(known)} ({LEVEL:.0%} of such scans)"
    return promise if known else "no lower bound of Dice"


def in_words(predicted: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The table of the qualities of some predictions by their records, the worst first."""
    rated = [(c["quality"], n, c["assessment"]) for n, c in predicted.items() if "assessment" in c]
    known = sorted((row for row in rated if row[0]), key=lambda row: -row[2]["suspicion"])
    for quality, name, of in known[:MOST_ROWS]:
        yield "; ".join([f"{quality:6} {name}: {bounds_text(of)}", *of["why"]])
    if len(known) > MOST_ROWS:
        yield f"and {len(known) - MOST_ROWS} less suspicious ones, see predictions.json"
    if counts := Counter(quality for quality, *_ in known):
        yield "quality: " + ", ".join(f"{count} {name}" for name, count in counts.items())
    usual = {name: dice for *_, of in known for name, dice in of["usual_dice"].items()}
    if weak := [name for name, dice in usual.items() if dice is not None and dice < WEAK]:
        yield TEXT("weak model", names=", ".join(weak), limit=WEAK)
    for why in dict.fromkeys(of["why"][0] for quality, _, of in rated if quality is None):
        yield f"quality: {why}"


def _combined(found: Unusual) -> float:
    """The most unusual figure of the shapes and the largest doubt of the networks, in spreads."""
    doubt = max((of for (is_doubt, _), of in found.items() if is_doubt), default=0.0)
    shapes = [of for (is_doubt, _), of in found.items() if not is_doubt]
    absent = sum(of for of in shapes if of == ABSENT)
    return math.hypot(max([absent, *shapes]), doubt)


def _scaled(key: str, value: float) -> float:
    """A figure on a scale on which equal steps matter equally."""
    return value if key == DOUBT or key.startswith("position") else math.log(value)


def is_complete(evidence: Evidence, names: Sequence[str]) -> bool:
    """Whether `calibrate` can learn from it: all figures of each class that was found."""
    found = [evidence.get(name, {}) for name in names]
    return bool(names) and all(of is None or FIGURES.keys() <= of.keys() for of in found)


def calibrate(plan_id: str, cases: Sequence[Scored], names: Sequence[str]) -> Calibration:
    """Learn from the evidence and the Dice of each annotated class in cross-validated cases."""
    figures = {name: [(of[name], dice.get(name)) for of, dice in cases] for name in names}
    classes = {name: _calibrated(of) for name, of in figures.items()}
    found = Calibration(plan_id, len(cases), LEVEL, 1.0, classes)
    sums = sorted(_combined(found.unusual(evidence)) for evidence, _ in cases)
    limit = _conformal(sums, USUAL) or sums[-1] * (1 + margin_of(len(sums)))
    return replace(found, limit=max(limit, SMALLEST_LIMIT))


def _conformal(ordered: Sequence[float], level: float) -> float | None:
    """What a further value does not exceed, with this probability; None: too few for the level."""
    rank = math.ceil(level * (len(ordered) + 1))
    return ordered[rank - 1] if rank <= len(ordered) else None


def _calibrated(cases: Sequence[tuple[dict[str, float] | None, float | None]]) -> ClassCalibration:
    known = [figures for figures, _ in cases if figures]
    gaps = sorted(f[DOUBT] - dice for f, dice in cases if f and dice is not None)
    figures = {}
    for key, smallest in FIGURES.items() if known else ():
        values = [of[key] for of in known]
        low, median, high = np.quantile([_scaled(key, value) for value in values], QUARTILES)
        spread = max(float(high - low) / IQR_OF_NORMAL, smallest)
        figures[key] = Usual(min(values), max(values), float(median), spread)
    scored = [dice for _, dice in cases if dice is not None]
    usual_dice = round(float(np.median(scored)), 3) if scored else None
    margin, always = _conformal(gaps, LEVEL), len(known) == len(cases)
    return ClassCalibration(len(gaps), usual_dice, margin, always, figures)


def load_calibration(model: Model) -> Calibration | str:
    """The calibration of a model, or why there is none.

    Raises:
        AutosegError: it is not valid.
    """
    files, plan_id = model.where, model.plan.id
    found = read_calibration(files).get(KEY)
    if found is None:
        return "not calibrated: autoseg_evaluate TASK learns it from the cross-validation"
    where = files.path(CALIBRATION)
    advice = "run autoseg_evaluate TASK again"
    known = dataclass_from_json(Calibration, found, where, advice)
    figures = [figure for of in known.classes.values() for figure in of.figures.items()]
    is_sound = all(key in FIGURES and of.spread > 0 for key, of in figures) and known.limit > 0
    raise_if(not is_sound, AutosegError(f"{where}: unknown figures or no spread; {advice}"))
    if known.plan_id != plan_id:
        return f"not calibrated: {where} is of plan {known.plan_id}, the model of {plan_id}"
    return known
