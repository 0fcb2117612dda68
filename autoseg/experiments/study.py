"""A study as data: plans x k x seeds x folds of one task, and held-out test sets; printed values.

A study file is JSON5. With `extends` it takes the keys that it does not contain from another study.
Some studies are included in `plans/experiments/`, and the values that their paper prints.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from autoseg.common.errors import PlanError
from autoseg.common.files import read_json, texts_in
from autoseg.common.progress import nearest
from autoseg.plan.plan import describe_error
from autoseg.plan.sections import Count, Index, LabelValue, Positive, Seed
from autoseg.planner.overrides import merge, plans_folder, read_layer, set_layer

ENDING = ".json5"
TEXT = texts_in(Path(__file__).with_name("messages.json"))
PAPER = "paper"  # the file of a paper's printed values
FolderName = Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=200)]
Folds = Annotated[int, Field(ge=2, le=1000)]
LabelValues = Annotated[tuple[LabelValue, ...], Field(min_length=1)]
# Tables and figures of a study: those of every study, and others.
USUAL, OTHERS = map(tuple, read_json(Path(__file__).with_name("elements.json")).values())
Element = Annotated[str, Field(pattern=f"^({'|'.join(USUAL + OTHERS)})$")]


class Section(BaseModel):
    """A part of a study file; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class HeldOut(Section):
    """A test set for every model of the study; its cases are not used in training.

    Attributes:
        name: in folders and tables.
        images: folder of the scans, named as for `autoseg_predict`.
        labels: folder of the reference label maps.
        classes: the classes of the plan to score -> their values in these label maps, which may be
            labelled in another way than the training cases.
    """

    name: FolderName
    images: str
    labels: str
    classes: Annotated[dict[str, LabelValues], Field(min_length=1)]


class StudyPlan(Section):
    """Options of a plan; several values of k or seeds make several plans.

    Attributes:
        name: of the plan; -kK and -sSEED are appended where k or seeds are given.
        reference: a reference plan; null: the one with the task's name, if any.
        rules_only: use no reference plan.
        configuration: `2d`, `3d_lowres`, `3d_fullres`; null: the recommended one.
        planner: rules for plain or residual networks.
        memory_gb: GPU memory to plan for.
        time_budget: training time of one fold, as in `3m`; the device of the study is measured.
        overrides: plan values to replace in this plan only.
        pretrained: trained model with the initial weights of all its runs.
        k: numbers of folds; null: those of the study.
        seeds: values of training.seed; null: those of the study.
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
    """Resources of one run on a Slurm cluster.

    Attributes:
        partition: null: the cluster's default.
        time: time limit of a job, as in `12h`; longer runs continue in the next job.
        nodes: machines of a run.
        gpus: GPUs of a run on each machine, with a process for each of them.
        cpus: cores of a run on each machine.
        memory_gb: main memory of a run on each machine; null: the cluster's default.
        parallel: maximum number of runs at a time.
        save_seconds: time before the limit at which a job is asked to save its state.
        setup: shell commands to run first, such as `module load python`.
        options: other options of sbatch, such as `{ account: "lab" }`.
    """

    partition: str | None = None
    time: str = "24h"
    nodes: Count = 1
    gpus: Index = 1
    cpus: Count = 8
    memory_gb: Positive | None = None
    parallel: Count = 64
    save_seconds: Count = 120
    setup: tuple[str, ...] = ()
    options: dict[str, str | int | bool] = Field(default_factory=dict)

    @property
    def tasks(self) -> int:
        """Processes of a run on each machine."""
        return max(1, self.gpus)


class Study(Section):
    """The content of a study file; paths are relative to the workspace.

    Attributes:
        name: name of the file without its ending.
        title: a description.
        task: name of the task.
        plans: the plans.
        k: numbers of folds for cross-validation; null: the plan decides.
        seeds: values of training.seed; null: the plan decides.
        folds: the folds to train; null: all.
        overrides: plan values to replace in every plan; those of a plan have precedence.
        skip_bad_cases: leave out cases with errors.
        held_out: test sets for every model.
        report: file name -> the table or figure in it. Those of a single plan show the last one.
        paper: folder in `plans/experiments` with the printed values of the publication that the
            study reproduces; they are shown beside the study's own.
        slurm: resources of a run on a cluster.
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
    report: dict[FolderName, Element] = dict(zip(USUAL, USUAL, strict=True))
    paper: FolderName | None = None
    slurm: SlurmSettings = SlurmSettings()

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        for what in ("plans", "held_out"):
            names = [each.name for each in getattr(self, what)]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{what} has the name {twice[0]!r} twice; use different names")
        known = [path.parent.name for path in sorted(_folder().glob(f"*/{PAPER}{ENDING}"))]
        if self.paper not in (None, *known):
            raise ValueError(f"paper {self.paper!r} does not exist; choose from {known}")
        printed = read_paper(self.paper)["items"] if self.paper else {}
        for name, element in self.report.items():
            if element == "related_work" and "published" not in printed.get(name, {}):
                raise ValueError(
                    f"report {name!r}: related_work needs a table of published scores with this "
                    f"name in the paper ({self.paper or 'none'}); remove it or set `paper`"
                )
        return self


