from __future__ import annotations

import torch

from autoseg.networks.unet import with_masks


def test_every_part_becomes_a_channel_after_the_images() -> None:
    image = torch.randn(2, 2, 3, 4, 5)
    numbers = torch.randint(0, 4, (2, 3, 4, 5), dtype=torch.int16)
    made = with_masks(image, numbers, 3)
    assert made.shape == (2, 5, 3, 4, 5)
    assert made.dtype == image.dtype
    assert torch.equal(made[:, :2], image)
    for part in (1, 2, 3):
        assert torch.equal(made[:, 1 + part], (numbers == part).float())


def test_numbers_may_be_floats_as_they_are_in_a_patch_of_a_scan() -> None:
    numbers = torch.tensor([0.0, 1.0, 2.0]).view(1, 3, 1, 1)
    made = with_masks(torch.zeros(1, 1, 3, 1, 1), numbers, 2)
    assert made[0, 1:, :, 0, 0].tolist() == [[0, 1, 0], [0, 0, 1]]


def test_a_part_that_is_nowhere_has_an_empty_mask() -> None:
    made = with_masks(torch.zeros(1, 1, 2, 2, 2), torch.zeros(1, 2, 2, 2), 4)
    assert made.shape[1] == 5
    assert not made.any()
