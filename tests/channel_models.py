"""Factories of models that split, join and shuffle their channels, named as tests/channel_models.py:NAME."""

import torch
from torch import Tensor, nn
from torch.nn import functional

CHANNELS = 24


class Head(nn.Module):
    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean((2, 3)))


class Halves(nn.Module):
    """Reads the second half before the first, and twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(CHANNELS // 2, CHANNELS // 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        kept, read = x.chunk(2, dim=1)
        return torch.cat((read + self.inner(read), kept), 1)


class Parts(nn.Module):
    """Splits by a number that it holds (Res2Net)."""

    def __init__(self) -> None:
        super().__init__()
        self.width = CHANNELS // 3
        self.convs = nn.ModuleList([nn.Conv2d(self.width, self.width, 3, padding=1) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = torch.split(x, self.width, 1)
        made = self.convs[0](first)
        return torch.cat((made, self.convs[1](made + second), third), 1)


class Reckons(Halves):
    """Reckons the size of its parts from the whole that it holds (CSPNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = CHANNELS
        self.paths = [[0], [1]]  # are no sizes

    def forward(self, x: Tensor) -> Tensor:
        kept, read = x.split(self.channels // 2, dim=1)
        return torch.cat((read + self.inner(read), kept), 1)


class Uneven(nn.Module):
    """Splits into sizes that it holds (MixNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [CHANNELS - 8, 8]
        self.convs = nn.ModuleList([nn.Conv2d(size, size, 3, padding=1) for size in self.sizes])

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([conv(part) for conv, part in zip(self.convs, x.split(self.sizes, 1), strict=True)], 1)


class Shuffle(nn.Module):
    """Two halves, one convolved, shuffled (ShuffleNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS // 2, CHANNELS // 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)
        x = torch.cat((first, self.conv(second)), 1)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return x.view(batch, channels, height, width)


class Selects(nn.Module):
    """Weighs two branches by what one layer says of both (selective kernels)."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList([nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(2)])
        self.select = nn.Conv2d(CHANNELS, 2 * CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([branch(x) for branch in self.branches], dim=1)
        weights = self.select(both.sum(1).mean((2, 3), keepdim=True))
        return (both * weights.view(x.shape[0], 2, -1, 1, 1).softmax(1)).sum(1)


class Uncalled(nn.Module):
    """Uses the weights of a layer without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.conv.weight, self.conv.bias)


class HoldsItsWidth(nn.Module):
    """Reshapes to widths that it holds, one of them for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.width = CHANNELS
        self._width = CHANNELS
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.reshape(x.shape[0], self._width, *x.shape[2:])).reshape(x.shape[0], self.width, *x.shape[2:])


class HoldsANumber(Halves):
    """Holds a number that happens to be the width of a half."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = CHANNELS // 2

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.factor


class Multiplies(nn.Module):
    """Makes several channels of each, depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, 2 * CHANNELS, 3, padding=1, groups=CHANNELS)
        self.back = nn.Conv2d(2 * CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.conv(x))


class Biased(nn.Module):
    """Attention over pixels with a bias for each pair of them."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(CHANNELS, CHANNELS), nn.Linear(CHANNELS, CHANNELS)
        self.bias = nn.Parameter(torch.zeros(pixels, pixels))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2).transpose(1, 2)
        scores = self.query(flat) @ self.key(flat).transpose(1, 2) + self.bias
        return (scores.softmax(-1) @ flat).transpose(1, 2).reshape(x.shape)


class Attends(nn.Module):
    """Attention over pixels by hand, under names of its own, whose heads are as wide as it says."""

    def __init__(self, names: tuple[str, ...], scale: str) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.scale = 4, CHANNELS // 4, (CHANNELS // 4) ** -0.5
        self.names, self.scaled_by = names, scale
        for name in names:
            self.add_module(name, nn.Linear(CHANNELS, CHANNELS))
        self.out = nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2).transpose(1, 2)
        made = (self.get_submodule(name)(flat) for name in self.names)
        query, key, value = (one.view(*flat.shape[:2], -1, self.head_dim).transpose(1, 2) for one in made)
        scale = {"attribute": self.scale, "width": self.head_dim**-0.5, "tensor": query.shape[-1] ** -0.5}
        scores = (query @ key.transpose(2, 3) * scale[self.scaled_by]).softmax(-1)
        mixed = self.out((scores @ value).transpose(1, 2).flatten(2))
        return x + mixed.transpose(1, 2).reshape(x.shape)


class AttendsToChannels(nn.Module):
    """Attention between the channels, not the pixels, of each head (XCiT)."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.qkv, self.out = nn.Linear(CHANNELS, 3 * CHANNELS), nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.qkv(x.flatten(2).transpose(1, 2))
        query, key, value = flat.reshape(*flat.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 4, 1)
        mixed = (query @ key.transpose(2, 3)).softmax(-1) @ value
        return x + self.out(mixed.flatten(1, 2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)


class Upsamples(nn.Module):
    """A transposed convolution between convolutions, as in a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(CHANNELS, CHANNELS, 2, stride=2)
        self.up = nn.ConvTranspose2d(CHANNELS, CHANNELS // 2, 2, stride=2)
        self.back = nn.Conv2d(CHANNELS // 2, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.up(self.down(x)))


ALL = (Halves, HoldsANumber, Parts, Reckons, Uneven, Shuffle, Selects, Uncalled, HoldsItsWidth, Multiplies, Upsamples)
BLOCKS = {one.__name__: one for one in ALL}


def model(num_classes: int = 10, in_chans: int = 1, block: str = "Halves", depth: int = 1) -> nn.Module:
    """Return blocks of a kind between a convolution and a classifier."""
    stem = nn.Conv2d(in_chans, CHANNELS, 3, padding=1)
    between = [nn.Sequential(BLOCKS[block](), nn.BatchNorm2d(CHANNELS), nn.ReLU()) for _ in range(depth)]
    return nn.Sequential(stem, nn.ReLU(), *between, Head(CHANNELS, num_classes))


def biased(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    """Return attention with a bias of its scores, for images of 4 x 4, between convolutions."""
    ends = nn.Conv2d(in_chans, CHANNELS, 3, padding=1), nn.Conv2d(CHANNELS, CHANNELS, 1)
    return nn.Sequential(ends[0], Biased(16), ends[1], nn.ReLU(), Head(CHANNELS, num_classes))


def attention(
    num_classes: int = 10, in_chans: int = 1, names: str = "query-key-value", scale: str = "attribute"
) -> nn.Module:
    """Return attention of projections with these names, scaled by a held number or by a width that it looks up."""
    stem, last = nn.Conv2d(in_chans, CHANNELS, 3, padding=1), nn.Conv2d(CHANNELS, CHANNELS, 1)
    return nn.Sequential(stem, Attends(tuple(names.split("-")), scale), last, nn.ReLU(), Head(CHANNELS, num_classes))


def channel_attention(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    """Return attention between channels."""
    stem = nn.Conv2d(in_chans, CHANNELS, 3, padding=1)
    return nn.Sequential(stem, AttendsToChannels(), nn.ReLU(), Head(CHANNELS, num_classes))


def words(num_classes: int = 10, vocabulary: int = 12) -> nn.Module:
    """Return linear layers after an embedding, one of which adds to it, with no norm between."""

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(vocabulary, CHANNELS)
            self.mix, self.linear = nn.Linear(CHANNELS, CHANNELS), nn.Linear(CHANNELS, num_classes)

        def forward(self, x: Tensor) -> Tensor:
            found = self.embedding(x.abs().mul(9).long() % vocabulary)
            return self.linear((found + self.mix(found)).mean(1))

    return Words()
