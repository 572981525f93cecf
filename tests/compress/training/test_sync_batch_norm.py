"""Batch norm over processes: with one process it must be batch norm."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed
from timm.layers import BatchNormAct2d
from torch import nn

from compress.training.sync_batch_norm import synchronised_batch_norm
from core.errors import ToolError


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone; tests/test_processes.py has two."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("make", [nn.BatchNorm2d, BatchNormAct2d], ids=["plain", "timm's with its activation"])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (300.0, 1.0), (-50.0, 0.1)])
def test_it_computes_what_batch_norm_does(one_process: None, make, mean: float, std: float) -> None:
    plain, shared = make(3), make(3)
    shared = synchronised_batch_norm(shared, torch.device("cpu"))
    inputs = mean + std * torch.randn(8, 3, 5, 5)
    grads = []
    for layer in (plain, shared):
        given = inputs.clone().requires_grad_()
        found = layer(given)
        (found * torch.arange(5.0)).sum().backward()
        grads.append((found.detach(), given.grad, layer.weight.grad, layer.running_mean, layer.running_var))
    for one, other in zip(*grads, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(one.abs().max()))


def test_a_batch_norm_of_its_own_kind_is_refused() -> None:
    class Own(nn.BatchNorm2d):
        pass

    with pytest.raises(ToolError, match="the batch norm '0' is a Own, which several processes cannot share"):
        synchronised_batch_norm(nn.Sequential(Own(3)), torch.device("cpu"))
