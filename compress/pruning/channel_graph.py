"""torch-pruning's dependency graph, mended where it takes channels for others or never ends.

Splits and shuffles know where each channel goes. Channels that go together are found by visiting each of them once;
the library follows every path, of which blocks that split and concatenate make exponentially many.
"""

import math
from collections.abc import Iterator
from numbers import Number
from typing import Any

import torch_pruning
from torch import nn
from torch_pruning._helpers import GroupItem, _HybridIndex
from torch_pruning.dependency import Dependency, Group, Node, index_mapping, shape_infer
from torch_pruning.ops import OPTYPE
from torch_pruning.pruner import function

from compress.pruning.shuffled_channels import Shuffle, ShufflePruner, shuffle_at
from compress.pruning.split_channels import SPLITS, Part, PartPruner, Split, SplitPruner, owners_of_splits, parts_of

SEEN_WHEN_CALLED = (nn.Linear, nn.modules.conv._ConvNd)


class ChannelGraph(torch_pruning.DependencyGraph):  # type: ignore[misc]  # torch-pruning ships no types
    """The graph of what shares channels with what.

    Attributes:
        splits: Every split along channels.
        apart: Parameters that the library takes for holders of channels that they have not, as those are that attention
            adds to its scores or multiplies them by.
        unseen: Layers whose weights are used while they themselves are not called, so that the graph lacks them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.splits: list[Split] = []
        self.apart: set[nn.Parameter] = set()
        self.unseen: list[nn.Module] = []
        self._widest = 0
        for kind, pruner in (
            *dict.fromkeys(SPLITS, SplitPruner()).items(),
            (Part, PartPruner()),
            (Shuffle, ShufflePruner()),
        ):
            self.register_customized_layer(kind, pruner)

    def build_dependency(self, *given: Any, **more: Any) -> "ChannelGraph":
        """Trace a model; arguments are the library's."""
        # torch-pruning's default forward tries another way where the first fails, and that error hides the real one.
        more |= {"forward_fn": lambda model, inputs: model(*inputs), "verbose": False}
        super().build_dependency(*given, **more)
        self._widest = max((max(one.shape, default=1) for one in self.model.parameters()), default=1)
        if any(isinstance(one, nn.Parameter) for one in self.module2node):
            for group in self.get_all_groups():
                self.apart |= {
                    item.dep.target.module
                    for item in group.items
                    if isinstance(item.dep.target.module, nn.Parameter)
                    and max(item.idxs) >= self.get_out_channels(item.dep.target)
                }
        return self

    def get_pruning_group(self, module: nn.Module, pruning_fn: Any, idxs: Any) -> Group:
        """Return everything that loses channels when a module does.

        Args:
            module: Where to begin.
            pruning_fn: What its pruner does to it: removes output or input channels.
            idxs: Numbers of the channels.

        Raises:
            ValueError: The module is not in the graph.
        """
        if module not in self.module2node:
            raise ValueError(f"{module} is not in the graph")
        if isinstance(module, nn.modules.conv._ConvNd) and module.groups == module.out_channels > 1:
            pruning_fn = function.prune_depthwise_conv_out_channels
        index_mapping.update_index_mapping(self)
        root = self.module2node[module]
        first = Dependency(pruning_fn, pruning_fn, source=root, target=root)
        given = [_HybridIndex(idx=one, root_idx=one) for one in ([idxs] if isinstance(idxs, Number) else idxs)]
        found: dict[tuple[Node, Any], tuple[Dependency, dict[int, int]]] = {}
        waiting = [(first, _added(found, first, given))]
        while waiting:
            last, reached = waiting.pop()
            for dependency in last.target.dependencies:
                if dependency.is_triggered_by(last.handler) and dependency.target.module not in self.apart:
                    mapped = reached
                    for mapping in dependency.index_mapping:
                        mapped = mapped if mapping is None else mapping(mapped)
                    mapped = [
                        one for one in mapped if one.idx <= self._widest
                    ]  # mappings that widen never end without a bound
                    if new := _added(found, dependency, mapped):
                        waiting.append((dependency, new))
        group = Group()
        group._DG = self
        for dependency, root_of in found.values():
            channels, roots = zip(*sorted(root_of.items()), strict=True)  # the library's importances sort some, not all
            item = GroupItem(dep=dependency, idxs=list(channels))
            item.root_idxs = list(roots)
            group._group.append(item)
        return group

    def _trace(self, model: nn.Module, *given: Any, **more: Any) -> dict[Any, Node]:
        with owners_of_splits(model) as owners:
            nodes: dict[Any, Node] = super()._trace(model, *given, **more)
        for node in reversed(list(nodes.values())):  # the first that run, on whose widths the later depend
            node.enable_index_mapping = True  # the library gives up on what follows a parameter of three dimensions
            if isinstance(node.module, SPLITS):
                parts = parts_of(node, self._width_into(node))
                nodes |= {part.module: part for part in parts}
                if parts:
                    owner, told = owners.get(node.grad_fn, (None, frozenset()))
                    self.splits.append(Split(node.module, tuple(node.module.split_sizes), owner, told))
            elif shuffle := shuffle_at(node):
                del nodes[node.module]
                node.module, node.type = shuffle, OPTYPE.CUSTOMIZED
                nodes[shuffle] = node
        self.unseen = [one for one in _unseen(nodes, model) if one not in self.IGNORED_LAYERS_IN_TRACING]
        return nodes

    def _width_into(self, node: Node) -> int | None:
        """Return how many channels the input of a node has, where known."""
        widths = (shape_infer.infer_out_channels_recursively(self, one, [0]) for one in node.inputs)
        return next((width for width in widths if width is not None), None)

    def _build_dependency(self, module2node: dict[Any, Node]) -> None:
        super()._build_dependency(module2node)
        for node in module2node.values():
            for dependency in node.dependencies:
                dependency.index_mapping[0] = _mapping(dependency) or dependency.index_mapping[0]


