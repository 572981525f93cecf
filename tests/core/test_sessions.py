"""ONNX Runtime sessions: on the provider that was asked for, or an error that says why not."""

import gc
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto

from bench.process_cost import _measure
from core.errors import ToolError
from core.machine import available_cores
from core.onnx_model import open_onnx
from core.sessions import made_up_inputs, open_session, provider_name, provider_settings, run_session

MakeOnnx = Callable[..., Path]

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.mark.parametrize("provider", ["cpu", "CPUExecutionProvider"])
def test_the_cpu_goes_by_both_names(provider: str, linear_onnx: MakeOnnx) -> None:
    assert provider_name(provider) == "CPUExecutionProvider"
    assert open_session(linear_onnx(), provider).get_providers() == ["CPUExecutionProvider"]


@pytest.mark.parametrize(
    ("provider", "suggested"),
    [("cdua", "cuda"), ("CUDA", "cuda"), ("gpu", "cuda"), ("CPUExecutionProvidr", "CPUExecutionProvider")],
)
def test_an_unknown_provider_suggests_the_nearest(provider: str, suggested: str) -> None:
    with pytest.raises(ToolError, match=rf"unknown provider '{provider}'\. Did you mean '{suggested}'\?"):
        provider_name(provider)


def test_an_unknown_provider_lists_those_there_are(linear_onnx: MakeOnnx) -> None:
    with pytest.raises(ToolError, match=r"unknown provider 'abacus'.*This onnxruntime has .*CPUExecutionProvider"):
        open_session(linear_onnx(), "abacus")


@pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has the CUDA provider")
def test_an_onnxruntime_without_cuda_says_what_to_install(linear_onnx: MakeOnnx) -> None:
    with pytest.raises(ToolError, match="has no CUDAExecutionProvider; pip install onnxruntime-gpu"):
        open_session(linear_onnx(), "cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU, on which the provider works")
@pytest.mark.skipif(not HAS_CUDA, reason="this onnxruntime has no CUDA provider")
@pytest.mark.parametrize("provider", ["cuda", "CUDAExecutionProvider"])
def test_cuda_without_a_gpu_says_so(linear_onnx: MakeOnnx, provider: str) -> None:
    with pytest.raises(ToolError, match=f"provider '{provider}' cannot be used: no NVIDIA GPU, or no driver for it"):
        open_session(linear_onnx(), provider)


@pytest.mark.skipif(
    "TensorrtExecutionProvider" not in onnxruntime.get_available_providers() or torch.cuda.is_available(),
    reason="needs an onnxruntime that has the TensorRT provider, and no GPU to run it",
)
def test_another_provider_that_does_not_start_is_an_error(linear_onnx: MakeOnnx) -> None:
    with pytest.raises(ToolError, match=r"cannot load .*linear\.onnx on TensorrtExecutionProvider: .*install TensorRT"):
        open_session(linear_onnx(), "TensorrtExecutionProvider")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU, on which the provider works")
def test_a_refused_provider_prints_nothing_on_stdout(linear_onnx: MakeOnnx, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ToolError):
        open_session(linear_onnx(), "cuda")
    assert capfd.readouterr().out == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_cuda_with_a_gpu_is_used_first(linear_onnx: MakeOnnx) -> None:
    session = open_session(linear_onnx(), "cuda")
    assert session.get_providers()[0] == "CUDAExecutionProvider"
    found = run_session(session, np.ones((2, 5), np.float32))
    assert found["y"].tolist() == [[30, 35, 40]] * 2


@pytest.mark.parametrize(("threads", "used"), [(1, 1), (3, 3), (0, available_cores())])
def test_threads_are_those_asked_for(linear_onnx: MakeOnnx, threads: int, used: int) -> None:
    options = open_session(linear_onnx(), threads=threads).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (used, 1)


def test_a_session_computes(linear_onnx: MakeOnnx) -> None:
    inputs = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    expected = inputs @ np.arange(15, dtype=np.float32).reshape(5, 3)
    np.testing.assert_allclose(run_session(open_session(linear_onnx()), inputs)["y"], expected, rtol=1e-5)


def test_a_missing_file_suggests_the_nearest(linear_onnx: MakeOnnx) -> None:
    path = linear_onnx("model.onnx")
    with pytest.raises(ToolError, match=r"modle\.onnx does not exist\. Did you mean 'model\.onnx'\?"):
        open_session(path.with_name("modle.onnx"))


@pytest.mark.parametrize("keep", [0, 0.1, 0.5, -1])
def test_a_file_cut_short_cannot_be_loaded(
    linear_onnx: MakeOnnx, cut: Callable[[Path, float], None], keep: float
) -> None:
    path = linear_onnx()
    cut(path, keep)
    with pytest.raises(ToolError, match=r"ONNX Runtime cannot load .*linear\.onnx on cpu: "):
        open_session(path)


