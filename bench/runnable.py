"""What is timed: an ONNX file in a session, or the torch module it came from, opened to a function of no arguments."""

import copy
from collections.abc import Callable
from typing import Any

import onnxruntime
import torch

from core.errors import ToolError
from core.machine import available_cores
from core.onnx_model import OnnxModel
from core.sessions import PROVIDERS, Array, made_up_inputs, open_session, provider_name, run_session
from core.torch_model import TorchModel, channels_last, example_inputs

Run = Callable[[], object]
Open = Callable[[], Run]
"""Opens a model anew and returns the function that runs it once, to the end."""


def open_onnx_run(model: OnnxModel, provider: str, threads: int, batch_size: int) -> Open:
    """Return what opens a session on made-up inputs; on a GPU they lie in its memory, and so do the outputs.

    Raises:
        ToolError: The inputs cannot be made up; opening raises where the provider cannot be used.
    """
    inputs = made_up_inputs(model, batch_size)
    on_cuda = provider_name(provider) == PROVIDERS["cuda"]

    def opened() -> Run:
        session = open_session(model.path, provider, threads)
        run_session(session, *inputs)  # a model that cannot run says so here
        feed = dict(zip([value.name for value in session.get_inputs()], inputs, strict=True))
        return _bound(session, feed) if on_cuda else lambda: session.run(None, feed)

    return opened


def open_torch_run(model: TorchModel, *, compiled: bool, provider: str, threads: int, batch_size: int) -> Open:
    """Return what opens the torch module on made-up inputs, channels last, as torch runs convolutions fastest.

    Raises:
        ToolError: The provider is not one that torch has a device for, or there is no such device.
    """
    device = torch_device(provider)
    inputs = tuple(one.to(device) for one in example_inputs(model, batch_size))
    inputs = tuple(one.to(memory_format=torch.channels_last) if one.ndim == 4 else one for one in inputs)

    def opened() -> Run:
        module: Any = channels_last(copy.deepcopy(model.module).to(device)).eval()
        if compiled:
            module = torch.compile(module)
        torch.set_num_threads(threads or available_cores())

        def run() -> None:
            with torch.inference_mode():
                module(*inputs)
            if device == "cuda":
                torch.cuda.synchronize()

        return run

    return opened


def torch_device(provider: str) -> str:
    """Return torch's device for a provider.

    Raises:
        ToolError: There is none.
    """
    name = provider_name(provider)
    devices = {PROVIDERS["cpu"]: "cpu", PROVIDERS["cuda"]: "cuda"}
    if name not in devices:
        raise ToolError(f"torch has no device for provider {provider!r}; bench torch modules on cpu or cuda")
    if devices[name] == "cuda" and not torch.cuda.is_available():
        raise ToolError("torch sees no NVIDIA GPU; bench torch modules on cpu")
    return devices[name]


def _bound(session: onnxruntime.InferenceSession, feed: dict[str, Array]) -> Run:
    """Bind inputs and outputs to the GPU's memory, so that no copy is timed."""
    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, "cuda")
    return lambda: session.run_with_iobinding(binding)  # which waits for the device
