"""What a figure was measured with: the machine and the package versions."""

import platform
from functools import cache
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel

from core.processes import num_local_processes

PACKAGES = (
    "onnxpress",
    "torch",
    "torchvision",
    "timm",
    "accelerate",
    "torch-pruning",
    "onnx",
    "onnxscript",
    "onnxslim",
    "onnxruntime-gpu",
    "onnxruntime",
)
"""What reports and histories name."""
ALSO_DETERMINING = (
    "numpy",
    "pillow",
    "safetensors",
    "scikit-learn",
    "scipy",
    "tokenizers",
    "torchmetrics",
    "transformers",
)
"""What a stage's result rests on beside these: how samples are read, models built, figures computed."""


class Machine(BaseModel, frozen=True):
    """The hardware a report was made on."""

    cpu: str
    architecture: str
    cores: int
    int8_instructions: tuple[str, ...]
    gpu: str | None
    system: str
    python: str


def package_versions() -> dict[str, str]:
    """Return the installed version of each package that a report names."""
    return _installed(PACKAGES)


def determining_versions() -> dict[str, str]:
    """Return the installed version of each package whose behaviour reaches an output."""
    return _installed((*PACKAGES, *ALSO_DETERMINING))


@cache
def _installed(packages: tuple[str, ...]) -> dict[str, str]:
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def available_cores() -> int:
    """Return the number of cores this process may use.

    Its affinity and its container's CPU limit are respected, and the processes of one training share them.
    """
    from joblib import cpu_count

    return max(int(cpu_count()) // num_local_processes(), 1)


@cache
def int8_instructions() -> tuple[str, ...]:
    """Return which int8 multiply instructions without saturation this processor has, as its flags name them.

    Linux says so itself; every 64-bit ARM Mac has the dot product; elsewhere none is assumed.
    """
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return ("asimddp",)
    flags = (_cpuinfo_field("flags") or _cpuinfo_field("Features")).split()
    return tuple(name for name in ("avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm") if name in flags)


@cache
def this_machine() -> Machine:
    """Describe the machine this process runs on."""
    import torch

    return Machine(
        cpu=_cpuinfo_field("model name") or platform.processor() or platform.machine(),
        architecture=platform.machine(),
        cores=available_cores(),
        int8_instructions=int8_instructions(),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
    )


def _cpuinfo_field(field: str) -> str:
    """Return the first value of a field of /proc/cpuinfo, or an empty string where there is none."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return ""
    lines = (line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == field), "")


def has_bfloat16() -> bool:
    """Tell whether the processor multiplies bfloat16 in hardware; emulated, it is many times slower than float32."""
    flags = (_cpuinfo_field("flags") or _cpuinfo_field("Features")).split()
    return any(name in flags for name in ("amx_bf16", "avx512_bf16", "bf16"))
