"""Mixing the samples of a batch pairwise, and their targets with them: mixup and CutMix."""

from collections.abc import Callable

from torch import Tensor
from torchvision.transforms import v2

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Images (N, C, H, W) of any dtype, classes (N,) -> mixed images float32, shares of the classes (N, K) float32."""


def mixing(mixup: float, cutmix: float, num_classes: int) -> Mix | None:
    """Return the function that mixes a batch; None where neither is asked for.

    Args:
        mixup: Alpha of the Beta distribution that mixing shares are drawn from; 0 for no mixup.
        cutmix: That of the areas pasted; 0 for no CutMix. With both, each batch draws one of the two.
        num_classes: K.
    """
    transforms = [
        transform(alpha=alpha, num_classes=num_classes)
        for transform, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix))
        if alpha
    ]
    if not transforms:
        return None
    choice = v2.RandomChoice(transforms)

    def mix(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        mixed, shares = choice(images.float(), targets.clamp_min(0))  # shares of unlabelled samples are not read
        return mixed, shares

    return mix
