"""What channels are ranked by, against an independent computation."""

import copy
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from compress.pruning.channel_cut import CutSettings, groups_of, pruner_of
from compress.pruning.channel_groups import channel_groups
from compress.pruning.prune import PruneConfig, prune
from compress.pruning.ranking import SQUARED_SAMPLES, RankingConfig, prepare_ranking
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
        importance="hessian", allocation="latency", round_to=1, max_pruning_ratio=1.0, ignored=ignored, seed=0
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


def by_magnitude(conv: torch.Tensor, scale: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    parts = conv.square().sum((1, 2, 3)), scale.square(), following.square().sum((0, 2, 3))
    return torch.stack(parts).mean(0)


def by_scale(_: torch.Tensor, scale: torch.Tensor, __: torch.Tensor) -> torch.Tensor:
    return scale.abs()


def by_distance(conv: torch.Tensor, _: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    """Of each channel's squared weights from all others', the nearest to their geometric median first."""
    rows = conv.square().flatten(1), following.square().transpose(0, 1).flatten(1)
    return torch.stack([torch.cdist(one, one).sum(1) for one in rows]).mean(0)


@pytest.mark.parametrize(("importance", "by"), [("magnitude", by_magnitude), ("bn", by_scale), ("fpgm", by_distance)])
def test_channels_are_in_the_order_of_the_criterion(
    trained: TorchModel, digits: Data, importance: Literal["magnitude", "bn", "fpgm"], by: Any
) -> None:
    module, ignored = prepare_ranking(trained, RankingConfig(importance=importance), digits)
    settings = CutSettings(
        importance=importance, allocation="latency", round_to=1, max_pruning_ratio=1.0, ignored=ignored, seed=0
    )
    (inner,) = [group for group in channel_groups(module, trained, settings) if group.name == "3.conv1"]
    names = ("3.conv1.weight", "3.bn1.weight", "3.conv2.weight")
    expected = by(*(trained.module.get_parameter(name).detach() for name in names))
    assert torch.equal(inner.order, expected.argsort())


def test_lamp_divides_by_all_that_is_at_least_as_large(trained: TorchModel, digits: Data) -> None:
    """Lee et al. 2021: what is left of a layer's weight once all smaller channels are gone."""
    module, ignored = prepare_ranking(trained, RankingConfig(importance="lamp"), digits)
    settings = CutSettings(
        importance="lamp", allocation="global", round_to=1, max_pruning_ratio=1.0, ignored=ignored, seed=0
    )
    with pruner_of(copy.deepcopy(module), trained, settings, module) as pruner:
        scores = {pruner.DG._module2name[group[0][0].target.module]: group for group in groups_of(pruner)}
        found = pruner.estimate_importance(scores["3.conv1"])
    names = ("3.conv1.weight", "3.bn1.weight", "3.conv2.weight")
    sizes = by_magnitude(*(trained.module.get_parameter(name).detach() for name in names))
    expected = torch.stack([size / sizes[sizes >= size].sum() for size in sizes])
    is_free = found < 1e5  # one channel is kept in any case
    assert int(is_free.sum()) == len(sizes) - 1
    torch.testing.assert_close(found[is_free], expected[is_free])


def test_taylor_orders_channels_by_how_the_loss_would_move(trained: TorchModel, digits: Data) -> None:
    module, ignored = prepare_ranking(trained, RankingConfig(importance="taylor"), digits)
    settings = CutSettings(
        importance="taylor", allocation="latency", round_to=1, max_pruning_ratio=1.0, ignored=ignored, seed=0
    )
    (inner,) = [group for group in channel_groups(module, trained, settings) if group.name == "3.conv1"]
    parameters = (module.get_parameter(f"3.{name}.weight") for name in ("conv1", "conv2"))  # batch norm is passed over
    conv, following = ((one.detach() * one.grad).abs() for one in parameters)
    parts = conv.sum((1, 2, 3)), following.sum((0, 2, 3))
    assert torch.equal(inner.order, torch.stack(parts).mean(0).argsort())


def test_isomorphic_takes_its_share_of_each_kind_of_group(trained: TorchModel) -> None:
    """Where one layer has all the small weights, global takes from it alone."""
    module = copy.deepcopy(trained.module)
    with torch.no_grad():
        for name in ("3.conv1.weight", "3.bn1.weight"):
            module.get_parameter(name)[:8] *= 1e-4
        module.get_parameter("3.conv2.weight")[:, :8] *= 1e-4
        module.get_parameter("3.conv2.weight")[:, 8:] += 0.1
    model = replace(trained, module=module)
    left = {}
    for allocation in ("global", "isomorphic"):
        pruned = prune(model, PruneConfig(pruning_ratio=0.25, allocation=allocation))
        left[allocation] = {layer.name: layer.channels_left for layer in pruned.report.layers}
    assert left["global"] == {"3.conv1": 8}
    assert left["isomorphic"] == {"0": 12, "3.conv1": 12, "3.conv2": 12}
