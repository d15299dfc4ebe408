"""`coe profile`: which hardware profiles there are, and whether one suits this machine."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from msgspec import structs

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
_NAME_HELP = "The profile; without it the default one."


@app.command("list")
def list_profiles(table_format: FormatOption = TableFormat.HUMAN, profiles_file: ProfilesFileOption = None) -> None:
    """Every profile: budget, slots, context, provider.

    Example: coe profile list --format json | jq -r '.profiles[].name'
    """
    from coe_cli.output.profile_view import write_profiles

    profiles = read_profiles(profiles_file)
    if named := os.environ.get("COE_PROFILE"):
        profiles = structs.replace(profiles, default_profile=profiles.select(named).name)
    write_profiles(Output(), profiles, table_format)


@app.command("show")
def show(
    name: Annotated[
        str | None, typer.Argument(help=_NAME_HELP, autocompletion=complete_profiles, envvar="COE_PROFILE")
    ] = None,
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
    name: Annotated[str | None, typer.Argument(help=_NAME_HELP, autocompletion=complete_profiles)] = None,
    profile_name: Annotated[
        str | None, typer.Option("--profile", "-p", help="The same as NAME.", autocompletion=complete_profiles)
    ] = None,
    auto: Annotated[bool, typer.Option("--auto", help="Pick the profile that suits this machine.")] = False,
    table_format: FormatOption = TableFormat.HUMAN,
    profiles_file: ProfilesFileOption = None,
    catalog_file: CatalogFileOption = None,
) -> None:
    """Does a profile fit this machine and these models? Exit 0 if so, 3 if a file is invalid, 5 if not.

    Example: coe profile check --auto
    """
    if name and profile_name and name != profile_name:
        raise UsageError(f"`{name}` and -p {profile_name} are two profiles", "Give one of the two.")
    if auto and (name or profile_name):
        raise UsageError("--auto picks the profile itself", f"Leave out `{name or profile_name}`, or leave out --auto.")
    from coe_cli.output.profile_view import write_check
    from coe_cli.runtime.folders import folders
    from coe_cli.runtime.planning.profile_report import check as check_profile

    wanted = name or profile_name or os.environ.get("COE_PROFILE")
    output = Output()
    with output.waiting("looking for graphics cards"):
        report = check_profile(read_profiles(profiles_file), wanted, read_catalog(catalog_file), folders(), auto=auto)
    write_check(output, report, table_format)
    if not report.passed:
        raise typer.Exit(ExitCode.DOES_NOT_FIT)
