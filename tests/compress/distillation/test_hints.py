"""Hints against independent implementations, their adapters, and what is refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from compress.distillation.config import DistillConfig
from compress.distillation.distill import distill
from compress.distillation.hints import (
    Hint,
    Tapped,
    at_loss,
    fitnet_loss,
    hints_loss,
    make_adapters,
    parse_hint,
    rkd_loss,
)
from core.data import Data
from core.errors import ToolError
from core.model_reference import load_torch_model
from core.onnx_model import OnnxModel
from core.torch_model import TorchModel

HINTS = {"fitnet": "fitnet:3=3", "at": "at:3=3", "rkd": "rkd:4=4"}


def feature(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def attention_by_hand(one: torch.Tensor) -> torch.Tensor:
    maps = torch.stack([sum(channel**2 for channel in sample) / len(sample) for sample in one]).reshape(len(one), -1)
    return torch.stack([row / row.pow(2).sum().sqrt() for row in maps])


def relations_by_hand(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances of all pairs as shares of the mean of those that are not 0, and cosines at every vertex."""
    num = len(rows)
    distances = torch.tensor(
        [[float((rows[i] - rows[j]).pow(2).sum().sqrt()) for j in range(num)] for i in range(num)], dtype=rows.dtype
    )
    distances = distances / distances[distances > 0].mean()
    angles = torch.zeros(num, num, num, dtype=rows.dtype)
    for i in range(num):
        for j in range(num):
            for k in range(num):
                one, other = rows[j] - rows[i], rows[k] - rows[i]
                if one.norm() > 0 and other.norm() > 0:
                    angles[i, j, k] = (one @ other) / (one.norm() * other.norm())
    return distances, angles


def test_fitnet_is_the_mean_squared_difference() -> None:
    one, other = feature(4, 3, 5, 5, seed=1), feature(4, 3, 5, 5, seed=2)
    assert fitnet_loss(one, other) == pytest.approx(float(((one - other) ** 2).sum() / one.numel()), rel=1e-6)


def test_at_compares_maps_of_any_width() -> None:
    one, other = feature(4, 3, 5, 5, seed=1), feature(4, 7, 5, 5, seed=2)
    expected = (attention_by_hand(one) - attention_by_hand(other)).pow(2).mean()
    assert at_loss(one, other) == pytest.approx(float(expected), rel=1e-6)


def test_at_reads_tokens_too() -> None:
    one, other = feature(4, 6, 3, seed=1), feature(4, 6, 8, seed=2)
    as_images = [tokens.transpose(1, 2).unsqueeze(3) for tokens in (one, other)]
    assert at_loss(one, other) == pytest.approx(float(at_loss(*as_images)), rel=1e-12)


def test_rkd_compares_distances_and_angles() -> None:
    one, other = feature(6, 5, seed=1), feature(6, 9, seed=2)
    (distance_1, angle_1), (distance_2, angle_2) = relations_by_hand(one), relations_by_hand(other)
    expected = 25 * functional.smooth_l1_loss(distance_1, distance_2) + 50 * functional.smooth_l1_loss(angle_1, angle_2)
    assert rkd_loss(one, other) == pytest.approx(float(expected), rel=1e-6)


def test_rkd_averages_over_places_first() -> None:
    images = feature(5, 4, 3, 3, seed=1)
    assert rkd_loss(images, feature(5, 2, seed=2)) == rkd_loss(images.mean((2, 3)), feature(5, 2, seed=2))


@pytest.mark.parametrize("loss", [fitnet_loss, at_loss, rkd_loss])
def test_equal_features_cost_nothing_and_give_finite_gradients(loss) -> None:
    one = feature(5, 4, 3, 3, seed=1).requires_grad_()
    value = loss(one, one.detach())
    value.backward()
    assert float(value.detach()) == pytest.approx(0, abs=1e-12)
    assert one.grad.isfinite().all()


@pytest.mark.parametrize("loss", [fitnet_loss, at_loss])
def test_images_of_another_size_are_pooled_to_the_smaller(loss) -> None:
    small, large = feature(2, 3, 4, 4, seed=1), feature(2, 3, 8, 8, seed=2)
    assert torch.equal(loss(small, large), loss(small, functional.avg_pool2d(large, 2)))


