"""Score predictions, summarise a cross-validation, and compare two sets of scores."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from autoseg.common.errors import AutosegError, DataError
from autoseg.common.files import is_there, read_json
from autoseg.common.progress import counted, say
from autoseg.dataset.corrections import CORRECTED, save_corrections
from autoseg.dataset.problems import join_names, raise_errors
from autoseg.dataset.splits import SPLITS_FILE, count_folds
from autoseg.dataset.task import by_stem, find_task
from autoseg.evaluation import evaluate, label_review
from autoseg.evaluation.comparison import SHOWN, compare
from autoseg.evaluation.figures.overlay import draw_examples
from autoseg.evaluation.labels import parse_options
from autoseg.evaluation.learn_postprocessing import label_pairs, learn_temperature, update
from autoseg.evaluation.report import contents, files
from autoseg.evaluation.scores import Summary
from autoseg.evaluation.tables import Row, metric_rows, print_dice, print_rows
from autoseg.fingerprint import survey
from autoseg.models.folder import FINGERPRINT, SUMMARY, VALIDATION, fold_folder, write_calibration
from autoseg.plan.labels import class_of
from autoseg.prediction import quality
from autoseg.prediction.record import RECORD
from autoseg.workflow.workspace import TEXT, Workspace, folders_in, matching

CALIBRATION_ERROR = "Expected calibration error of saved probabilities"
TRAIN_AGAIN = "plan and train again: trained folds have learned from the labels before"


def score_folders(
    reference: Path,
    predicted: Path,
    out: Path | None = None,
    *,
    images: Path | None = None,
    against: Path | None = None,
    maps: Sequence[str] = (),
    merges: Sequence[str] = (),
    tolerance: str | None = None,
    classes: str | None = None,
    processes: int = 1,
    volumes: int = contents.VOLUMES,
) -> bool:
    """Score a folder of predictions; write and print tables, pictures and a report.

    Returns whether all pairs of label maps were scored.

    Args:
        reference: folder of reference label maps.
        predicted: folder of predicted label maps.
        out: output folder; `predicted` if None.
        images: folder of the scans, for pictures.
        against: second folder of predictions, to compare with `predicted`.
        maps: `P:R` for label P of the predictions that is label R of the references.
        merges: `NAME=A,B` for a row with the mean of several classes.
        tolerance: of the normalised surface Dice, as in `1` or `lungs=1,infection=3`.
        classes: to score, as in `liver=1,tumour=2`, or a `dataset.json` or `labels.json`.
        processes: number of worker processes.
        volumes: number of cases in the report's viewer.

    Raises:
        AutosegError: an option is wrong, or a file is missing or broken.
    """
    if images is not None and not images.is_dir():
        raise DataError(f"-i {images}: no such folder; give the folder of the scans")
    out = out or (predicted.parent if predicted.is_file() else predicted)
    names = different_names(predicted, against) if against else ("", "")
    options = parse_options(maps, merges, tolerance, classes)
    labels = evaluate.choose_labels(reference, predicted, options, processes)
    summary = evaluate.evaluate_folders(reference, predicted, labels, processes)
    _write_tables(out, summary)
    if images:
        for picture in draw_examples(summary, images, labels, out):
            print(f"picture: {picture}")
    exhibits = contents.find_exhibits(summary, images, labels) if images else []
    scored = reference, predicted, summary
    _write_report(out, contents.folder_report(*scored, exhibits, labels, processes, volumes))
    refused = summary.refused
    if against:
        other = evaluate.evaluate_folders(reference, against, labels, processes)
        _write_comparison(summary, other, names, out, labels.colours)
        refused = refused | other.refused
    return not refused


def evaluate_task(
    workspace: Workspace, given: str, plan: str | None, processes: int, volumes: int
) -> None:
    """Summarise the cross-validation of a plan: tables, figures, postprocessing and a report.

    Args:
        workspace: where the models are.
        given: name of the task, or a unique prefix of it.
        plan: name of the plan; the only one with a validated fold if None.
        processes: number of worker processes.
        volumes: number of cases in the report's viewer.

    Raises:
        AutosegError: the task or plan has no validated fold, or a file is broken.
    """
    task = workspace.find_task_name(given)
    plan = _find_plan(workspace, task, plan)
    folder, planned = workspace.models(task, plan), workspace.preprocessed(task, plan)
    splits = planned / SPLITS_FILE
    fold_count = count_folds(splits) if splits.is_file() else 0  # unknown in this workspace
    validation = evaluate.gather(folder, fold_count)
    trained = files.Trained(folder, workspace.raw_folder(given))
    _score_corrected(trained, validation)
    learned = _learn(folder, validation, fold_count, processes)
    tables: files.Tables = {"Dice of the folds": evaluate.fold_rows(validation), **learned}
    _calibrate_quality(trained, validation)
    out = folder / "cross_validation"
    _write_tables(out, validation.combined, tables)
    if validation.missing:
        print(f"missing folds: {', '.join(map(str, validation.missing))}")
    exhibits = trained.exhibits(validation.combined)
    for path in files.write_cross_validation(trained, validation, out, processes, exhibits):
        print(f"{path.parent.name}: {path}")
    found = _review(trained, validation, out / label_review.FILE_NAME, processes)
    facts = trained, validation, exhibits, planned / FINGERPRINT, tables
    overlays = out / files.OVERLAYS
    report = contents.cross_validation_report(*facts, processes, volumes, overlays)
    if found is not None:
        pictures = contents.draw_labels(found, exhibits, processes)
        report = replace(report, labels=label_review.findings_rows(found), label_pictures=pictures)
    _write_report(out, report)


def correct_labels(workspace: Workspace, given: str, source: str, processes: int) -> None:
    """Use corrected label maps of a task from now on, or its originals again.

    Args:
        workspace: where the task is.
        given: name of the task, or a unique prefix of it.
        source: folder of label maps that are named like the cases; `none` for the originals.
        processes: worker processes that check them.

    Raises:
        AutosegError: a map is not of a case, or would be refused in planning; nothing is changed.
    """
    folder = workspace.find_task_folder(given)
    if source == "none":
        save_corrections(folder, {})
        say(f"{folder.name}: the original labels are used again; {TRAIN_AGAIN}")
        return
    (task, _), maps = find_task(folder), by_stem(Path(source))
    unknown = sorted(maps.keys() - {case.name for case in task.cases})
    several = [str(path) for paths in maps.values() for path in paths[1:]]
    if unknown or several or not maps:
        what = f"{unknown[0]} is not a case of {task.name}" if unknown else "no label map found"
        what = f"{several[0]}: the case has another file there" if several else what
        raise DataError(f"--corrections {source}: {what}; name one file like each case")
    changed = [replace(case, label=maps[case.name][0]) for case in task.cases if case.name in maps]
    _, problems = survey(replace(task, cases=tuple(changed)), processes)
    raise_errors(problems, task.name, f"correct the maps in {source}; nothing was changed")
    save_corrections(folder, {case.name: case.label for case in changed})
    count = counted(len(changed), "corrected label map")
    say(f"{task.name}: {count} recorded in {CORRECTED}/ beside the originals; {TRAIN_AGAIN}")


def _review(
    trained: files.Trained, validation: evaluate.CrossValidation, path: Path, processes: int
) -> list[label_review.Finding] | None:
    """Rank the labels and write the ranking; the cases to look at, None if that is impossible."""
    plan, classes, kept = trained.plan, trained.labels, label_review.read_kept(path)
    try:
        pairs = label_pairs(trained.folder, validation)
    except DataError as error:
        say(f"the labels were not reviewed: {error}")
        return None
    if plan is None or classes is None:  # which is told: no case can be drawn
        return None
    sides = [{class_of(v, plan.labels) for v in pair} for pair in plan.mirrored_labels]
    folds = {case.case: k for k, of in validation.folds.items() for case in of.cases}
    found = label_review.review(pairs, classes, sides, processes, folds)
    label_review.write_review(path, found, kept)
    print(f"{path.stem}: {path}")
    return [of for of in found if of.suspicion != label_review.NONE and of.case not in kept]


def _score_corrected(trained: files.Trained, validation: evaluate.CrossValidation) -> None:
    """Score cases against labels that were corrected, or restored, maybe after the validation."""
    task, classes, done = trained.task, trained.labels, []
    labels = {} if task is None else {case.name: case.label for case in task.cases}
    for fold, summary in validation.folds.items():
        cases = list(summary.cases)
        for i, case in enumerate(cases):
            label = labels.get(case.case, used := Path(case.reference_file))
            if classes and CORRECTED in (label.parent.name, used.parent.name):
                folder = fold_folder(trained.folder, fold) / VALIDATION
                prediction = folder / Path(case.prediction_file).name
                scores = evaluate.evaluate_case(label, prediction, classes.of_case(case.case))
                cases[i] = replace(scores, case=case.case)
                done.append(case.case)
        validation.folds[fold] = replace(summary, cases=tuple(cases))
    if done:
        say(f"scored again, because their labels were corrected or restored: {join_names(done)}")


def compare_plans(workspace: Workspace, given: str, plans: Sequence[str]) -> None:
    """Compare the cross-validations of two plans of a task.

    Raises:
        AutosegError: both are the same, have no common case, or no validated fold.
    """
    task = workspace.find_task_name(given)
    a, b = (workspace.models(task, _find_plan(workspace, task, name)) for name in plans)
    names = different_names(a, b)
    scores = evaluate.gather(a).combined, evaluate.gather(b).combined
    _write_comparison(*scores, names, a / "cross_validation", files.Trained(a, None).colours)


def different_names(one: Path, other: Path) -> tuple[str, str]:
    """The shortest ends of two paths that differ, with underscores between their parts.

    Raises:
        AutosegError: both are the same folder.
    """
    parts = one.resolve().parts, other.resolve().parts
    for length in range(1, 1 + max(map(len, parts))):
        names = "_".join(parts[0][-length:]), "_".join(parts[1][-length:])
        if names[0] != names[1]:
            return names
    raise AutosegError(f"{other} cannot be compared with itself; give two different folders")


def _find_plan(workspace: Workspace, task: str, given: str | None) -> str:
    """The given plan, also by the start of its name, or the only one with a validated fold."""
    models = workspace.models(task)
    found = []
    for plan in folders_in(models):
        if any(is_there(models / plan / fold / SUMMARY) for fold in folders_in(models / plan)):
            found.append(plan)
    if not found:
        raise AutosegError(f"{models} has no validated fold; run: autoseg_train {task} fold 0")
    if given is not None:
        matches = matching(given, {*workspace.plans(task), *folders_in(models)})
        given = matches[0] if len(matches) == 1 else given
        if given not in found:
            raise AutosegError(TEXT("not validated", plan=given, task=task, found=", ".join(found)))
    if given is None and len(found) > 1:
        raise AutosegError(f"{task} has the plans {', '.join(found)}; choose with --plan NAME")
    return given or found[0]


def _learn(
    folder: Path, validation: evaluate.CrossValidation, fold_count: int, processes: int
) -> files.Tables:
    """Tables of what was learned for predictions; without those that cannot be learned (yet)."""
    tables: dict[str, Sequence[Row]] = {}
    try:
        learned = update(folder, validation, fold_count, processes)
        tables["Postprocessing (the scores elsewhere are without it)"] = learned.rows()
    except AutosegError as error:
        say(f"no postprocessing was learned: {error}")
    try:
        tables[CALIBRATION_ERROR] = learn_temperature(folder, validation)
    except AutosegError as error:
        say(f"{CALIBRATION_ERROR}: {error}")
    return tables


def _calibrate_quality(trained: files.Trained, validation: evaluate.CrossValidation) -> None:
    """Learn how sure predictions are, for `autoseg_predict`; says why if that is not possible."""
    cases, plan = [], trained.plan
    names = [] if plan is None else list(plan.labels)[1:]
    for fold, summary in validation.folds.items():
        path = fold_folder(trained.folder, fold) / VALIDATION / RECORD
        record = read_json(path).get("cases", {}) if path.is_file() else {}
        for scores in summary.cases:
            evidence = record.get(scores.case, {}).get("assessment", {}).get("evidence", {})
            if quality.is_complete(evidence, names):
                dice = {name: scores.value(name, "Dice") for name in scores.classes}
                cases.append((evidence, dice))
    total = len(validation.combined.cases)
    if plan is None or len(cases) < max(total, quality.FEWEST_CASES):
        write_calibration(trained.folder, quality.KEY, None)
        say(TEXT("not calibrated", found=len(cases), total=total, fewest=quality.FEWEST_CASES))
        return
    found = quality.calibrate(plan.id, cases, names)
    write_calibration(trained.folder, quality.KEY, asdict(found))
    bounded = sum(of.margin is not None for of in found.classes.values())
    about = f"bounds of Dice for {bounded} of {counted(len(found.classes), 'class')}"
    print(f"quality of predictions: calibrated on {counted(len(cases), 'case')}; {about}")


def _write_tables(out: Path, summary: Summary, tables: files.Tables | None = None) -> None:
    """Write and print the tables, and print their paths."""
    paths = files.write_tables(out, summary, tables or {})
    for heading, rows in (tables or {}).items():
        print(f"{heading}:")
        print_rows(rows)
        print()
    print_dice(summary)
    print()
    print_rows(metric_rows(summary))
    for path in paths:
        print(f"{path.stem}: {path}")


def _write_report(out: Path, report: files.Report) -> None:
    path = out / "report.html"
    files.write_report(path, report)
    print(f"report: {path}")


def _write_comparison(
    a: Summary, b: Summary, names: tuple[str, str], out: Path, colours: Mapping[str, str]
) -> None:
    """Compare two sets of scores, write the result, and print the most common metrics."""
    found = compare(a, b, names)
    for name, only in ((found.a, found.only_a), (found.b, found.only_b)):
        if only:
            cases = counted(len(only), "case")
            say(f"warning: {cases} scored only for {name}, left out: {join_names(only)}")
    table = found.table(SHOWN)
    print()
    print_rows(table.rows)
    print(table.note)
    for path in files.save_comparison(found, out, colours):
        print(f"comparison: {path}")
