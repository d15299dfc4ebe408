"""What `coe setup` is about to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from coe_cli.core.names import counted, size_words
from coe_cli.output.console import Output
from coe_cli.output.tables import folded, is_narrow, left, right, write_line, write_table

if TYPE_CHECKING:
    from coe_cli.runtime.planning.setup_plan import SetupPlan

_ROOM_FOR_LICENCES: Final = 72
"""Columns below which a licence stands under its model's name."""


def write_setup(output: Output, plan: SetupPlan) -> None:
    """The machine, the profile, a line a model, and what it costs."""
    write_line(
        output, (plan.device, "bold"), f" · {size_words(plan.memory_mb)} · profile {plan.profile} · {plan.provider}"
    )
    narrow = is_narrow(output)
    special = any(model.experts for model in plan.models)
    columns = [left("model"), folded("for"), left("licence"), right("fetched"), right("disk")]
    rows = [
        [
            model.name,
            (counted(len(model.experts), "expert") if narrow and model.experts else ", ".join(model.experts))
            or ("every expert" if model.name == plan.default_model and not special else "where no other can"),
            model.licence,
            "is here" if model.installed else size_words(model.download_mb),
            "" if model.installed else size_words(model.disk_mb),
        ]
        for model in plan.models
    ]
    if is_narrow(output, _ROOM_FOR_LICENCES):
        columns = [folded("model"), *columns[3:]]
        rows = [[f"{name}\n  {licence}", *sizes] for name, _, licence, *sizes in rows]
    write_table(output, columns, rows, ruled=True)
    if plan.download_mb:
        time = f"about {plan.minutes:.0f} min" if plan.minutes >= 1 else "less than a minute"
        write_line(
            output,
            f"to fetch: {size_words(plan.download_mb)}, {time} at 100 Mbit/s · disk: {size_words(plan.disk_mb)} of "
            f"{size_words(plan.disk_free_mb)} free",
        )
    else:
        write_line(output, "everything is here")
    output.notes(plan.notes)
