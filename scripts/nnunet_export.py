"""nnU-Net's own export of one scan, for bench_export.py to compare with.

Runs in nnU-Net's environment: `nnunet_export.py PLANS.json DATASET.json LOGITS.npy OUT X Y Z MM MM
MM` with the scan's size and spacing. Prints seconds, core-seconds and the peak in GB of resampling,
choosing classes and writing.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
from nnunetv2.inference.export_prediction import (  # type: ignore[import-not-found]
    export_prediction_from_logits,
)
from nnunetv2.utilities.plans_handling.plans_handler import (  # type: ignore[import-not-found]
    PlansManager,
)


def main() -> None:
    """The command line."""
    plans = PlansManager(sys.argv[1])
    dataset = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    logits = np.load(sys.argv[3])
    size = tuple(map(int, sys.argv[5:8]))[::-1]
    spacing = tuple(map(float, sys.argv[8:11]))
    properties = {
        "spacing": spacing[::-1],
        "shape_before_cropping": size,
        "shape_after_cropping_and_before_resampling": size,
        "bbox_used_for_cropping": [[0, length] for length in size],
        "sitk_stuff": {
            "spacing": spacing,
            "origin": (0.0, 0.0, 0.0),
            "direction": tuple(np.eye(3).ravel().tolist()),
        },
    }
    found = plans.get_configuration("3d_fullres")
    started = time.perf_counter(), time.process_time()
    export_prediction_from_logits(logits, properties, found, plans, dataset, sys.argv[4])
    ended = time.perf_counter(), time.process_time()
    unit = 1e9 if sys.platform == "darwin" else 1e6  # bytes there, kilobytes elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    print(*(end - start for start, end in zip(started, ended, strict=True)), peak)


if __name__ == "__main__":
    main()
