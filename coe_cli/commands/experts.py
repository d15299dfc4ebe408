"""`coe experts`: the roles that questions go to, the shipped ones and your own."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

import typer

from coe_cli.commands.options import (
    CatalogFileOption,
    ListFormatOption,
    ProfileOption,
    ProfilesFileOption,
    ReportFormatOption,
    complete_experts,
    complete_models,
    read_catalog,
    read_profiles,
)
from coe_cli.core.answers.answer import some_question
from coe_cli.errors import ExitCode, UsageError
from coe_cli.output.console import Output, ReportFormat, TableFormat
from coe_cli.runtime.folders import folders

app = typer.Typer(help="Experts: list, add, change, try, remove; a model on disk is enough.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(help="Name of the expert.", autocompletion=complete_experts)]
ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", help="The model that answers.", autocompletion=complete_models)
]
DescriptionOption = Annotated[
    str | None, typer.Option("--description", "-d", help="What it knows, in a line: the router learns from it.")
]
SystemOption = Annotated[str | None, typer.Option("--system", "-s", help="The system prompt.")]
ExampleOption = Annotated[
    list[str] | None,
    typer.Option("--example", help="A question for it, which teaches the router; repeatable, five make a good start."),
]
TemplateOption = Annotated[
    str | None,
    typer.Option("--template", help="For models without a chat template: text with {system} and {question}."),
]
FallbackOption = Annotated[
    str | None,
    typer.Option("--fallback", help="Who answers where the model is not here.", autocompletion=complete_models),
]


@app.command("list")
def list_experts(table_format: ListFormatOption = TableFormat.HUMAN, catalog_file: CatalogFileOption = None) -> None:
    """Every expert: its model, whether that is here, whose it is, what it knows.

    Example: coe experts list --format json | jq -r '.experts[] | select(.own) | .name'
    """
    from coe_cli.output.experts_view import write_experts
    from coe_cli.runtime.own_experts import expert_cards

    write_experts(Output(), expert_cards(read_catalog(catalog_file)), table_format)


@app.command("show")
def show(name: NameArgument, report_format: ReportFormatOption = ReportFormat.HUMAN) -> None:
    """One expert in full, with its prompt and its examples.

    Example: coe experts show sql_query
    """
    from coe_cli.output.experts_view import write_expert
    from coe_cli.runtime.own_experts import expert_cards

    catalog = read_catalog()
    catalog.expert(name)
    write_expert(Output(), next(card for card in expert_cards(catalog) if card.name == name), report_format)


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="Name of the new expert.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="The model that answers.", autocompletion=complete_models)
    ],
    description: DescriptionOption = None,
    system: SystemOption = None,
    example: ExampleOption = None,
    template: TemplateOption = None,
    fallback: FallbackOption = None,
) -> None:
    """Add an expert to your own file: any model of the catalog or of the models folder, and how it is asked.

    Example: coe experts add haiku --model mine -d "Haiku and short poems" -s "Answer with a haiku." --example "A poem on rain"
    """
    from coe_cli.runtime.own_experts import write_expert_entry

    catalog = read_catalog()
    if name in catalog.experts:
        raise UsageError(f"there is an expert `{name}` already", f"Change it: coe experts edit {name}")
    changes = _changes(model, description, system, template, fallback) | ({"examples": example} if example else {})
    path = write_expert_entry(catalog, name, {"system_prompt": ""} | changes)
    output = Output()
    output.note(f"{name} is in {path}: coe ask -e {name} …")
    if not example:
        output.note(f"the router knows {name} by its name and description only; --example questions make it surer")


@app.command("edit")
def edit(
    name: Annotated[str | None, typer.Argument(help="Name of the expert.", autocompletion=complete_experts)] = None,
    model: ModelOption = None,
    description: DescriptionOption = None,
    system: SystemOption = None,
    example: ExampleOption = None,
    template: TemplateOption = None,
    fallback: FallbackOption = None,
) -> None:
    """Change an expert in your own file, a shipped one too; examples are added. Without an option it opens the file in $EDITOR.

    Example: coe experts edit python_backend --model my-coder
    """
    from coe_cli.runtime.own_experts import write_expert_entry
    from coe_cli.runtime.own_settings import edit_settings

    changes = _changes(model, description, system, template, fallback)
    if name is None or not (changes or example):
        if changes or example:
            raise UsageError("no expert is named", "Name one; see `coe experts list`.")
        if name is not None:
            read_catalog().expert(name)
        Output().note(f"{edit_settings(experts=True)} is valid")
        return
    catalog = read_catalog()
    if example:
        changes["examples"] = list(dict.fromkeys([*catalog.expert(name).examples, *example]))
    elif f"experts.{name}" not in catalog.problems:  # what is broken may be mended so
        catalog.expert(name)
    path = write_expert_entry(catalog, name, changes)
    Output().note(f"{name} is changed in {path}")


@app.command("rm")
def remove(names: Annotated[list[str], typer.Argument(help="Names.", autocompletion=complete_experts)]) -> None:
    """Take experts out of your own file. What you had changed of a shipped one is as shipped again; a shipped one is put aside.

    Example: coe experts rm haiku
    """
    from coe_cli.runtime.own_experts import remove_expert

    for name in names:
        Output().note(remove_expert(read_catalog(), name))


@app.command("test")
def test(
    name: NameArgument,
    questions: Annotated[
        list[str] | None, typer.Argument(metavar="[QUESTION]...", help="Each in quotes; else its own examples.")
    ] = None,
    report_format: ReportFormatOption = ReportFormat.HUMAN,
    profile: ProfileOption = None,
    profiles_file: ProfilesFileOption = None,
) -> None:
    """Does the router send these questions to the expert? Exits with 1 if not all, with 4 where its model is not here.

    Example: coe experts test haiku "A poem about rain" "Three lines on autumn"
    """
    from coe_cli.output.experts_view import write_trial
    from coe_cli.runtime.own_experts import check_model_is_here
    from coe_cli.runtime.routing.router_cache import open_router
    from coe_cli.use_cases.providing import Preparing

    catalog, output = read_catalog(), Output()
    expert = catalog.expert(name)
    asked = list(questions or expert.examples or [""])
    how = f"Give one, for {name} has no examples of its own" if not expert.examples else "Give one"
    for question in asked:
        some_question(question, f'{how}: coe experts test {name} "…"')
    provider = read_profiles(profiles_file).select(profile).provider
    with contextlib.closing(Preparing(output, waiting="loading the router")) as view:
        router = open_router(catalog, folders(), view, provider=provider)
        decisions = router.route_many(asked)
    write_trial(output, name, list(zip(asked, decisions, strict=True)), report_format)
    check_model_is_here(catalog, expert.model)
    if not all(name in {chosen.name for chosen in decision.experts} for decision in decisions):
        raise typer.Exit(ExitCode.UNEXPECTED)


def _changes(
    model: str | None, description: str | None, system: str | None, template: str | None, fallback: str | None
) -> dict[str, Any]:
    """The keys of an expert's entry that are given."""
    given = {"model": model, "description": description, "system_prompt": system, "fallback": fallback}
    plain = {"prompt_format": "plain", "template": template} if template is not None else {}
    return {key: value for key, value in given.items() if value is not None} | plain
