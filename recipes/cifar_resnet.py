"""The CIFAR residual networks of He et al. 2015 (https://arxiv.org/abs/1512.03385, section 4.2), as a factory file.

The paper's parameter-free shortcut (stride-2 subsampling and zero-padded channels) is written as the 1x1 stride-2
convolution that computes the same thing, so that channels can be pruned through it. Module names follow
github.com/akamaster/pytorch_resnet_cifar10, whose weights therefore load unchanged.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (N, in, H, W) -> (N, out, H / stride, W / stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        if isinstance(self.shortcut, nn.Conv2d):
            _zero_pad_shortcut(self.shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """Three stages of basic blocks: (N, in_chans, 32, 32) -> logits (N, num_classes)."""

    def __init__(
        self,
        num_blocks: tuple[int, int, int],
        num_classes: int,
        in_chans: int,
        widths: tuple[int, int, int] = (16, 32, 64),
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(widths[0], widths[0], 1, num_blocks[0])
        self.layer2 = _stage(widths[0], widths[1], 2, num_blocks[1])
        self.layer3 = _stage(widths[1], widths[2], 2, num_blocks[2])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(widths[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)  # every block starts by passing its input on (Goyal et al. 2017)

    def forward(self, x: Tensor) -> Tensor:
        """Run the network."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(self.pool(x).flatten(1))
        return logits


def _stage(in_channels: int, out_channels: int, stride: int, num_blocks: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(num_blocks - 1)))


def _zero_pad_shortcut(shortcut: nn.Conv2d) -> None:
    """Set the weights so that input channel i goes to output channel i + (out - in) / 2, as the paper pads."""
    offset = (shortcut.out_channels - shortcut.in_channels) // 2
    with torch.no_grad():
        shortcut.weight.zero_()
        for channel in range(shortcut.in_channels):
            shortcut.weight[channel + offset, channel] = 1


def resnet20(num_classes: int = 10, in_chans: int = 3) -> nn.Module:
    """Build the 20-layer network, 0.27 M parameters."""
    return _declaring_input(CifarResNet((3, 3, 3), num_classes, in_chans))


def resnet24(num_classes: int = 10, in_chans: int = 3) -> nn.Module:
    """Build the 24-layer network: ResNet-20 with two more blocks in its last stage, 0.42 M parameters.

    At 8x8 pixels a block costs the least time and holds the most parameters.
    """
    return _declaring_input(CifarResNet((3, 3, 5), num_classes, in_chans))


def resnet56(num_classes: int = 10, in_chans: int = 3) -> nn.Module:
    """Build the 56-layer network, 0.86 M parameters."""
    return _declaring_input(CifarResNet((9, 9, 9), num_classes, in_chans))


def _declaring_input(network: CifarResNet) -> CifarResNet:
    """Declare size and normalisation of the input as timm does; the published weights were trained with these."""
    network.pretrained_cfg = {  # type: ignore[assignment]  # a plain attribute on a module
        "input_size": (network.conv1.in_channels, 32, 32),
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    }
    return network
