from .common.errors import AutosegError
from .evaluation.evaluate import evaluate_folders
from .image.geometry import Geometry
from .image.image import Image, read_image, read_label
from .image.label_writer import write_label
from .plan.plan import Plan, load_plan
from .prediction.dicom_seg import write_dicom_seg
from .prediction.predictor import Predictor
from .workflow.api import plan_task, train_fold

__version__: str
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
