"""A model started from another's tensors."""

import pytest
import torch

from compress.training.init_from import init_from
from core.data import Data
from core.errors import ToolError
from core.model_reference import load_torch_model
from core.torch_model import TorchModel, torch_digest


def test_a_model_of_the_same_shape_starts_as_its_donor(untrained: TorchModel, trained: TorchModel) -> None:
    inputs = torch.randn(3, 1, 8, 8)
    started = init_from(untrained, trained)
    assert torch.equal(started.module(inputs), trained.module(inputs))
    assert not torch.equal(untrained.module(inputs), trained.module(inputs))
    assert started.history[-1].stage == "init_from"
    assert started.history[-1].parent == torch_digest(trained)


def test_tensors_of_another_shape_stay_the_models_own(tiny: str, trained: TorchModel, digits: Data) -> None:
    wide = load_torch_model(f"{tiny}:cnn,width=32", digits)
    started = init_from(wide, trained).module.state_dict()
    assert torch.equal(started["6.bias"], trained.module.state_dict()["6.bias"])
    assert torch.equal(started["0.weight"], wide.module.state_dict()["0.weight"])


def test_a_deeper_residual_network_starts_as_its_donor(digits: Data) -> None:
    shallow, deep = (load_torch_model(f"recipes/cifar_resnet.py:{name}") for name in ("resnet20", "resnet56"))
    inputs = torch.randn(2, 3, 32, 32)
    assert torch.allclose(init_from(deep, shallow).module(inputs), shallow.module(inputs), atol=1e-6)


def test_nothing_in_common_is_refused(tiny: str, trained: TorchModel) -> None:
    other = load_torch_model(f"{tiny}:mlp", input_shape=(5,))
    with pytest.raises(ToolError, match="shares no tensor of the same name and shape"):
        init_from(other, trained)
