"""Either carrier, where it does not matter which."""

from core.onnx_model import OnnxModel
from core.torch_model import TorchModel, torch_digest

Model = TorchModel | OnnxModel


def model_digest(model: Model) -> str:
    """Return the digest of an .onnx file with its weights, or of a module's architecture and weights."""
    return model.sha256 if isinstance(model, OnnxModel) else torch_digest(model)
