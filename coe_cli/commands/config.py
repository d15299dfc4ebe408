"""`coe config`: the user's own settings, in the same YAML files that an editor would change."""

from __future__ import annotations

from typing import Annotated

import typer

from coe_cli.commands.options import ReportFormatOption
from coe_cli.output.console import Output, ReportFormat

app = typer.Typer(help="Settings of your own: get, set, edit, and where their files are.", no_args_is_help=True)

_KEY = (
    "profile, model, expert, a key of the profile in force such as max_answer_tokens, or a path in the YAML: "
    "routing.enabled, profiles.compact.vram_budget_mb, experts.sql_query.model."
)


@app.command("get")
def get(
    key: Annotated[str | None, typer.Argument(help=_KEY + " Without it all that you have set.")] = None,
    output_format: ReportFormatOption = ReportFormat.HUMAN,
) -> None:
    """A setting as it is in force, yours or the shipped one.

    Example: coe config get profile
    """
    from coe_cli.output.settings_view import write_settings
    from coe_cli.runtime.own_settings import get_setting, own_settings

    write_settings(Output(), own_settings() if key is None else {key: get_setting(key)}, key, output_format)


@app.command("set")
def set_(
    key: Annotated[str, typer.Argument(help=_KEY)],
    value: Annotated[str, typer.Argument(help="The value, as in YAML; null gives the shipped one back.")],
) -> None:
    """Change one setting in your own file; its comments stay. A value that does not suit is refused and changes nothing.

    Examples:

      coe config set profile compact

      coe config set max_answer_tokens 2048
    """
    from coe_cli.runtime.own_settings import set_setting

    changed = set_setting(key, value)
    Output().note(f"{changed.key} is {changed.value} in {changed.path}")


@app.command("edit")
def edit(experts: Annotated[bool, typer.Option("--experts", help="The file of experts and models.")] = False) -> None:
    """Open your own file in $VISUAL or $EDITOR; it is made if there is none, and checked afterwards.

    Example: coe config edit --experts
    """
    from coe_cli.runtime.own_settings import edit_settings

    path = edit_settings(experts=experts)
    Output().note(f"{path} is valid")


@app.command("path")
def path() -> None:
    """Where your own files are, whether they exist or not.

    Example: coe config path
    """
    from coe_cli.runtime.folders import own_catalog, own_profiles

    Output().stdout.write(f"{own_profiles()}\n{own_catalog()}\n")
