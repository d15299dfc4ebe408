"""`coe doctor`: what is wrong with this machine, and the command that fixes it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coe_cli.commands.options import CatalogFileOption, ProfileOption, ProfilesFileOption, ReportFormatOption
from coe_cli.errors import ExitCode
from coe_cli.output.console import Output, ReportFormat


def doctor(
    profile: ProfileOption = None,
    report_format: ReportFormatOption = ReportFormat.HUMAN,
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle", metavar="FILE.zip", help="Also write a file for a bug report, without prompts or secrets."
        ),
    ] = None,
    profiles_file: ProfilesFileOption = None,
    catalog_file: CatalogFileOption = None,
) -> None:
    """Check system, packages, adapters, models and folders; every finding comes with the command that fixes it.

    Exits with 1 when something is wrong. Opens no connection and loads no model (`coe models verify` does).

    Example: coe doctor --format json | jq '.findings[] | select(.level != "ok")'
    """
    from coe_cli.core.findings import Level, worst
    from coe_cli.output.findings_view import findings_document, write_findings
    from coe_cli.runtime.doctor import examine

    output = Output()
    with output.waiting("looking at this machine"):
        findings = examine(profiles_file, catalog_file, profile)
    document = findings_document(findings)
    if report_format is ReportFormat.JSON:
        output.json(document)
    else:
        write_findings(output, findings)
    if bundle is not None:
        from coe_cli.runtime.bundle import write_bundle

        inside = write_bundle(bundle, document)
        output.note(f"{bundle} has {', '.join(inside)}: look into it before you send it")
    if worst(findings) is Level.ERROR:
        raise typer.Exit(ExitCode.UNEXPECTED)
