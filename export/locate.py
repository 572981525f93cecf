"""Where a file begins to compute something else than its torch module: the first tensor that differs, and its module.

The exporter names a graph's tensors after the operations that torch.export traced, and simplification keeps the names
of the tensors it keeps. So the module is traced again, both are run on the same inputs with every such tensor watched,
and the tensors are compared in the order in which torch computes them.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from pydantic import BaseModel
from torch import Tensor, fx

from core.errors import ToolError
from core.machine import package_versions
from core.onnx_graph import producers, watch
from core.onnx_model import OnnxModel, read_proto
from core.preprocessing import Tensors
from core.sessions import open_graph, run_session
from core.torch_model import TorchModel, outputs_once
from export.tracing import traced

ROUNDING = 1e-4  # of a tensor's largest value: float32 kernels differ by less, mistakes by more

logger = logging.getLogger(__name__)


class Divergence(BaseModel, frozen=True, ser_json_inf_nan="strings"):
    """The first tensor of a file that differs from what torch computes.

    Attributes:
        tensor: Its name in the graph.
        operator: The ONNX operator that makes it.
        weights: Names of the initializers that this operator reads.
        module: Path of the torch module that computes it; empty for the model itself.
        module_type: That module's class.
        max_abs_err: Largest absolute difference of an element.
        finite: Whether it is free of NaN and of infinities; those that torch computes too count only where no tensor
            differs.
        finite_in_torch: Whether torch's own is free of them.
    """

    tensor: str
    operator: str
    weights: tuple[str, ...]
    module: str
    module_type: str
    max_abs_err: float
    finite: bool
    finite_in_torch: bool

    @property
    def sentence(self) -> str:
        """Name the tensor, its module and how far it is off."""
        of = f"module {self.module} ({self.module_type})" if self.module else f"the model itself ({self.module_type})"
        made = f"made by {self.operator}" + (f" with {', '.join(self.weights)}" if self.weights else "")
        if self.finite:
            return (
                f"the first tensor that differs is {self.tensor!r} of {of}, {made}: max_abs_err {self.max_abs_err:.2g}"
            )
        too = "" if self.finite_in_torch else ", in torch too"
        return f"the first tensor that is not finite is {self.tensor!r} of {of}, {made}{too}"


def first_divergence(
    reference: TorchModel, candidate: OnnxModel, inputs: Tensors, taken: Tensors, *, atol: float, rtol: float
) -> Divergence | None:
    """Return the first tensor that differs, or None where no tensor that is named in both does.

    Args:
        reference: The module that the file was exported from, by the torch that is installed.
        candidate: A float file.
        inputs: What the module takes, (N, ...) each.
        taken: The same as the file takes it.
        atol: Where no tensor differs by more than rounding, the first one beyond atol + rtol * |reference| is named.
        rtol: Likewise.
    """
    if not _named_alike(candidate):
        return None
    try:
        returned = list(outputs_once(reference))
        program = traced(reference, min(max(candidate.opset, 18), 23), returned).exported_program
    except ToolError as error:
        logger.debug("nothing is located: %s", error)
        return None
    assert program is not None
    in_graph = dict(zip(program.graph_signature.user_outputs, returned, strict=False))
    names = {node.name: in_graph.get(node.name, node.name) for node in program.graph.nodes}
    taken_as = [spec.name for spec in reference.inputs]
    watched = _Watched(read_proto(candidate.path, weights=False), {*names.values(), *taken_as})
    try:
        values = _run(candidate, watched, taken)
        finite = all(np.isfinite(values[name]).all() for name in returned if name in values)
    except ToolError as error:  # a batch that the file fixes, say
        logger.debug("nothing is located: %s", error)
        return None
    search = _Search(watched, values, names, taken_as, atol, rtol)
    try:
        with torch.no_grad():
            _Interpreter(program.module(check_guards=False), search.look).run(*inputs)
    except _Found as found:
        return found.divergence
    return search.beyond_limits if finite else search.infinite or search.beyond_limits


class _Watched:
    """A graph that puts out its tensors of some names; `maker` says which node makes each."""

    def __init__(self, proto: onnx.ModelProto, names: set[str]) -> None:
        self.proto = proto
        self.maker = {tensor: node for tensor, node in producers(proto.graph).items() if tensor in names}
        self.weights = {tensor.name for tensor in proto.graph.initializer}
        watch(proto.graph, list(self.maker))


class _Found(Exception):  # noqa: N818  # it ends a run that has found what it looks for, and is no error
    def __init__(self, divergence: Divergence) -> None:
        self.divergence = divergence


@dataclass(slots=True)
class _Search:
    """Looks at torch's values in their order, and raises `_Found` at the first that clearly differs."""

    watched: _Watched
    values: dict[str, np.ndarray]
    names: Mapping[str, str]
    taken: list[str]
    atol: float
    rtol: float
    beyond_limits: Divergence | None = None
    infinite: Divergence | None = None  # in torch too; positive, since masks hold negative infinities

    def look(self, node: fx.Node, value: object) -> None:
        name = self.taken.pop(0) if node.op == "placeholder" else self.names.get(node.name, "")
        actual = self.values.pop(name, None)
        if actual is None or not isinstance(value, Tensor) or not value.is_floating_point():
            return
        expected = value.detach().float().numpy()
        if actual.shape != expected.shape or not actual.size:
            return
        same = (actual == expected) & np.isinf(expected)
        difference = np.abs(np.where(same, 0, actual) - np.where(same, 0, expected).astype(np.float64))
        finite = bool(np.isfinite(difference).all())
        magnitude = float(np.abs(expected[np.isfinite(expected)]).max(initial=0))
        if not finite or difference.max() > ROUNDING * magnitude:
            raise _Found(self._divergence(node, name, difference, expected))
        if self.infinite is None and expected.max() == np.inf:
            alike = self._divergence(node, name, difference, expected)
            self.infinite = alike.model_copy(update={"finite": False, "finite_in_torch": False})
        if self.beyond_limits is None and (difference > self.atol + self.rtol * np.abs(expected)).any():
            self.beyond_limits = self._divergence(node, name, difference, expected)

    def _divergence(self, node: fx.Node, name: str, difference: np.ndarray, expected: np.ndarray) -> Divergence:
        maker = self.watched.maker[name]
        path, module_type = _module_of(node)
        return Divergence(
            tensor=name,
            operator=maker.op_type,
            weights=tuple(tensor for tensor in maker.input if tensor in self.watched.weights),
            module=path,
            module_type=module_type,
            max_abs_err=float(difference.max()),
            finite=bool(np.isfinite(difference).all()),
            finite_in_torch=not np.isnan(expected).any(),
        )


