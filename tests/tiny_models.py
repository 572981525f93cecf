"""Factories that tests name as tests/tiny_models.py:NAME."""

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Untraceable(nn.Module):
    """Branches on the values it sees."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum().item() > 0 else x


class Gradientless(nn.Module):
    """Leaves torch for a moment, which works only where no gradient is recorded."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() * 2)


def cnn(num_classes: int = 10, in_chans: int = 1, width: int = 16) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_chans, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        Residual(width),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * width, num_classes),
    )


def deep(num_classes: int = 10, in_chans: int = 1, width: int = 32) -> nn.Module:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(in_chans, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
            self.blocks = nn.Sequential(*(Residual(width) for _ in range(6)))
            self.head = nn.Linear(width, num_classes)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))

    return Deep()


def untraceable(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    first, *rest = cnn(num_classes, in_chans)
    return nn.Sequential(first, nn.Sequential(nn.ReLU(), Untraceable()), *rest)


def gradientless(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    first, *rest = cnn(num_classes, in_chans)
    return nn.Sequential(first, nn.Sequential(nn.ReLU(), Gradientless()), *rest)


def fixed_batch(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    class FixedBatch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(2, -1) if x.shape[0] == 2 else x.flatten(1)

    return nn.Sequential(FixedBatch(), nn.Linear(64 * in_chans, num_classes))


def mlp(num_classes: int = 3, num_features: int = 5) -> nn.Module:
    return nn.Sequential(nn.Linear(num_features, 16), nn.ReLU(), nn.Linear(16, num_classes))


def needs_rgb(num_classes: int = 10) -> nn.Module:
    return cnn(num_classes, in_chans=3)


def logits_from_nowhere(num_classes: int = 10) -> nn.Module:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat((x, -x), 1)

    return nn.Sequential(cnn(num_classes), Twice())


def plain(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(in_chans, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, num_classes))
