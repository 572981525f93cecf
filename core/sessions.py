"""ONNX Runtime sessions on the provider that was asked for, or an error that says why not."""

import gc
import io
import os
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from core.errors import ToolError, did_you_mean
from core.input_spec import InputSpec
from core.machine import available_cores
from core.onnx_model import OnnxModel, TensorSpec
from core.processes import local_rank
from core.references import missing_path
from core.whole_output import scratch_folder

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
FloatArray = npt.NDArray[np.float32]
Array = npt.NDArray[Any]
FLOATS = ("float32", "float16", "float64")
WHOLE_NUMBERS = ("int64", "int32")

_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
ERROR, FATAL = 3, 4  # how grave what ONNX Runtime logs is
onnxruntime.set_default_logger_severity(ERROR)  # its warnings are about its own graph rewriting

if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    # A forked DataLoader worker inherits none of its parent's threads. Collecting a session that it inherited would
    # wait for them forever, so nothing that exists at the fork is ever collected.
    os.register_at_fork(after_in_child=gc.freeze)


def provider_name(provider: str) -> str:
    """Return ONNX Runtime's name of a provider: ``cpu``, ``cuda``, or already ONNX Runtime's own.

    Raises:
        ToolError: The installed ONNX Runtime does not have it.
    """
    available = onnxruntime.get_available_providers()
    name = PROVIDERS.get(provider, provider)
    if name in available:
        return name
    if provider in PROVIDERS:
        raise ToolError(
            f"provider {provider!r}: the installed onnxruntime {onnxruntime.__version__} has no {name}; "
            "pip install onnxruntime-gpu (without onnxruntime beside it)"
        )
    nearest = " Did you mean 'cuda'?" if provider.lower() in ("gpu", "cuda") else None
    raise ToolError(
        f"unknown provider {provider!r}.{nearest or did_you_mean(provider, [*PROVIDERS, *available])} "
        f"This onnxruntime has {', '.join(available)}"
    )


def open_session(
    path: Path,
    provider: str = "cpu",
    threads: int = 0,
    *,
    spinning: bool = True,
    profile_to: Path | None = None,
    weights_beside: Path | None = None,
    tf32: bool = True,
) -> onnxruntime.InferenceSession:
    """Open a session that runs on `provider`, never on another in silence.

    Args:
        path: The .onnx file.
        provider: ``cpu``, ``cuda``, or ONNX Runtime's own name.
        threads: Threads inside an operator; 0 takes the cores this process may use.
        spinning: Let idle threads wait busily, ONNX Runtime's default: faster alone, far slower beside torch's.
        profile_to: Record every node's time, in the file whose name starts so.
        weights_beside: The file whose weights, where they lie beside it, `path` names as its own.
        tf32: Let CUDA round the factors of float32 products to 10 bits, ONNX Runtime's default where the GPU can:
            faster, and off by about a thousandth.

    Raises:
        ToolError: The file cannot be loaded or the provider cannot be used.
    """
    if not path.exists():
        raise missing_path(path)
    name = provider_name(provider)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or available_cores()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    if profile_to is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_to)
    if name == PROVIDERS["cuda"]:
        with redirect_stdout(io.StringIO()):  # it prints what it does not find
            onnxruntime.preload_dlls()  # torch's CUDA libraries serve both
        onnxruntime.set_default_logger_severity(FATAL)  # what it cannot load is said below, in one line
    try:
        if weights_beside is not None:
            options.add_session_config_entry(_WEIGHTS_FOLDER, str(weights_beside.parent.absolute()))
        model = path if weights_beside is None else path.read_bytes()
        # without the fallback, with which it prints and goes on on the CPU where the provider fails
        session = onnxruntime.InferenceSession(
            model, options, providers=[(name, provider_settings(name, tf32=tf32))], enable_fallback=0
        )
    except Exception as error:
        if not _is_onnxruntime_error(error):
            raise
        raise ToolError(f"ONNX Runtime cannot load {path} on {provider}: {error}") from error
    finally:
        onnxruntime.set_default_logger_severity(ERROR)
    if session.get_providers()[0] != name:
        raise ToolError(f"provider {provider!r} cannot be used: {_why_not(name)}")
    return session


def provider_settings(name: str, *, tf32: bool) -> dict[str, int]:
    """Return a provider's settings, by ONNX Runtime's names: CUDA's device and products, none of another's."""
    return {"device_id": local_rank(), "use_tf32": int(tf32)} if name == PROVIDERS["cuda"] else {}


