"""Text classifiers of Hugging Face's transformers, from a folder or by name; weights from safetensors files alone."""

import inspect
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from core.data import Data
from core.errors import ToolError
from core.input_spec import SEQUENCE, InputSpec
from core.preprocessing import Preprocessing
from core.references import Reference, check_arguments, file_sha256
from core.tokenizing import FIELDS, MISSING, Tokenization
from core.torch_model import Source, TorchModel

MAX_LENGTH = 128  # where the user gives none: sentences and short reviews, at a sixteenth of the cost of 512
ARGUMENTS = ("max_length", "num_classes", "pretrained", "weights")
ATTENTION = "eager"  # plain products: the smallest exported graph, and a mask that stays finite, as int8 needs it
LISTED = 3  # names in a message

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Brought:
    """What transformers makes of a reference.

    Attributes:
        config: Of the architecture, transformers' own object.
        tokenizer: Likewise.
    """

    config: Any
    tokenizer: Any


def load_hf(reference: Reference, data: Data | None, seed: int) -> TorchModel:
    """Load a sequence classifier with its tokenizer.

    The head has as many classes as the data, or as ``num_classes`` says; where the weights have none, or
    ``num_classes`` asks for another than theirs, it starts from random weights. ``pretrained=false`` starts all from
    random weights. ``max_length``, 128 tokens by default, is the model's: see `core.tokenizing`.

    Args:
        reference: ``hf:FOLDER`` or ``hf:NAME`` of the Hugging Face hub.
        data: Where the classes come from.
        seed: Seeds weights that start random.

    Raises:
        ToolError: The weights' head is of other classes and ``num_classes`` is not given; transformers is not
            installed, there is no such model or it is damaged, it has pickled weights only, runs code of its own, or
            takes inputs that a tokenizer does not make.
    """
    check_arguments(reference, ARGUMENTS)
    _check_name(reference)
    brought = _brought(reference)
    labels = _set_classes(brought.config, reference, data)
    torch.manual_seed(seed)
    module = _module(reference, brought.config)
    text = _tokenization(reference, brought, module)
    return TorchModel(
        name=reference.text,
        module=module.eval(),
        source=Source(kind="hf", name=reference.name, config=_config_text(brought.config)),
        inputs=tuple(_input_spec(name, brought.config, text.max_length) for name in text.inputs),
        preprocessing=Preprocessing(text=text),
        labels=labels,
    )


def hf_module(source: Source) -> nn.Module:
    """Build the module of a source from its config alone, with random weights.

    Raises:
        ToolError: transformers is not installed, or does not know the architecture.
    """
    transformers = _transformers()
    values = json.loads(source.config or "{}")

    def build() -> Any:
        config = transformers.AutoConfig.for_model(values.pop("model_type", ""), **values)
        factory = transformers.AutoModelForSequenceClassification
        return factory.from_config(config, attn_implementation=ATTENTION, dtype=torch.float32)

    module: nn.Module = _asked(build, f"hf:{source.name}")
    return module.eval()


def hf_digests(name: str) -> list[str]:
    """Return digests of the files of an ``hf`` model's folder; none of a name on the hub."""
    return [file_sha256(path) for path in sorted(Path(name).glob("*")) if path.is_file()]


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ToolError(f"hf: models are built by transformers, which is not installed; {MISSING}") from error
    return transformers


def _check_name(reference: Reference) -> None:
    folder = Path(reference.name)
    if not folder.is_dir():
        if folder.is_absolute() or reference.name.startswith("."):
            raise ToolError(f"{reference.text!r}: {folder} is not a folder")
        return
    if not (folder / "config.json").is_file():
        raise ToolError(f"{reference.text!r}: {folder} has no config.json; it is not a model of transformers")
    if reference.arguments.get("pretrained", True) is True and not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin"))
        what = "holds pickled weights, which can run code when they are read, and no" if pickled else "holds no"
        advice = "convert them to safetensors" if pickled else "add ',pretrained=false' to start from random weights"
        raise ToolError(f"{reference.text!r}: {folder} {what} model.safetensors; {advice}")


def _brought(reference: Reference) -> _Brought:
    transformers = _transformers()
    config = _asked(lambda: transformers.AutoConfig.from_pretrained(reference.name), reference.text)
    tokenizer = _asked(lambda: transformers.AutoTokenizer.from_pretrained(reference.name), reference.text)
    if not tokenizer.is_fast:
        raise ToolError(
            f"{reference.text!r}: its tokenizer {type(tokenizer).__name__} runs as Python code and has no "
            "tokenizer.json, which is what can travel with the model; use a model with a fast tokenizer"
        )
    if tokenizer.pad_token_id is None:
        raise ToolError(f"{reference.text!r}: its tokenizer has no padding token, which batches of texts need")
    if len(tokenizer) > config.vocab_size:
        raise ToolError(
            f"{reference.text!r}: its tokenizer knows {len(tokenizer)} tokens, the model {config.vocab_size}; "
            "they do not belong together"
        )
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    config.dtype = torch.float32  # a module's weights are, whatever they were stored as
    return _Brought(config, tokenizer)


