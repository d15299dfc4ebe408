"""`coe setup`: from a machine to a first answer."""

from __future__ import annotations

from typing import Annotated

import typer

from coe_cli.commands.options import CatalogFileOption, ProfilesFileOption, read_catalog, read_profiles
from coe_cli.output.console import Output, ReportFormat


def setup(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    report_format: Annotated[
        ReportFormat, typer.Option("--format", help="How it is written; json asks no question.")
    ] = ReportFormat.HUMAN,
    json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    profiles_file: ProfilesFileOption = None,
    catalog_file: CatalogFileOption = None,
) -> None:
    """Find the card and the memory, choose a profile and models, fetch them, and ask a first question.

    It says first what is fetched, how large that is and under which licence, and asks once. What was fetched before is kept:
    run it again after it was interrupted, and it goes on from there.

    Examples:

      coe setup --dry-run

      coe setup --yes
    """
    from coe_cli.use_cases.setting_up import ask_first_question, run_setup

    output, as_json = Output(), json or report_format is ReportFormat.JSON
    done = run_setup(
        lambda: read_catalog(catalog_file),
        lambda: read_profiles(profiles_file),
        output,
        yes=yes,
        dry_run=dry_run,
        as_json=as_json,
    )
    if done and not as_json:
        ask_first_question(read_catalog(catalog_file), read_profiles(profiles_file), output)
