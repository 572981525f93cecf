"""Hints: what a student's inner features may be taught by a teacher's, layer by layer.

A hint is written ``METHOD:STUDENT_PATH=TEACHER_PATH`` with module paths as torch names them, and ``,weight=W`` behind.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from core.errors import ToolError, did_you_mean
from core.module_paths import module_at
from core.outputs import logits_in

RKD_DISTANCE_WEIGHT, RKD_ANGLE_WEIGHT = 25.0, 50.0  # lambda_D and lambda_A of Park et al.
DEFAULT_WEIGHTS = {"fitnet": 100.0, "at": 1000.0, "rkd": 1.0}  # of Tian et al. 2020 (arXiv 1910.10699), on CIFAR-100

ROUNDING = 1e-6  # of float32, with room

Features = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Hint:
    """One pair of layers.

    Attributes:
        method: ``fitnet``, ``at`` or ``rkd``.
        student_path: The student's module whose output is taught.
        teacher_path: The teacher's module whose output teaches.
        weight: Factor of this hint's loss.
    """

    method: str
    student_path: str
    teacher_path: str
    weight: float


def parse_hint(text: str) -> Hint:
    """Parse ``METHOD:STUDENT_PATH=TEACHER_PATH[,weight=W]``.

    Raises:
        ToolError: It is written otherwise, the method is unknown, or the weight is not above 0.
    """
    layers, *arguments = text.split(",")
    method, colon, paths = layers.partition(":")
    student_path, equals, teacher_path = paths.partition("=")
    if not (colon and equals and student_path and teacher_path):
        raise ToolError(f"hint {text!r}: write METHOD:STUDENT_PATH=TEACHER_PATH, such as fitnet:layer3=layer3")
    if method not in DEFAULT_WEIGHTS:
        known = ", ".join(DEFAULT_WEIGHTS)
        raise ToolError(
            f"hint {text!r}: unknown method {method!r}; it is one of {known}.{did_you_mean(method, LOSSES)}"
        )
    weight = DEFAULT_WEIGHTS[method]
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key.strip() != "weight":
            raise ToolError(f"hint {text!r}: unknown argument {key.strip()!r}; it takes weight")
        try:
            weight = float(value)
        except ValueError:
            weight = 0.0
        if not 0 < weight < float("inf"):
            raise ToolError(f"hint {text!r}: weight is {value!r}; it is a number above 0")
    return Hint(method, student_path.strip(), teacher_path.strip(), weight)


class Tapped(nn.Module):
    """A model that returns, beside its logits, what the modules at some paths put out.

    Raises:
        ToolError: There is no module at a path.
    """

    def __init__(self, module: nn.Module, paths: Sequence[str], whose: str) -> None:
        super().__init__()
        self.module = module
        self._paths = tuple(paths)
        self._seen: dict[str, Tensor] = {}
        for path in set(paths):
            module_at(module, path, f"take a hint from in the {whose}").register_forward_hook(self._keep(path))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Features]:
        """Return logits (N, K) and the outputs of the modules, in the order of their paths, images channels first."""
        self._seen.clear()
        logits = logits_in(self.module(*inputs))
        missing = [path for path in self._paths if path not in self._seen]
        if missing:
            raise ToolError(f"hint: the module {missing[0]!r} did not run, so it has no output to compare")
        features = tuple(_channels_first(self._seen[path], inputs[0]) for path in self._paths)
        self._seen.clear()
        return logits, features

    def _keep(self, path: str) -> Callable[[nn.Module, object, object], None]:
        def keep(_module: nn.Module, _inputs: object, output: object) -> None:
            if not isinstance(output, Tensor) or output.ndim < 2:
                raise ToolError(f"hint: the module {path!r} puts out no tensor (N, ...) that could be compared")
            self._seen[path] = output.clone()  # what follows may change it in place

        return keep


def _channels_first(feature: Tensor, inputs: Tensor) -> Tensor:
    """Bring (N, H, W, C), as Swin has it, to (N, C, H, W): where only that has the shape of the images it came from."""
    if feature.ndim != 4 or inputs.ndim != 4:
        return feature
    first, second, third = feature.shape[1:]
    is_last = _has_shape_of(first, second, inputs) and not _has_shape_of(second, third, inputs)
    return feature.permute(0, 3, 1, 2) if is_last else feature


def _has_shape_of(height: int, width: int, images: Tensor) -> bool:
    """Tell whether a map has the aspect ratio of images (N, C, H, W), each side rounded by up to one."""
    of_height, of_width = images.shape[2:]
    slack = max(of_height, of_width) if of_height != of_width else 0  # the sides of a square are rounded alike
    return abs(height * of_width - width * of_height) <= slack


def make_adapters(hints: Sequence[Hint], student: Features, teacher: Features) -> nn.ModuleList:
    """Make what brings each of a student's features to the form that its hint compares, to be trained with the student.

    For ``fitnet`` a map to the teacher's channels, a 1x1 convolution or a linear one; nothing for the others.

    Args:
        hints: As many as there are features.
        student: One batch of the student's features, each (N, C, H, W), (N, L, C) or (N, C).
        teacher: The teacher's.

    Raises:
        ToolError: A hint cannot compare its two features.
    """
    adapters = nn.ModuleList()
    for hint, ours, theirs in zip(hints, student, teacher, strict=True):
        least_rank = {"fitnet": 2, "at": 3, "rkd": 2}[hint.method]
        is_alike = hint.method == "rkd" or (ours.ndim == theirs.ndim and _sizes_meet(ours, theirs))
        if not is_alike or min(ours.ndim, theirs.ndim) < least_rank:
            raise ToolError(
                f"hint {hint.method} cannot compare {hint.student_path!r} of shape {tuple(ours.shape[1:])} with "
                f"{hint.teacher_path!r} of shape {tuple(theirs.shape[1:])}; rkd compares any two"
            )
        adapters.append(_to_channels(ours, theirs) if hint.method == "fitnet" else nn.Identity())
    return adapters


def fitnet_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of features (Romero et al. 2015, https://arxiv.org/abs/1412.6550, equation 3).

    Args:
        student: Adapted to the teacher's channels: (N, C, H, W), (N, L, C) or (N, C).
        teacher: Alike; images of another size are pooled to the smaller of both.
    """
    return functional.mse_loss(*_same_size(student, teacher))


