"""Texts from files: every form is read to the same samples, and what is wrong is named with its line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from core.data import Data
from core.data_reference import load_data
from core.errors import ToolError
from core.preprocessing import Preprocessing
from core.text_data import TextSamples

Write = Callable[[str, str | bytes], Path]
ROWS = "a good film\t1\na bad one\t0\nso , so\t1\nno\t0\n"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(name: str, contents: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(contents.encode() if isinstance(contents, str) else contents)
        return path

    return written


def rows(data: Data, name: str = "test") -> list[tuple[str, str]]:
    split = data.split(name)
    assert isinstance(split.samples, TextSamples)
    texts = [split.samples.texts[index] for index in split.indices.tolist()]
    return list(zip(texts, [data.labels[target] for target in split.labels().tolist()], strict=True))


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        pytest.param("a.tsv", 'so "so\t1\nno, no\t0\n', id="tsv"),
        pytest.param("a.tsv", 'sentence\tlabel\nso "so\t1\n\nno, no\t0', id="tsv-header"),
        pytest.param("a.tsv", '\ufefflabel\tid\ttext\r\n1\tx\tso "so\r\n0\ty\tno, no\r\n', id="tsv-windows"),
        pytest.param("a.csv", '"so ""so",1\n"no, no",0\n', id="csv"),
        pytest.param("a.csv", 'Label,Text\n1,"so ""so"\n0,"no, no"\n', id="csv-header"),
        pytest.param("a.jsonl", '{"text": "so \\"so", "label": 1}\n{"sentence": "no, no", "label": "0"}\n', id="jsonl"),
    ],
)
def test_every_form_gives_the_same_rows(write: Write, name: str, contents: str) -> None:
    data = load_data(f"{write('train.tsv', ROWS)},test={write(name, contents)}")
    assert rows(data) == [('so "so', "1"), ("no, no", "0")]
    assert (data.kind, data.labels, data.sample_shape) == ("text", ("0", "1"), None)


def test_columns_can_be_named(write: Write) -> None:
    train = write("train.csv", "stars,said\n5,good\n1,bad\n5,fine\n1,poor\n")
    data = load_data(f"{train},test={train},text=said,label=stars")
    assert rows(data) == [("good", "5"), ("bad", "1"), ("fine", "5"), ("poor", "1")]


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        pytest.param("a.csv", "content,Text,label\nno,yes,1\n", id="csv"),
        pytest.param("a.jsonl", '{"content": "no", "Text": "yes", "label": 1}', id="jsonl"),
        pytest.param("a.jsonl", '{"text": "yes", "Text": "no", "label": 1}', id="its-very-name"),
        pytest.param("a.csv", "TEXT,Text,label\nyes,no,1\n", id="the-first-of-two"),
    ],
)
def test_of_several_usual_columns_the_usual_order_decides(write: Write, name: str, contents: str) -> None:
    assert rows(load_data(f"{write('train.tsv', ROWS)},test={write(name, contents)}")) == [("yes", "1")]


def test_a_validation_file_that_is_named_stays_that(write: Write) -> None:
    data = load_data(f"{write('train.tsv', ROWS)},val={write('dev.tsv', ROWS)}")
    assert len(data.split("validation")) == 4
    assert data.test is None
    in_folder = load_data(str(write("train.tsv", ROWS).parent))
    assert in_folder.test is not None
    assert in_folder.fingerprint != data.fingerprint


def test_numbers_are_ordered_as_numbers(write: Write) -> None:
    path = write("a.tsv", "".join(f"said\t{label}\n" * 3 for label in (10, 9, 2)))
    assert load_data(str(path)).labels == ("2", "9", "10")


@pytest.mark.parametrize("validation", ["dev", "val", "validation"])
def test_a_folder_brings_its_splits(write: Write, tmp_path: Path, validation: str) -> None:
    write("train.tsv", ROWS)
    write(f"{validation}.tsv", "dev\t1\n")
    write("test.jsonl", '{"text": "test", "label": 0}')
    data = load_data(str(tmp_path))
    assert rows(data, "validation") == [("dev", "1")]
    assert rows(data, "test") == [("test", "0")]
    assert len(data.split("train")) == 4


def test_the_only_other_split_is_the_test_split(write: Write, tmp_path: Path) -> None:
    write("train.tsv", ROWS * 5)
    write("dev.tsv", "dev\t1\n")
    data = load_data(str(tmp_path))
    assert rows(data, "test") == [("dev", "1")]
    assert len(data.split("validation")) == 2


def test_the_fingerprint_follows_the_contents(write: Write) -> None:
    path = str(write("a.tsv", ROWS))
    first = load_data(path).fingerprint
    assert load_data(path).fingerprint == first
    write("a.tsv", ROWS.replace("bad", "fine"))
    assert load_data(path).fingerprint != first


@pytest.mark.parametrize(
    ("name", "contents", "said"),
    [
        pytest.param("a.tsv", "", r"a\.tsv is empty; a row is a text and a label", id="empty"),
        pytest.param("a.tsv", "text\tlabel\n", r"a\.tsv is empty", id="header-alone"),
        pytest.param("a.tsv", "text alone\n", r"a\.tsv, line 1: 1 column, and no header", id="one-column"),
        pytest.param("a.tsv", "a\tb\tc\n", r"a\.tsv, line 1: 3 columns, and no header", id="three-columns"),
        pytest.param("a.tsv", ROWS + "cut\n", r"line 5: 1 column where the first line has 2", id="cut"),
        pytest.param("a.tsv", ROWS + " \t1\n", r"a\.tsv, line 5: the text is empty; remove the row", id="no-text"),
        pytest.param("a.tsv", ROWS + "x\t\n", r"a\.tsv, line 5: the label is empty; remove the row", id="no-label"),
        pytest.param("a.tsv", b"a\t1\ncaf\xe9\t0\n", r"a\.tsv, line 2: .* of UTF-8; save the file as", id="utf-8"),
        pytest.param("a.csv", 'a,1\n"b",0\n"c\nd,1\n', r"a\.csv, line 3: .*; quote a text", id="csv-quote"),
        pytest.param("a.jsonl", '{"text": "a", "label": 1}\nno\n', r"a\.jsonl, line 2 is not JSON", id="not-json"),
        pytest.param("a.jsonl", "[1]\n", r"line 1 is a JSON list; a row is an object", id="json-list"),
        pytest.param("a.jsonl", '{"text": 3, "label": 1}\n', r"line 1: the text is 3, not a string", id="json-number"),
        pytest.param("a.jsonl", '{"txt": "a", "label": 1}\n', r"no column 'text', .*Did you mean 'txt'", id="json-key"),
        pytest.param("a.jsonl", '{"text": "a", "label": null}\n', "line 1: the label is empty", id="json-null"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(write: Write, name: str, contents: str | bytes, said: str) -> None:
    with pytest.raises(ToolError, match=said):
        load_data(str(write(name, contents)))


def test_a_label_that_training_does_not_know_is_named(write: Write, tmp_path: Path) -> None:
    write("train.tsv", ROWS)
    write("test.tsv", "fine\t1\nwhat\t2\n")
    with pytest.raises(ToolError, match=r"test\.tsv, line 2: the label '2' does not occur in training, .* '0', '1'"):
        load_data(str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (",text=sentnce", r"line 1: there is no column 'sentnce', there are 'sentence', 'label'\. Did you mean 'sen"),
        (",txt=sentence", r"unknown argument 'txt'; it takes text, label, val, test\. Did you mean 'text'"),
        (",test=b.tsv", r"b\.tsv does not exist"),
        (",test=b.txt", r"b\.txt is not a file of texts: \.tsv, \.csv, \.jsonl"),
    ],
)
def test_wrong_arguments_are_named(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write("b.txt", "")
    with pytest.raises(ToolError, match=said):
        load_data(str(write("a.tsv", "sentence\tlabel\n" + ROWS)) + arguments)


def test_a_header_that_names_one_column_only_needs_the_other(write: Write) -> None:
    with pytest.raises(ToolError, match=r"no column is called 'label' or 'class' .*; name it with ',label=COLUMN'"):
        load_data(str(write("a.csv", "said,stars\nx,1\n")) + ",text=said")
    with pytest.raises(ToolError, match=r"line 1: no column is called 'label' or .*, there are 'text', 'stars'"):
        load_data(str(write("a.csv", "text,stars\nx,1\n")))


def test_bad_samples_cannot_be_skipped(write: Write) -> None:
    with pytest.raises(ToolError, match="--skip-bad is for images"):
        load_data(str(write("a.tsv", ROWS)), skip_bad=1)


def test_texts_need_a_tokenizer() -> None:
    with pytest.raises(ToolError, match="the model does not say how a text becomes its input"):
        TextSamples(("a",)).fetch([0], Preprocessing())
