"""Splits, the checks on samples and targets, and the batches a model reads."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from core.batches import batches, loader, raised
from core.data import (
    ArraySamples,
    Data,
    Split,
    array_fingerprint,
    array_samples,
    check_classes,
    check_targets,
    hold_out_validation,
    spread,
    whole_split,
)
from core.errors import ToolError
from core.preprocessing import Preprocessing


def numbered(count: int) -> Split:
    """Samples (count, 1) that hold their own index, as do the targets."""
    return whole_split(ArraySamples(torch.arange(count).float().unsqueeze(1)), torch.arange(count))


def of_one_class(count: int) -> Split:
    return whole_split(numbered(count).samples, torch.zeros(count, dtype=torch.int64))


def with_bad(value: float, index: int) -> np.ndarray:
    array = np.zeros((4, 2, 3))
    array[index, 1, 2] = value
    return array


@pytest.mark.parametrize(
    ("shape", "made"),
    [
        pytest.param((2, 4, 5), (2, 1, 4, 5), id="grey"),
        pytest.param((2, 4, 5, 1), (2, 1, 4, 5), id="grey-with-axis"),
        pytest.param((2, 4, 5, 3), (2, 3, 4, 5), id="colour"),
    ],
)
def test_images_become_channels_first(shape: tuple[int, ...], made: tuple[int, ...]) -> None:
    pixels = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    array = array_samples(pixels, "x").array
    assert array.dtype == torch.uint8
    assert array.shape == made
    assert np.array_equal(array.permute(0, 2, 3, 1).numpy().reshape(shape), pixels)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_become_float32_and_keep_their_shape(dtype: type) -> None:
    array = array_samples(np.ones((3, 2, 5, 5, 2), dtype), "x").array
    assert array.dtype == torch.float32
    assert array.shape == (3, 2, 5, 5, 2)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        pytest.param(np.zeros((0, 8, 8), np.uint8), "x holds no samples", id="no-images"),
        pytest.param(np.zeros((0, 8)), "x holds no samples", id="no-floats"),
        pytest.param(np.zeros((2, 8, 8, 4), np.uint8), r"x has shape \(2, 8, 8, 4\).* C 1 or 3", id="four-channels"),
        pytest.param(np.zeros((2, 3, 8, 8), np.uint8), r"x has shape \(2, 3, 8, 8\).*\(N, H, W, C\)", id="c-first"),
        pytest.param(np.zeros((2, 8), np.uint8), r"x is uint8 \(2, 8\): images are uint8", id="flat-images"),
        pytest.param(np.zeros((2, 8, 8), np.int64), r"x is int64 \(2, 8, 8\)", id="integers"),
        pytest.param(np.array(["a", "b"]), "x is <U1", id="text"),
        pytest.param(np.array(3.0), "x ", id="one-number"),
        pytest.param(with_bad(np.nan, 2), "x holds NaN or infinity in 1 samples, the first at index 2", id="nan"),
        pytest.param(with_bad(np.inf, 0), "x holds NaN or infinity in 1 samples, the first at index 0", id="inf"),
        pytest.param(with_bad(-np.inf, 3), "the first at index 3; clean or drop", id="minus-inf"),
        pytest.param(with_bad(1e300, 1), "the first at index 1", id="infinite-as-float32"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_samples_that_cannot_be_used_are_named(array: np.ndarray, said: str) -> None:
    with pytest.raises(ToolError, match=said):
        array_samples(array, "x")


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint8, np.uint64])
def test_targets_become_int64(dtype: type) -> None:
    targets = check_targets(np.array([0, 2, 1], dtype), 3, ("a", "b", "c"), "y")
    assert targets.dtype == torch.int64
    assert targets.tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    ("targets", "labels", "said"),
    [
        pytest.param([0, -1, 1], ("a", "b"), "y holds 1 labels out of range, the first -1 at index 1", id="negative"),
        pytest.param([0, 1, 2], ("a", "b"), "the first 2 at index 2; classes run from 0 to 1", id="too-high"),
        pytest.param([-3, 1, -2], None, "2 labels out of range, the first -3 .* from 0 to 999999", id="without-labels"),
        pytest.param([0, 1, 2**40], None, "1 labels out of range, the first 1099511627776 at index 2", id="garbage"),
        pytest.param([0, 1], ("a", "b"), r"y has shape \(2,\), but there are 3 samples", id="too-few"),
        pytest.param([[0], [1], [1]], ("a", "b"), r"y has shape \(3, 1\)", id="a-column"),
        pytest.param([0.0, 1.0, 1.0], ("a", "b"), "y is float64: class indices are integers", id="floats"),
        pytest.param([True, False, True], ("a", "b"), "y is bool", id="booleans"),
        pytest.param(["a", "b", "b"], ("a", "b"), "y is <U1", id="names"),
    ],
)
def test_targets_that_cannot_be_used_are_named(targets: list[Any], labels: tuple[str, ...] | None, said: str) -> None:
    with pytest.raises(ToolError, match=said):
        check_targets(np.array(targets), 3, labels, "y")


def test_a_class_without_training_samples_is_named() -> None:
    train = whole_split(ArraySamples(torch.zeros(3, 1)), torch.tensor([0, 2, 2]))
    with pytest.raises(ToolError, match="pets has no training sample of class 'dog', 'fox'; remove the class"):
        check_classes(train, ("cat", "dog", "bee", "fox"), "pets")


def test_all_classes_with_samples_pass() -> None:
    check_classes(numbered(3), ("a", "b", "c"), "pets")


@pytest.mark.parametrize(
    ("count", "ratio", "held_out"), [(100, 0.1, 10), (100, 0.02, 2), (7, 0.1, 1), (2, 0.1, 1), (3, 0.9, 2)]
)
def test_a_share_is_held_out_and_disjoint(count: int, ratio: float, held_out: int) -> None:
    train, validation = hold_out_validation(of_one_class(count), ratio)
    assert len(validation) == held_out
    assert sorted([*train.indices.tolist(), *validation.indices.tolist()]) == list(range(count))


def test_the_same_samples_are_held_out_whatever_the_seed() -> None:
    chosen = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        chosen.append(hold_out_validation(of_one_class(50), 0.1)[1].indices.tolist())
    assert chosen[0] == chosen[1]
    assert chosen[0] != list(range(5))


def test_a_rare_class_keeps_a_training_sample() -> None:
    common = hold_out_validation(of_one_class(50), 0.1)[1].indices
    targets = torch.zeros(50, dtype=torch.int64)
    targets[common[0]] = 1  # would be held out, and no other is of its class
    train, validation = hold_out_validation(whole_split(of_one_class(50).samples, targets), 0.1)
    assert train.labels().tolist().count(1) == 1
    assert validation.indices.tolist() == common[1:].tolist()


def test_take_keeps_the_order_and_composes() -> None:
    split = numbered(10).take(torch.tensor([7, 3, 5])).take(torch.tensor([2, 0]))
    assert split.labels().tolist() == [5, 7]
    assert [inputs.flatten().tolist() for (inputs,), _ in batches(split, Preprocessing(), 5)] == [[5, 7]]


def data_with(**splits: Split) -> Data:
    absent: dict[str, Split | None] = {"train": None, "validation": None, "test": None}
    return Data(
        reference="pets.npz",
        **(absent | splits),
        labels=("cat",),
        sample_shape=(1,),
        kind="values",
        fingerprint="",
    )


def test_an_absent_split_is_named() -> None:
    with pytest.raises(ToolError, match=r"pets\.npz has no validation split"):
        data_with(train=numbered(3)).split("validation")


def test_a_present_split_is_returned() -> None:
    train, test = numbered(3), numbered(4)
    data = data_with(train=train, test=test)
    assert data.split("train") is train
    assert data.split("test") is test


def test_batches_are_normalised_float32_in_order() -> None:
    found = list(batches(numbered(5), Preprocessing(scale=0.5), 2))
    assert [inputs.flatten().tolist() for (inputs,), _ in found] == [[0, 0.5], [1, 1.5], [2]]
    assert [targets.tolist() for _, targets in found] == [[0, 1], [2, 3], [4]]
    assert all(inputs.dtype == torch.float32 for (inputs,), _ in found)


def test_a_limit_spreads_over_the_whole_split() -> None:
    targets = torch.cat([targets for _, targets in batches(numbered(101), Preprocessing(), 2, limit=5)])
    assert targets.tolist() == [0, 25, 50, 75, 100]


@pytest.mark.parametrize(
    ("length", "count", "positions"), [(3, 5, [0, 1, 2]), (3, 3, [0, 1, 2]), (10, 2, [0, 9]), (10, 1, [0])]
)
def test_spread_covers_both_ends(length: int, count: int, positions: list[int]) -> None:
    assert spread(length, count).tolist() == positions


def test_a_generator_shuffles_and_its_seed_repeats_it() -> None:
    orders = [
        [
            target
            for batch in raised(
                loader(numbered(20), Preprocessing(), 8, generator=torch.Generator().manual_seed(3), drop_last=True),
                numbered(20),
            )
            for target in batch.targets.tolist()
        ]
        for _ in range(2)
    ]
    assert orders[0] == orders[1]
    assert len(set(orders[0])) == 16
    assert orders[0] != sorted(orders[0])


@dataclass(frozen=True)
class Unreadable:
    """Samples of which the fourth cannot be read."""

    num_workers: int

    def __len__(self) -> int:
        return 6

    def fetch(self, indices: list[int], preprocessing: Preprocessing) -> tuple[Tensor]:
        if 3 in indices:
            raise ToolError("cannot read the image 3.png: cut short")
        return (torch.zeros(len(indices), 1),)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_while_fetching_arrives_as_it_was_raised(num_workers: int) -> None:
    split = whole_split(Unreadable(num_workers), torch.zeros(6, dtype=torch.int64))
    with pytest.raises(ToolError) as caught:
        list(batches(split, Preprocessing(), 2))
    assert str(caught.value) == "cannot read the image 3.png: cut short"


def test_batches_before_the_error_still_arrive() -> None:
    split = whole_split(Unreadable(1), torch.zeros(6, dtype=torch.int64))
    found = batches(split, Preprocessing(), 3)
    assert next(found)[0][0].shape == (3, 1)
    with pytest.raises(ToolError, match="cut short"):
        next(found)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(np.array([[1, 2, 3, 5]]), id="value"),
        pytest.param(np.array([[1, 2], [3, 4]]), id="shape"),
        pytest.param(np.array([[1, 2, 3, 4]], np.int32), id="dtype"),
    ],
)
def test_the_fingerprint_changes_with_the_array(other: np.ndarray) -> None:
    array = np.array([[1, 2, 3, 4]])
    assert array_fingerprint([array]) == array_fingerprint([array.copy()])
    assert array_fingerprint([array]) != array_fingerprint([other])
