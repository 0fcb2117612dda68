"""A model on a test set: predicted as for a user, scored by the test set's own labels."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

from autoseg.common.errors import AutosegError
from autoseg.common.files import write_json
from autoseg.common.parallel import in_parallel
from autoseg.evaluation.evaluate import evaluate_case, label_maps, tolerances
from autoseg.evaluation.labels import Labels
from autoseg.evaluation.scores import CaseScores, Summary
from autoseg.experiments.finished import SUMMARY, TEST_SET, described, is_described, test_folder
from autoseg.experiments.runs import StudyRun
from autoseg.experiments.study import HeldOut
from autoseg.plan.plan import Plan
from autoseg.prediction.batch import output_path, predict_cases
from autoseg.prediction.inputs import find_inputs
from autoseg.prediction.predictor import Predictor
from autoseg.workflow.workspace import Workspace


def score_held_out(
    run: StudyRun, test_set: HeldOut, workspace: Workspace, device: str, processes: int
) -> Summary:
    """Predict the scans of a test set by one model and score them; scans that are there are kept.

    Label maps are scored as the network gives them, without the postprocessing that folds learn.

    Raises:
        DataError: a scan or a label map is missing or broken.
    """
    scans, truths = _folder(workspace, test_set.images), _folder(workspace, test_set.labels)
    folder = test_folder(run, test_set, workspace)
    model = run.folder(workspace).parent
    # Torch, which trained it: its scores do not depend on whether OpenVINO is installed.
    predictor = Predictor(model, [str(run.fold)], device, postprocess=False, backend="torch")
    found = find_inputs(scans, predictor.plan.channels)
    truth = label_maps(truths)
    if missing := [name for name in found.cases if name not in truth]:
        raise AutosegError(
            f"{truths}: {len(missing)} scans of {scans} have no label map ({missing[0]}, ...); "
            "add them, or take these scans out"
        )
    wanted = described(run, test_set, workspace)
    if not is_described(folder, wanted):  # of another plan, or of other scans
        shutil.rmtree(folder, ignore_errors=True)
        write_json(folder / TEST_SET, wanted)
    outcome = predict_cases(predictor, found.cases, folder, overwrite=False, refused=found.refused)
    outcome.raise_failures()
    labels = _labels(test_set, predictor.plan)
    score = partial(_score, truth=truth, folder=folder, labels=labels)
    cases = tuple(in_parallel(score, list(found.cases), processes, "evaluating"))
    summary = Summary(cases, (), tolerances(labels))
    summary.save(folder / SUMMARY)
    return summary


def _labels(test_set: HeldOut, plan: Plan) -> Labels:
    """The classes to score: the values of the test set in its labels, the plan's in predictions."""
    painted = {name: plan.labels[name] for name in test_set.classes}
    planned = Labels.planned(painted, plan.evaluation)
    return replace(planned, values=dict(test_set.classes), in_prediction=painted)


def _folder(workspace: Workspace, given: str) -> Path:
    """A folder of the workspace, or anywhere if the study gives a whole path."""
    path = workspace.root / given
    if not path.is_dir():
        raise AutosegError(f"there is no folder {path}, which a test set of the study names")
    return path


def _score(case: str, truth: dict[str, Path], folder: Path, labels: Labels) -> CaseScores:
    scores = evaluate_case(truth[case], output_path(folder, case), labels)
    return replace(scores, case=case)