class _Interpreter(fx.Interpreter):
    """Runs a traced module and shows each value it computes."""

    def __init__(self, module: torch.fx.GraphModule, look: Callable[[fx.Node, object], None]) -> None:
        super().__init__(module)
        self._look = look

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        view, reshape = torch.ops.aten.view.default, torch.ops.aten.reshape.default
        return super().call_function(reshape if target is view else target, args, kwargs)  # kernels order memory freely

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self._look(n, value)
        return value


def _module_of(node: fx.Node) -> tuple[str, str]:
    """Return the path and the class of the innermost module that a traced operation ran in."""
    if node.op == "placeholder":
        return "", "its input"
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, module_type = stack[-1] if stack else ("", "")
    return path, str(module_type if isinstance(module_type, str) else module_type.__name__).rpartition(".")[2]


def _run(candidate: OnnxModel, watched: _Watched, taken: Tensors) -> dict[str, np.ndarray]:
    session = open_graph(watched.proto, weights_beside=candidate.path)
    return run_session(session, *(tensor.numpy() for tensor in taken))


def _named_alike(candidate: OnnxModel) -> bool:
    """Tell whether the file's tensors have the names that the installed torch would give them."""
    exported_with = [step.versions.get("torch") for step in candidate.history if step.stage == "export"]
    return not exported_with or exported_with[-1] == package_versions()["torch"]
