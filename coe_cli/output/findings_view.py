"""Findings as a list with marks, or as JSON."""

from __future__ import annotations

from typing import Any

import msgspec

from coe_cli.core.findings import Finding, Level, worst
from coe_cli.output.console import Output

FINDINGS_SCHEMA_VERSION = 1
_MARK = {Level.OK: ("ok", "green"), Level.WARNING: ("warning", "yellow"), Level.ERROR: ("error", "red")}


def findings_document(findings: list[Finding]) -> dict[str, Any]:
    """The JSON keys of a list of findings; ``status`` is the worst level."""
    return {
        "schema_version": FINDINGS_SCHEMA_VERSION,
        "status": worst(findings).value,
        "findings": msgspec.to_builtins(findings),
    }


def write_findings(output: Output, findings: list[Finding]) -> None:
    """One line a finding, and below it what to do."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        mark, style = _MARK[finding.level]
        message = Text(finding.message)
        if finding.fix:
            message.append(f"\n→ {finding.fix}", style="bold")
        table.add_row(Text(mark, style=style), finding.check, message)
    output.rich(table)
