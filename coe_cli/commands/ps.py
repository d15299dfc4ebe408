"""`coe ps`: what the college has loaded and what it does."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from coe_cli.commands.options import ReportFormatOption
from coe_cli.errors import DeviceLost
from coe_cli.output.console import Output, ReportFormat


def ps(
    output_format: ReportFormatOption = ReportFormat.HUMAN,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep showing it; Ctrl-C ends.")] = False,
) -> None:
    """Models that are loaded, their process, slots, memory and idle time, and the memory pressure.

    Example: coe ps --format json | jq '.pressure.level'
    """
    from coe_cli.core.scheduling.college_status import CollegeStatus
    from coe_cli.output.college_view import watch_college, write_status
    from coe_cli.runtime.server.college_client import find

    output = Output()
    with output.waiting("asking the college"):
        client = find(any_state=True)
    if watch and client is not None:
        watch_college(output, client.snapshot, as_json=output_format is ReportFormat.JSON)
        return
    status = CollegeStatus()
    with output.waiting("asking the college"), contextlib.suppress(DeviceLost):  # ended since it was found
        if client is not None:
            status = client.snapshot()
    write_status(output, status, as_json=output_format is ReportFormat.JSON)