class ChannelPruner(torch_pruning.pruner.BasePruner):  # type: ignore[misc]
    """torch-pruning's pruner over a `ChannelGraph`."""

    def __init__(self, *given: Any, **more: Any) -> None:
        # BasePruner makes its own graph and searches it in its constructor, so the class is replaced before that.
        dependency: Any = torch_pruning.dependency
        own, dependency.DependencyGraph = dependency.DependencyGraph, ChannelGraph
        try:
            super().__init__(*given, **more)
        finally:
            dependency.DependencyGraph = own

    def _is_atten_group(self, group: Group) -> Any:
        self._looked_at = group  # before the library asks how many of its channels go
        return super()._is_atten_group(group)

    def _round_to(self, n_pruned: int, current_channels: int, round_to: int) -> int:
        """Return how many sets of a group's channels go, of so many that are to, within its share and to multiples."""
        parts = self._get_channel_groups(self._looked_at)
        width, unit = current_channels // parts, round_to // math.gcd(round_to, parts)
        least = -(-least_kept(width, self.max_pruning_ratio) // unit) * unit
        kept = width - n_pruned
        return width - min(width, max(kept - kept % unit, least))

    def is_followed(self, group: Group) -> bool:
        """Return whether all layers of a group have the channels that are to go, and these come in equal parts."""
        return all(self._has(item) for item in group.items) and self._num_parts(group) > 0

    def _has(self, item: GroupItem) -> bool:
        layer = item.dep.target.module
        is_output = self.DG.is_out_channel_pruning_fn(item.dep.handler)
        if (
            not is_output
            and isinstance(layer, nn.Conv2d)
            and 1 < layer.groups == layer.in_channels < layer.out_channels
        ):
            return False  # torch-pruning miscounts the outputs of a depthwise convolution that has several an input
        width = (self.DG.get_out_channels if is_output else self.DG.get_in_channels)(item.dep.target)
        return width is None or not item.idxs or max(item.idxs) < width

    def _num_parts(self, group: Group) -> int:
        """Return into how many parts a group's first layer divides, each losing what the others do; 0 if unevenly."""
        first, width = group[0].dep, len(group[0].idxs)
        together = sorted(self.DG.get_pruning_group(first.target.module, first.handler, [0])[0].idxs)
        evenly = [part * width // len(together) for part in range(len(together))]
        return len(together) if together == evenly else 0

    def _get_channel_groups(self, group: Group) -> int:
        return int(max(self._num_parts(group), super()._get_channel_groups(group)))


def least_kept(width: int, max_pruning_ratio: float) -> int:
    """Return how many of so many channels stay at least."""
    return max(1, math.ceil((1 - max_pruning_ratio) * width - 1e-9))


def _mapping(dependency: Dependency) -> Any:
    """Return what translates channel numbers from a dependency's source to its target; none where they are the same."""
    source, target = dependency.source, dependency.target
    if isinstance(target.module, Part) and target.module.split is source.module:
        return target.module.from_whole
    if isinstance(source.module, Part) and source.module.split is target.module:
        return source.module.to_whole
    if isinstance(target.module, Shuffle) and source in target.inputs:
        return target.module.forwards
    if isinstance(source.module, Shuffle) and target in source.inputs:
        return source.module.backwards
    return None


def _unseen(nodes: dict[Any, Node], model: nn.Module) -> Iterator[nn.Module]:
    reached = [before for node in nodes.values() for before, _ in node.grad_fn.next_functions]
    used = {id(before.variable) for before in reached if hasattr(before, "variable")}
    whole = {id(part) for one in model.modules() if isinstance(one, nn.MultiheadAttention) for part in one.modules()}
    for module in model.modules():
        if isinstance(module, SEEN_WHEN_CALLED) and module not in nodes and id(module) not in whole:
            yield from [module] if id(module.weight) in used else []


def _added(found: dict[Any, Any], dependency: Dependency, channels: list[Any]) -> list[Any]:
    """Note the channels that a dependency takes for the first time, and return them."""
    if not channels:
        return []
    _, root_of = found.setdefault((dependency.target, dependency.handler), (dependency, {}))
    new = []
    for one in channels:
        if one.idx not in root_of:
            root_of[one.idx] = one.root_idx
            new.append(one)
    return new
