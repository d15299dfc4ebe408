"""`coe models`: what is on disk, what it costs, and how to get more."""

from __future__ import annotations

from typing import Annotated

import typer

from coe_cli.commands.options import CatalogFileOption, complete_models, read_catalog
from coe_cli.output.console import Output, TableFormat
from coe_cli.runtime.folders import folders

app = typer.Typer(help="Models: list them, fetch them.", no_args_is_help=True)


@app.command("list")
def list_models(
    table_format: Annotated[TableFormat, typer.Option("--format", help="How the list is written.")] = TableFormat.HUMAN,
    catalog_file: CatalogFileOption = None,
) -> None:
    """Every model of the catalog and of the models folder: size, context, provider, experts, cache per token.

    Example: coe models list --format json | jq -r '.models[] | select(.on_disk) | .name'
    """
    from coe_cli.output.models_view import write_models
    from coe_cli.runtime.inventory import list_models as inventory

    write_models(Output(), inventory(read_catalog(catalog_file), folders().models), table_format)


@app.command("pull")
def pull(
    names: Annotated[list[str], typer.Argument(help="Names from the catalog.", autocompletion=complete_models)],
    force: Annotated[bool, typer.Option("--force", help="Fetch it again even if it is there.")] = False,
    catalog_file: CatalogFileOption = None,
) -> None:
    """Fetch models of the catalog, and convert those that need it.

    Example: coe models pull smollm2-135m
    """
    from coe_cli.output.progress_view import ProgressView
    from coe_cli.runtime.model_store import install

    catalog, output = read_catalog(catalog_file), Output()
    for name in names:
        with ProgressView(output, f"fetching {name}") as view:
            spec = install(name, catalog, folders().models, view, force=force)
        output.note(f"{name} is ready in {spec.folder}")
