"""Mixed samples and their targets."""

import pytest
import torch

from compress.training.mixing import mixing


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.arange(8, dtype=torch.uint8) * 20
    return values.view(8, 1, 1, 1).expand(8, 1, 6, 6).contiguous(), torch.arange(8)


def test_nothing_asked_for_mixes_nothing() -> None:
    assert mixing(0, 0, 8) is None


def test_mixup_weighs_images_and_targets_alike() -> None:
    images, targets = batch()
    mixed, shares = mixing(0.5, 0, 8)(images, targets)
    assert torch.allclose(shares.sum(1), torch.ones(8))
    assert torch.allclose(mixed[:, 0, 0, 0], (shares * images[:, 0, 0, 0].float()).sum(1), atol=1e-4)


def test_cutmix_pastes_and_weighs_by_area() -> None:
    images, targets = batch()
    mixed, shares = mixing(0, 1.0, 8)(images, targets)
    for index in range(8):
        own_area = float((mixed[index] == images[index]).float().mean())
        assert float(shares[index, index]) == pytest.approx(own_area, abs=1e-6)


def test_with_both_each_batch_draws_one() -> None:
    mix = mixing(1.0, 1.0, 8)
    images, targets = batch()
    is_pasted = {bool(torch.isin(mix(images, targets)[0], images.float()).all()) for _ in range(20)}
    assert is_pasted == {True, False}
