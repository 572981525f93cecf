"""A tiny BERT with a WordPiece vocabulary, and texts that it can learn in a few steps; nothing is fetched."""

import json
import random
from pathlib import Path

import pytest
import torch

WITHOUT_TRANSFORMERS = "transformers is not installed: pip install 'onnxpress[text]'"
GOOD, BAD, OTHER = ("good", "fine", "great"), ("bad", "poor", "dull"), ("a", "the", "film", "plot", "is", "and", "was")
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *OTHER, "##s", ",", "!")


def write_bert(folder: Path, seed: int = 0, num_labels: int = 2, **changes: float) -> Path:
    """Write a folder as transformers does: config, weights of a classifier, and a tokenizer made of a vocabulary."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return _write(folder, "Bert", seed, num_labels, {**sizes, **changes})


def write_distilbert(folder: Path, seed: int = 0, num_labels: int = 2, **changes: float) -> Path:
    """Write the same of a DistilBERT."""
    return _write(
        folder, "DistilBert", seed, num_labels, {"dim": 32, "n_layers": 1, "n_heads": 4, "hidden_dim": 32, **changes}
    )


def _write(folder: Path, kind: str, seed: int, num_labels: int, settings: dict[str, float]) -> Path:
    transformers = pytest.importorskip("transformers", reason=WITHOUT_TRANSFORMERS)
    lengths = {"vocab_size": len(VOCABULARY), "max_position_embeddings": 32}
    config = getattr(transformers, f"{kind}Config")(**{**lengths, **settings}, num_labels=num_labels)
    torch.manual_seed(seed)
    getattr(transformers, f"{kind}ForSequenceClassification")(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    return folder


def write_texts(folder: Path, num_train: int = 96) -> Path:
    """Write train.tsv, dev.tsv and test.tsv: a text is good (1) or bad (0) by one of its words."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    for name, count in (("train", num_train), ("dev", 24), ("test", 32)):
        rows = []
        for index in range(count):
            words = [draw.choice(OTHER) for _ in range(draw.randint(1, 12))]
            words.insert(draw.randint(0, len(words)), draw.choice((BAD, GOOD)[index % 2]))
            rows.append(f"{' '.join(words)}\t{index % 2}\n")
        (folder / f"{name}.tsv").write_text("".join(rows))
    return folder
