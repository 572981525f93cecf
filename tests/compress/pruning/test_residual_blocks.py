"""Blocks that pass on their input when silent are found, and nothing else is."""

import pytest
import torch

from compress.pruning.residual_blocks import passed_over, residual_blocks
from core.data import Data
from core.model_reference import load_torch_model


def test_the_blocks_of_a_residual_network_are_found(tiny: str, digits: Data) -> None:
    model = load_torch_model(f"{tiny}:deep", digits)
    assert residual_blocks(model, ()) == tuple(f"blocks.{index}" for index in range(6))


def test_a_block_that_is_ignored_or_holds_what_is_stays(tiny: str, digits: Data) -> None:
    model = load_torch_model(f"{tiny}:deep", digits)
    assert residual_blocks(model, ("blocks.1", "blocks.3.conv2")) == ("blocks.0", "blocks.2", "blocks.4", "blocks.5")
    assert residual_blocks(model, ("blocks",)) == ()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vgg11_bn", 0),
        ("resnet18", 5),
        ("mobilenetv3_small_050", 7),
        ("deit_tiny_patch16_224", 12),
        ("convnext_atto", 12),
    ],
)
def test_only_what_adds_to_its_input_counts(name: str, expected: int) -> None:
    size = 224 if "patch" in name else 64
    model = load_torch_model(f"timm:{name},num_classes=10", input_shape=(3, size, size))
    assert len(residual_blocks(model, ())) == expected


def test_a_block_passed_over_hands_on_its_input(tiny: str, digits: Data) -> None:
    model = load_torch_model(f"{tiny}:deep", digits)
    inputs = torch.randn(2, 1, 8, 8)
    whole = model.module(inputs)
    with passed_over(model.module, "blocks.1"):
        without = model.module(inputs)
    model.module.blocks[1].bn2.weight.data.zero_()
    model.module.blocks[1].bn2.bias.data.zero_()
    torch.testing.assert_close(model.module(inputs), without)
    assert not torch.allclose(without, whole)
