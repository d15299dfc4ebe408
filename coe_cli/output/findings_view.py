"""Findings as a list with marks, or as JSON."""

from __future__ import annotations

from typing import Any

import msgspec

from coe_cli.core.findings import Finding, worst
from coe_cli.output.console import Output
from coe_cli.output.tables import MARK_STYLE, Cell, folded, left, write_table

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
    rows: list[list[Cell]] = [
        [
            [(finding.level.value, MARK_STYLE[finding.level.value])],
            finding.check,
            [finding.message, *([(f"\n→ {finding.fix}", "bold")] if finding.fix else [])],
        ]
        for finding in findings
    ]
    write_table(output, [left(), left(), folded()], rows)
