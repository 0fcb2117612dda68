"""autoseg: from a folder of labelled scans to a validated 3D segmentation model.

The public names of the package. Each is imported at its first use, which keeps `import autoseg`
fast.

    plan_task, train_fold            raw task -> plan -> trained model
    Predictor                        scan -> label map
    evaluate_folders                 two folders of label maps -> scores
    read_image, read_label, write_label, write_dicom_seg, Image, Geometry
    Plan, load_plan, AutosegError
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoseg.common.errors import AutosegError
    from autoseg.evaluation.evaluate import evaluate_folders
    from autoseg.image.geometry import Geometry
    from autoseg.image.image import Image, read_image, read_label
    from autoseg.image.label_writer import write_label
    from autoseg.plan.plan import Plan
    from autoseg.plan.reading import load_plan
    from autoseg.prediction.dicom_seg import write_dicom_seg
    from autoseg.prediction.predictor import Predictor
    from autoseg.workflow.api import plan_task, train_fold

__version__ = "0.1.0"
__all__ = [
    "AutosegError",
    "Geometry",
    "Image",
    "Plan",
    "Predictor",
    "evaluate_folders",
    "load_plan",
    "plan_task",
    "read_image",
    "read_label",
    "train_fold",
    "write_dicom_seg",
    "write_label",
]

_HOMES = {
    "AutosegError": "autoseg.common.errors",
    "Geometry": "autoseg.image.geometry",
    "Image": "autoseg.image.image",
    "Plan": "autoseg.plan.plan",
    "Predictor": "autoseg.prediction.predictor",
    "evaluate_folders": "autoseg.evaluation.evaluate",
    "load_plan": "autoseg.plan.reading",
    "plan_task": "autoseg.workflow.api",
    "read_image": "autoseg.image.image",
    "read_label": "autoseg.image.image",
    "train_fold": "autoseg.workflow.api",
    "write_dicom_seg": "autoseg.prediction.dicom_seg",
    "write_label": "autoseg.image.label_writer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'autoseg' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
