"""Profiles and the findings about them, on the screen or as JSON, CSV or Markdown."""

from __future__ import annotations

from typing import Any

import msgspec

from coe_cli.core.hardware.profile import HardwareProfile, ProfileSet
from coe_cli.core.memory.profile_check import CheckReport
from coe_cli.core.names import size_words
from coe_cli.output.console import Output, TableFormat
from coe_cli.output.findings_view import write_findings
from coe_cli.output.tables import folded, is_narrow, left, number, right, write_line, write_table

SCHEMA_VERSION = 1
_ROOM_FOR_PRELOAD = 56
LIST_FIELDS = (
    "name",
    "provider",
    "vram_budget_mb",
    "max_concurrent_slots",
    "context_length",
    "preload_enabled",
    "description",
)

FINDING_FIELDS = ("level", "topic", "message", "action")


def write_profiles(output: Output, profiles: ProfileSet, table_format: TableFormat) -> None:
    """One line a profile; the default one is marked."""
    rows = [{field: getattr(profile, field) for field in LIST_FIELDS} for profile in profiles.profiles.values()]
    document = {"schema_version": SCHEMA_VERSION, "default_profile": profiles.default_profile, "profiles": rows}

    def human() -> None:
        numbers = [right(title) for title in ("budget", "slots", "context")]
        narrow, tiny = is_narrow(output), is_narrow(output, _ROOM_FOR_PRELOAD)
        words = (*(() if tiny else (left("preload"),)), *(() if narrow else (folded("description"),)))
        cells = [
            [
                f"{row['name']} *" if row["name"] == profiles.default_profile else row["name"],
                row["provider"],
                size_words(row["vram_budget_mb"]),
                *(f"{row[key]:,}" for key in ("max_concurrent_slots", "context_length")),
                *(() if tiny else ("yes" if row["preload_enabled"] else "no",)),
                *(() if narrow else (row["description"],)),
            ]
            for row in rows
        ]
        columns = (left("profile"), left("provider"), *numbers, *words)
        write_table(output, columns, cells, ruled=True, tight=narrow)
        output.note("* is the default profile" + ("; `coe profile show NAME` says what one is for" if narrow else ""))

    output.emit(table_format, document, LIST_FIELDS, [list(row.values()) for row in rows], human)


def write_profile(output: Output, profile: HardwareProfile, table_format: TableFormat) -> None:
    """One profile with every setting, dotted names for the nested ones."""
    document: dict[str, Any] = dict.fromkeys(LIST_FIELDS) | msgspec.to_builtins(profile)
    header, rows = ("setting", "value"), [row for row in _flat(document) if row[0] not in ("description", "notes")]

    def human() -> None:
        write_line(output, (profile.name, "bold"), f" · {profile.description}\n")
        if profile.notes:
            write_line(output, profile.notes.strip() + "\n")
        write_table(
            output, [left(header[0]), number(header[1])], [(key, str(value)) for key, value in rows], ruled=True
        )

    output.emit(table_format, {"schema_version": SCHEMA_VERSION, "profile": document}, header, rows, human)


def write_check(output: Output, report: CheckReport, table_format: TableFormat) -> None:
    """One line a finding: level, topic, what is so, what to do."""
    rows = [(finding.level.value, finding.check, finding.message, finding.fix) for finding in report.findings]
    document = {
        "schema_version": SCHEMA_VERSION,
        "profile": report.profile.name,
        "reason": report.reason,
        "machine": report.machine,
        "findings": [dict(zip(FINDING_FIELDS, row, strict=True)) for row in rows],
        "passed": report.passed,
    }

    def human() -> None:
        write_line(output, (report.profile.name + (f": {report.reason}" if report.reason else ""), "bold"))
        write_findings(output, report.findings)

    output.emit(table_format, document, FINDING_FIELDS, rows, human)


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, item in value.items():
        rows += _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else [(prefix + key, item)]
    return rows
