"""Building modules from timm, torchvision and factories, and what is said when they cannot be built."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from core.errors import ToolError
from core.model_source import build_module, fresh_source
from core.references import file_sha256
from core.torch_model import Source

DEFAULTS: dict[str, Any] = {"num_classes": 4, "in_chans": 1}


@pytest.mark.parametrize(
    ("kind", "name", "arguments"),
    [
        pytest.param("timm", "resnet18", {"num_classes": 4, "in_chans": 1}, id="timm-takes-both"),
        pytest.param("torchvision", "resnet18", {"num_classes": 4}, id="torchvision-takes-classes"),
    ],
)
def test_defaults_are_added_where_they_are_taken(kind: str, name: str, arguments: dict[str, Any]) -> None:
    assert fresh_source(kind, name, {}, None, DEFAULTS) == Source(kind=kind, name=name, arguments=arguments)


def test_what_the_user_gave_wins_over_defaults() -> None:
    source = fresh_source("timm", "resnet18", {"num_classes": 7}, None, DEFAULTS)
    assert source.arguments == {"num_classes": 7, "in_chans": 1}


def test_the_source_of_a_factory_holds_its_file_and_digest(factory_file: Path) -> None:
    source = fresh_source("factory", "mlp", {}, factory_file, DEFAULTS)
    assert source.arguments == {"num_classes": 4}
    assert source.file == str(factory_file)
    assert source.file_sha256 == file_sha256(factory_file)


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        pytest.param("timm", "resnet81", r"timm has no model 'resnet81'\. Did you mean 'resnet", id="timm"),
        pytest.param(
            "torchvision", "resnet81", r"torchvision has no model 'resnet81'\. Did you mean", id="torchvision"
        ),
        pytest.param("timm", "", r"timm has no model ''", id="empty"),
        pytest.param("torchvision", "zzzzzz", r"torchvision has no model 'zzzzzz'\.$", id="nothing-near"),
    ],
)
def test_a_misspelt_name_suggests_the_nearest(kind: str, name: str, said: str) -> None:
    with pytest.raises(ToolError, match=said):
        fresh_source(kind, name, {}, None, {})
    with pytest.raises(ToolError, match=said):
        build_module(Source(kind=kind, name=name))


def test_a_name_with_a_tag_of_pretrained_weights_is_known() -> None:
    assert fresh_source("timm", "resnet18.a1_in1k", {}, None, {}).name == "resnet18.a1_in1k"


Publish = Callable[..., dict[str, Tensor]]


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """``publish(name)`` puts weights where torchvision keeps what it has downloaded, and returns them."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)

    def published(name: str, **arguments: Any) -> dict[str, Tensor]:
        tensors = get_model(name, **arguments).state_dict()
        torch.save(tensors, tmp_path / "hub" / "checkpoints" / Path(get_model_weights(name)["DEFAULT"].url).name)
        return tensors

    return published


def test_torchvisions_published_weights_are_taken(publish: Publish, caplog: pytest.LogCaptureFixture) -> None:
    published = publish("squeezenet1_1")
    own = build_module(Source(kind="torchvision", name="squeezenet1_1", arguments={}), pretrained=True).state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in published.items())
    assert not caplog.text


def test_they_go_with_other_classes(publish: Publish, caplog: pytest.LogCaptureFixture) -> None:
    published = publish("squeezenet1_1")
    made = build_module(Source(kind="torchvision", name="squeezenet1_1", arguments={"num_classes": 6}), pretrained=True)
    head = ("classifier.1.weight", "classifier.1.bias")
    own = made.state_dict()
    assert own[head[0]].shape[0] == 6
    assert all(torch.equal(own[name], tensor) for name, tensor in published.items() if name not in head)
    assert "for other classes: classifier.1.bias, classifier.1.weight start random" in caplog.text


def test_modules_that_ask_for_their_version_find_it(publish: Publish) -> None:
    published = publish("mnasnet0_5")
    source = Source(kind="torchvision", name="mnasnet0_5", arguments={"num_classes": 6})
    own = build_module(source, pretrained=True).state_dict()
    assert torch.equal(own["layers.0.weight"], published["layers.0.weight"])


def test_they_do_not_go_with_another_width(publish: Publish) -> None:
    narrow = Source(kind="torchvision", name="mobilenet_v2", arguments={"width_mult": 0.5})
    publish("mobilenet_v2")
    with pytest.raises(ToolError, match=r"cannot build 'torchvision:mobilenet_v2' .*size mismatch"):
        build_module(narrow, pretrained=True)


