"""The runs of a study: which plans it needs, and which folds of each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from autoseg.common.errors import PlanError
from autoseg.common.locks import locked
from autoseg.common.progress import counted, say
from autoseg.dataset.splits import SPLITS_FILE, count_folds
from autoseg.dataset.task import find_task
from autoseg.evaluation.labels import ScoredClasses
from autoseg.experiments.study import TEXT, HeldOut, Study, StudyPlan
from autoseg.fingerprint import Fingerprint
from autoseg.models.folder import PLAN
from autoseg.plan.plan import Plan, load_plan
from autoseg.plan.sections import Splits
from autoseg.planner.budget import parse_seconds
from autoseg.planner.compose import PlanOptions, compose
from autoseg.planner.overrides import Layer, merge
from autoseg.workflow.task_plan import Surveyed, differences, fitted, survey_task, write_plan
from autoseg.workflow.workspace import Workspace


@dataclass(frozen=True)
class Variant:
    """One plan of a study.

    Attributes:
        source: its entry in the study.
        k: number of folds; None if the study leaves it to the plan.
        seed: training.seed; None if the study leaves it to the plan.
    """

    study: Study
    source: StudyPlan
    k: int | None
    seed: int | None

    @property
    def name(self) -> str:
        """The plan's name: that of its entry, with -kK and -sSEED where the study varies them."""
        numbers = (("-k", self.k), ("-s", self.seed))
        return self.source.name + "".join(f"{sign}{n}" for sign, n in numbers if n is not None)

    @property
    def options(self) -> PlanOptions:
        """The options for planning it."""
        given = self.source
        numbers = {"splits": {"folds": self.k}, "training": {"seed": self.seed}}
        varied = {key: of for key, of in numbers.items() if None not in of.values()}
        values = merge(merge(self.study.overrides, given.overrides), varied)
        layer = Layer(f"study {self.study.name}", values)
        return PlanOptions(
            name=self.name,
            keep_name=True,
            use_reference=not given.rules_only,
            layers=(layer,) if values else (),
            seconds=None if given.time_budget is None else parse_seconds(given.time_budget),
            **given.model_dump(include={"configuration", "planner", "memory_gb", "reference"}),
        )

    @property
    def measured_with(self) -> tuple[str, ...]:
        """Plans with the same key share what a time budget decides: patch, width and schedule."""
        given = self.source
        kinds = (given.configuration, given.planner, given.memory_gb, given.rules_only)
        return tuple(map(str, (self.study.task, given.time_budget, given.reference, *kinds)))


@dataclass(frozen=True)
class StudyRun:
    """One model: a fold of a plan. Every study that contains this fold shares the run.

    Runs are equal if they are of the same model, whatever is done with it.

    Attributes:
        task: name of the task.
        plan: name of the plan.
        fold: number of the fold.
        held_out: the test sets to score the model on.
        pretrained: trained model with the initial weights.
        variant: the plan's name in the study.
        k, seed: see `Variant`.
    """

    task: str
    plan: str
    fold: int
    held_out: tuple[HeldOut, ...] = field(default=(), compare=False)
    pretrained: str | None = field(default=None, compare=False)
    variant: str = field(default="", compare=False)
    k: int | None = field(default=None, compare=False)
    seed: int | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.plan} fold {self.fold}"

    def folder(self, workspace: Workspace) -> Path:
        """The folder of the model."""
        return workspace.fold(self.task, self.plan, self.fold)


def variants(study: Study) -> Iterator[Variant]:
    """The plans of a study: for each entry all k, for each k all seeds."""
    for source in study.plans:
        numbers = source.k if source.k is not None else study.k
        seeds = source.seeds if source.seeds is not None else study.seeds
        for k, seed in product(numbers or (None,), seeds or (None,)):
            yield Variant(study, source, k, seed)


def runs_of(study: Study, workspace: Workspace) -> list[StudyRun]:
    """All runs of a study, except those of plans whose number of folds is not known yet."""
    return [run for variant in variants(study) for run in runs_of_plan(variant, workspace)]


def runs_of_plan(variant: Variant, workspace: Workspace) -> list[StudyRun]:
    """The runs of one plan of a study.

    Raises:
        PlanError: the study contains a fold that the plan does not have.
    """
    study, name = variant.study, variant.name
    file = workspace.preprocessed(study.task, name) / SPLITS_FILE
    count = count_folds(file) if file.is_file() else variant.k
    if count is None:
        return []
    folds = range(count) if study.folds is None else study.folds
    if beyond := [fold for fold in folds if fold >= count]:
        raise PlanError(TEXT("no fold", study=study, plan=name, fold=beyond[0], last=count - 1))
    about = study.held_out, variant.source.pretrained, variant.source.name, variant.k, variant.seed
    return [StudyRun(study.task, name, fold, *about) for fold in folds]


