"""The lineage: digests that do not depend on key order, and steps that survive JSON."""

from pathlib import Path

import torch

from core.history import Step, digest_of, step


def test_the_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest_of({"a": 1, "b": [2, 3]}) == digest_of({"b": [2, 3], "a": 1})


def test_the_digest_depends_on_every_value_and_on_order_in_lists() -> None:
    values = [{"a": 1}, {"a": 2}, {"b": 1}, {"a": "1"}, [1, 2], [2, 1], None]
    assert len({digest_of(value) for value in values}) == len(values)


def test_a_path_can_be_part_of_a_digest() -> None:
    assert digest_of({"output": Path("a.onnx")}) == digest_of({"output": "a.onnx"})


def test_a_step_names_the_packages_that_are_installed_now() -> None:
    made = step("prune", {"pruning_ratio": 0.5}, parent="abc", data="def")
    assert made.versions["torch"] == torch.__version__.partition("+")[0] or made.versions["torch"] == torch.__version__
    assert (made.stage, made.parent, made.data, made.teachers) == ("prune", "abc", "def", ())


def test_a_step_survives_json() -> None:
    made = step("distill", {"kd_ratio": 0.5, "ignore": ["a"]}, parent="abc", teachers=("one", "two"))
    assert Step.model_validate_json(made.model_dump_json()) == made