def test_adapters_bring_channels_together() -> None:
    hints = [Hint("fitnet", "a", "b", 1.0), Hint("fitnet", "a", "b", 1.0), Hint("at", "a", "b", 1.0)]
    ours = (torch.zeros(2, 3, 4, 4), torch.zeros(2, 5), torch.zeros(2, 3, 4, 4))
    theirs = (torch.zeros(2, 8, 4, 4), torch.zeros(2, 9), torch.zeros(2, 8, 4, 4))
    adapters = make_adapters(hints, ours, theirs)
    shapes = [tuple(adapt(one).shape) for adapt, one in zip(adapters, ours, strict=True)]
    assert shapes == [(2, 8, 4, 4), (2, 9), (2, 3, 4, 4)]


class PutOut(nn.Module):
    """Puts out (N, H, W, C), as Swin's stages do, or (N, C, H, W)."""

    def __init__(self, *, channels: int, channels_last: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, channels, 4, stride=4)
        self.stage = nn.Identity()
        self.channels_last = channels_last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.convolution(x)
        return self.stage(found.permute(0, 2, 3, 1) if self.channels_last else found).flatten(1)


@pytest.mark.parametrize("size", [(32, 32), (32, 20), (33, 21)], ids=str)
@pytest.mark.parametrize("channels", [5, 24])
def test_features_with_channels_last_are_compared_by_place(size: tuple[int, int], channels: int) -> None:
    images = torch.randn(2, 3, *size)
    first, last = (PutOut(channels=channels, channels_last=layout) for layout in (False, True))
    last.load_state_dict(first.state_dict())
    (ours,), (theirs,) = (Tapped(module, ["stage"], "student")(images)[1] for module in (last, first))
    assert torch.equal(ours, theirs)
    (adapter,) = make_adapters([Hint("fitnet", "stage", "stage", 1.0)], (ours,), (torch.zeros(2, 7, 4, 4),))
    assert tuple(adapter(ours).shape) == (2, 7, *theirs.shape[2:])


@pytest.mark.parametrize(
    ("method", "ours", "theirs"),
    [
        pytest.param("fitnet", (2, 3, 4, 4), (2, 3), id="an image and a vector"),
        pytest.param("at", (2, 3), (2, 3), id="vectors have no places to attend to"),
        pytest.param("at", (2, 6, 3), (2, 7, 3), id="tokens that cannot be pooled"),
    ],
)
def test_features_that_cannot_be_compared_are_refused(
    method: str, ours: tuple[int, ...], theirs: tuple[int, ...]
) -> None:
    with pytest.raises(ToolError, match=rf"hint {method} cannot compare 'a' of shape .* with 'b' of shape"):
        make_adapters([Hint(method, "a", "b", 1.0)], (torch.zeros(ours),), (torch.zeros(theirs),))


def test_weights_scale_the_hints() -> None:
    one, other = (feature(4, 3, 5, 5, seed=1),), (feature(4, 3, 5, 5, seed=2),)
    single, double = (hints_loss([Hint("at", "a", "b", weight)], one, other) for weight in (1.0, 2.0))
    assert double == 2 * single


def test_a_hint_is_parsed_with_its_weight() -> None:
    assert parse_hint("fitnet:layer3.0=stages.2,weight=5") == Hint("fitnet", "layer3.0", "stages.2", 5.0)
    assert parse_hint("at:a=b") == Hint("at", "a", "b", 1000.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layer3=layer3", "write METHOD:STUDENT_PATH=TEACHER_PATH"),
        ("at:layer3", "write METHOD:STUDENT_PATH=TEACHER_PATH"),
        ("fitnt:a=b", "unknown method 'fitnt'; it is one of fitnet, at, rkd. Did you mean 'fitnet'?"),
        ("at:a=b,wait=3", "unknown argument 'wait'; it takes weight"),
        ("at:a=b,weight=0", "weight is '0'; it is a number above 0"),
        ("at:a=b,weight=much", "weight is 'much'; it is a number above 0"),
    ],
)
def test_a_hint_written_wrongly_is_explained(text: str, message: str) -> None:
    with pytest.raises(ToolError) as raised:
        DistillConfig(hints=(text,))
    assert message in str(raised.value)


def test_tapped_puts_out_what_its_modules_do() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    inputs = torch.randn(5, 3)
    logits, features = Tapped(net, ["1", "0"], "student")(inputs)
    assert torch.equal(logits, net(inputs))
    assert torch.equal(features[1], net[0](inputs))
    assert torch.equal(features[0], net[1](net[0](inputs)))


