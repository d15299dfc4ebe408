"""`coe node`: this machine as a node of a Ray cluster, with the memory that its profile allows."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from coe_cli.commands.options import (
    CatalogFileOption,
    ProfileOption,
    ProfilesFileOption,
    ReportFormatOption,
    read_catalog,
    read_profiles,
)
from coe_cli.errors import DoesNotFit, UsageError
from coe_cli.output.console import Output, ReportFormat

EXAMPLES = """Examples:

coe node --head                            # the line for the first machine

coe node --address 192.168.1.10:6379 --start

coe batch questions.jsonl -o answers.jsonl --engine ray --address 192.168.1.10:6379
"""


def node(
    head: Annotated[bool, typer.Option("--head", help="The cluster's first machine.")] = False,
    address: Annotated[str | None, typer.Option("--address", metavar="HOST:PORT", help="Join the head there.")] = None,
    port: Annotated[int | None, typer.Option("--port", min=1, max=65535, help="Port of the head: 6379.")] = None,
    start: Annotated[bool, typer.Option("--start", help="Run the line instead of printing it.")] = False,
    auto: Annotated[bool, typer.Option("--auto", help="Pick the profile that suits this machine.")] = False,
    report_format: ReportFormatOption = ReportFormat.HUMAN,
    profile: ProfileOption = None,
    profiles_file: ProfilesFileOption = None,
    catalog_file: CatalogFileOption = None,
) -> None:
    """Print the `ray start` line for this machine from its checked profile, or run it.

    Without --address it is the cluster's head. It offers Ray the memory that the profile leaves for models, and the models
    that are on disk. Exit 5 when the profile does not fit this machine.
    """
    if head and address is not None:
        raise UsageError("--head and --address exclude each other", "The head has no address to join.")
    if address is not None and port is not None:
        raise UsageError("--port is the head's", "Write it behind the address: HOST:PORT.")
    from coe_cli.core.fleet.ray_node import DEFAULT_PORT, node_resources, node_start
    from coe_cli.runtime.fleet.ray_cluster import check_installed
    from coe_cli.runtime.folders import folders
    from coe_cli.runtime.planning.profile_report import check

    check_installed()
    where = folders()
    report = check(
        read_profiles(profiles_file), None if auto else profile, read_catalog(catalog_file), where, auto=auto
    )
    if not report.passed:
        problem = next(finding for finding in report.findings if finding.level == "error")
        raise DoesNotFit(
            f"profile {report.profile.name} does not suit this machine: {problem.message}",
            f"See `coe profile check {report.profile.name}`, or let `coe node --auto` choose.",
        )
    from coe_cli.providers.settings import worker_threads
    from coe_cli.runtime.model_folder.on_disk import models_on_disk

    resources = node_resources(report.profile, models_on_disk(where.models), worker_threads())
    windows = sys.platform == "win32"
    line = node_start(resources, address=address, port=port or DEFAULT_PORT, windows=windows)
    output = Output()
    if report_format is ReportFormat.JSON:
        document = {"schema_version": 1, "profile": report.profile.name, "resources": resources}
        output.json({**document, "environment": line.environment, "arguments": ["ray", *line.arguments]})
    else:
        output.stdout.write(line.line(windows=windows) + "\n")
    if start:
        from coe_cli.runtime.fleet.ray_cluster import run_ray

        output.stdout.flush()
        run_ray(line)
