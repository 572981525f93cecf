"""Batch-norm statistics against those computed directly."""

import torch
from torch import nn

from compress.batch_norm import re_estimate_batch_norm
from core.data import Data, batches
from core.preprocessing import Preprocessing
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
