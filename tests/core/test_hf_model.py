"""Models of transformers: built for the data, rebuilt from a checkpoint alone, read as their own tokenizer reads."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_text import VOCABULARY, write_bert, write_texts

from compress.pruning.prune import PruneConfig, prune
from core.checkpoint import load_checkpoint, save_checkpoint
from core.compatibility import check_reads, check_same_task
from core.data import Data
from core.data_reference import load_data
from core.describe import describe
from core.errors import ToolError
from core.model_reference import load_model, load_torch_model, reference_digest
from core.predict import predict
from core.torch_model import num_params, torch_digest
from export.to_onnx import ExportConfig, export

TEXTS = ["a good film", "the plot is bad , and dull !", "films " * 40]


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return write_bert(tmp_path / "bert")


@pytest.fixture
def texts(tmp_path: Path) -> Data:
    return load_data(str(write_texts(tmp_path / "texts")))


def test_texts_become_what_its_own_tokenizer_makes_of_them(bert: Path) -> None:
    import transformers

    model = load_torch_model(f"hf:{bert},max_length=24")
    expected = transformers.AutoTokenizer.from_pretrained(bert)(
        TEXTS, padding=True, truncation=True, max_length=24, return_tensors="pt"
    )
    assert model.preprocessing.text is not None
    from core.tokenizing import tokenise

    found = tokenise(TEXTS, model.preprocessing.text)
    assert [spec.name for spec in model.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    for spec, one in zip(model.inputs, found, strict=True):
        assert torch.equal(one, expected[spec.name])
    assert found[0].shape == (3, 24)


@pytest.mark.parametrize("pretrained", ["true", "false"])
def test_one_stored_in_half_precision_is_float32_and_stays_so(bert: Path, tmp_path: Path, pretrained: str) -> None:
    values = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps(values | {"dtype": "float16"}))
    model = load_torch_model(f"hf:{bert},pretrained={pretrained}")
    save_checkpoint(model, tmp_path / "checkpoint")
    loaded = load_checkpoint(tmp_path / "checkpoint")
    assert torch_digest(loaded) == torch_digest(model)
    for one in (model, loaded):
        assert {tensor.dtype for tensor in one.module.parameters()} == {torch.float32}
    assert json.loads((tmp_path / "checkpoint" / "config.json").read_text())["dtype"] == "float32"


def test_a_pruned_one_exports_and_rebuilds(bert: Path, texts: Data, tmp_path: Path) -> None:
    model = load_torch_model(f"hf:{bert}", texts)
    pruned = prune(model, PruneConfig(pruning_ratio=0.5, allocation="uniform"), data=texts).model
    assert num_params(pruned.module) < 0.8 * num_params(model.module)
    export(pruned, tmp_path / "pruned.onnx", ExportConfig())
    save_checkpoint(pruned, tmp_path / "pruned")
    found, _ = predict(load_checkpoint(tmp_path / "pruned"), texts, "test")
    np.testing.assert_allclose(found, predict(pruned, texts, "test")[0], rtol=1e-5, atol=1e-6)


def test_weights_are_those_of_the_folder(bert: Path) -> None:
    import transformers

    model = load_torch_model(f"hf:{bert}")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(bert).eval()
    inputs = (torch.tensor([[2, 5, 11, 3]]), torch.ones(1, 4, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.int64))
    assert torch.allclose(model.module(*inputs).logits, theirs(*inputs).logits, atol=1e-6)


def test_the_head_follows_the_data_and_the_seed(bert: Path, texts: Data, caplog: pytest.LogCaptureFixture) -> None:
    three = replace(texts, labels=("0", "1", "2"))
    with pytest.raises(ToolError, match=r"was trained on other classes than the 3 asked for; .* add num_classes=3"):
        load_torch_model(f"hf:{bert}", three)
    first, same, other = (load_torch_model(f"hf:{bert},num_classes=3", three, seed=seed) for seed in (1, 1, 2))
    assert first.labels == ("0", "1", "2")
    assert "has no weights for classifier.bias, classifier.weight; they start random" in caplog.text
    assert torch_digest(first) == torch_digest(same) != torch_digest(other)


def test_nothing_but_the_checkpoint_is_needed_to_rebuild_it(bert: Path, texts: Data, tmp_path: Path) -> None:
    model = load_torch_model(f"hf:{bert}", texts)
    save_checkpoint(model, tmp_path / "saved")
    shutil.rmtree(bert)
    loaded = load_checkpoint(tmp_path / "saved")
    assert torch_digest(loaded) == torch_digest(model)
    assert (loaded.inputs, loaded.preprocessing, loaded.labels) == (model.inputs, model.preprocessing, model.labels)
    assert "tokenizer" not in json.loads((tmp_path / "saved" / "model.json").read_text())["preprocessing"]["text"]
    assert (predict(loaded, texts, "test")[0] == predict(model, texts, "test")[0]).all()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_checkpoint_that_lacks_a_part_says_so(bert: Path, tmp_path: Path, name: str) -> None:
    save_checkpoint(load_torch_model(f"hf:{bert}"), tmp_path / "saved")
    (tmp_path / "saved" / name).unlink()
    with pytest.raises(ToolError, match=rf"saved.* is damaged: .*{name.removesuffix('.json')}"):
        load_checkpoint(tmp_path / "saved")


def test_its_description_says_what_it_takes_and_returns(bert: Path) -> None:
    found = describe(load_torch_model(f"hf:{bert}"))
    assert found.inputs[0] == "input_ids ('sequence',) int64"
    assert found.outputs == ("logits (2,) float32",)
    assert found.preprocessing is not None
    assert found.preprocessing.text is not None
    assert found.preprocessing.text.tokenizer.startswith("sha256 ")
    assert found.macs


def test_all_weights_can_start_random(bert: Path) -> None:
    (bert / "model.safetensors").unlink()
    models = [load_torch_model(f"hf:{bert},pretrained=false", seed=seed) for seed in (1, 1, 2)]
    digests = [torch_digest(model) for model in models]
    assert digests[0] == digests[1] != digests[2]


def test_the_digest_of_a_reference_follows_its_files(bert: Path) -> None:
    before = reference_digest(f"hf:{bert}")
    (bert / "vocab.txt").write_text("\n".join((*VOCABULARY, "new")))
    assert reference_digest(f"hf:{bert}") != before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (",max_length=64", "max_length is 64; the model takes 2 to 32 tokens"),
        (",max_length=true", "max_length is True; the model takes"),
        (",num_classes=1", "num_classes is 1; it is a number from 2 up"),
        (",max_lenght=4", "unknown argument 'max_lenght'; .*Did you mean 'max_length'"),
    ],
)
def test_wrong_arguments_are_named(bert: Path, arguments: str, said: str) -> None:
    with pytest.raises(ToolError, match=said):
        load_model(f"hf:{bert}{arguments}")


def test_classes_that_the_data_does_not_have_are_refused(bert: Path, texts: Data) -> None:
    with pytest.raises(ToolError, match=r"has 3 classes, .* has 2; drop num_classes"):
        load_model(f"hf:{bert},num_classes=3", texts)


def test_a_shape_is_refused(bert: Path) -> None:
    with pytest.raises(ToolError, match=r"drop --input-shape, or give ',max_length=N'"):
        load_model(f"hf:{bert}", None, (5,))


def test_what_is_no_model_is_named(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"nowhere is not a folder"):
        load_model(f"hf:{tmp_path / 'nowhere'}")
    with pytest.raises(ToolError, match=r"has no config\.json; it is not a model of transformers"):
        load_model(f"hf:{tmp_path}")
    (bert / "model.safetensors").rename(bert / "x")
    with pytest.raises(ToolError, match=r"holds no model\.safetensors; add ',pretrained=false'"):
        load_model(f"hf:{bert}")
    (bert / "x").rename(bert / "pytorch_model.bin")
    with pytest.raises(ToolError, match=r"holds pickled weights, .*; convert them to safetensors"):
        load_model(f"hf:{bert}")


def test_damaged_weights_are_one_line(bert: Path) -> None:
    (bert / "model.safetensors").write_bytes((bert / "model.safetensors").read_bytes()[:100])
    with pytest.raises(ToolError, match=r"cannot load 'hf:") as caught:
        load_model(f"hf:{bert}")
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    bert = write_bert(tmp_path / "small", vocab_size=9)
    with pytest.raises(
        ToolError, match=f"its tokenizer knows {len(VOCABULARY)} tokens, the model 9; they do not belong"
    ):
        load_model(f"hf:{bert}")


def test_without_transformers_the_extra_is_named(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ToolError, match=r"pip install -e '\.\[text\]' in the clone of onnxpress"):
        load_model(f"hf:{bert}")


def test_texts_and_images_are_not_confused(bert: Path, texts: Data, untrained, digits: Data, tiny: str) -> None:
    model = load_torch_model(f"hf:{bert}")
    with pytest.raises(ToolError, match=r"takes images, .* holds texts"):
        check_reads(replace(untrained, labels=()), texts)
    with pytest.raises(ToolError, match=r"takes texts, .* holds images"):
        check_reads(replace(model, labels=(), inputs=model.inputs[:1]), digits)
    with pytest.raises(ToolError, match=r"takes 3 inputs, input_ids, attention_mask, token_type_ids; a sample of"):
        check_reads(replace(model, labels=()), digits)
    with pytest.raises(ToolError, match=r"takes images, the student .* texts; both must read the same samples"):
        check_same_task(model, untrained)
    with pytest.raises(ToolError, match=r"brings no tokenizer, and .* holds texts; take an hf: model"):
        load_model(f"{tiny}:cnn", texts)
