"""Convolutional networks for the embedded 8x8 digits, as a model factory file."""

from torch import nn


def teacher(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    """Build the wide teacher: (N, in_chans, 8, 8) -> (N, num_classes), about 0.3 M parameters."""
    return _network((64, 128, 128), num_classes, in_chans)


def student(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    """Build the narrow student: (N, in_chans, 8, 8) -> (N, num_classes), about 20 k parameters."""
    return _network((24, 32, 32), num_classes, in_chans)


def _network(widths: tuple[int, int, int], num_classes: int, in_chans: int) -> nn.Module:
    first, second, third = widths
    return nn.Sequential(
        *_block(in_chans, first),
        *_block(first, second),
        nn.MaxPool2d(2),
        *_block(second, third),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(third, num_classes),
    )


def _block(in_channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(out_channels), nn.ReLU()
