"""Findings as a list with marks, or as JSON."""

from __future__ import annotations

from typing import Any

import msgspec

from coe_cli.core.findings import Finding, worst
from coe_cli.output.console import Output
from coe_cli.output.tables import MARK_STYLE, folded, left, table

FINDINGS_SCHEMA_VERSION = 1


def findings_document(findings: list[Finding]) -> dict[str, Any]:
    """The JSON keys of a list of findings; ``status`` is the worst level."""
    return {
        "schema_version": FINDINGS_SCHEMA_VERSION,
        "status": worst(findings).value,
        "findings": msgspec.to_builtins(findings),
    }


def write_findings(output: Output, findings: list[Finding]) -> None:
    """One line a finding, and below it what to do."""
    from rich.text import Text

    shown = table(left(), left(), folded(), head=False)
    for finding in findings:
        message = Text(finding.message)
        if finding.fix:
            message.append(f"\n→ {finding.fix}", style="bold")
        shown.add_row(Text(finding.level.value, style=MARK_STYLE[finding.level.value]), finding.check, message)
    output.rich(shown)
