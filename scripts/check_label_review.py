"""Measure the label review of `autoseg_evaluate` with labels that are corrupted on purpose.

It corrupts a share of the labels of a task (seeded), trains all folds WITH them by the commands,
evaluates, and counts how many of the corrupted cases are in the worst 15 % of `label_review.csv`,
and for how many the first suspicion is the right one:

    python scripts/check_label_review.py raw/Task004_Hippocampus /tmp/review --minutes 3

Folds that are there are kept, so that a second call scores in seconds. `--other SEED` scores the
same folds on labels with other corruptions, which the models have not been trained with (they were
trained with those of `--seed`); it is an extra test, not the one of the figures.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

Map = NDArray[Any]  # (z, y, x), as SimpleITK gives it
Rng = np.random.Generator
WORST = 0.15
PACKAGE = Path(__file__).resolve().parent.parent


def exchanged(label: Map, rng: Rng) -> Map:
    """Two classes, with their names exchanged."""
    one, other = rng.choice(_values(label), 2, replace=False)
    out = label.copy()
    out[label == one], out[label == other] = other, one
    return out


def missing(label: Map, rng: Rng) -> Map:
    """A class is not there."""
    return np.where(label == rng.choice(_values(label)), 0, label)


def empty(label: Map, rng: Rng) -> Map:
    """Nothing is there."""
    return np.zeros_like(label)


def shifted(label: Map, rng: Rng) -> Map:
    """All labels, 3 to 6 voxels away."""
    while True:
        by = rng.integers(-6, 7, 3)
        if 3 <= np.linalg.norm(by) <= 6:
            return _moved(label, by)


def shifted_class(label: Map, rng: Rng) -> Map:
    """One class, 3 or 4 voxels away along one axis."""
    value = rng.choice(_values(label))
    by = np.zeros(3, int)
    by[rng.integers(3)] = rng.choice([-4, -3, 3, 4])
    moved = _moved(label == value, by)
    return np.where(moved, value, np.where(label == value, 0, label))


def eroded(label: Map, rng: Rng) -> Map:
    """Every class, thinner by 2 voxels."""
    out = np.zeros_like(label)
    for value in _values(label):
        out[ndimage.binary_erosion(label == value, iterations=2)] = value
    return out


def dilated(label: Map, rng: Rng) -> Map:
    """All labels, thicker by 2 voxels; the closest class wins."""
    return _grown(label, 2)


def eroded_class(label: Map, rng: Rng) -> Map:
    """One class, thinner by 2 voxels."""
    value = rng.choice(_values(label))
    kept = ndimage.binary_erosion(label == value, iterations=2)
    return np.where((label == value) & ~kept, 0, label)


def dilated_class(label: Map, rng: Rng) -> Map:
    """One class, thicker by 2 voxels, also over the others."""
    value = rng.choice(_values(label))
    return np.where(ndimage.binary_dilation(label == value, iterations=2), value, label)


def thicker(label: Map, rng: Rng) -> Map:
    """All labels, thicker by 1 voxel."""
    return _grown(label, 1)


def thinner(label: Map, rng: Rng) -> Map:
    """All labels, thinner by 1 voxel on the outside."""
    return np.where(ndimage.binary_erosion(label > 0, iterations=1), label, 0)


def slice_left_out(label: Map, rng: Rng) -> Map:
    """A slice in the middle of the labels is not annotated."""
    axis, inside = rng.integers(3), np.flatnonzero
    used = inside((label > 0).any(axis=tuple({0, 1, 2} - {axis})))
    k = rng.integers(used[0] + len(used) // 4, used[-1] - len(used) // 4)
    out = label.copy()
    out[tuple(k if each == axis else slice(None) for each in range(3))] = 0
    return out


def islands(label: Map, rng: Rng) -> Map:
    """Three balls away from the labels."""
    away = ndimage.distance_transform_edt(label == 0)
    out, spots = label.copy(), np.argwhere(away >= 5)
    for spot in rng.permutation(spots)[:3]:
        marks = np.ones(label.shape, bool)
        marks[tuple(spot)] = False
        out[(ndimage.distance_transform_edt(marks) <= 2) & (label == 0)] = rng.choice(
            _values(label)
        )
    return out


def mirrored(label: Map, rng: Rng) -> Map:
    """The map with left and right exchanged."""
    return label[:, :, ::-1].copy()


def cut_off(label: Map, rng: Rng) -> Map:
    """The labels end at a slice, with a quarter of their length left out."""
    axis = rng.integers(3)
    used = np.flatnonzero((label > 0).any(axis=tuple({0, 1, 2} - {axis})))
    length = max(2, round(0.25 * len(used)))
    out = label.copy()
    side = slice(0, used[0] + length) if rng.integers(2) else slice(used[-1] + 1 - length, None)
    out[tuple(side if each == axis else slice(None) for each in range(3))] = 0
    return out


Change = Callable[[Map, Rng], Map]
# kind -> the change, the names of the suspicion that are right, and whether the error is gross.
KINDS: dict[str, tuple[Change | None, tuple[str, ...], bool]] = {
    "exchanged": (exchanged, ("exchanged",), True),
    "missing": (missing, ("missing",), True),
    "empty": (empty, ("missing", "empty"), True),
    "shifted": (shifted, ("shifted",), True),
    "shifted_class": (shifted_class, ("shifted",), True),
    "eroded": (eroded, ("thin",), True),
    "dilated": (dilated, ("thick",), True),
    "eroded_class": (eroded_class, ("thin",), True),
    "dilated_class": (dilated_class, ("thick",), True),
    "wrong_scan": (None, ("another",), True),  # the map of another case
    "swapped_scans": (None, ("another",), True),  # two cases have each other's map
    "mirrored": (mirrored, ("left and right",), True),
    "thicker": (thicker, ("thick",), False),
    "thinner": (thinner, ("thin",), False),
    "slice_left_out": (slice_left_out, ("slice left out",), False),
    "islands": (islands, ("islands",), False),
    "cut_off": (cut_off, ("slice boundary",), False),
}


def _values(label: Map) -> Map:
    return np.setdiff1d(np.unique(label), [0])


def _moved(label: Map, by: Map) -> Map:
    moved = ndimage.shift(label.astype(np.uint8), by, order=0, mode="constant")
    return np.asarray(moved, label.dtype)


def _grown(label: Map, by: int) -> Map:
    near, index = ndimage.distance_transform_cdt(
        label == 0, metric="taxicab", return_distances=True, return_indices=True
    )
    return np.asarray(np.where(near <= by, label[tuple(index)], 0), label.dtype)


def _placed(label: Map, shape: tuple[int, ...]) -> Map:
    """A map on another grid, cut or filled up at its end."""
    out = np.zeros(shape, label.dtype)
    common = tuple(slice(0, min(pair)) for pair in zip(shape, label.shape, strict=True))
    out[common] = label[common]
    return out


def corrupt(source: Path, target: Path, seed: int, share: float) -> dict[str, str]:
    """Link the scans, and copy the labels of a task, some of them changed; return case -> kind."""
    rng = np.random.default_rng(seed)
    shutil.rmtree(target, ignore_errors=True)
    (target / "labelsTr").mkdir(parents=True)
    (target / "imagesTr").symlink_to((source / "imagesTr").resolve())
    (target / "dataset.json").write_bytes((source / "dataset.json").read_bytes())
    paths = sorted((source / "labelsTr").glob("[!.]*"))
    read = {path.name.split(".")[0]: sitk.ReadImage(str(path)) for path in paths}
    arrays = {name: sitk.GetArrayFromImage(image) for name, image in read.items()}
    chosen = list(rng.permutation(sorted(arrays))[: round(share * len(arrays))])
    kinds = [list(KINDS)[i % len(KINDS)] for i in range(len(chosen))]
    if seed % 2:  # odd seeds: the gross kinds only, more of each
        gross = [kind for kind, (_, _, is_gross) in KINDS.items() if is_gross]
        kinds = [gross[i % len(gross)] for i in range(len(chosen))]
    done: dict[str, str] = {}
    for name, kind in zip(chosen, kinds, strict=True):
        change, _, _ = KINDS[kind]
        if name in done:
            continue
        if change is not None:
            arrays[name] = change(arrays[name], rng)
        else:
            free = sorted(set(arrays) - set(chosen) - set(done))
            other = str(rng.choice(free))
            mine = arrays[name]
            arrays[name] = _placed(arrays[other], mine.shape)
            if kind == "swapped_scans":
                arrays[other] = _placed(mine, arrays[other].shape)
                done[other] = kind
        done[name] = kind
    for path in paths:
        name = path.name.split(".")[0]
        image = sitk.GetImageFromArray(arrays[name])
        image.CopyInformation(read[name])
        sitk.WriteImage(image, str(target / "labelsTr" / path.name))
    (target.parent.parent / "corrupted.json").write_text(json.dumps(done, indent=1))
    return done


def run(command: str, *arguments: str, workspace: Path) -> None:
    """Run a command of autoseg; its messages are shown."""
    call = [sys.executable, "-m", f"autoseg.cli.{command}", *arguments]
    path = f"{PACKAGE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = os.environ | {"PYTHONPATH": path}
    subprocess.run([*call, "--workspace", str(workspace)], check=True, env=environment)


def train(task: str, out: Path, folds: int, minutes: float) -> None:
    """Plan and train what is not there yet."""
    if not (out / "preprocessed" / task / "default" / "plan.json").exists():
        run("plan", task, "--time-budget", f"{minutes}m", workspace=out)
    for fold in range(folds):
        if not (out / f"models/{task}/default/fold_{fold}/validation/summary.json").exists():
            run("train", task, str(fold), "--resume", workspace=out)


def other_labels(source: Path, task: str, out: Path, seed: int, share: float) -> Path:
    """A second workspace with the models of `out`, and labels with other corruptions."""
    from autoseg import evaluate_folders

    workspace = out / f"other_{seed}"
    corrupt(source, workspace / "raw" / task, seed, share)
    models = workspace / "models" / task / "default"
    for part in ("models", "preprocessed"):
        shutil.rmtree(workspace / part, ignore_errors=True)
        ignore = shutil.ignore_patterns("*.safetensors", "cases", "cross_validation")
        shutil.copytree(out / part / task, workspace / part / task, ignore=ignore)
    for folder in models.glob("fold_*/validation"):
        summary = evaluate_folders(workspace / "raw" / task / "labelsTr", folder)
        summary.save(folder / "summary.json")
    return workspace


def score(task: str, workspace: Path) -> None:
    """Print how many corrupted cases are found, and how many suspicions are right."""
    done = json.loads((workspace / "corrupted.json").read_text())
    with open(
        workspace / f"models/{task}/default/cross_validation/label_review.csv", encoding="utf-8"
    ) as file:
        rows = list(csv.DictReader(file))
    first: dict[str, dict[str, str]] = {}
    for row in rows:
        first.setdefault(row["case"], row)
    count = len(list((workspace / "raw" / task / "labelsTr").iterdir()))
    place = {case: rank for rank, case in enumerate(first)}
    found: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for case, kind in sorted(done.items(), key=lambda item: item[1]):
        rank = place.get(case, count)
        said = first[case]["suspicion"] if case in first else "(not listed)"
        is_right = any(word in said for word in KINDS[kind][1])
        found[kind].append((rank < WORST * count, is_right))
        evidence = first[case]["evidence"] if case in first else ""
        mark = "" if all(found[kind][-1]) else "   <---"
        print(f"{kind:15} {case}: rank {rank + 1:3}, {said}: {evidence}{mark}")
    innocent = [case for case in list(first)[: int(WORST * count)] if case not in done]
    for case in innocent:
        row = first[case]
        print(f"{'(not corrupted)':15} {case}: rank {place[case] + 1:3}, {row['suspicion']}")
    for name, is_wanted in (("gross", True), ("other", False)):
        hits = [hit for kind, of in found.items() if KINDS[kind][2] is is_wanted for hit in of]
        if hits:
            worst, right = (np.mean(column) for column in zip(*hits, strict=True))
            print(f"{name}: {len(hits)} cases, {worst:.1%} in the worst 15 %, {right:.1%} named")


def main() -> None:
    """Corrupt, train, evaluate, score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="the raw task")
    parser.add_argument("out", type=Path, help="workspace to make, or to use again")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--other", type=int, nargs="*", metavar="SEED", help="see above")
    given = parser.parse_args()
    task, out = given.source.resolve().name, given.out.resolve()
    if not (out / "corrupted.json").exists():
        corrupt(given.source, out / "raw" / task, given.seed, given.share)
    train(task, out, given.folds, given.minutes)
    workspaces = [out] if given.other is None else []
    workspaces += [
        other_labels(given.source, task, out, seed, given.share) for seed in given.other or ()
    ]
    for workspace in workspaces:
        run("evaluate", task, workspace=workspace)
        print(f"\n{workspace}")
        score(task, workspace)


if __name__ == "__main__":
    main()
