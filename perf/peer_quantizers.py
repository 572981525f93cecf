"""How each peer quantizes a float32 file to int8; run by `quantize_peers.py` in an environment of the peer's own.

Usage: python perf/peer_quantizers.py PEER FLOAT32.onnx INPUTS.npy OUTPUT.onnx

INPUTS.npy holds the calibration samples as the model takes them, (N, C, H, W) float32.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

BATCH = 32

Quantize = Callable[[Path, NDArray[np.float32], Path], None]


def batches(inputs: NDArray[np.float32], name: str) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Yield the samples a batch at a time, by the name of the input."""
    for first in range(0, len(inputs), BATCH):
        yield {name: inputs[first : first + BATCH]}


def input_name(path: Path) -> str:
    """Return the name of a file's only input."""
    return str(onnx.load(path, load_external_data=False).graph.input[0].name)


def onnxruntime_defaults(source: Path, inputs: NDArray[np.float32], output: Path) -> None:
    """ONNX Runtime as it comes: int8 by int8, one scale per tensor."""
    from onnxruntime.quantization import quantize_static

    quantize_static(source, output, _reader(source, inputs))


def onnxruntime_by_hand(source: Path, inputs: NDArray[np.float32], output: Path, form: str = "QDQ") -> None:
    """ONNX Runtime as one who knows sets it: uint8 by int8, a scale per channel."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantize_static(
        source,
        output,
        _reader(source, inputs),
        quant_format=QuantFormat[form],
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )


def nncf(source: Path, inputs: NDArray[np.float32], output: Path) -> None:
    """NNCF's defaults."""
    import nncf as tool

    name = input_name(source)
    dataset = tool.Dataset(list(batches(inputs, name)))
    onnx.save(tool.quantize(onnx.load(source), dataset, subset_size=-(-len(inputs) // BATCH)), output)


def optimum(source: Path, inputs: NDArray[np.float32], output: Path) -> None:
    """The avx512_vnni preset of optimum-onnx, static; it is a set of arguments for ONNX Runtime's quantizer."""
    from onnxruntime.quantization import quantize_static
    from optimum.onnxruntime import AutoQuantizationConfig

    preset = AutoQuantizationConfig.avx512_vnni(is_static=True, per_channel=True)
    quantize_static(
        source,
        output,
        _reader(source, inputs),
        quant_format=preset.format,
        activation_type=preset.activations_dtype,
        weight_type=preset.weights_dtype,
        per_channel=preset.per_channel,
        reduce_range=preset.reduce_range,
        op_types_to_quantize=preset.operators_to_quantize,
        extra_options={
            "WeightSymmetric": preset.weights_symmetric,
            "ActivationSymmetric": preset.activations_symmetric,
        },
    )


def neural_compressor(source: Path, inputs: NDArray[np.float32], output: Path) -> None:
    """onnx-neural-compressor's QDQ form, a scale per channel: the file that its defaults make does not load."""
    from onnx_neural_compressor import data_reader, quantization
    from onnx_neural_compressor.quantization import config

    quantization.quantize(
        str(source),
        str(output),
        config.StaticQuantConfig(
            calibration_data_reader=_reader(source, inputs, data_reader.CalibrationDataReader),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
        ),
    )


def modelopt(source: Path, inputs: NDArray[np.float32], output: Path) -> None:
    """ModelOpt's int8 with its defaults, calibrated on the CPU."""
    from modelopt.onnx.quantization import quantize

    quantize(
        str(source),
        quantize_mode="int8",
        calibration_data={input_name(source): inputs},
        calibration_eps=["cpu"],
        output_path=str(output),
    )


def olive(source: Path, inputs: NDArray[np.float32], output: Path) -> None:
    """Olive's static quantization with its defaults, as a workflow of one pass."""
    from olive import run

    with tempfile.TemporaryDirectory() as scratch:
        script = Path(scratch) / "calibration.py"
        np.save(Path(scratch) / "inputs.npy", inputs)
        script.write_text(_OLIVE_SCRIPT.format(path=Path(scratch) / "inputs.npy", name=input_name(source)))
        run(
            {
                "input_model": {"type": "ONNXModel", "model_path": str(source)},
                "data_configs": [
                    {
                        "name": "calibration",
                        "user_script": str(script),
                        "load_dataset_config": {"type": "samples"},
                        "dataloader_config": {"batch_size": BATCH},
                    }
                ],
                "passes": {"quantize": {"type": "OnnxStaticQuantization", "data_config": "calibration"}},
                "output_dir": str(Path(scratch) / "out"),
            }
        )
        made = next((Path(scratch) / "out").rglob("*.onnx"))
        onnx.save(onnx.load(made), output)


def olive_command(source: Path, _: NDArray[np.float32], output: Path) -> None:
    """``olive quantize`` to int8: it reads no samples of an .onnx file, and so rounds by the ranges met in running."""
    with tempfile.TemporaryDirectory() as scratch:
        olive_here = Path(sys.executable).parent / "olive"
        asked = ["quantize", "-m", str(source), "--precision", "int8", "--implementation", "ort", "-o", scratch]
        subprocess.run([olive_here, *asked, "--disable_telemetry"], check=True)
        onnx.save(onnx.load(next(Path(scratch).rglob("*.onnx"))), output)


_OLIVE_SCRIPT = """
import numpy as np
from olive.data.registry import Registry

class Samples:
    def __init__(self):
        self.inputs = np.load("{path}")
    def __len__(self):
        return len(self.inputs)
    def __getitem__(self, index):
        return {{"{name}": self.inputs[index]}}, 0

@Registry.register_dataset()
def samples(**_):
    return Samples()
"""

PEERS: dict[str, Quantize] = {
    "onnxruntime, its defaults": onnxruntime_defaults,
    "onnxruntime, set by hand": onnxruntime_by_hand,
    "onnxruntime QOperator, set by hand": partial(onnxruntime_by_hand, form="QOperator"),
    "NNCF": nncf,
    "optimum-onnx, avx512_vnni": optimum,
    "onnx-neural-compressor, QDQ": neural_compressor,
    "ModelOpt": modelopt,
    "Olive": olive,
    "olive quantize": olive_command,
}


def _reader(source: Path, inputs: NDArray[np.float32], base: type[Any] | None = None) -> Any:
    """Return the samples as ONNX Runtime's quantizer reads them."""
    if base is None:
        from onnxruntime.quantization import CalibrationDataReader

        base = CalibrationDataReader

    class Reader(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            self.rewind()

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(self._left, None)

        def rewind(self) -> None:
            self._left = batches(inputs, input_name(source))

    return Reader()


if __name__ == "__main__":
    peer, float32, samples, made = sys.argv[1:]
    PEERS[peer](Path(float32), np.load(samples), Path(made))
