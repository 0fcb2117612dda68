"""autoseg: from a folder of labelled scans to a validated 3D segmentation model.

The public names of the package. Each is imported at its first use, which keeps `import autoseg`
fast.

    plan_task, train_fold            raw task -> plan -> trained model
    Predictor                        scan -> label map
    evaluate_folders                 two folders of label maps -> scores
    read_image, read_label, write_label, write_dicom_seg, Image, Geometry
    Plan, load_plan, AutosegError
"""

import lazy_loader

__version__ = "0.1.0"

# The names and where they lie: see __init__.pyi, which type checkers read as well.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
