"""Batch augmentation against a slow, obvious one."""

import torch

from compress.augment import augment


def images(num: int = 6) -> torch.Tensor:
    return torch.arange(num * 3 * 5 * 7, dtype=torch.uint8).reshape(num, 3, 5, 7)


def all_shifts_and_flips(image: torch.Tensor, padding: int) -> list[torch.Tensor]:
    padded = torch.nn.functional.pad(image, (padding,) * 4)
    _, height, width = image.shape
    crops = [padded[:, y : y + height, x : x + width] for y in range(2 * padding + 1) for x in range(2 * padding + 1)]
    return crops + [crop.flip(2) for crop in crops]


def test_without_padding_and_flip_nothing_changes() -> None:
    batch = images()
    assert augment(batch, crop_padding=0, flip=False, generator=torch.Generator()) is batch


def test_every_image_is_one_of_its_own_shifts_and_flips() -> None:
    batch = images()
    augmented = augment(batch, crop_padding=2, flip=True, generator=torch.Generator().manual_seed(0))
    assert augmented.shape == batch.shape
    assert augmented.dtype == batch.dtype
    for image, result in zip(batch, augmented, strict=True):
        assert any(torch.equal(result, candidate) for candidate in all_shifts_and_flips(image, 2))


def test_images_of_a_batch_are_drawn_apart() -> None:
    batch = images(1).repeat(32, 1, 1, 1)
    augmented = augment(batch, crop_padding=2, flip=True, generator=torch.Generator().manual_seed(0))
    assert len({tuple(image.flatten().tolist()) for image in augmented}) > 10


def test_flip_mirrors_about_half() -> None:
    batch = images(1).repeat(200, 1, 1, 1)
    augmented = augment(batch, crop_padding=0, flip=True, generator=torch.Generator().manual_seed(0))
    num_mirrored = sum(not torch.equal(image, batch[0]) for image in augmented)
    assert 70 < num_mirrored < 130


def test_the_same_seed_draws_the_same() -> None:
    one, other = (
        augment(images(), crop_padding=2, flip=True, generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(one, other)
