"""What a bench measures beside speed and accuracy when asked to: robustness, and figures of a service."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bench.compare import BenchConfig, BenchReport, bench
from bench.robustness import AttackReport, CorruptionReport, measure_corruptions, measure_fgsm
from bench.service import ServiceConfig, ServiceReport, measure_service
from core.data import Data
from core.errors import ToolError, require
from core.model import Model
from core.onnx_model import OnnxModel
from core.progress import Progress, no_progress
from core.torch_model import TorchModel


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtrasConfig:
    """What else to measure.

    Attributes:
        corruptions: Accuracy under common corruptions.
        attack: Accuracy under this attack.
        epsilon: Size of the attack's step, as a share of the pixel range.
        robustness_samples: Most images that corruptions and attack are measured on, spread evenly over the split.
        scenarios: LoadGen scenarios to run every file under.
        slo_ms: Milliseconds that the server scenario's p99 must not exceed.
        service_seconds: Least duration of a run of LoadGen.
    """

    corruptions: bool = False
    attack: Literal["fgsm"] | None = None
    epsilon: float = 2 / 255
    robustness_samples: int = 2000  # sixteen passes a model over all of a large split would take hours
    scenarios: tuple[str, ...] = ()
    slo_ms: float | None = None
    service_seconds: float = 10.0

    def __post_init__(self) -> None:
        require("server" not in self.scenarios or self.slo_ms is not None, "the server scenario needs slo_ms")


class FullReport(BenchReport, frozen=True):
    """A bench report with what else was measured; None or empty where it was not asked for."""

    corruptions: CorruptionReport | None = None
    attack: AttackReport | None = None
    service: tuple[ServiceReport, ...] = ()


def full_bench(
    models: Sequence[Model],
    settings: Sequence[BenchConfig],
    config: ExtrasConfig,
    data: Data | None = None,
    source: TorchModel | None = None,
    progress: Progress = no_progress,
) -> FullReport:
    """Measure what `bench.compare.bench` does, and what else is asked for in the first setting.

    Args:
        models: What to measure.
        settings: Where and how.
        config: What else.
        data: What accuracy and robustness are measured on.
        source: The torch model that the attack's images are crafted on; the first torch model among `models` by itself.
        progress: Told of every pass.

    Raises:
        ToolError: A model cannot run in a setting or cannot read the data; robustness is asked for without data, or the
            attack without a torch model.
    """
    if (config.corruptions or config.attack) and data is None:
        raise ToolError("robustness is measured on labelled images; give --data")
    source = source or next((model for model in models if isinstance(model, TorchModel)), None)
    if config.attack and source is None:
        raise ToolError("an .onnx file has no gradients to attack along; name its torch model with --attack-source")
    report = bench(models, settings, data, progress)
    setting = settings[0]
    where: dict[str, Any] = {
        "split": setting.split,
        "provider": setting.provider,
        "limit": config.robustness_samples,
        "progress": progress,
    }
    corruptions = attack = None
    if config.corruptions and data is not None:
        corruptions = measure_corruptions(models, data, **where)
    if config.attack and data is not None and source is not None:
        attack = measure_fgsm(models, source, data, epsilon=config.epsilon, **where)
    service = _service(models, setting, config, progress)
    return FullReport(**dict(report), corruptions=corruptions, attack=attack, service=service)


def _service(
    models: Sequence[Model], setting: BenchConfig, config: ExtrasConfig, progress: Progress
) -> tuple[ServiceReport, ...]:
    if not config.scenarios:
        return ()
    service = ServiceConfig(
        provider=setting.provider,
        threads=setting.threads,
        scenarios=config.scenarios,
        slo_ms=config.slo_ms,
        seconds=config.service_seconds,
        batch_size=setting.batch_size,
        sequence_length=setting.sequence_length,
    )
    return tuple(measure_service(model, service, progress) for model in models if isinstance(model, OnnxModel))
