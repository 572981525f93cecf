"""The kinds of stages that a recipe is made of: what each is told, what it reads and what it makes."""

from dataclasses import dataclass, replace
from typing import Literal

from bench.compare import BenchConfig
from compress.distillation.config import DistillConfig
from compress.pruning.prune import PruneConfig
from compress.quantization.config import QuantizeConfig
from compress.training.finetune import FinetuneConfig
from export.to_onnx import ExportConfig
from export.verify import VerifyConfig

Carrier = Literal["torch", "onnx"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Role:
    """What a stage reads under one name.

    Attributes:
        name: The key in the recipe.
        help: What it is for.
        is_needed: Whether the stage cannot do without.
        number: Whether it is one, a list, or either.
        holds: What is named: a model, a file of weights, or a folder that no result depends on.
        carrier: Which kind of model it must be; None where either serves.
    """

    name: str
    help: str
    is_needed: bool = True
    number: Literal["one", "list", "either"] = "one"
    holds: Literal["model", "weights", "folder"] = "model"
    carrier: Carrier | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StageKind:
    """One verb.

    Attributes:
        config: The class of its settings.
        roles: What it reads.
        makes: Which kind of model it makes; None where it makes none.
        own: Settings that it does not take from above the stages.
        is_measured: Whether it runs files on this machine to judge them.
    """

    config: type
    roles: tuple[Role, ...]
    makes: Carrier | None = None
    own: tuple[str, ...] = ()
    is_measured: bool = False


MODEL = Role(name="model", help="The model it works on; left out, that of the nearest earlier stage that makes one.")
TORCH_MODEL = replace(MODEL, carrier="torch")
INIT_FROM = Role(
    name="init_from",
    help="Start from this model's tensors of the same name and shape.",
    is_needed=False,
    carrier="torch",
)
WEIGHTS = Role(
    name="weights", help="A .safetensors file that is taken in place of training.", is_needed=False, holds="weights"
)
TEACHER = Role(name="teacher", help="Whose answers teach: one, or a list.", number="either")
TEACHER_CACHE = Role(
    name="teacher_cache",
    help="Folder, in the run's own unless it is absolute, that keeps what the teacher says.",
    is_needed=False,
    holds="folder",
)
BASELINE = Role(
    name="baseline",
    help="What factors are counted from; left out, the model itself.",
    is_needed=False,
    carrier="torch",
)
REFERENCE = Role(name="reference", help="What is right.")
MODELS = Role(name="models", help="What is measured, a list; the first is the baseline.", number="list")

STAGE_KINDS = {
    "finetune": StageKind(config=FinetuneConfig, roles=(TORCH_MODEL, INIT_FROM, WEIGHTS), makes="torch"),
    "distill": StageKind(
        config=DistillConfig,
        roles=(TORCH_MODEL, TEACHER, INIT_FROM, WEIGHTS, TEACHER_CACHE),
        makes="torch",
        own=("threads",),  # a teacher in training takes all cores, whatever the file will be deployed on
    ),
    "prune": StageKind(config=PruneConfig, roles=(TORCH_MODEL, BASELINE), makes="torch", is_measured=True),
    "export": StageKind(config=ExportConfig, roles=(TORCH_MODEL,), makes="onnx"),
    "quantize": StageKind(
        config=QuantizeConfig, roles=(replace(MODEL, carrier="onnx"),), makes="onnx", is_measured=True
    ),
    "verify": StageKind(config=VerifyConfig, roles=(MODEL, REFERENCE), is_measured=True),
    "bench": StageKind(config=BenchConfig, roles=(MODELS,), is_measured=True),
}
