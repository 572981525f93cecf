"""What every command has in common: how it begins, how its report is shown, and what its errors become."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from core.errors import GateMissedError, ToolError
from core.processes import is_main_process, leave_processes, num_processes
from interruption import interruptions

GOES_ON = "goes on where it stopped"
RESUMES = {
    "run": GOES_ON,
    "finetune": GOES_ON,
    "distill": GOES_ON,
    "quantize": "starts it again, but for the training of --qat, which goes on",
}
SHARED_BY_PROCESSES = ("finetune", "distill")


class Cli(click.Group):
    """Print expected errors on one line; let bugs show their traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand and turn what goes wrong into an exit code."""
        with interruptions() as interrupted:
            try:
                return super().invoke(ctx)
            except (Exception, KeyboardInterrupt) as error:
                if interrupted:
                    resume = RESUMES.get(ctx.invoked_subcommand or "", "starts it again")
                    click.echo(f"\nInterrupted; nothing half-written is left. The same command {resume}.", err=True)
                    sys.stdout.flush()
                    os._exit(1)  # at once: Python's own exit would end by signal where a library's code was interrupted
                if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                    error = ToolError(f"cannot write the report to stdout: {error.strerror}")
                if not isinstance(error, ToolError):
                    raise
                click.echo(f"Error: {error}", err=True)
                if isinstance(error, GateMissedError) and error.tried:
                    from terminal import show_tried

                    show_tried(error.tried)
                ctx.exit(error.exit_code)


@contextmanager
def session(given: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Any]]:
    """Yield the options that are the stage's and a progress function, shown while the block runs."""
    from terminal import progress_shown, set_up_logging

    _refuse_several_processes()
    quiet = given["quiet"] or not is_main_process()
    set_up_logging(verbose=given["verbose"], quiet=quiet)
    options = {name: value for name, value in given.items() if name not in ("as_json", "verbose", "quiet")}
    with progress_shown(quiet=quiet) as progress:
        yield options, progress
    leave_processes()


def render(report: Any, given: dict[str, Any]) -> None:
    """Print a report as a table, or as JSON where that is asked for."""
    if not is_main_process():
        return
    if given["as_json"]:
        click.echo(report.model_dump_json(indent=2))
        return
    from terminal import show_report

    show_report(report)


def _refuse_several_processes() -> None:
    command = click.get_current_context().info_name
    if num_processes() > 1 and command not in SHARED_BY_PROCESSES:
        raise ToolError(
            f"{command} works in one process, and {num_processes()} were started; only "
            f"{' and '.join(SHARED_BY_PROCESSES)} share their work"
        )
