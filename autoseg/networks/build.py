"""From a plan to a network."""

from __future__ import annotations

from autoseg.networks.unet import UNet
from autoseg.plan.plan import Plan


def build_network(plan: Plan) -> UNet:
    """The plan's network: one output per class, background included, or one per region."""
    return UNet(plan.network, channels=plan.input_channels, classes=plan.classes.outputs)