def joined(runs: Sequence[StudyRun]) -> list[StudyRun]:
    """Each model once, with the held-out test sets of all its studies.

    Raises:
        PlanError: two studies give different test sets the same name, or different pretrained
            models to the same run.
    """
    found: dict[StudyRun, StudyRun] = {}
    for run in runs:
        known = found.setdefault(run, run)
        if known.pretrained != run.pretrained:
            raise PlanError(f"{run} has two different pretrained models; rename one of the plans")
        sets = {each.name: each for each in known.held_out}
        for each in run.held_out:
            if sets.setdefault(each.name, each) != each:
                raise PlanError(f"two different test sets are named {each.name!r}; rename one")
        found[run] = replace(known, held_out=tuple(sets.values()))
    return list(found.values())


def prepare_plans(
    studies: Sequence[Study], workspace: Workspace, processes: int, device: str | None
) -> None:
    """Write the missing plans, and check that existing plans are those of the studies.

    Raises:
        PlanError: an existing plan of the same name differs, or a plan cannot be made.
        AutosegError: the data have errors.
    """
    surveyed: dict[str, Surveyed] = {}
    measured: dict[tuple[str, ...], Plan] = {}
    planned = [variant for study in studies for variant in variants(study)]
    for variant in planned:
        study = variant.study
        parent = workspace.preprocessed(study.task)
        with locked(parent / f".{variant.name}.lock", f"planning {variant.name}", wait=True):
            exists = (parent / variant.name / PLAN).is_file()
            if exists:
                plan = _existing_plan(variant, workspace)
            else:
                if (found := surveyed.get(study.task)) is None:
                    folder = workspace.find_task_folder(study.task)
                    most = max(of.k or Splits().folds for of in planned if of.study is study)
                    found = survey_task(workspace, folder, processes, study.skip_bad_cases, most)
                    surveyed[study.task] = found
                options = variant.options
                if options.seconds is not None:
                    options = replace(options, measured=measured.get(variant.measured_with))
                try:
                    plan = write_plan(workspace, found, options, processes, device)
                except PlanError as error:
                    raise PlanError(f"study {study.name}: plan {variant.name}: {error}") from error
            if not exists or "decided" in plan.measured:  # since 0.2.0
                measured.setdefault(variant.measured_with, plan)
            _check(variant, workspace, plan)
            if not exists:
                say(f"plan {plan.name} ({plan.id})")


def _existing_plan(variant: Variant, workspace: Workspace) -> Plan:
    """The plan in the workspace; a PlanError unless it is the one that the study describes."""
    folder = workspace.preprocessed(variant.study.task, variant.name)
    plan = load_plan(folder / PLAN)
    if variant.options.seconds is not None:  # a plan for a time budget depends on measurements
        return plan
    task, _ = find_task(workspace.find_task_folder(variant.study.task))
    fingerprint = Fingerprint.load(folder / "fingerprint.json")
    surveyed = Surveyed(task, fingerprint, plan.skipped_cases)
    expected = compose(fingerprint, fitted(variant.options, surveyed))
    if expected.id != plan.id:
        keys = differences(plan, expected)
        raise PlanError(TEXT("plan differs", folder=folder, study=variant.study, keys=keys))
    return plan


def _check(variant: Variant, workspace: Workspace, plan: Plan) -> None:
    """Raise a PlanError unless the plan has the folds and the classes of the study."""
    study, file = variant.study, workspace.preprocessed(plan.task, plan.name) / SPLITS_FILE
    count = count_folds(file)
    if variant.k is not None and count != variant.k:
        found = {"folds": counted(count, "fold"), "raw": workspace.raw(plan.task)}
        raise PlanError(TEXT("own splits", file=file, study=study, k=variant.k, **found))
    for each in study.held_out:
        if unknown := sorted(set(each.classes) - set(plan.labels)):
            about = {"name": unknown[0], "known": ", ".join(list(plan.labels)[1:])}
            raise PlanError(TEXT("no class", study=study, set=each, plan=plan, **about))


def held_out_classes(test_set: HeldOut, plan: Plan) -> ScoredClasses:
    """The classes to score: the test set's values in references, the plan's in predictions."""
    predicted = {name: plan.labels[name] for name in test_set.classes}
    planned = ScoredClasses.planned(predicted, plan.evaluation)
    return replace(planned, values=dict(test_set.classes), in_prediction=predicted)
