#!/usr/bin/env python3
"""Make a 2D task of PNG pictures: stained tissue of scikit-image's `ihc.png`, as RGB tiles.

    python scripts/make_pictures.py raw/Dataset020_Stain

The label maps are made, not drawn by hand: the brown stain (DAB) by colour deconvolution and Otsu's
threshold. 12 tiles are for training, 4 (in imagesTs and labelsTs) for testing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from skimage.color import rgb2hed
from skimage.data import immunohistochemistry
from skimage.filters import gaussian, threshold_otsu
from skimage.io import imsave

TILE, TESTED = 128, 4
DATASET = {
    "channel_names": {"0": "R", "1": "G", "2": "B"},
    "labels": {"background": 0, "stain": 1},
    "file_ending": ".png",
    "licence": "public domain, by the Center for Microscopy And Molecular Imaging (CMMI)",
}


def make_pictures(folder: Path) -> None:
    """Write the task to a new folder."""
    picture = immunohistochemistry()  # (512, 512, 3) of 8 bits, ships with scikit-image
    stain = gaussian(rgb2hed(picture)[..., 2], 1)
    label = (stain > threshold_otsu(stain)).astype(np.uint8)
    corners = [(y, x) for y in range(0, 512, TILE) for x in range(0, 512, TILE)]
    for number, (y, x) in enumerate(corners):
        kind = "Ts" if number % (len(corners) // TESTED) == 0 else "Tr"
        for name, array, end in (("images", picture, "_0000"), ("labels", label, "")):
            path = folder / f"{name}{kind}" / f"tile_{number:02d}{end}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            imsave(path, array[y : y + TILE, x : x + TILE], check_contrast=False)
    training = len(corners) - TESTED
    content = json.dumps(DATASET | {"numTraining": training}, indent=1)
    (folder / "dataset.json").write_text(content, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    make_pictures(parser.parse_args().folder)
