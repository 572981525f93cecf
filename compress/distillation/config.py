"""How to distil: what a training is told, and what a teacher's logits and features teach."""

from dataclasses import dataclass
from typing import Literal

from compress.distillation.hints import parse_hint
from compress.training.config import TrainConfig
from core.errors import require

Method = Literal["kd", "ls", "dkd", "dist"]
QAT_DEFAULTS = {"epochs": 5, "lr": 0.001}  # a trained model needs little to bear rounding, and much would spoil it


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig(TrainConfig):
    """How to distil.

    Attributes:
        method: What a teacher's logits teach: ``kd`` (their softened distribution),
            ``ls`` (that of standardized logits), ``dkd`` (target and other classes apart) or ``dist`` (correlations).
        temperature: T, which softens both distributions; above 0.
        dkd_beta: Weight of dkd's divergence among the other classes against that of the target; the paper's lie between
            0.1 and 10, the larger the more confident the teacher.
        kd_ratio: Share of the teachers' loss, in [0, 1]: loss = (1 - kd_ratio) * task + kd_ratio * method. With 1, no
            labels are needed.
        hints: Pairs of modules whose features are compared too, as in ``fitnet:layer3=layer3``; the first teacher
            gives them.
        teacher_weights: Relative weights of several teachers' losses; empty weighs them alike.
        teacher_cache_gb: What the folder of a teacher cache may grow to, in 10^9 bytes.
        provider: Where a teacher given as an .onnx file runs.
        threads: Threads of such a teacher; 0 takes the cores this process may use.
    """

    method: Method = "kd"
    temperature: float = 4.0
    dkd_beta: float = 8.0
    kd_ratio: float = 0.9
    hints: tuple[str, ...] = ()
    teacher_weights: tuple[float, ...] = ()
    teacher_cache_gb: float = 4.0
    provider: str = "cpu"
    threads: int = 0

    def __post_init__(self) -> None:
        super(DistillConfig, self).__post_init__()
        require(self.temperature > 0, f"temperature is {self.temperature}; it must be above 0")
        require(self.dkd_beta > 0, f"dkd_beta is {self.dkd_beta}; it must be above 0")
        require(0 <= self.kd_ratio <= 1, f"kd_ratio is {self.kd_ratio}; it must be in [0, 1]")
        require(self.teacher_cache_gb > 0, f"teacher_cache_gb is {self.teacher_cache_gb}; it must be above 0")
        require(
            all(weight > 0 for weight in self.teacher_weights),
            f"teacher_weights are {self.teacher_weights}; each must be above 0",
        )
        require(
            self.method != "dkd" or not (self.mixup or self.cutmix),
            "method dkd needs one class a sample; mixup and cutmix give two",
        )
        for hint in self.hints:
            parse_hint(hint)
