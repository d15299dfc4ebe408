"""`coe vram`: does it fit, and what would."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from coe_cli.commands.options import (
    CatalogFileOption,
    ProfileOption,
    ProfilesFileOption,
    ProviderName,
    complete_experts,
    complete_models,
    read_catalog,
    read_profiles,
)
from coe_cli.core.answers.limits import COUNT
from coe_cli.core.hardware.cards import HOW_TO_WRITE_MEMORY, parse_memory_mb
from coe_cli.errors import ExitCode, UsageError
from coe_cli.output.console import Output, TableFormat

app = typer.Typer(help="Memory, planned before anything is loaded.", no_args_is_help=True)


class AccountingChoice(StrEnum):
    EXACT = "exact"
    FORMULA = "formula"
    GUIDE = "guide"


class Unknown(StrEnum):
    CONTEXT = "context"
    SLOTS = "slots"
    VRAM = "vram"


@app.callback()
def _group() -> None:
    """Memory, planned before anything is loaded."""


@app.command("plan")
def plan(
    profile_name: ProfileOption = None,
    experts: Annotated[
        list[str] | None,
        typer.Option(
            "--expert",
            "--experts",
            "-e",
            help="An expert of the scenario; repeatable, or a,b,c.",
            autocompletion=complete_experts,
        ),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="A model of the scenario: its name, or a GGUF file; repeatable.",
            autocompletion=complete_models,
        ),
    ] = None,
    context: Annotated[int | None, typer.Option("--context", min=1, max=2**24, help="Tokens a slot.")] = None,
    slots: Annotated[int | None, typer.Option("--slots", min=1, max=1024, help="Generations at once.")] = None,
    vram: Annotated[
        str | None, typer.Option("--vram-mb", "--vram", metavar="MEMORY", help="Budget: 16G, or a number of MB.")
    ] = None,
    provider: Annotated[ProviderName | None, typer.Option("--provider", help="Plan for another provider.")] = None,
    chunk_size: Annotated[
        int | None,
        typer.Option("--chunk-size", min=1, max=COUNT.most, help="Tokens a prefill reads at once, up to 512."),
    ] = None,
    accounting: Annotated[
        AccountingChoice,
        typer.Option("--accounting", help="exact, or a rule of thumb to compare with: formula, guide."),
    ] = AccountingChoice.EXACT,
    compare: Annotated[bool, typer.Option("--compare", help="All three side by side, and what was measured.")] = False,
    solve: Annotated[Unknown | None, typer.Option("--solve", help="Ask for the largest or smallest that fits.")] = None,
    table_format: Annotated[TableFormat, typer.Option("--format", help="How the plan is written.")] = TableFormat.HUMAN,
    fleet: Annotated[
        Path | None,
        typer.Option("--fleet", metavar="FLEET.yaml", help="Plan many machines: which models where, waiting times."),
    ] = None,
    profiles_file: ProfilesFileOption = None,
    catalog_file: CatalogFileOption = None,
) -> None:
    """Slots, weights, KV cache and headroom of a profile; exit 0 when it fits, 5 when it does not.

    Example: coe vram plan --profile compact --experts python_backend,sql_query --solve context

    With --fleet it plans machines, demand and target of a file: exit 0 when the target is met, 5 when it is not.

    Example: coe vram plan --fleet FLEET.yaml --format json
    """
    if fleet is not None:
        given = {
            "--expert": experts or None,
            "--model": models or None,
            "--context": context,
            "--slots": slots,
            "--vram-mb": vram,
            "--provider": provider,
            "--chunk-size": chunk_size,
            "--solve": solve,
            "--compare": compare or None,
        }
        _plan_fleet(
            fleet,
            [name for name, value in given.items() if value is not None],
            table_format,
            profiles_file,
            catalog_file,
        )
        return
    from coe_cli.output.plan_view import write_plan
    from coe_cli.runtime.folders import folders
    from coe_cli.runtime.planning.plan_inputs import PlanRequest
    from coe_cli.runtime.planning.plan_report import report

    request = PlanRequest(
        experts=tuple(name.strip() for name in ",".join(experts).split(",") if name.strip()) if experts else None,
        models=tuple(models or ()),
        slots=slots,
        context_length=context,
        vram_mb=_megabytes(vram) if vram is not None else None,
        provider=provider.value if provider is not None else None,
        chunk_size=chunk_size,
        accounting=accounting.value,
        solve=solve.value if solve is not None else None,
    )
    profile = read_profiles(profiles_file).select(profile_name)
    output = Output()
    result = report(request, profile, read_catalog(catalog_file), folders(), compare=compare)
    output.notes(result.notes)
    write_plan(output, result.plan, table_format, result.compare)
    if (experts or models) and result.how is not None and table_format is TableFormat.HUMAN:
        output.note(result.how)
    if not result.plan.fits:
        raise typer.Exit(ExitCode.DOES_NOT_FIT)


def _megabytes(text: str) -> int:
    try:
        return parse_memory_mb(text)
    except ValueError as error:
        raise UsageError(f"--vram-mb: {error}", HOW_TO_WRITE_MEMORY) from None


def _plan_fleet(
    path: Path, given: list[str], table_format: TableFormat, profiles_file: Path | None, catalog_file: Path | None
) -> None:
    from coe_cli.output.fleet_view import write_fleet
    from coe_cli.output.progress_view import ProgressView
    from coe_cli.runtime.fleet.fleet_plan import plan_fleet
    from coe_cli.runtime.folders import folders

    if given:
        raise UsageError(f"{', '.join(given)} cannot go with --fleet", f"Write it into {path}, for each kind of node.")
    output = Output()
    with ProgressView(output, f"planning the fleet of {path}") as progress:
        report = plan_fleet(path, read_profiles(profiles_file), read_catalog(catalog_file), folders(), progress)
    write_fleet(output, report, table_format)
    if not report.fits:
        raise typer.Exit(ExitCode.DOES_NOT_FIT)
