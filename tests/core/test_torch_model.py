"""The torch carrier: made-up inputs, digests, and one run that proves a module fits its contract."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from core.errors import ToolError
from core.input_spec import InputSpec
from core.preprocessing import Preprocessing
from core.pruning_plan import PruningPlan
from core.torch_model import Source, TorchModel, example_inputs, num_params, run_once, torch_digest


def model_of(module: nn.Module, *shape: int) -> TorchModel:
    return TorchModel(
        name="nets.py:net",
        module=module,
        source=Source(kind="factory", name="net", file="/a/nets.py"),
        inputs=(InputSpec(name="input", shape=shape or (5,)),),
        preprocessing=Preprocessing(),
        labels=("a", "b"),
    )


class Returning(nn.Module):
    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> object:
        return self.value(x) if callable(self.value) else self.value


def test_example_inputs_have_the_models_shapes_and_depend_on_the_seed() -> None:
    model = model_of(nn.Linear(5, 2), 3, 4)
    (one,), (same,), (other,) = (example_inputs(model, 2, seed) for seed in (0, 0, 1))
    assert one.shape == (2, 3, 4)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_parameters_are_counted_and_buffers_are_not() -> None:
    assert num_params(nn.Sequential(nn.Linear(5, 2), nn.BatchNorm1d(2))) == 5 * 2 + 2 + 4


def test_run_once_returns_logits() -> None:
    assert run_once(model_of(nn.Linear(5, 3))).shape == (2, 3)


def test_run_once_leaves_no_hooks() -> None:
    module = nn.Sequential(nn.Linear(5, 3))
    run_once(model_of(module))
    with pytest.raises(ToolError, match="cannot run"):
        run_once(model_of(module, 4))
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in module.modules())


@pytest.mark.parametrize(
    ("module", "where"),
    [
        pytest.param(
            nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU(), nn.Linear(7, 2))), "in its module '1.1'", id="nested"
        ),
        pytest.param(nn.Linear(7, 2), "in its own forward", id="root"),
        pytest.param(nn.Sequential(nn.ReLU(), Returning(lambda x: 1 / 0)), "in its module '1': division", id="raises"),
    ],
)
def test_the_innermost_failing_module_is_named(module: nn.Module, where: str) -> None:
    with pytest.raises(ToolError, match=rf"nets\.py:net cannot run on an input of shape \(5,\), {where}") as caught:
        run_once(model_of(module))
    assert "--input-shape" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "described"),
    [
        pytest.param((1, 2), "an? int as 'logits'; every output must be a tensor", id="tuple"),
        pytest.param({"logits": 1}, "an? int as 'logits'; every output must be a tensor", id="dict"),
        pytest.param(None, "a NoneType; a model returns tensors, logits first", id="nothing"),
        pytest.param(
            lambda x: x.reshape(2, 5, 1), r"a tensor of shape \(2, 5, 1\); a classifier returns logits", id="three-axes"
        ),
        pytest.param(lambda x: x.sum(1), r"a tensor of shape \(2,\); a classifier returns logits", id="one-axis"),
    ],
)
def test_what_is_no_classifier_is_described(value: object, described: str) -> None:
    with pytest.raises(ToolError, match=rf"nets\.py:net returns {described}"):
        run_once(model_of(Returning(value)))


def test_logits_that_lose_the_batch_axis_are_refused() -> None:
    with pytest.raises(ToolError, match=r"returns a tensor of shape \(1, 10\)"):
        run_once(model_of(Returning(lambda x: x.reshape(1, 10))))


def test_the_digest_ignores_name_history_and_where_the_file_lies() -> None:
    model = model_of(nn.Linear(5, 2))
    moved = model.source.model_copy(update={"file": "/b/nets.py"})
    assert torch_digest(dataclasses.replace(model, name="x", source=moved)) == torch_digest(model)


def change_weight(model: TorchModel) -> TorchModel:
    state = {name: tensor + 1 for name, tensor in model.module.state_dict().items()}
    module = nn.Linear(5, 2)
    module.load_state_dict(state)
    return dataclasses.replace(model, module=module)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(change_weight, id="weights"),
        pytest.param(
            lambda model: dataclasses.replace(model, preprocessing=Preprocessing(scale=2)), id="preprocessing"
        ),
        pytest.param(lambda model: dataclasses.replace(model, plan=PruningPlan(shapes={"weight": (2, 5)})), id="plan"),
        pytest.param(lambda model: dataclasses.replace(model, source=Source(kind="timm", name="net")), id="source"),
    ],
)
def test_the_digest_follows_weights_and_architecture(change: Callable[[TorchModel], TorchModel]) -> None:
    model = model_of(nn.Linear(5, 2))
    assert torch_digest(change(model)) != torch_digest(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_tensors_of_every_dtype_have_a_digest(dtype: torch.dtype) -> None:
    model = model_of(nn.Linear(5, 2))
    model.module.register_buffer("extra", torch.ones(3, dtype=dtype))
    before = torch_digest(model)
    model.module.get_buffer("extra")[1] = 2
    assert torch_digest(model) != before
