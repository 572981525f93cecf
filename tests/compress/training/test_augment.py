"""Batch augmentation against a slow, obvious one."""

import pytest
import torch

from compress.training.augment import NUM_DRAWS, ROW, SHEAR, ZOOM, augment, draw
from compress.training.rand_augment import NUM_DRAWS as RAND_AUGMENT_DRAWS
from compress.training.rand_augment import OPERATIONS, rand_augment


def images(num: int = 6) -> torch.Tensor:
    return torch.arange(num * 3 * 5 * 7, dtype=torch.uint8).reshape(num, 3, 5, 7)


def drawn(num: int, seed: int = 0) -> torch.Tensor:
    return draw(num, seed, 0)


def all_shifts_and_flips(image: torch.Tensor, padding: int) -> list[torch.Tensor]:
    padded = torch.nn.functional.pad(image, (padding,) * 4)
    _, height, width = image.shape
    crops = [padded[:, y : y + height, x : x + width] for y in range(2 * padding + 1) for x in range(2 * padding + 1)]
    return crops + [crop.flip(2) for crop in crops]


def test_without_any_setting_nothing_changes() -> None:
    batch = images()
    assert augment(batch, drawn(6)) is batch


def test_every_image_is_one_of_its_own_shifts_and_flips() -> None:
    batch = images()
    augmented = augment(batch, drawn(6), crop_padding=2, flip=True)
    assert augmented.shape == batch.shape
    assert augmented.dtype == batch.dtype
    for image, result in zip(batch, augmented, strict=True):
        assert any(torch.equal(result, candidate) for candidate in all_shifts_and_flips(image, 2))


def test_images_of_a_batch_are_drawn_apart() -> None:
    batch = images(1).repeat(32, 1, 1, 1)
    augmented = augment(batch, drawn(32), crop_padding=2, flip=True)
    assert len({tuple(image.flatten().tolist()) for image in augmented}) > 10


def test_flip_mirrors_about_half() -> None:
    batch = images(1).repeat(200, 1, 1, 1)
    augmented = augment(batch, drawn(200), flip=True)
    num_mirrored = sum(not torch.equal(image, batch[0]) for image in augmented)
    assert 70 < num_mirrored < 130


def test_an_image_is_augmented_alike_whatever_batch_it_lands_in() -> None:
    settings = {
        "crop_padding": 2,
        "flip": True,
        "shear": 10,
        "zoom": 0.2,
        "resized_crop": 0.5,
        "rand_augment_magnitude": 9,
    }
    batch, numbers = images(), drawn(6)
    together = augment(batch, numbers, **settings)
    order = torch.tensor([4, 1, 5])
    assert torch.equal(augment(batch[order], numbers[order], **settings), together[order])


@pytest.mark.parametrize(("seed", "variant"), [(1, 0), (0, 1)])
def test_another_seed_or_variant_draws_others(seed: int, variant: int) -> None:
    assert torch.equal(draw(9, 0, 0), draw(9, 0, 0))
    assert not torch.equal(draw(9, 0, 0), draw(9, seed, variant))


def centred(height: int = 9, width: int = 9) -> torch.Tensor:
    """One image with a bright cross through its middle."""
    image = torch.zeros(1, 1, height, width, dtype=torch.uint8)
    image[..., height // 2, :] = 200
    image[..., :, width // 2] = 200
    return image


def numbers(**chosen: float) -> torch.Tensor:
    row = torch.full((1, NUM_DRAWS), 0.5)
    for index, value in chosen.items():
        row[0, {"row": ROW, "shear": SHEAR, "zoom": ZOOM}[index]] = value
    return row


def test_shear_and_zoom_in_the_middle_of_their_range_change_nothing() -> None:
    assert torch.equal(augment(centred(), numbers(), shear=20, zoom=0.3), centred())


def test_shear_slants_upright_lines_and_leaves_level_ones() -> None:
    sheared = augment(centred(), numbers(shear=0.999), shear=45)[0, 0]
    assert (sheared[4, 1:8] > 150).all()
    assert sheared[0].argmax() != sheared[8].argmax()
    assert abs(int(sheared[0].argmax()) - int(sheared[8].argmax())) == pytest.approx(8, abs=2)


@pytest.mark.parametrize(("share", "is_wider"), [(0.999, True), (0.0, False)])
def test_zoom_changes_the_size_of_things(share: float, is_wider: bool) -> None:
    square = torch.zeros(1, 1, 21, 21, dtype=torch.uint8)
    square[..., 5:16, 5:16] = 255
    zoomed = augment(square, numbers(zoom=share), zoom=0.5)
    assert (int((zoomed > 127).sum()) > int((square > 127).sum())) == is_wider


def test_a_resized_crop_shows_a_part_larger() -> None:
    whole = torch.arange(40, dtype=torch.uint8).view(1, 1, 1, 40).expand(1, 1, 40, 40).contiguous()
    found = augment(whole.expand(50, 1, 40, 40), drawn(50), resized_crop=0.25)[:, 0, 20].float()
    spans = found.max(1).values - found.min(1).values
    assert found.shape == (50, 40)
    assert spans.min() >= 0.4 * 39  # half a side, at 3:4
    assert spans.max() <= 39
    assert spans.std() > 3
    assert torch.equal(augment(whole, numbers(), resized_crop=1.0), whole)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_operation_of_rand_augment_is_applied(channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    batch = torch.randint(0, 256, (300, channels, 12, 12), dtype=torch.uint8, generator=generator)
    numbers = torch.rand(300, RAND_AUGMENT_DRAWS, generator=generator)
    changed = rand_augment(batch, numbers, 15)
    assert changed.shape == batch.shape
    assert changed.dtype == torch.uint8
    for index, operation in enumerate(OPERATIONS):
        image = batch[:1]
        draws = torch.tensor([[(index + 0.5) / len(OPERATIONS), 0.0, 0.0, 0.0]])  # then identity
        assert torch.equal(rand_augment(image, draws, 15), operation(image, 0.5))


def test_a_larger_magnitude_changes_more() -> None:
    generator = torch.Generator().manual_seed(0)
    batch = torch.randint(0, 256, (200, 3, 12, 12), dtype=torch.uint8, generator=generator)
    numbers = torch.rand(200, RAND_AUGMENT_DRAWS, generator=generator)
    little, much = (
        (rand_augment(batch, numbers, magnitude).float() - batch.float()).abs().mean() for magnitude in (3, 20)
    )
    assert little < much