def study_names() -> list[str]:
    """Names of the included studies, sorted."""
    return sorted(path.name.removesuffix(ENDING) for path in _folder().glob(f"*{ENDING}"))


def read_study(given: str) -> Study:
    """Read a study from a file, or an included study by its name.

    Raises:
        PlanError: the file is missing, is not JSON5, extends itself, or has an unknown key or an
            invalid value; the message names the key and what is allowed.
    """
    path = _find(given)
    name = path.name.removesuffix(ENDING)
    return check_study(_read_values(path) | {"name": name}, str(path))


def check_study(values: dict[str, Any], where: str) -> Study:
    """Validate a study's values; `where` is their source in error messages."""
    try:
        return Study.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"])) or "the study"
        keys = sorted({key for kind in Section.__subclasses__() for key in kind.model_fields})
        raise PlanError(f"{where}: {describe_error(error, place, keys)}") from None


def with_slurm(study: Study, settings: Sequence[str]) -> Study:
    """The study with other Slurm settings, such as `gpus=1` or `time=12h`.

    Raises:
        PlanError: a key is unknown or a value invalid.
    """
    values = study.model_dump(mode="json")
    given = set_layer(settings, values["slurm"], "--slurm").values
    return check_study(values | {"slurm": merge(values["slurm"], given)}, "--slurm")


def read_paper(name: str) -> dict[str, Any]:
    """The values that a paper prints: `paper.json5` in `plans/experiments/NAME`.

    Its keys are `citation`, `order` (the names of its tables and figures) and `items`, by name:

        title, caption, note: texts; the note says how the study's own differs.
        columns, rows: printed values; the columns are those of the CSV file of the study's table,
            and the first one identifies a row.
        values: key of the plan -> printed value, for a figure.
        published, own, label: rows of other studies, the row of the study, in which {cases},
            {training}, {dice} and {task} are replaced, and the class that they are about.

    The items of tables are read from the files beside it, such as `table_1.json5`.

    Raises:
        PlanError: a file is missing or malformed.
    """
    folder = _folder() / name
    files = {path.name.removesuffix(ENDING): path for path in sorted(folder.glob(f"*{ENDING}"))}
    found = {name: dict(read_layer(path, str(path)).values) for name, path in files.items()}
    paper = found.pop(PAPER)
    return paper | {"items": found | paper["items"]}


def _folder() -> Path:
    return plans_folder() / "experiments"


def _find(given: str, beside: Path | None = None) -> Path:
    if given in study_names():
        return _folder() / f"{given}{ENDING}"
    path = Path(given) if beside is None else beside / given
    if path.is_file():
        return path
    complete = path.with_name(path.name + ENDING)
    hint = nearest(given, [str(complete)] if complete.is_file() else study_names())
    raise PlanError(TEXT("no study", given=given, known=", ".join(study_names()), hint=hint))


def _read_values(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of the file, merged with those of the study that it extends."""
    path = path.resolve()
    if path in above:
        names = " -> ".join(each.name for each in (*above, path))
        raise PlanError(f"studies extend each other: {names}")
    values = dict(read_layer(path, str(path)).values)
    if "name" in values:
        raise PlanError(f"{path}: a study is named after its file; remove the key 'name'")
    extended = values.pop("extends", None)
    if extended is None:
        return values
    if not isinstance(extended, str):
        raise PlanError(f"{path}: extends is {extended!r}; it must be the name of a study")
    return _read_values(_find(extended, path.parent), (*above, path)) | values