def test_an_operator_that_does_not_exist_is_named(linear_onnx: MakeOnnx) -> None:
    path = linear_onnx()
    proto = onnx.load(path)
    proto.graph.node[0].op_type = "MatMull"
    onnx.save(proto, path)
    with pytest.raises(ToolError, match="MatMull"):
        open_session(path)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        pytest.param((np.ones((2, 6), np.float32),), r"on inputs of shape \(2, 6\): ", id="shape"),
        pytest.param((np.ones((2, 5), np.float64),), r"on inputs of shape \(2, 5\): .*double", id="dtype"),
        pytest.param((np.ones((2, 5), np.float32),) * 2, r"on inputs of shape \(2, 5\), \(2, 5\): ", id="too-many"),
        pytest.param((), "cannot run the model", id="none"),
    ],
)
def test_inputs_that_the_model_rejects_are_described(
    linear_onnx: MakeOnnx, inputs: tuple[np.ndarray, ...], said: str
) -> None:
    with pytest.raises(ToolError, match=said) as caught:
        run_session(open_session(linear_onnx()), *inputs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("batch", ["N", 4])
def test_made_up_inputs_fit_the_model_and_depend_on_the_seed(linear_onnx: MakeOnnx, batch: int | str) -> None:
    model = open_onnx(linear_onnx(batch=batch))
    (one,), (same,), (other,) = (made_up_inputs(model, 4, seed) for seed in (0, 0, 1))
    assert (one.shape, one.dtype) == ((4, 5), np.float32)
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("opens", ["open_session", "process_cost"])
def test_onnxruntime_never_falls_back_to_the_cpu_by_itself(
    linear_onnx: MakeOnnx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opens: str
) -> None:
    """Its Python wrapper does, where a provider fails on opening or running, and prints that on stdout."""
    disabled: list[bool] = []
    create = onnxruntime.InferenceSession._create_inference_session

    def seen(session: onnxruntime.InferenceSession, *arguments: object) -> None:
        disabled.append(not session._enable_fallback)
        create(session, *arguments)

    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", seen)
    if opens == "open_session":
        open_session(linear_onnx())
    else:
        np.savez(tmp_path / "inputs.npz", np.ones((2, 5), np.float32))
        _measure(str(linear_onnx()), "CPUExecutionProvider", 1, str(tmp_path / "inputs.npz"))
    assert disabled == [True]


def test_cuda_is_told_whether_to_round_products() -> None:
    assert provider_settings("CUDAExecutionProvider", tf32=False) == {"device_id": 0, "use_tf32": 0}
    assert provider_settings("CUDAExecutionProvider", tf32=True) == {"device_id": 0, "use_tf32": 1}
    assert provider_settings("CPUExecutionProvider", tf32=False) == {}


@pytest.mark.parametrize(
    ("code", "dtype"),
    [(TensorProto.FLOAT16, np.float16), (TensorProto.DOUBLE, np.float64), (TensorProto.BOOL, np.bool_)],
)
def test_made_up_inputs_are_of_the_type_that_the_model_takes(linear_onnx: MakeOnnx, code: int, dtype: type) -> None:
    path = linear_onnx()
    proto = onnx.load(path)
    proto.graph.input[0].type.tensor_type.elem_type = code
    onnx.save(proto, path)
    (one,) = made_up_inputs(open_onnx(path), 4)
    assert (one.shape, one.dtype) == ((4, 5), dtype)
    assert len(np.unique(one)) > 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param({"batch": 7}, "input 'x' has its batch fixed at 7; batch size 4 cannot run", id="fixed-batch"),
        pytest.param(
            {"num_features": "F"}, r"dynamic axes beyond the batch, \('N', 'F'\), .*image_size=PIXELS", id="dynamic"
        ),
        pytest.param({"dtype": TensorProto.INT64}, "input 'x' is int64, .* uint8 and bool only", id="integers"),
    ],
)
def test_made_up_inputs_are_refused_where_they_would_be_wrong(
    linear_onnx: MakeOnnx, options: dict[str, object], said: str
) -> None:
    path = linear_onnx(**{name: value for name, value in options.items() if name != "num_features"})
    if "num_features" in options:
        proto = onnx.load(path)
        proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "F"
        onnx.save(proto, path)
    with pytest.raises(ToolError, match=said):
        made_up_inputs(open_onnx(path), 4)


def test_a_forked_process_does_not_wait_for_the_threads_of_a_session_that_is_garbage(linear_onnx: MakeOnnx) -> None:
    gc.disable()  # the garbage is to be there when the process is born
    try:
        cycle: list[object] = [open_session(linear_onnx(), threads=3)]
        time.sleep(0.7)  # until its threads have fallen asleep
        cycle.append(cycle)
        del cycle
        worker = multiprocessing.get_context("fork").Process(target=gc.collect)
        worker.start()
    finally:
        gc.enable()
    worker.join(timeout=30)
    worker.kill()
    worker.join()
    assert worker.exitcode == 0