@pytest.mark.parametrize("name", ["googlenet", pytest.param("inception_v3", marks=pytest.mark.slow)])
def test_what_was_trained_with_another_normalisation_undoes_it_also_when_rebuilt(publish: Publish, name: str) -> None:
    published = publish(name, init_weights=False, aux_logits=True)
    source = fresh_source("torchvision", name, {"init_weights": False}, None, {"num_classes": 4}, pretrained=True)
    made, rebuilt = build_module(source, pretrained=True), build_module(source)
    assert made.transform_input
    assert rebuilt.transform_input
    rebuilt.load_state_dict(made.state_dict())
    own = made.state_dict()
    assert all(torch.equal(own[key], published[key]) for key in own if not key.startswith("fc."))


@pytest.mark.parametrize(
    ("source", "num_classes"),
    [
        pytest.param(
            Source(kind="timm", name="test_resnet", arguments={"num_classes": 4, "in_chans": 1}), 4, id="timm"
        ),
        pytest.param(Source(kind="torchvision", name="squeezenet1_1", arguments={"num_classes": 6}), 6, id="tv"),
    ],
)
def test_a_library_model_is_built_in_evaluation_mode(source: Source, num_classes: int) -> None:
    module = build_module(source)
    assert not any(child.training for child in module.modules())
    with torch.no_grad():
        logits = module(torch.zeros(1, 1 if source.kind == "timm" else 3, 64, 64))
    assert logits.shape == (1, num_classes)


def test_a_factory_is_built_in_evaluation_mode(factory_file: Path) -> None:
    module = build_module(fresh_source("factory", "cnn", {"width": 4}, factory_file, DEFAULTS))
    assert not any(child.training for child in module.modules())
    with torch.no_grad():
        assert module(torch.zeros(1, 1, 8, 8)).shape == (1, 4)


@pytest.mark.parametrize(
    ("kind", "name", "arguments", "said"),
    [
        pytest.param("timm", "resnet18", {"depht": 3}, "'timm:resnet18' does not take .*'depht'", id="timm-unknown"),
        pytest.param("torchvision", "resnet18", {"in_chans": 1}, "'in_chans'", id="torchvision-unknown"),
        pytest.param("torchvision", "resnet18", {"num_classes": "ten"}, "'torchvision:resnet18'", id="wrong-type"),
        pytest.param("torchvision", "resnet18", {"num_classes": -3}, "'torchvision:resnet18'", id="negative"),
        pytest.param("timm", "resnet18.no_such_tag", {}, "'timm:resnet18.no_such_tag'", id="unknown-tag"),
        pytest.param("timm", "resnet18", {"output_stride": 7}, "'timm:resnet18'", id="timm-asserts"),
        pytest.param("timm", "resnet18", {"act_layer": "no_such"}, "'timm:resnet18'", id="timm-unknown-layer"),
        pytest.param("torchvision", "densenet121", {"growth_rate": 0}, "'torchvision:densenet121'", id="zero-width"),
    ],
)
def test_arguments_that_a_library_refuses_are_quoted(
    kind: str, name: str, arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(ToolError, match=said):
        build_module(Source(kind=kind, name=name, arguments=arguments))


@pytest.mark.parametrize(("returned", "called"), [("3", "int"), ("None", "NoneType"), ("nn.Linear", "type")])
def test_a_factory_that_returns_no_module_is_told(
    python_file: Callable[[str], Path], returned: str, called: str
) -> None:
    file = python_file(f"from torch import nn\ndef make():\n    return {returned}\n")
    source = fresh_source("factory", "make", {}, file, {})
    with pytest.raises(ToolError, match=rf"users\.py:make returned {called}, not a torch\.nn\.Module"):
        build_module(source)


def test_a_class_is_a_factory_too(python_file: Callable[[str], Path]) -> None:
    file = python_file(
        "from torch import nn\nclass Net(nn.Linear):\n"
        "    def __init__(self, num_classes):\n        super().__init__(5, num_classes)\n"
    )
    module = build_module(fresh_source("factory", "Net", {}, file, DEFAULTS))
    assert isinstance(module, nn.Linear)
    assert module.out_features == 4


def test_arguments_that_a_factory_does_not_take_are_quoted(factory_file: Path) -> None:
    source = fresh_source("factory", "mlp", {"width": 3}, factory_file, {})
    with pytest.raises(ToolError, match=r"nets\.py:mlp'.*'width'; the factory takes"):
        build_module(source)
