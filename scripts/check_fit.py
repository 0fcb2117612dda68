"""How often are scans of a model's own set taken for different, and how often is that missed?

    python scripts/check_fit.py raw/Task004_Hippocampus raw/Task010_SarcomaCT ...

Every task is split again and again into training scans and unseen ones; no network is trained. For
each task the table has the share of unseen scans that are warned of (left out one at a time, and
halves), and the share of changed ones: shifted by 1024, four times coarser, and the scans of the
other tasks. The command line warns of what is counted here; see `autoseg.prediction.fit`.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from autoseg.common.errors import DataError
from autoseg.dataset.task import Case, Task, find_task
from autoseg.fingerprint import survey
from autoseg.image.image import Image, read_image
from autoseg.models.folder import FINGERPRINT, PLAN, FolderFiles
from autoseg.planner.compose import PlanOptions, compose
from autoseg.prediction.fit import Judge, check_scan
from autoseg.prediction.model import training_set_of

HALVES = 20
OTHERS = 20  # scans of another task
Change = Callable[[Image], Image]


def shifted(by: float) -> Change:
    """All values plus a number."""
    return lambda image: replace(image, array=image.array.astype("float32") + by)


def coarser(image: Image) -> Image:
    """Every fourth voxel along each axis."""
    array, grid = image.array[:, ::4, ::4, ::4], image.geometry
    x, y, z = (4 * mm for mm in grid.spacing_mm)
    return Image(array, replace(grid, size=array.shape[1:], spacing_mm=(x, y, z)))


CHANGES: dict[str, Change] = {
    "-1024": shifted(-1024),
    "+1024": shifted(1024),
    "4 x coarser": coarser,
}


def trained(task: Task, cases: Sequence[Case], cache: Path) -> Judge:
    """The judge of a model that these cases would train."""
    fingerprint, _ = survey(replace(task, cases=tuple(cases)), 1, cache)
    plan = compose(fingerprint, PlanOptions())
    with tempfile.TemporaryDirectory() as folder:
        fingerprint.save(Path(folder) / FINGERPRINT)
        plan.save(Path(folder) / PLAN)
        found = training_set_of(FolderFiles(Path(folder)))
    return Judge(plan, found)


def judged(judge: Judge, image: Image) -> list[str]:
    """What differs; `refused` for what cannot be segmented."""
    try:
        check_scan(judge.plan, image)
        return list(judge.differences(image))
    except DataError:
        return ["refused"]


def splits(cases: Sequence[Case]) -> Iterator[tuple[str, Sequence[Case], Sequence[Case]]]:
    """Kind of the split, training cases, unseen cases."""
    draw = random.Random(0)
    for unseen in draw.sample(cases, min(HALVES, len(cases))):
        yield "one left out", [case for case in cases if case is not unseen], [unseen]
    for _ in range(HALVES):
        shuffled = draw.sample(cases, len(cases))
        half = len(cases) // 2 + 1
        yield "halves", shuffled[:half], shuffled[half:]


def main() -> None:
    """Print one line for each kind of split and of change of each task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="+", type=Path, help="raw task folders")
    tasks = [find_task(folder)[0] for folder in parser.parse_args().tasks]
    scans = {
        task.name: {case.name: read_image(case.images, own_type=True) for case in task.cases}
        for task in tasks
    }
    with tempfile.TemporaryDirectory() as cache:
        for task in tasks:
            own = scans[task.name]
            for kind in ("one left out", "halves"):
                found, total, what = 0, 0, Counter[str]()
                for which, training_cases, unseen in splits(task.cases):
                    if which == kind:
                        model = trained(task, training_cases, Path(cache))
                        for case in unseen:
                            how = judged(model, own[case.name])
                            found, total = found + bool(how), total + 1
                            what.update(how)
                show(task.name, f"unseen, {kind}", found, total, what)
            model = trained(task, task.cases, Path(cache))
            rows = {
                name: [change(image) for image in own.values()] for name, change in CHANGES.items()
            }
            rows |= {
                f"scans of {name}": list(images.values())[:OTHERS]
                for name, images in scans.items()
                if name != task.name
            }
            for name, images in rows.items():
                each = [judged(model, image) for image in images]
                what = Counter(how for one in each for how in one)
                show(task.name, name, sum(map(bool, each)), len(each), what)


def show(task: str, what: str, found: int, total: int, differing: Counter[str]) -> None:
    """Print one line."""
    details = ", ".join(f"{name} {count}" for name, count in differing.most_common())
    print(
        f"{task:22} {what:28} {found:4} of {total:4} = {found / total:6.1%}  {details}", flush=True
    )


if __name__ == "__main__":
    main()
