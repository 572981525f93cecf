"""Models of several inputs and outputs: exported, verified and described with all of them, by their own names."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from tiny_text import write_bert

from bench.process_cost import process_cost
from bench.runnable import open_onnx_run, open_torch_run
from core.describe import describe
from core.errors import GateMissedError, ToolError
from core.input_spec import InputSpec
from core.model_reference import load_torch_model
from core.onnx_model import OnnxModel, open_onnx
from core.sequence_length import sequence_length, with_sequence_length
from core.sessions import made_up_inputs
from core.torch_model import TorchModel, example_inputs
from export.to_onnx import ExportConfig, export
from export.verify import VerifyConfig, require_verified, verify

GIVEN = (InputSpec(name="", shape=(6,), dtype="int64", below=20), InputSpec(name="", shape=(5,)))


@pytest.fixture(scope="module")
def pair(tiny: str) -> TorchModel:
    return load_torch_model(f"{tiny}:pair", input_shape=GIVEN)


@pytest.fixture(scope="module")
def pair_file(pair: TorchModel, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    return export(pair, tmp_path_factory.mktemp("pair") / "pair.onnx", ExportConfig()).model


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> TorchModel:
    return load_torch_model(f"hf:{write_bert(tmp_path_factory.mktemp('bert'), initializer_range=0.5)}")


@pytest.fixture(scope="module")
def bert_file(bert: TorchModel, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    return export(bert, tmp_path_factory.mktemp("bert-file") / "bert.onnx", ExportConfig()).model


def test_inputs_are_named_after_forward_and_outputs_in_order(pair: TorchModel, pair_file: OnnxModel) -> None:
    assert [spec.name for spec in pair.inputs] == ["words", "picture"]
    assert [(spec.name, spec.shape, spec.dtype) for spec in pair_file.inputs] == [
        ("words", ("batch", 6), "int64"),
        ("picture", ("batch", 5), "float32"),
    ]
    assert [spec.name for spec in pair_file.outputs] == ["logits", "output_1"]
    assert pair_file.declared == pair.inputs


def test_a_mapping_keeps_its_names(tiny: str, tmp_path: Path) -> None:
    model = load_torch_model(f"{tiny}:pair,returns=dict", input_shape=GIVEN)
    made = export(model, tmp_path / "x.onnx", ExportConfig()).model
    assert [spec.name for spec in made.outputs] == ["classes", "score"]
    assert describe(model).outputs == ("classes (3,) float32", "score () float32")


def test_every_output_is_compared(pair: TorchModel, pair_file: OnnxModel, tmp_path: Path) -> None:
    found = verify(pair, pair_file, VerifyConfig(batch_sizes=(3,)))
    assert [(one.output, one.samples, one.agreement) for one in found.comparisons] == [
        ("logits", 3, 100.0),
        ("output_1", 3, None),
    ]
    proto = onnx.load(pair_file.path)
    proto.graph.output.pop()
    doubled = onnx.helper.make_node("Add", ["output_1", "output_1"], ["twice"])
    proto.graph.node.append(doubled)
    proto.graph.output.append(onnx.helper.make_tensor_value_info("twice", onnx.TensorProto.FLOAT, ["batch"]))
    onnx.save(proto, tmp_path / "wrong.onnx")
    with pytest.raises(GateMissedError, match=r"max_abs_err .* in output 'output_1' on batch 3, beyond atol"):
        require_verified(verify(pair, open_onnx(tmp_path / "wrong.onnx"), VerifyConfig(batch_sizes=(3,))))
    proto.graph.output.pop()
    onnx.save(proto, tmp_path / "one.onnx")
    with pytest.raises(ToolError, match=r"the reference returns 2 outputs \(logits, output_1\), the candidate 1"):
        verify(pair, open_onnx(tmp_path / "one.onnx"), VerifyConfig())


def test_a_wrong_number_of_shapes_names_the_inputs(tiny: str) -> None:
    with pytest.raises(ToolError, match=r"takes words, picture, and 3 shapes are given; give --input-shape once for"):
        load_torch_model(f"{tiny}:pair", input_shape=(*GIVEN, GIVEN[0]))


def test_one_shape_for_two_inputs_is_explained(tiny: str) -> None:
    with pytest.raises(ToolError, match=r"cannot run on an input of shape .*--input-shape"):
        load_torch_model(f"{tiny}:pair", input_shape=(5,))


def test_both_carriers_run_on_made_up_inputs(pair: TorchModel, pair_file: OnnxModel) -> None:
    open_onnx_run(pair_file, "cpu", 1, 2)()()
    open_torch_run(pair, compiled=False, provider="cpu", threads=1, batch_size=2)()()
    words, picture = made_up_inputs(pair_file, 50)
    assert (words.shape, words.dtype, int(words.min()), int(words.max())) == ((50, 6), np.int64, 0, 19)
    assert picture.shape == (50, 5)
    assert process_cost(pair_file.path, "CPUExecutionProvider", 1, made_up_inputs(pair_file, 1)).load_ms > 0


def test_a_text_model_keeps_batch_and_length_dynamic(bert: TorchModel, bert_file: OnnxModel) -> None:
    assert [spec.shape for spec in bert_file.inputs] == [("batch", "sequence")] * 3
    session = onnxruntime.InferenceSession(bert_file.path)
    for batch, length in ((1, 1), (3, 9), (2, 32)):
        inputs = example_inputs(with_sequence_length(bert, length), batch)
        feed = {spec.name: one.numpy() for spec, one in zip(bert.inputs, inputs, strict=True)}
        expected = bert.module(*inputs).logits.detach().numpy()
        np.testing.assert_allclose(session.run(["logits"], feed)[0], expected, atol=1e-4)


def test_a_text_model_is_verified_at_another_length_too(bert: TorchModel, bert_file: OnnxModel) -> None:
    names = [one.inputs for one in verify(bert, bert_file, VerifyConfig(batch_sizes=(2,))).comparisons]
    assert names == ["batch 2", "batch 2 of 7 tokens"]


def test_a_mask_that_was_traced_away_is_a_miss(bert: TorchModel, bert_file: OnnxModel, tmp_path: Path) -> None:
    """Made-up masks hide some tokens, so that a file that looks at all of them is found out."""
    proto = onnx.load(bert_file.path)
    ones = np.ones((1, 1), np.int64)
    proto.graph.initializer.append(numpy_helper.from_array(ones, "one"))
    proto.graph.node.insert(0, onnx.helper.make_node("Max", ["attention_mask", "one"], ["seen"]))
    for node in proto.graph.node[1:]:
        node.input[:] = ["seen" if name == "attention_mask" else name for name in node.input]
    onnx.save(proto, tmp_path / "blind.onnx")
    with pytest.raises(GateMissedError, match=r"beyond atol"):
        require_verified(verify(bert, open_onnx(tmp_path / "blind.onnx"), VerifyConfig()))


def test_the_length_of_made_up_texts_can_be_chosen(bert: TorchModel, bert_file: OnnxModel) -> None:
    assert (sequence_length(bert), sequence_length(bert_file)) == (32, 32)
    shorter = with_sequence_length(bert_file, 8)
    assert isinstance(shorter, OnnxModel)
    assert [one.shape for one in made_up_inputs(shorter, 2)] == [(2, 8)] * 3
    with pytest.raises(ToolError, match=r"the sequence length is 33; .* takes 1 to 32 tokens"):
        with_sequence_length(bert_file, 33)


def test_a_length_that_the_code_fixes_is_named(tiny: str, tmp_path: Path) -> None:
    model = load_torch_model(f"{tiny}:pair", input_shape=GIVEN)
    words = replace(model.inputs[0], symbols=("sequence",))

    class Fixed(torch.nn.Module):
        def forward(self, words: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
            return words.float() @ torch.ones(6, 3) + picture.sum()

    with pytest.raises(ToolError, match=r"its code fixes the sequence at 6|cannot trace"):
        export(replace(model, module=Fixed(), inputs=(words, model.inputs[1])), tmp_path / "x.onnx", ExportConfig())
