"""Batch-norm statistics against those computed directly."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from compress.pruning.batch_norm import re_estimate_batch_norm
from compress.pruning.damage import damage_of
from core.batches import batches
from core.data import Data
from core.errors import ToolError
from core.preprocessing import Preprocessing
from core.progress import no_progress
from core.torch_model import TorchModel


def test_statistics_are_those_of_the_samples(digits: Data, trained: TorchModel) -> None:
    module = nn.Sequential(nn.BatchNorm2d(1))
    split = digits.split("train").take(torch.arange(512))
    re_estimate_batch_norm(module, split, trained.preprocessing, 512)
    samples = torch.cat([inputs for (inputs,), _ in batches(split, trained.preprocessing, 64)])
    assert torch.allclose(module[0].running_mean, samples.mean().reshape(1), atol=1e-5)
    assert torch.allclose(module[0].running_var, samples.var().reshape(1), rtol=1e-2)
    assert module[0].momentum == 0.1
    assert not module[0].training


def test_a_module_without_batch_norm_is_left_alone(digits: Data) -> None:
    module = nn.Conv2d(1, 1, 1)
    before = module.weight.clone()
    re_estimate_batch_norm(module, digits.split("train"), Preprocessing(), 64)
    assert torch.equal(module.weight, before)


def test_a_short_last_batch_weighs_as_little_as_it_is(digits: Data, trained: TorchModel) -> None:
    module = nn.Sequential(nn.BatchNorm2d(1))
    split = digits.split("train").take(torch.arange(70))
    re_estimate_batch_norm(module, split, trained.preprocessing, 70)
    samples = torch.cat([inputs for (inputs,), _ in batches(split, trained.preprocessing, 64)])
    assert torch.allclose(module[0].running_mean, samples.mean().reshape(1), atol=1e-5)


def test_a_last_sample_alone_is_left_out(digits: Data, trained: TorchModel) -> None:
    module, split = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64)), digits.split("train").take(torch.arange(129))
    re_estimate_batch_norm(module, split, trained.preprocessing, 129)
    (samples,) = [inputs for (inputs,), _ in batches(split.take(torch.arange(128)), trained.preprocessing, 128)]
    assert torch.allclose(module[1].running_mean, samples.flatten(1).mean(0), atol=1e-5)
    assert damage_of([nullcontext], module, split, trained.preprocessing, 129, no_progress) == [0.0]


def test_one_sample_is_too_few(digits: Data, trained: TorchModel) -> None:
    module, split = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64)), digits.split("train").take(torch.arange(1))
    with pytest.raises(ToolError, match="batch norm is fitted on 2 samples at least, and the split has 1; give more"):
        re_estimate_batch_norm(module, split, trained.preprocessing, 64)
