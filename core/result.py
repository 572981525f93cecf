"""What every stage returns: the model it made and the report of how."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel

ModelT = TypeVar("ModelT")
ReportT = TypeVar("ReportT", bound="Report")

FORMAT_VERSION = "1.0"


class Report(BaseModel, frozen=True):
    """The base of every report; its JSON form is what ``--json`` prints and what a recipe stores."""

    format_version: str = FORMAT_VERSION
    stage: str


@dataclass(frozen=True, slots=True)
class Result(Generic[ModelT, ReportT]):
    """A model and the report of the stage that made it."""

    model: ModelT
    report: ReportT