def open_graph(proto: onnx.ModelProto, *, weights_beside: Path | None = None) -> onnxruntime.InferenceSession:
    """Open a session of a graph that is in no file, as `open_session` does on the CPU.

    Args:
        proto: The graph.
        weights_beside: The file that it is of, where its weights lie beside that.

    Raises:
        ToolError: It cannot be loaded.
    """
    with scratch_folder() as scratch:
        path = scratch / "graph.onnx"
        onnx.save(proto, path)
        return open_session(path, weights_beside=weights_beside)


def run_session(session: onnxruntime.InferenceSession, *inputs: Array) -> dict[str, Array]:
    """Run a session on one batch, an array an input, and return its outputs by name, in the graph's order.

    Raises:
        ToolError: The model rejects the inputs or fails on them.
    """
    names = [value.name for value in session.get_inputs()]
    try:
        outputs: list[Array] = session.run(None, dict(zip(names, inputs, strict=True)))
    except Exception as error:
        if not _is_onnxruntime_error(error):
            raise
        shapes = ", ".join(str(array.shape) for array in inputs)
        raise ToolError(f"ONNX Runtime cannot run the model on inputs of shape {shapes}: {error}") from error
    return dict(zip([value.name for value in session.get_outputs()], outputs, strict=True))


def made_up_inputs(model: OnnxModel, batch_size: int, seed: int = 0) -> tuple[Array, ...]:
    """Make inputs: standard normal floats, any pixels for uint8, either bool, or whole numbers as the file declares.

    The first axis is the batch where it is dynamic; other dynamic axes are as long as the file declares.

    Raises:
        ToolError: A fixed batch differs from `batch_size`, or an input is dynamic beyond the batch or takes whole
            numbers, and the file does not declare how long it is and what values it takes.
    """
    random = np.random.default_rng(seed)
    declared = {spec.name: spec for spec in model.declared}
    return tuple(_made_up(spec, declared.get(spec.name), batch_size, random) for spec in model.inputs)


def _made_up(spec: TensorSpec, declared: InputSpec | None, batch_size: int, random: np.random.Generator) -> Array:
    lengths = declared.shape if declared is not None and len(declared.shape) == len(spec.shape) - 1 else None
    shape = _fixed_shape(spec.shape, lengths, batch_size, spec.name)
    if spec.dtype in FLOATS:
        return random.standard_normal(shape, dtype=np.float32).astype(spec.dtype, copy=False)
    if spec.dtype == "uint8":
        return random.integers(0, 256, shape, dtype=np.uint8)
    if spec.dtype == "bool":
        return random.integers(2, size=shape).astype(bool)
    if declared is None or spec.dtype not in WHOLE_NUMBERS or declared.dtype != "int64":
        raise ToolError(
            f"input {spec.name!r} is {spec.dtype}, and nothing in the file says what values it takes: made-up ones "
            f"serve {', '.join(FLOATS)}, uint8 and bool only; onnxpress export notes what its files take"
        )
    return random.integers(declared.below, size=shape).astype(spec.dtype, copy=False)


def _fixed_shape(
    shape: tuple[int | str, ...], lengths: tuple[int, ...] | None, batch_size: int, name: str
) -> tuple[int, ...]:
    usual = (batch_size, *lengths) if lengths is not None else (batch_size, *shape[1:])
    sizes = [usual[axis] if isinstance(size, str) else size for axis, size in enumerate(shape)]
    if any(isinstance(size, str) for size in sizes):
        raise ToolError(
            f"input {name!r} has dynamic axes beyond the batch, {shape}, and nothing in the file says how long to make "
            "them up; of images, say so behind its name: ',image_size=PIXELS'"
        )
    fixed = tuple(int(size) for size in sizes)
    if fixed and fixed[0] != batch_size:
        raise ToolError(f"input {name!r} has its batch fixed at {fixed[0]}; batch size {batch_size} cannot run")
    return fixed


def _is_onnxruntime_error(error: Exception) -> bool:
    return type(error).__module__.startswith("onnxruntime") or isinstance(error, (RuntimeError, ValueError))


def _why_not(name: str) -> str:
    if name != PROVIDERS["cuda"]:
        return "ONNX Runtime could not start it"
    import torch

    if not torch.cuda.is_available():
        return (
            "no NVIDIA GPU, or no driver for it, is visible to this process; "
            "install NVIDIA's driver, after which nvidia-smi lists the GPU"
        )
    return (
        f"ONNX Runtime {onnxruntime.__version__} could not load its CUDA libraries beside torch {torch.__version__} "
        f"(CUDA {torch.version.cuda}); install an onnxruntime-gpu built for the same CUDA version"
    )
