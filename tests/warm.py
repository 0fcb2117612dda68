"""What commands do late and for the first time; done once here, forks of this process are fast."""

from __future__ import annotations

import torch

from autoseg.common.figures import new_grid, rendered
from autoseg.networks.unet import build_network
from autoseg.training.learner import build_optimizer
from tests.making import tiny_plan

torch.set_num_threads(1)
_plan = tiny_plan()
build_optimizer(_plan.training.optimizer, build_network(_plan))  # imports half of torch
_figure, (_axes,) = new_grid(1, 1, (1.0, 1.0), 0.5)
_axes.set_title("fonts are looked for once")
for _form in ("svg", "png"):
    rendered(_figure, _form)
