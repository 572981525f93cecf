"""Naming the innermost module that a tracer cannot follow."""

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from core.trace_failure import failing_module


class Branching(nn.Module):
    """Branches on the values it sees, which symbolic tracing cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class Listed(nn.Module):
    """Runs the modules of a list, which is itself never called."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.blocks:
            x = module(x)
        return x


class BranchingAround(nn.Module):
    """Branches itself; its child is innocent."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.child(x) if x.sum() > 0 else x


class ByName(nn.Module):
    """Passes its child's input by name."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = Scale()
        self.branch = Branching()

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(self.scale(x=x))


class Scale(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 3


def trace(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    fx.Tracer().trace(module)


def export(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    torch.export.export(module, inputs)


@pytest.mark.parametrize(
    ("module", "path"),
    [
        pytest.param(nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(4, 4), Branching())), "1.1", id="nested"),
        pytest.param(nn.Sequential(Branching(), nn.ReLU()), "0", id="child"),
        pytest.param(Branching(), "", id="root"),
        pytest.param(BranchingAround(), "", id="root-with-innocent-child"),
        pytest.param(nn.Sequential(nn.ReLU(), BranchingAround()), "1", id="inner-with-innocent-child"),
        pytest.param(Listed(nn.ReLU(), Branching()), "blocks.1", id="in-a-list"),
        pytest.param(nn.Sequential(Listed(nn.ReLU(), Listed(Branching()))), "0.blocks.1.blocks.0", id="lists-in-lists"),
    ],
)
@pytest.mark.parametrize("attempt", [trace, export])
def test_the_innermost_failing_module_is_named(module: nn.Module, path: str, attempt: Any) -> None:
    assert failing_module(module, (torch.ones(2, 4),), attempt) == path


def test_a_module_whose_input_is_passed_by_name_is_not_blamed() -> None:
    assert failing_module(ByName(), (torch.ones(2, 4),), export) == "branch"


def test_no_hooks_are_left() -> None:
    module = nn.Sequential(nn.ReLU(), Branching())
    failing_module(module, (torch.ones(2, 4),), trace)
    assert not any(child._forward_pre_hooks for child in module.modules())


def test_the_first_of_two_failing_modules_is_named() -> None:
    assert failing_module(nn.Sequential(nn.ReLU(), Branching(), Branching()), (torch.ones(2, 4),), trace) == "1"
