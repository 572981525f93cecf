"""Labelled texts from a file of rows: .tsv, .csv or .jsonl, or a folder of such files."""

import csv
import hashlib
import io
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from core.data import Data, Split, whole_split
from core.errors import ToolError, did_you_mean
from core.history import digest_of
from core.preprocessing import Preprocessing
from core.references import Reference, check_arguments, missing_path
from core.tokenizing import tokenise

SUFFIXES = (".tsv", ".csv", ".jsonl")
SPLIT_FILES = {"train": ("train",), "validation": ("validation", "val", "dev"), "test": ("test",)}
TEXT_NAMES = ("text", "sentence", "review", "content")
LABEL_NAMES = ("label", "class", "target", "sentiment")
MAX_FIELD = 2**30  # characters; the csv module's own limit of 128 KiB is shorter than a book's chapter


@dataclass(frozen=True, slots=True)
class TextSamples:
    """Texts held in memory, turned into token numbers as they are fetched.

    Attributes:
        texts: One a sample.
    """

    texts: tuple[str, ...]
    num_workers: int = 0  # the tokenizer has threads of its own

    def __len__(self) -> int:
        return len(self.texts)

    def fetch(self, indices: Sequence[int], preprocessing: Preprocessing) -> tuple[Tensor, ...]:
        """Return the texts at `indices` as the model's tokenizer tells them, padded to the longest: int64 (N, length).

        Raises:
            ToolError: The model brings no tokenizer.
        """
        if preprocessing.text is None:
            raise ToolError("the samples are text, and the model does not say how a text becomes its input")
        return tokenise([self.texts[index] for index in indices], preprocessing.text)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of one file: texts and labels as they are written, and the line that each begins at."""

    path: Path
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    lines: tuple[int, ...]


def holds_texts(folder: Path) -> bool:
    """Tell whether a folder holds files of texts by the names of splits."""
    return any(_split_file(folder, names) is not None for names in SPLIT_FILES.values())


def load_texts(path: Path, reference: Reference) -> Data:
    """Read texts and their labels.

    A row has a text and a label. In the first line of a .tsv or .csv stand the columns' names, or it is a row already:
    then the text comes first and the label last of two. The arguments ``text`` and ``label`` name the columns where
    they are not called ``text`` or ``sentence``, ``label`` or ``class``. Classes are what the training rows are
    labelled with, in the order of numbers or of the alphabet.

    Args:
        path: A file, which is the training split, with ``val`` and ``test`` among the arguments for others; or a folder
            with train, dev (or val, validation) and test files. Where only one of dev and test is there, it is the test
            split.
        reference: What it was named by.

    Raises:
        ToolError: A column, a text or a label is missing, a label does not occur in training, or a file is empty,
            damaged or not UTF-8; the line is named.
    """
    in_folder = path.is_dir()
    check_arguments(reference, ("text", "label") if in_folder else ("text", "label", "val", "test"))
    files = _files_in(path) if in_folder else _files_named(path, reference)
    columns = {role: str(name) for role, name in reference.arguments.items() if role in ("text", "label")}
    found = {split: _read(file, columns) for split, file in files.items()}
    labels = _classes(found.get("train") or next(iter(found.values())))
    splits = {split: _split(rows, labels) for split, rows in found.items()}
    hashes = {split: hashlib.sha256(file.read_bytes()).hexdigest() for split, file in files.items()}
    if in_folder and "test" not in splits and "validation" in splits:
        splits["test"], hashes["test"] = splits.pop("validation"), hashes.pop("validation")
    return Data(
        reference=reference.text,
        train=splits.get("train"),
        validation=splits.get("validation"),
        test=splits.get("test"),
        labels=labels,
        sample_shape=None,
        kind="text",
        fingerprint=digest_of({"columns": columns, "splits": hashes}),
    )


def _split_file(folder: Path, names: Sequence[str]) -> Path | None:
    return next((path for name in names for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()), None)


def _files_in(folder: Path) -> dict[str, Path]:
    found = {split: _split_file(folder, names) for split, names in SPLIT_FILES.items()}
    return {split: path for split, path in found.items() if path is not None}


def _files_named(path: Path, reference: Reference) -> dict[str, Path]:
    files = {"train": path}
    for split, argument in (("validation", "val"), ("test", "test")):
        if argument in reference.arguments:
            files[split] = Path(str(reference.arguments[argument]))
            if not files[split].is_file():
                raise missing_path(files[split])
            if files[split].suffix not in SUFFIXES:
                raise ToolError(f"{files[split]} is not a file of texts: {', '.join(SUFFIXES)}")
    return files


def _read(path: Path, columns: dict[str, str]) -> _Rows:
    contents = _decoded(path)
    rows = _json_rows(contents, path, columns) if path.suffix == ".jsonl" else _table_rows(contents, path, columns)
    texts, labels, lines = [], [], []
    for line, text, label in rows:
        if not text.strip():
            raise ToolError(f"{path}, line {line}: the text is empty; remove the row")
        if not label.strip():
            raise ToolError(f"{path}, line {line}: the label is empty; remove the row")
        texts.append(text.strip())
        labels.append(label.strip())
        lines.append(line)
    if not texts:
        raise ToolError(f"{path} is empty; a row is a text and a label")
    return _Rows(path, tuple(texts), tuple(labels), tuple(lines))


def _decoded(path: Path) -> str:
    contents = path.read_bytes()
    try:
        return contents.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = contents[: error.start].count(b"\n") + 1
        raise ToolError(f"{path}, line {line}: {error.reason} of UTF-8; save the file as UTF-8") from error


def _table_rows(contents: str, path: Path, columns: dict[str, str]) -> Iterator[tuple[int, str, str]]:
    """Yield line, text and label of each row of a .tsv or .csv."""
    rows = _tsv(contents) if path.suffix == ".tsv" else _csv(contents, path)
    first = next(rows, None)
    if first is None:
        return
    line, fields = first
    places = _places(fields, path, columns)
    width = len(fields)
    if places is None:
        if width != 2:
            raise ToolError(
                f"{path}, line {line}: {_counted(width)}, and no header that names them; a row is a text and a label"
            )
        places = (0, 1)
        yield line, fields[0], fields[1]
    for line, fields in rows:
        if len(fields) != width:
            raise ToolError(f"{path}, line {line}: {_counted(len(fields))} where the first line has {width}")
        yield line, fields[places[0]], fields[places[1]]


def _counted(width: int) -> str:
    return f"{width} column{'' if width == 1 else 's'}"


def _tsv(contents: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of tab-separated values, in which a quotation mark is one."""
    for number, line in enumerate(contents.split("\n"), start=1):
        if line.rstrip("\r"):
            yield number, line.rstrip("\r").split("\t")


