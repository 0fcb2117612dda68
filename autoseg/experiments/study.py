"""A study as data: plans x k x seeds x folds of one task, and the test sets held out from it.

Such a file is commented JSON5. `extends` names another study, whose keys stand unless this file has
them; a few studies come with autoseg, in `plans/experiments/`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from autoseg.common.errors import PlanError
from autoseg.plan.reading import in_words
from autoseg.plan.sections import Count, Index, LabelValue, Positive, Seed
from autoseg.planner.overrides import merge, plans_folder, read_layer, set_layer

ENDING = ".json5"
FolderName = Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=200)]
Folds = Annotated[int, Field(ge=2, le=1000)]


class Section(BaseModel):
    """A part of a study file that knows all its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class HeldOut(Section):
    """A test set that every model of the study is tested on; none has learnt from it.

    Attributes:
        name: for folders and tables.
        images: folder of the scans, named as for `autoseg_predict`.
        labels: folder of their true label maps.
        classes: which of the plan's classes to score -> the values that they have in these label
            maps, as a test set may be labelled otherwise.
    """

    name: FolderName
    images: str
    labels: str
    classes: Annotated[
        dict[str, Annotated[tuple[LabelValue, ...], Field(min_length=1)]], Field(min_length=1)
    ]


class StudyPlan(Section):
    """One way of planning; with several k or seeds it makes several plans.

    Attributes:
        name: of the plan; -kK and -sSEED are added where k or seeds are given.
        reference: a reference plan; null takes the one of the task's name, if there is one.
        rules_only: take no reference plan at all.
        configuration: `2d`, `3d_lowres`, `3d_fullres`; null takes the recommended one.
        planner: rules for plain or residual networks.
        memory_gb: graphics memory to plan for.
        time_budget: of one fold, as in `3m`; measures the device that the study runs on.
        overrides: plan values that this plan alone replaces.
        pretrained: a trained model that all its runs begin with.
        k: numbers of folds; null takes the study's.
        seeds: values of training.seed; null takes the study's.
    """

    name: FolderName = "default"
    reference: str | None = None
    rules_only: bool = False
    configuration: Literal["2d", "3d_lowres", "3d_fullres"] | None = None
    planner: Literal["default", "resenc_m", "resenc_l", "resenc_xl"] = "default"
    memory_gb: Positive | None = None
    time_budget: str | None = None
    overrides: dict[str, Any] = Field(default_factory=dict)
    pretrained: str | None = None
    k: tuple[Folds, ...] | None = None
    seeds: tuple[Seed, ...] | None = None


class SlurmSettings(Section):
    """What one run asks of a cluster.

    Attributes:
        partition: where to run; null takes the cluster's default.
        time: longest time of one job, as in `12h`; a run that needs more goes on in the next one.
        gpus: graphics cards of a run.
        cpus: cores of a run.
        memory_gb: main memory of a run; null takes the cluster's default.
        parallel: most runs at a time.
        save_seconds: how long before its time is over a job is told to save.
        setup: shell lines to run first, such as `module load python`.
        options: other options of sbatch, such as `{ account: "lab" }`.
    """

    partition: str | None = None
    time: str = "24h"
    gpus: Index = 1
    cpus: Count = 8
    memory_gb: Positive | None = None
    parallel: Count = 64
    save_seconds: Count = 120
    setup: tuple[str, ...] = ()
    options: dict[str, str | int | bool] = Field(default_factory=dict)


class Study(Section):
    """Everything about a study that its file says; paths are relative to the workspace.

    Attributes:
        name: the file's name without the ending.
        title: in words.
        task: the task's name.
        plans: ways of planning.
        k: numbers of folds to cross-validate with; null leaves it to the plan.
        seeds: values of training.seed; null leaves it to the plan.
        folds: which folds to train; null trains all.
        overrides: plan values to replace in every plan, below the plan's own.
        skip_bad_cases: go on without cases that have errors.
        held_out: the test sets for every model.
        slurm: what a run asks of a cluster.
    """

    name: FolderName
    title: str = ""
    task: Annotated[str, Field(min_length=1, max_length=200)]
    plans: Annotated[tuple[StudyPlan, ...], Field(min_length=1)] = (StudyPlan(),)
    k: tuple[Folds, ...] | None = None
    seeds: tuple[Seed, ...] | None = None
    folds: tuple[Index, ...] | None = None
    overrides: dict[str, Any] = Field(default_factory=dict)
    skip_bad_cases: bool = False
    held_out: tuple[HeldOut, ...] = ()
    slurm: SlurmSettings = SlurmSettings()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        for what, names in (
            ("plans", [plan.name for plan in self.plans]),
            ("held_out", [each.name for each in self.held_out]),
        ):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{what} has the name {twice[0]!r} twice; give each its own")
        return self


def study_names() -> list[str]:
    """The studies that come with autoseg, sorted."""
    folder = plans_folder() / "experiments"
    return sorted(path.name.removesuffix(ENDING) for path in folder.glob(f"*{ENDING}"))


def read_study(given: str) -> Study:
    """Read a study from a file, or one that comes with autoseg by its name.

    Raises:
        PlanError: it is not there, not JSON5, extends itself, or has an unknown key or an
            impossible value; the message names the key and what is allowed.
    """
    path = _find(given)
    name = path.name.removesuffix(ENDING)
    return check_study(_read_values(path) | {"name": name}, str(path))


def check_study(values: dict[str, Any], where: str) -> Study:
    """Check a study's values; `where` is what to call them in an error."""
    try:
        return Study.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"])) or "the study"
        raise PlanError(f"{where}: {in_words(error, place, _all_keys())}") from None


def with_slurm(study: Study, settings: Sequence[str]) -> Study:
    """A study that asks something else of a cluster.

    Args:
        study: the study.
        settings: such as `gpus=1` or `time=12h`.

    Raises:
        PlanError: a key is unknown, or a value impossible.
    """
    values = study.model_dump(mode="json")
    given = set_layer(settings, values["slurm"], "--slurm").values
    return check_study(values | {"slurm": merge(values["slurm"], given)}, "--slurm")


def _all_keys() -> list[str]:
    return sorted({key for kind in Section.__subclasses__() for key in kind.model_fields})


def _find(given: str, beside: Path | None = None) -> Path:
    if given in study_names():
        return plans_folder() / "experiments" / f"{given}{ENDING}"
    path = Path(given) if beside is None else beside / given
    if path.is_file():
        return path
    whole = path.with_name(path.name + ENDING)
    meant = f"; did you mean {whole}?" if whole.is_file() else ""
    raise PlanError(
        f"there is no study {given!r}: neither a file nor one of autoseg's own, which are: "
        f"{', '.join(study_names()) or 'none'}{meant}"
    )


def _read_values(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file's values over those of the study that it extends."""
    path = path.resolve()
    if path in above:
        names = " -> ".join(each.name for each in (*above, path))
        raise PlanError(f"studies extend each other: {names}")
    values = dict(read_layer(path, str(path)).values)
    if "name" in values:
        raise PlanError(f"{path}: a study is named after its file; take the key 'name' out")
    extended = values.pop("extends", None)
    if extended is None:
        return values
    if not isinstance(extended, str):
        raise PlanError(f"{path}: extends is {extended!r}; it must be the name of a study")
    return _read_values(_find(extended, path.parent), (*above, path)) | values