def at_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of attention maps (Zagoruyko and Komodakis 2017, https://arxiv.org/abs/1612.03928).

    A map is the mean square over channels, scaled to length 1: widths need not agree, and nothing is added.

    Args:
        student: (N, C, H, W) or (N, L, C).
        teacher: Alike, of any number of channels.
    """
    first, second = (_attention(one) for one in _same_size(student, teacher))
    return functional.mse_loss(first, second)


def rkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the relational loss of Park et al. 2019 (https://arxiv.org/abs/1904.05068, equations 6 and 9), weighted.

    Distances between samples, and angles between triplets of them, are to agree: features of any kind will do, averaged
    over their places.

    Args:
        student: (N, C, H, W), (N, L, C) or (N, C), N at least 3.
        teacher: Alike, of any kind and size.
    """
    first, second = _embedding(student), _embedding(teacher)
    distance = functional.smooth_l1_loss(_distances(first), _distances(second))
    angle = functional.smooth_l1_loss(_angles(first), _angles(second))
    return RKD_DISTANCE_WEIGHT * distance + RKD_ANGLE_WEIGHT * angle


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"fitnet": fitnet_loss, "at": at_loss, "rkd": rkd_loss}


def hints_loss(hints: Sequence[Hint], student: Features, teacher: Features) -> Tensor:
    """Return the weighted sum of all hints' losses; features in the order of the hints, at least one."""
    terms = [
        hint.weight * LOSSES[hint.method](one.float(), other.float())
        for hint, one, other in zip(hints, student, teacher, strict=True)
    ]
    return torch.stack(terms).sum()


def _same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.ndim != 4 or student.shape[2:] == teacher.shape[2:]:
        return student, teacher
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    return functional.adaptive_avg_pool2d(student, size), functional.adaptive_avg_pool2d(teacher, size)


def _sizes_meet(student: Tensor, teacher: Tensor) -> bool:
    """Tell whether features have the same places, or can be pooled to the same."""
    return student.ndim != 3 or student.shape[1] == teacher.shape[1]


def _to_channels(student: Tensor, teacher: Tensor) -> nn.Module:
    if student.ndim == 4:
        return nn.Conv2d(student.shape[1], teacher.shape[1], 1, bias=False)
    return nn.Linear(student.shape[-1], teacher.shape[-1], bias=False)


def _embedding(feature: Tensor) -> Tensor:
    """Return one vector (N, C) a sample."""
    if feature.ndim == 4:
        return feature.mean((2, 3))
    return feature.mean(1) if feature.ndim == 3 else feature


def _attention(feature: Tensor) -> Tensor:
    """Return the attention map (N, positions) of a feature (N, C, H, W) or (N, L, C)."""
    channels = 1 if feature.ndim == 4 else -1
    return functional.normalize(feature.square().mean(channels).flatten(1))


def _distances(rows: Tensor) -> Tensor:
    """Return the distances between rows as shares of their mean: (N, D) -> (N, N); all 0 where the rows are equal."""
    distances = _lengths(_inner_products(rows))
    mean = distances.sum() / (distances > 0).sum().clamp_min(1)
    return distances / torch.where(mean > 0, mean, 1.0)


def _angles(rows: Tensor) -> Tensor:
    """Return the cosine of the angle at each row between each two others: (N, D) -> (N, N, N)."""
    products = _inner_products(rows)
    # at i between j and k, (r_j - r_i) (r_k - r_i) multiplied out: that needs no (N, N, D)
    corner = products[None] - products[:, :, None] - products[:, None, :] + products.diagonal()[:, None, None]
    lengths = _lengths(products)
    divisor = lengths[:, :, None] * lengths[:, None, :]
    return corner / torch.where(divisor > 0, divisor, 1.0) * (divisor > 0)


def _inner_products(rows: Tensor) -> Tensor:
    """Return the inner products of rows about their mean, where less is lost to rounding: (N, D) -> (N, N)."""
    centred = rows - rows.mean(0)
    return centred @ centred.T


def _lengths(products: Tensor) -> Tensor:
    """Return the distances between rows from their inner products (N, N); 0 where rounding is all there is."""
    own = products.diagonal()
    sums = own[:, None] + own[None]
    squares = sums - 2 * products
    is_apart = squares > ROUNDING * sums
    return torch.where(is_apart, squares, 1.0).sqrt() * is_apart
