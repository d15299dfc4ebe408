"""Settings of `coe config get`."""

from __future__ import annotations

from typing import Any

from coe_cli.output.console import Output, ReportFormat


def write_settings(output: Output, settings: dict[str, Any], key: str | None, output_format: ReportFormat) -> None:
    """The value alone where one was asked for, else a line a setting; or one JSON object."""
    if output_format is ReportFormat.JSON:
        output.json(settings)
        return
    for name, value in settings.items():
        shown = _shown(value)
        output.stdout.write(f"{shown}\n" if key is not None else f"{name}: {shown}\n")
    if not settings:
        output.note("nothing is set: the shipped settings are in force")


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    import json

    return json.dumps(value, ensure_ascii=False)
