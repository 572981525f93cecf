"""What channels are ranked by, against an independent computation."""

import torch
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from compress.channel_cut import CutSettings
from compress.channel_groups import channel_groups
from compress.ranking import SQUARED_SAMPLES, RankingConfig, prepare_ranking
from core.batches import batches
from core.data import Data, spread
from core.torch_model import TorchModel


def squared_gradients(model: TorchModel, data: Data) -> dict[str, torch.Tensor]:
    """The mean of the squared gradients of single samples, computed for all samples at once."""
    split = data.split("train").take(spread(len(data.split("train")), SQUARED_SAMPLES))
    ((images,), targets) = next(iter(batches(split, model.preprocessing, SQUARED_SAMPLES)))
    parameters = {name: parameter.detach() for name, parameter in model.module.named_parameters()}
    buffers = dict(model.module.named_buffers())

    def loss(parameters: dict[str, torch.Tensor], image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        logits = functional_call(model.module, (parameters, buffers), (image[None],))
        return functional.cross_entropy(logits, target[None])

    found = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, images, targets)
    return {name: gradients.square().mean(0) for name, gradients in found.items()}


def test_hessian_goes_by_the_squared_gradients_of_single_samples(trained: TorchModel, digits: Data) -> None:
    module, _ = prepare_ranking(trained, RankingConfig(importance="hessian"), digits)
    expected = squared_gradients(trained, digits)
    for name, parameter in module.named_parameters():
        assert torch.allclose(parameter.grad, expected[name], rtol=1e-3, atol=1e-9), name


def test_hessian_orders_channels_by_their_squared_weights_times_that(trained: TorchModel, digits: Data) -> None:
    module, ignored = prepare_ranking(trained, RankingConfig(importance="hessian"), digits)
    settings = CutSettings(
        importance="hessian", scope="latency", round_to=1, max_pruning_ratio=1.0, ignored=ignored, seed=0
    )
    (inner,) = [group for group in channel_groups(module, trained, settings) if group.name == "3.conv1"]
    saliency = {
        name: squares * trained.module.get_parameter(name).detach() ** 2
        for name, squares in squared_gradients(trained, digits).items()
    }
    parts = (
        saliency["3.conv1.weight"].sum((1, 2, 3)),
        saliency["3.bn1.weight"],
        saliency["3.conv2.weight"].sum((0, 2, 3)),
    )
    assert torch.equal(inner.order, torch.stack(parts).mean(0).argsort())
