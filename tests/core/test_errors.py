"""What an expected error says and which exit code it carries."""

import pytest

from core.errors import GateMissedError, InvalidValueError, ToolError, did_you_mean, require


@pytest.mark.parametrize(
    ("word", "candidates", "said"),
    [
        pytest.param("resnet81", ["resnet18", "vgg11"], " Did you mean 'resnet18'?", id="near"),
        pytest.param("zzz", ["resnet18", "vgg11"], "", id="none-near"),
        pytest.param("resnet18", [], "", id="no-candidates"),
    ],
)
def test_the_nearest_candidate_is_suggested(word: str, candidates: list[str], said: str) -> None:
    assert did_you_mean(word, candidates) == said


def test_candidates_may_be_an_iterator() -> None:
    assert did_you_mean("trian", iter(["train"])) == " Did you mean 'train'?"


def test_require_raises_what_callers_of_both_kinds_catch() -> None:
    with pytest.raises(InvalidValueError, match="lr is -1") as caught:
        require(False, "lr is -1")
    assert isinstance(caught.value, ToolError)
    assert isinstance(caught.value, ValueError)


def test_require_lets_a_held_condition_pass() -> None:
    require(True, "never said")


@pytest.mark.parametrize(("error", "code"), [(ToolError, 1), (InvalidValueError, 1), (GateMissedError, 3)])
def test_each_error_has_its_exit_code(error: type[ToolError], code: int) -> None:
    assert error.exit_code == code
