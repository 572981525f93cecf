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


def frozen(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    """Return the same of which only the classifier trains."""
    module = cnn(num_classes, in_chans).requires_grad_(False)
    module.get_submodule("6").requires_grad_(True)
    return module


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


class ToldMore(Residual):
    """A block that is told something by keyword too (timm's relative position bias)."""

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return super().forward(x if bias is None else x + bias)


def told_more(num_classes: int = 10, in_chans: int = 1, width: int = 16) -> nn.Module:
    """Return residual blocks that are called with a keyword."""

    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(in_chans, width, 3, padding=1)
            self.blocks = nn.ModuleList([ToldMore(width) for _ in range(3)])
            self.head = nn.Linear(width, num_classes)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for block in self.blocks:
                x = block(x, bias=None)
            return self.head(x.mean((2, 3)))

    return Told()


def shared_block(num_classes: int = 10, in_chans: int = 1, width: int = 16) -> nn.Module:
    """Return a residual block that is run twice, and another one."""

    class Twice(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](self[0](x)))

    blocks = Twice(Residual(width), Residual(width))
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)
    return nn.Sequential(nn.Conv2d(in_chans, width, 3, padding=1), blocks, *head)


def untraceable(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    first, *rest = cnn(num_classes, in_chans)
    return nn.Sequential(first, nn.Sequential(nn.ReLU(), Untraceable()), *rest)


def gradientless(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    first, *rest = cnn(num_classes, in_chans)
    return nn.Sequential(first, nn.Sequential(nn.ReLU(), Gradientless()), *rest)


def gradientless_itself(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    """Return a model whose own forward a tracer cannot follow."""

    class Itself(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(in_chans, 16, 3, padding=1), nn.Linear(16, num_classes)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.from_numpy(self.stem(x).numpy() * 2).mean((2, 3)))

    return Itself()


def gradientless_blocks(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    """Return a model with a list of blocks that a tracer cannot follow."""

    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inner = nn.Conv2d(in_chans, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
            self.blocks = nn.ModuleList([Gradientless(), Gradientless()])
            self.last, self.head = nn.Conv2d(16, 16, 1), nn.Linear(16, num_classes)

        def forward(self, x: Tensor) -> Tensor:
            x = self.last(self.inner(self.stem(x)))
            for block in self.blocks:
                x = block(x)
            return self.head(x.mean((2, 3)))

    return Listed()


def fixed_batch(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    class FixedBatch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(2, -1) if x.shape[0] == 2 else x.flatten(1)

    return nn.Sequential(FixedBatch(), nn.Linear(64 * in_chans, num_classes))


def mlp(num_classes: int = 3, num_features: int = 5) -> nn.Module:
    return nn.Sequential(nn.Linear(num_features, 16), nn.ReLU(), nn.Linear(16, num_classes))


def wide(num_classes: int = 10, width: int = 16384) -> nn.Module:
    """More than 2 GB of weights."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.Linear(width, num_classes))


def windowed(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    """Attends within windows, an axis more than the exporter's attention has, with a mask for each head."""

    class Windowed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mask = nn.Parameter(torch.randn(2, 4, 4))
            self.head = nn.Linear(64 * in_chans, num_classes)

        def forward(self, x: Tensor) -> Tensor:
            windows = x.reshape(x.shape[0], -1, 2, 4, 4)
            mixed = nn.functional.scaled_dot_product_attention(windows, windows, windows, attn_mask=self.mask)
            return self.head(mixed.transpose(2, 3).flatten(1))

    return Windowed()


def needs_rgb(num_classes: int = 10) -> nn.Module:
    return cnn(num_classes, in_chans=3)


def logits_from_nowhere(num_classes: int = 10) -> nn.Module:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat((x, -x), 1)

    return nn.Sequential(cnn(num_classes), Twice())


def plain(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(in_chans, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, num_classes))


def recurrent(num_classes: int = 10, kind: str = "LSTM", num_layers: int = 1, bidirectional: bool = False) -> nn.Module:
    """Reads an image row by row; a GRU answers from its last state, an LSTM from its last output."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(8, 12)
            layer = getattr(nn, kind)
            self.rnn = layer(12, 16, num_layers=num_layers, bidirectional=bidirectional, batch_first=True)
            self.head = nn.Linear(16 * (2 if bidirectional else 1), num_classes)

        def forward(self, x: Tensor) -> Tensor:
            output, state = self.rnn(torch.relu(self.embed(x.squeeze(1))))
            return self.head(state[-1] if kind == "GRU" else output[:, -1])

    return Recurrent()


class SelfAttention(nn.Module):
    """As text models have it: projections of their own, and sizes that are kept."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size = heads, width // heads
        self.all_head_size = width
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], self.num_attention_heads, self.attention_head_size)
        query, key, value = (layer(x).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return mixed.transpose(1, 2).reshape(*x.shape[:2], self.all_head_size)


def text(num_classes: int = 2, vocabulary: int = 50, width: int = 32, layers: int = 2) -> nn.Module:
    """A small encoder of token numbers, given as floats."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.output = SelfAttention(width, 4), nn.Linear(width, width)
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm1(x + self.output(self.attention(x)))
            return self.norm2(x + self.mlp(x))

    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(vocabulary, width)
            self.layers = nn.Sequential(*(Layer() for _ in range(layers)))
            self.head = nn.Linear(width, num_classes)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layers(self.embedding(x.abs().long() % vocabulary)).mean(1))

    return Text()


class KeepsAWidth(nn.Module):
    """Knows how many channels it had when it was made."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shape = [width, 1, 1]
        self.scale = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(x) * x.mean((2, 3)).view(-1, *self.shape)


def keeps_a_width(num_classes: int = 10, in_chans: int = 1, depth: int = 1, kept: int = 1) -> nn.Module:
    later = [nn.Conv2d(16, 16, 1) for _ in range(depth - 1)]
    start = [nn.Conv2d(in_chans, 16, 3), KeepsAWidth(16)]
    for _ in range(kept - 1):
        start += [nn.Conv2d(16, 16, 1), KeepsAWidth(16)]
    return nn.Sequential(*start, *later, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))


def keeps_a_width_itself(num_classes: int = 10, in_chans: int = 1) -> nn.Module:
    class Itself(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            first, second, last = self
            return last(second(first(x)).view(-1, *[16, 6, 6]).mean((2, 3)))

    return Itself(nn.Conv2d(in_chans, 16, 3), nn.Conv2d(16, 16, 1), nn.Linear(16, num_classes))


def read_twice(num_classes: int = 3, num_features: int = 5) -> nn.Module:
    class ReadTwice(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            first, activation, last = self
            hidden = activation(first(x))
            return last(hidden) + 1e-4 * hidden.mean(1, keepdim=True)  # the same for every class

    return ReadTwice(*mlp(num_classes, num_features))


class Pair(nn.Module):
    """Numbers of words and a picture's features to logits and a score: two inputs, two outputs."""

    def __init__(self, num_classes: int, returns: str) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.features = nn.Linear(5, 8)
        self.head = nn.Linear(8, num_classes)
        self.returns = returns

    def forward(self, words: Tensor, picture: Tensor) -> object:
        mixed = torch.relu(self.embedding(words).mean(1) + self.features(picture))
        logits, score = self.head(mixed), mixed.sum(1)
        return {"classes": logits, "score": score} if self.returns == "dict" else (logits, score)


def pair(num_classes: int = 3, returns: str = "tuple") -> nn.Module:
    return Pair(num_classes, returns)
