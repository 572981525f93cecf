"""Convolutional networks for the embedded 8x8 digits, as a model factory file."""

from torch import nn


def teacher(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    """Build the wide teacher: (N, in_chans, 8, 8) -> (N, num_classes), about 0.56 M parameters."""
    return _network((64, 64, 128, 128, 256), num_classes, in_chans)


def student(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    """Build the shallower student: (N, in_chans, 8, 8) -> (N, num_classes), about 0.26 M parameters."""
    return _network((64, 64, 128, 128), num_classes, in_chans)


def _network(widths: tuple[int, ...], num_classes: int, in_chans: int) -> nn.Module:
    """Stack convolutions of these widths, with a pooling before the last but one."""
    layers: list[nn.Module] = []
    for index, width in enumerate(widths):
        if index == len(widths) - 2:
            layers.append(nn.MaxPool2d(2))
        layers += _block(widths[index - 1] if index else in_chans, width)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], num_classes))


def _block(in_channels: int, out_channels: int) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU()]
