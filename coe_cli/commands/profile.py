"""`coe profile`: which hardware profiles there are, and whether one suits this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from coe_cli.commands.options import (
    CatalogFileOption,
    ProfilesFileOption,
    complete_profiles,
    read_catalog,
    read_profiles,
)
from coe_cli.errors import ExitCode, UsageError
from coe_cli.output.console import Output, TableFormat

app = typer.Typer(help="Hardware profiles: list them, read them, check them.", no_args_is_help=True)

FormatOption = Annotated[TableFormat, typer.Option("--format", help="How it is written.")]
NameArgument = Annotated[
    str | None, typer.Argument(help="The profile; without it the default one.", autocompletion=complete_profiles)
]


@app.command("list")
def list_profiles(table_format: FormatOption = TableFormat.HUMAN, profiles_file: ProfilesFileOption = None) -> None:
    """Every profile: budget, slots, context, provider.

    Example: coe profile list --format json | jq -r '.profiles[].name'
    """
    from coe_cli.output.profile_view import write_profiles

    write_profiles(Output(), read_profiles(profiles_file), table_format)


@app.command("show")
def show(
    name: NameArgument = None,
    table_format: FormatOption = TableFormat.HUMAN,
    profiles_file: ProfilesFileOption = None,
) -> None:
    """One profile with all its settings.

    Example: coe profile show compact
    """
    from coe_cli.output.profile_view import write_profile

    write_profile(Output(), read_profiles(profiles_file).select(name), table_format)


@app.command("check")
def check(
    name: NameArgument = None,
    profile_name: Annotated[
        str | None,
        typer.Option(
            "--profile", "-p", help="The same as NAME.", autocompletion=complete_profiles, envvar="COE_PROFILE"
        ),
    ] = None,
    auto: Annotated[bool, typer.Option("--auto", help="Pick the profile that suits this machine.")] = False,
    table_format: FormatOption = TableFormat.HUMAN,
    profiles_file: ProfilesFileOption = None,
    catalog_file: CatalogFileOption = None,
) -> None:
    """Does a profile fit this machine and these models? Exit 0 if so, 3 if a file is invalid, 5 if not.

    Example: coe profile check --auto
    """
    if auto and name is not None:
        raise UsageError("--auto picks the profile itself", f"Leave out `{name}`, or leave out --auto.")
    from coe_cli.output.profile_view import write_check
    from coe_cli.runtime.folders import folders
    from coe_cli.runtime.planning.profile_report import check as check_profile

    report = check_profile(
        read_profiles(profiles_file), name or profile_name, read_catalog(catalog_file), folders(), auto=auto
    )
    write_check(Output(), report, table_format)
    if not report.passed:
        raise typer.Exit(ExitCode.DOES_NOT_FIT)
