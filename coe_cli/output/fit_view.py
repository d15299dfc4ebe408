"""What fits, as a table a device."""

from __future__ import annotations

from coe_cli.core.memory.fit import ExpertFit, Fit, FitReport
from coe_cli.core.names import size_words
from coe_cli.output.console import Output, TableFormat
from coe_cli.output.tables import is_narrow, left, right, write_line, write_table

SCHEMA_VERSION = 1
FIELDS = ("device", "expert", "model", "how", "context_length", "weights_mb", "swap_s", "profile")
_ROOM_FOR_MODELS, _ROOM_FOR_WEIGHTS = 80, 92
_STYLES = {"together": "green", "in turns": "yellow", "no": "red"}


def write_fit(output: Output, report: FitReport, table_format: TableFormat) -> None:
    """For people a table and a sentence a device; else every row with its device and profile."""
    rows = [
        [fit.device, *(getattr(expert, field) for field in FIELDS[1:-1]), fit.profile]
        for fit in report.devices
        for expert in fit.experts
    ]
    document = {"schema_version": SCHEMA_VERSION, "devices": report.devices}
    output.emit(table_format, document, FIELDS, rows, lambda: _write_human(output, report))
    output.notes(report.notes)


def _write_human(output: Output, report: FitReport) -> None:
    for fit in report.devices:
        _write_device(output, fit)


def _write_device(output: Output, fit: Fit) -> None:
    size = size_words(fit.memory_mb)
    title = fit.device if fit.device == size else f"{fit.device}, {size}"
    use = f" · profile {fit.profile}" if fit.profile else ""
    write_line(output, f"{title} · {fit.provider} · {size_words(fit.budget_mb)} for models{use}")
    columns = [left("expert"), left("model"), right("weights"), left("fits"), right("context"), right("swap")]
    left_out = {1} if is_narrow(output, _ROOM_FOR_MODELS) else set()
    left_out |= {2} if is_narrow(output, _ROOM_FOR_WEIGHTS) else set()
    shown = [place for place in range(len(columns)) if place not in left_out]
    rows = [[_row(expert)[place] for place in shown] for expert in fit.experts]
    styles = [_STYLES[expert.how] for expert in fit.experts]
    tight = is_narrow(output)
    write_table(output, [columns[place] for place in shown], rows, styles=styles, ruled=True, tight=tight)
    counts = {how: sum(expert.how == how for expert in fit.experts) for how in _STYLES}
    said = ", ".join(f"{count} {how if how != 'no' else 'not at all'}" for how, count in counts.items() if count)
    if counts["together"]:
        said += f"; those together take {size_words(fit.together_mb)} with {fit.context_length:,} tokens a slot"
    write_line(output, said)
    held = [expert.weights_mb for expert in fit.experts if expert.how != "no"]
    if fit.bandwidth_gb_s is not None and held:
        most = fit.bandwidth_gb_s * 1e9 / (max(held) * 2**20)
        write_line(
            output,
            f"its memory is read at {fit.bandwidth_gb_s:,} GB/s at most, and a token reads all weights: "
            f"{most:.0f} tokens/s at most from the largest of them",
        )


def _row(expert: ExpertFit) -> list[str]:
    return [
        expert.expert,
        expert.model,
        size_words(expert.weights_mb),
        expert.how,
        f"{expert.context_length:,}" if expert.context_length else "–",
        f"{expert.swap_s:.0f} s" if expert.swap_s else "–",
    ]