def _csv(contents: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(MAX_FIELD)
    reader = csv.reader(io.StringIO(contents, newline=""), strict=True)
    line = 1
    try:
        for fields in reader:
            if fields:
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise ToolError(f"{path}, line {line}: {error}; quote a text that holds commas or line breaks") from error


def _places(fields: Sequence[str], path: Path, columns: dict[str, str]) -> tuple[int, int] | None:
    """Return where the text and the label stand, None where the first line does not say."""
    names = [field.strip() for field in fields]
    known = {"text": TEXT_NAMES, "label": LABEL_NAMES}
    found: dict[str, int] = {}
    for role, usual in known.items():
        if role in columns:
            if columns[role] not in names:
                raise _no_column(columns[role], f"{path}, line 1", names)
            found[role] = names.index(columns[role])
        else:
            name = _usual(names, usual)
            if name is not None:
                found[role] = names.index(name)
    if len(found) == 2:
        return found["text"], found["label"]
    if columns or found:  # or its header would be taken for a sample
        missing = next(role for role in known if role not in found)
        raise ToolError(
            f"{path}, line 1: no column is called {' or '.join(map(repr, known[missing]))}, there are "
            f"{', '.join(map(repr, names))}; name it with ',{missing}=COLUMN'"
        )
    return None


def _json_rows(contents: str, path: Path, columns: dict[str, str]) -> Iterator[tuple[int, str, str]]:
    for number, line in enumerate(contents.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ToolError(f"{where} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ToolError(f"{where} is a JSON {type(row).__name__}; a row is an object with a text and a label")
        text = _value(row, columns.get("text"), TEXT_NAMES, where)
        label = _value(row, columns.get("label"), LABEL_NAMES, where)
        if not isinstance(text, str):
            raise ToolError(f"{where}: the text is {json.dumps(text)}, not a string")
        yield number, text, label if isinstance(label, str) else "" if label is None else json.dumps(label)


def _value(row: dict[str, object], named: str | None, usual: Sequence[str], where: str) -> object:
    name = named or _usual(row, usual) or usual[0]
    if name not in row:
        raise _no_column(name, where, list(row))
    return row[name]


def _usual(names: Collection[str], usual: Sequence[str]) -> str | None:
    """Return the column that is called by the first of the usual names that there is, in whatever case."""
    held = {name.lower(): name for name in reversed(list(names))} | {name: name for name in names}
    return next((held[one] for one in usual if one in held), None)


def _no_column(name: str, where: str, names: Sequence[str]) -> ToolError:
    held = ", ".join(map(repr, names)) or "none"
    return ToolError(f"{where}: there is no column {name!r}, there are {held}.{did_you_mean(name, names)}")


def _classes(rows: _Rows) -> tuple[str, ...]:
    labels = set(rows.labels)
    return tuple(sorted(labels, key=int) if all(label.isdecimal() for label in labels) else sorted(labels))


def _split(rows: _Rows, labels: tuple[str, ...]) -> Split:
    index = {label: position for position, label in enumerate(labels)}
    for line, label in zip(rows.lines, rows.labels, strict=True):
        if label not in index:
            some = ", ".join(map(repr, labels[:10])) + (", ..." if len(labels) > 10 else "")
            raise ToolError(
                f"{rows.path}, line {line}: the label {label!r} does not occur in training, whose labels are {some}."
                f"{did_you_mean(label, labels)}"
            )
    return whole_split(TextSamples(rows.texts), torch.tensor([index[label] for label in rows.labels]))
