"""`coe fit`: what a card holds, in the user's words."""

from __future__ import annotations

from typing import Annotated

import typer

from coe_cli.commands.options import (
    CatalogFileOption,
    ProfilesFileOption,
    ProviderName,
    complete_models,
    read_catalog,
    read_profiles,
)
from coe_cli.output.console import Output, TableFormat


def fit(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CARD]...",
            help="A card (RX 7800 XT), an amount of memory (16G), several (24G+24G); nothing: this machine.",
        ),
    ] = None,
    igpu: Annotated[
        str | None,
        typer.Option("--igpu", metavar="MEMORY", help="Integrated graphics of a computer with so much memory."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="A model instead of the experts: its name, or a GGUF file; repeatable.",
            autocompletion=complete_models,
        ),
    ] = None,
    context: Annotated[int | None, typer.Option("--context", min=16, max=2**24, help="Tokens a slot.")] = None,
    provider: Annotated[ProviderName | None, typer.Option("--provider", help="Count for another provider.")] = None,
    table_format: Annotated[
        TableFormat, typer.Option("--format", help="How the table is written.")
    ] = TableFormat.HUMAN,
    profiles_file: ProfilesFileOption = None,
    catalog_file: CatalogFileOption = None,
) -> None:
    """Which experts a card holds together, in turns, or not at all; with which context, swap cost and profile.

    Nothing is loaded. Exit 5 when nothing fits.

    Examples:

      coe fit "RX 7800 XT"

      coe fit 24G+24G

      coe fit --igpu 32G --context 4096
    """
    from coe_cli.errors import ExitCode
    from coe_cli.output.fit_view import write_fit
    from coe_cli.runtime.folders import folders
    from coe_cli.runtime.planning.fit_report import devices_from, fit_report, this_machine
    from coe_cli.runtime.planning.plan_inputs import PlanRequest

    card = " ".join(words) if words else None
    output = Output()
    with output.waiting("looking for graphics cards"):
        devices = this_machine() if card is None and igpu is None else devices_from(card, igpu)
    report = fit_report(
        devices,
        PlanRequest(context_length=context, provider=provider.value if provider is not None else None),
        model or [],
        read_catalog(catalog_file),
        read_profiles(profiles_file),
        folders(),
    )
    write_fit(output, report, table_format)
    if all(expert.how == "no" for fitted in report.devices for expert in fitted.experts):
        raise typer.Exit(ExitCode.DOES_NOT_FIT)
