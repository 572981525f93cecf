"""Whether a model can be run on data and taught by another, and how the data becomes its input."""

from collections.abc import Sequence

from core.answers import top_k
from core.data import Data
from core.errors import ToolError
from core.model import Model
from core.onnx_model import OnnxModel
from core.preprocessing import Kind, Preprocessing
from core.torch_model import TorchModel

SAMPLES: dict[Kind, str] = {"image": "images", "text": "texts", "values": "samples that are not images"}


def check_reads(model: Model, data: Data) -> None:
    """Check that a model can be run on, trained on and scored by this data.

    Raises:
        ToolError: They differ in classes, in the order of classes, in kind or in shape of a sample.
    """
    if model.labels and data.labels and len(model.labels) != len(data.labels):
        raise ToolError(
            f"{model.name} has {len(model.labels)} classes, {data.reference} has {len(data.labels)}; "
            "the classes must be the same"
        )
    if _moved(model.labels, data.labels):
        numbers = "write the model's class numbers, 0, 1 and so on, in place of the labels"
        advice = numbers if data.kind == "text" else "bring the data's classes into the model's order"
        raise ToolError(
            f"{model.name} orders its classes {model.labels}, {data.reference} {data.labels}; "
            f"labels would be matched wrongly; {advice}"
        )
    if data.kind != "text" and len(model.inputs) > 1:
        raise ToolError(
            f"{model.name} takes {len(model.inputs)} inputs, {', '.join(spec.name for spec in model.inputs)}; a sample "
            f"of {data.reference} is one"
        )
    if model.preprocessing is None:
        return
    if model.preprocessing.kind != data.kind:
        takes, holds = SAMPLES[model.preprocessing.kind], SAMPLES[data.kind]
        raise ToolError(f"{model.name} takes {takes}, {data.reference} holds {holds}")
    if isinstance(model, TorchModel) and data.kind == "values" and data.sample_shape != model.inputs[0].shape:
        raise ToolError(
            f"{model.name} takes samples of shape {model.inputs[0].shape}, those of {data.reference} have "
            f"{data.sample_shape}"
        )


def preprocessing_of(model: Model, data: Data) -> Preprocessing:
    """Return how `data` becomes this model's input.

    Raises:
        ToolError: An ONNX file that carries no preprocessing meets images or texts: guessing it would give wrong
            accuracy.
    """
    if model.preprocessing is not None:
        return model.preprocessing
    if data.kind == "values":
        return Preprocessing()
    advice = {
        "image": "say so behind its name, as in ',mean=0.485:0.456:0.406,std=0.229:0.224:0.225', or use data with "
        "float samples, already preprocessed",
        "text": "export the model again",
    }[data.kind]
    raise ToolError(
        f"{model.name} does not say how {SAMPLES[data.kind]} become its input (it was not exported by onnxpress); "
        f"{advice}"
    )


def check_same_task(student: TorchModel, teacher: Model) -> None:
    """Check that a teacher can teach a student: the same classes and the same input.

    Raises:
        ToolError: They differ.
    """
    if isinstance(teacher, OnnxModel) and top_k(teacher.returns):
        raise ToolError(
            f"the teacher {teacher.name} returns its {teacher.returns} classes only, and a student learns from what is "
            "said of all of them; export the teacher with --returns logits"
        )
    kind = teacher.preprocessing.kind if teacher.preprocessing is not None else student.preprocessing.kind
    if kind != student.preprocessing.kind:
        raise ToolError(
            f"the teacher {teacher.name} takes {SAMPLES[kind]}, the student {student.name} "
            f"{SAMPLES[student.preprocessing.kind]}; both must read the same samples"
        )
    taught = teacher.sample_shape if isinstance(teacher, OnnxModel) else teacher.inputs[0].shape
    if kind != "text" and all(isinstance(size, int) for size in taught) and taught != student.inputs[0].shape:
        raise ToolError(
            f"the teacher {teacher.name} takes inputs of shape {taught}, the student {student.name} of "
            f"{student.inputs[0].shape}; both must read the same samples"
        )
    num_classes = _num_classes(teacher)
    if num_classes is not None and num_classes != len(student.labels):
        raise ToolError(
            f"the teacher {teacher.name} has {num_classes} classes, the student {student.name} has "
            f"{len(student.labels)}; the classes must be the same"
        )
    if _moved(teacher.labels, student.labels):
        raise ToolError(
            f"the teacher {teacher.name} orders its classes {teacher.labels}, the student {student.name} "
            f"{student.labels}; logits would be matched wrongly"
        )


def _moved(labels: Sequence[str], others: Sequence[str]) -> bool:
    """Tell whether a class that both know stands in another place: others are numbered wrongly then, too."""
    places = {name: place for place, name in enumerate(others)}
    return any(places.get(name, place) != place for place, name in enumerate(labels))


def _num_classes(model: Model) -> int | None:
    """Return the number of classes, or None where an .onnx file does not fix it."""
    if isinstance(model, TorchModel):
        return len(model.labels)
    last = model.outputs[0].shape[-1:]
    return last[0] if last and isinstance(last[0], int) else None