def test_a_module_that_does_not_run_is_named() -> None:
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.used(inputs)

    with pytest.raises(ToolError, match="the module 'unused' did not run"):
        Tapped(Lazy(), ["unused"], "student")(torch.randn(2, 3))


def test_a_module_that_puts_out_no_tensor_is_named() -> None:
    class Twice(nn.Module):
        def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return inputs, inputs

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice = Twice()

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.twice(inputs)[0]

    with pytest.raises(ToolError, match=r"the module 'twice' puts out no tensor \(N, \.\.\.\) that could be compared"):
        Tapped(Pair(), ["twice"], "student")(torch.randn(2, 3))


@pytest.mark.parametrize("method", HINTS)
def test_a_hint_brings_the_students_features_to_the_teachers(
    method: str, untrained: TorchModel, trained: TorchModel, few_digits: Data
) -> None:
    def distance(model: TorchModel) -> float:
        batch = few_digits.train.samples.array[:32].float() / 128 - 1
        path = HINTS[method].partition(":")[2].partition("=")[0]
        with torch.no_grad():
            _, (ours,) = Tapped(model.module, [path], "student")(batch)
            _, (theirs,) = Tapped(trained.module, [path], "teacher")(batch)
        return float({"fitnet": fitnet_loss, "at": at_loss, "rkd": rkd_loss}[method](ours, theirs))

    config = DistillConfig(epochs=4, batch_size=32, lr=0.02, kd_ratio=0.5)
    if method == "fitnet":  # its adapter may turn features; what it teaches shows in the logits
        weight = ",weight=1"
        result = distill(untrained, trained, few_digits, replace_hints(config, HINTS[method] + weight))
        assert result.report.validation_accuracy > 60
        return
    plain, hinted = (
        distill(untrained, trained, few_digits, one).model for one in (config, replace_hints(config, HINTS[method]))
    )
    assert distance(hinted) < 0.8 * distance(plain)


def replace_hints(config: DistillConfig, hint: str) -> DistillConfig:
    from dataclasses import replace

    return replace(config, hints=(hint,))


def test_the_student_comes_back_as_it_was_built(untrained: TorchModel, trained: TorchModel, few_digits: Data) -> None:
    config = DistillConfig(epochs=1, batch_size=64, hints=("fitnet:3=3",))
    module = distill(untrained, trained, few_digits, config).model.module
    assert module.state_dict().keys() == untrained.module.state_dict().keys()
    assert not any(one._forward_hooks for one in module.modules())


@pytest.mark.parametrize(
    ("hint", "message"),
    [
        ("fitnet:3.conv11=3", r"no module '3.conv11' to take a hint from in the student. Did you mean '3.conv\d'"),
        ("fitnet:3=3.cnv1", r"no module '3.cnv1' to take a hint from in the teacher. Did you mean '3.conv1'"),
    ],
)
def test_a_path_that_is_not_there_suggests_the_nearest(
    hint: str, message: str, untrained: TorchModel, trained: TorchModel, few_digits: Data
) -> None:
    with pytest.raises(ToolError, match=message):
        distill(untrained, trained, few_digits, DistillConfig(hints=(hint,)))


def test_an_onnx_teacher_gives_no_hints(untrained: TorchModel, exported: OnnxModel, few_digits: Data) -> None:
    with pytest.raises(ToolError, match="hints need the teacher's inner features, which the ONNX file"):
        distill(untrained, exported, few_digits, DistillConfig(hints=("at:3=3",)))


def test_a_wider_teacher_is_compared_through_an_adapter(tiny: str, untrained: TorchModel, few_digits: Data) -> None:
    wide = load_torch_model(f"{tiny}:cnn,width=24", few_digits)
    report = distill(untrained, wide, few_digits, DistillConfig(epochs=1, batch_size=64, hints=("fitnet:3=3",))).report
    assert report.metrics[0]["train_loss"] > 0


def test_a_feature_is_kept_as_its_module_put_it_out() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    inputs = torch.randn(5, 3)
    _, (feature,) = Tapped(net, ["0"], "student")(inputs)
    assert torch.equal(feature, net[0](inputs))
    assert (feature < 0).any()


def test_equal_samples_have_no_relations() -> None:
    rows = torch.ones(4, 3, requires_grad=True)
    loss = rkd_loss(rows, feature(4, 5, seed=1).float())
    loss.backward()
    assert loss.isfinite()
    assert rows.grad.isfinite().all()
