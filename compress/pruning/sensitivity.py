"""What each layer of a model bears: its answers without a share of the layer's channels, and without whole blocks."""

from functools import partial

import plotly.graph_objects as go
from pydantic import BaseModel

from compress.pruning.channel_cut import CutSettings
from compress.pruning.channel_groups import channel_groups, without
from compress.pruning.damage import damage_of
from compress.pruning.ranking import RankingConfig, prepare_ranking
from compress.pruning.residual_blocks import passed_over, residual_blocks
from core.data import Data
from core.progress import Progress, no_progress
from core.result import Report
from core.torch_model import TorchModel

SHARES = (0.125, 0.25, 0.5, 0.75)  # of a group's channels that go
BLOCK = "whole block"


class GroupSensitivity(BaseModel, frozen=True):
    """One group of channels.

    Attributes:
        name: Path of a layer whose outputs they are.
        layers: Paths of the layers that share them: make them, or read them.
        channels: How many there are.
        removed: How many were silenced, look by look.
        damage: What that did to the answers: Kullback-Leibler divergence in nats.
    """

    name: str
    layers: tuple[str, ...]
    channels: int
    removed: tuple[int, ...]
    damage: tuple[float, ...]


class BlockSensitivity(BaseModel, frozen=True):
    """One residual block, and the divergence of the answers without it, in nats."""

    name: str
    damage: float


class SensitivityReport(Report, frozen=True):
    """What each layer bears, measured on so many samples with batch norm fitted to what is left."""

    importance: str
    samples: int
    groups: tuple[GroupSensitivity, ...]
    blocks: tuple[BlockSensitivity, ...]


def pruning_sensitivity(
    model: TorchModel, config: RankingConfig, data: Data, progress: Progress = no_progress
) -> SensitivityReport:
    """Silence each group's least important channels, a share at a time, and pass over each block.

    Args:
        model: What to look at; left untouched.
        config: How channels are ranked, and on how many samples damage is measured.
        data: Its train split is read; labels only by importances that need gradients.
        progress: Told of every look.

    Raises:
        ToolError: As `prepare_ranking`, or the model cannot be traced.
    """
    module, ignored = prepare_ranking(model, config, data)
    settings = CutSettings(
        importance=config.importance,
        allocation="latency",
        round_to=1,
        max_pruning_ratio=config.max_pruning_ratio,
        ignored=ignored,
        seed=config.seed,
    )
    groups, blocks = channel_groups(module, model, settings), residual_blocks(model, ignored)
    looks = [(group, round(share * group.width)) for group in groups for share in SHARES]
    damage = damage_of(
        [
            *(partial(without, module, group, removed) for group, removed in looks),
            *(partial(passed_over, module, block) for block in blocks),
        ],
        module,
        data.split("train"),
        model.preprocessing,
        config.sensitivity_samples,
        progress,
    )
    return SensitivityReport(
        stage="pruning sensitivity",
        importance=config.importance,
        samples=min(config.sensitivity_samples, len(data.split("train"))),
        groups=tuple(
            GroupSensitivity(
                name=group.name,
                layers=tuple(dict.fromkeys((*group.outputs, *group.inputs))),
                channels=group.width,
                removed=tuple(removed for _, removed in looks[start : start + len(SHARES)]),
                damage=tuple(damage[start : start + len(SHARES)]),
            )
            for group, start in zip(groups, range(0, len(looks), len(SHARES)), strict=True)
        ),
        blocks=tuple(
            BlockSensitivity(name=block, damage=harm) for block, harm in zip(blocks, damage[len(looks) :], strict=True)
        ),
    )


def sensitivity_plot(report: SensitivityReport) -> str:
    """Return one HTML page with the damage over what goes, a row a group or block; it opens offline."""
    names = [group.name for group in report.groups] + [block.name for block in report.blocks]
    columns = [f"{100 * share:g} % of the channels" for share in SHARES] + [BLOCK]
    cells = [[*group.damage, None] for group in report.groups]
    cells += [[*[None] * len(SHARES), block.damage] for block in report.blocks]
    figure = go.Figure(
        go.Heatmap(
            x=columns,
            y=names,
            z=cells,
            colorscale="YlOrRd",
            colorbar={"title": "nats"},
            texttemplate="%{z:.3f}",
            hovertemplate="%{y}<br>without %{x}: %{z:.4f} nats<extra></extra>",
        )
    )
    figure.update_layout(
        title=f"Divergence of the answers without part of a layer ({report.samples} samples, {report.importance})",
        yaxis={"autorange": "reversed", "automargin": True},
        xaxis={"side": "top"},
        height=160 + 22 * len(names),
        template="plotly_white",
    )
    page: str = figure.to_html(include_plotlyjs=True, full_html=True)
    return page