def _set_classes(config: Any, reference: Reference, data: Data | None) -> tuple[str, ...]:
    """Give the config as many classes as asked for, and return their names."""
    wanted = reference.arguments.get("num_classes", len(data.labels) if data is not None else config.num_labels)
    if not isinstance(wanted, int) or wanted < 2:
        raise ToolError(f"{reference.text!r}: num_classes is {wanted!r}; it is a number from 2 up")
    if data is not None and wanted != len(data.labels):
        raise ToolError(
            f"{reference.text} has {wanted} classes, {data.reference} has {len(data.labels)}; drop num_classes"
        )
    if wanted != config.num_labels:
        config.num_labels = wanted
    own = tuple(str(config.id2label[index]) for index in range(wanted))
    return own if data is None or set(own) == set(data.labels) else data.labels


def _module(reference: Reference, config: Any) -> nn.Module:
    transformers = _transformers()
    factory = transformers.AutoModelForSequenceClassification
    if reference.arguments.get("pretrained", True) is not True:
        found: nn.Module = _asked(
            lambda: factory.from_config(config, attn_implementation=ATTENTION, dtype=torch.float32), reference.text
        )
        return found
    module, loaded = _asked(
        lambda: factory.from_pretrained(
            reference.name,
            config=config,
            attn_implementation=ATTENTION,
            use_safetensors=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # a head of other classes
            output_loading_info=True,
        ),
        reference.text,
    )
    trained = [name for name, *_ in loaded["mismatched_keys"]]
    if trained and "num_classes" not in reference.arguments:
        raise ToolError(
            f"{reference.text} was trained on other classes than the {config.num_labels} asked for; to drop what it "
            f"learned of them and start its {trained[0]} from random weights, add num_classes={config.num_labels}"
        )
    fresh = sorted({*loaded["missing_keys"], *(name for name, *_ in loaded["mismatched_keys"])})
    if fresh:
        some = ", ".join(fresh[:LISTED]) + (f" and {len(fresh) - LISTED} more" if len(fresh) > LISTED else "")
        logger.warning("%s has no weights for %s; they start random and need training", reference.text, some)
    made: nn.Module = module
    return made


def _tokenization(reference: Reference, brought: _Brought, module: nn.Module) -> Tokenization:
    tokenizer = brought.tokenizer
    return Tokenization(
        tokenizer=tokenizer.backend_tokenizer.to_str(),
        inputs=_inputs(reference, tokenizer, module),
        max_length=_max_length(reference, brought),
        padding_id=tokenizer.pad_token_id,
        padding_type_id=tokenizer.pad_token_type_id,
        padding_side=tokenizer.padding_side,
    )


def _inputs(reference: Reference, tokenizer: Any, module: nn.Module) -> tuple[str, ...]:
    """Return what the tokenizer makes and the model takes, which must be what its forward takes first."""
    parameters = list(inspect.signature(module.forward).parameters)
    made = [name for name in tokenizer.model_input_names if name in parameters]
    taken = tuple(sorted(made, key=parameters.index))
    if not taken or taken != tuple(parameters[: len(taken)]) or any(name not in FIELDS for name in taken):
        raise ToolError(
            f"{reference.text!r}: its forward takes {', '.join(parameters[: len(taken) + 1])} first, its tokenizer "
            f"makes {', '.join(tokenizer.model_input_names)}; wrap it in a FILE.py:FACTORY that takes these in order"
        )
    return taken


def _max_length(reference: Reference, brought: _Brought) -> int:
    positions = getattr(brought.config, "max_position_embeddings", None) or brought.tokenizer.model_max_length
    limit = int(min(positions, brought.tokenizer.model_max_length))
    asked = reference.arguments.get("max_length", min(MAX_LENGTH, limit))
    if not isinstance(asked, int) or isinstance(asked, bool) or not 1 < asked <= limit:
        raise ToolError(f"{reference.text!r}: max_length is {asked!r}; the model takes 2 to {limit} tokens")
    return asked


def _input_spec(name: str, config: Any, length: int) -> InputSpec:
    types = getattr(config, "type_vocab_size", None) or 1
    below = {"input_ids": config.vocab_size, "attention_mask": 2, "token_type_ids": types}[name]
    return InputSpec(name=name, shape=(length,), dtype="int64", symbols=(SEQUENCE,), below=below)


def _config_text(config: Any) -> str:
    """Return the whole config, so that another version's defaults change nothing, but for where it came from."""
    values = json.loads(config.to_json_string(use_diff=False))
    for name in ("_name_or_path", "transformers_version"):
        values.pop(name, None)
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def _asked(call: Callable[[], Any], text: str) -> Any:
    """Call transformers without what it prints and logs, and say its errors in one line."""
    try:
        with _quiet():
            return call()
    except (*_EXPECTED, SafetensorError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        code = "trust_remote_code" in str(error)
        reason = "it runs code of its own, which is not done; wrap it in a FILE.py:FACTORY" if code else first
        raise ToolError(f"cannot load {text!r}: {reason}") from error


_EXPECTED = (OSError, ValueError, TypeError, KeyError, RuntimeError, ImportError, AttributeError)


@contextmanager
def _quiet() -> Iterator[None]:
    log = _transformers().utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(log.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
