"""Reading recipes: typed, with errors that name the key and the nearest known one."""

from pathlib import Path

import pytest

from bench.gate import Gate
from core.errors import ToolError
from recipe import RECIPES, load_recipe

SMALL = """
data = "digits"
seed = 7
[[stage]]
kind = "finetune"
name = "teacher"
model = "models.py:cnn"
epochs = 2
[[stage]]
kind = "export"
[[stage]]
kind = "bench"
models = ["export"]
[gate]
max_drop = 1.5
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    (tmp_path / "models.py").write_text("")
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def test_stages_are_typed_and_take_the_shared_settings(small: Path) -> None:
    recipe = load_recipe(small)
    assert recipe.name == "small"
    assert [(stage.name, stage.kind) for stage in recipe.stages] == [
        ("teacher", "finetune"),
        ("export", "export"),
        ("bench", "bench"),
    ]
    assert (recipe.stages[0].config.epochs, recipe.stages[0].config.seed) == (2, 7)
    assert recipe.gate == Gate(max_drop=1.5)


def test_threads_are_of_what_is_measured_and_not_of_a_teacher(small: Path) -> None:
    student = """
[[stage]]
kind = "distill"
name = "student"
model = "models.py:cnn"
teacher = "teacher"
"""
    small.write_text(SMALL.replace("seed = 7", "threads = 1").replace("[gate]", f"{student}[gate]"))
    bench, distill = load_recipe(small).stages[2:]
    assert (bench.config.threads, distill.config.threads) == (1, 0)
    small.write_text(small.read_text().replace('"student"', '"student"\nthreads = 3'))
    assert load_recipe(small).stages[3].config.threads == 3


def test_files_beside_the_recipe_are_found_from_anywhere(small: Path) -> None:
    assert load_recipe(small).stages[0].references["model"] == f"{small.parent / 'models.py'}:cnn"


def test_folders_beside_the_recipe_are_found_from_anywhere(small: Path) -> None:
    (small.parent / "student").mkdir()
    assert load_recipe(small, ("teacher.init_from=student",)).stages[0].references["init_from"] == str(
        small.parent / "student"
    )


def test_a_stage_reads_the_model_made_before_it(small: Path) -> None:
    assert load_recipe(small).stages[1].references == {"model": "teacher"}


@pytest.mark.parametrize(
    ("override", "check"),
    [
        ("teacher.epochs=5", lambda recipe: recipe.stages[0].config.epochs == 5),
        ("gate.max_drop=0.5", lambda recipe: recipe.gate.max_drop == 0.5),
        ("gate.min_speedup=2", lambda recipe: recipe.gate.min_speedup == 2),
        ("data=other.npz", lambda recipe: recipe.data == "other.npz"),
        ("teacher.weights=w.safetensors", lambda recipe: recipe.stages[0].references["weights"] == "w.safetensors"),
        ("teacher.flip=true", lambda recipe: recipe.stages[0].config.flip is True),
    ],
)
def test_overrides(small: Path, override: str, check) -> None:
    assert check(load_recipe(small, (override,)))


DISTILLED = """
[[stage]]
kind = "distill"
model = "models.py:cnn"
teacher = {teacher}
teacher_cache = "cache"
"""


@pytest.mark.parametrize("teacher", ['"teacher"', '["teacher", "other.onnx"]'])
def test_a_student_has_one_teacher_or_several(small: Path, teacher: str) -> None:
    (small.parent / "other.onnx").write_text("")
    small.write_text(SMALL.replace("[gate]", DISTILLED.format(teacher=teacher) + "[gate]"))
    stage = load_recipe(small).stages[-1]
    expected = "teacher" if teacher == '"teacher"' else ["teacher", str(small.parent / "other.onnx")]
    assert stage.references["teacher"] == expected
    assert stage.references["teacher_cache"] == "cache"


def test_a_teacher_is_named_by_text(small: Path) -> None:
    small.write_text(SMALL.replace("[gate]", DISTILLED.format(teacher="[1]") + "[gate]"))
    with pytest.raises(ToolError, match=r"teacher is \[1\]; it is a name or a list of names"):
        load_recipe(small)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs = 2", "epoch = 2", "stage 'teacher': unknown key 'epoch'. Did you mean 'epochs'"),
        ("epochs = 2", 'epochs = "two"', "stage 'teacher': epochs: Input should be a valid integer"),
        ("epochs = 2", "epochs = 0", "stage 'teacher': epochs is 0; it must be at least 1"),
        ("max_drop", "max_dorp", r"\[gate\]: unknown key 'max_dorp'. Did you mean 'max_drop'"),
        ('kind = "finetune"', 'kind = "finetun"', "Did you mean 'finetune'"),
        ('kind = "finetune"', "", "kind is None"),
        ("seed = 7", "sead = 7", "unknown key 'sead'. Did you mean 'seed'"),
        ('models = ["export"]', 'models = ["exprot"]', "no earlier stage is called 'exprot'. Did you mean 'export'"),
        ('models = ["export"]', "", "stage 'bench' needs models"),
        ('model = "models.py:cnn"', "", "stage 'teacher' needs model"),
        ('kind = "export"', 'kind = "export"\nname = "teacher"', "two stages are called 'teacher'"),
        ('data = "digits"', "", 'a recipe needs data = "..."'),
        ('[[stage]]\nkind = "bench"\nmodels = ["export"]', "", r"\[gate\] needs a bench stage"),
        ("[gate]", "[gate", "is not valid TOML"),
        ('data = "digits"', "data = 5", 'a recipe needs data = "..."'),
        ('data = "digits"', 'data = "digits"\nthreads = "all"', "threads: Input should be a valid integer"),
        ('models = ["export"]', 'models = "export"', "models is 'export'; it is a list of names"),
        ('models = ["export"]', "models = []", "models is \\[\\]; it is a list of names"),
        ('model = "models.py:cnn"', "model = 5", "model is 5; it is a name"),
        ('model = "models.py:cnn"', 'model = ["models.py:cnn"]', r"model is \['models.py:cnn'\]; it is a name"),
        ("seed = 7", "skip_bad = -1", "skip_bad is -1; it must not be negative"),
        ('kind = "export"', 'kind = "quantize"', "stage 'quantize' quantizes an .onnx file, which 'teacher' is not"),
        (
            'kind = "export"',
            'kind = "export"\nmodel = "net.onnx"',
            "model is 'net.onnx', an .onnx file; it takes a torch",
        ),
        (
            "[gate]",
            '[[stage]]\nkind = "verify"\nreference = "bench"\n[gate]',
            "'bench', a bench stage, which makes no model",
        ),
        (
            "[gate]",
            '[[stage]]\nkind = "quantize"\nmodel = "exprot"\n[gate]',
            "no earlier stage is called 'exprot'. Did you",
        ),
        (
            "[gate]",
            '[[stage]]\nkind = "finetune"\nmodel = "models.py:cnn"\nweights = "teacher"\n[gate]',
            "weights is a stage, 'teacher'; it is a .safetensors file",
        ),
        (
            "[gate]",
            '[[stage]]\nkind = "finetune"\nmodel = "teacher"\nweights = "w.safetensors"\n[gate]',
            "weights are for a fresh architecture, and model is another stage's",
        ),
        ("epochs = 2", 'schedule = "cosin"', "stage 'teacher': schedule: Input should be 'cosine'"),
    ],
)
def test_mistakes_are_named(small: Path, old: str, new: str, message: str) -> None:
    assert old in SMALL
    small.write_text(SMALL.replace(old, new))
    with pytest.raises(ToolError, match=message):
        load_recipe(small)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("techer.epochs=5", "no stage is called 'techer'. Did you mean 'teacher'"),
        ("teacher.epoch=5", "unknown key 'epoch'"),
        ("epochs", "write key=value or stage.key=value"),
        ("gate=5", r"gate is a table of limits: \[gate\]"),
    ],
)
def test_mistaken_overrides_are_named(small: Path, override: str, message: str) -> None:
    with pytest.raises(ToolError, match=message):
        load_recipe(small, (override,))


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_ready_recipe_reads(path: Path) -> None:
    recipe = load_recipe(path)
    kinds = [stage.kind for stage in recipe.stages]
    assert [
        kind for kind in ("finetune", "distill", "prune", "export", "verify", "quantize", "bench") if kind not in kinds
    ] == []
    assert recipe.gate != Gate()


def test_a_folder_is_not_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="is a folder; name a recipe in it"):
        load_recipe(tmp_path)


def test_a_ready_recipe_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe(Path("digits")).name == "digits"
