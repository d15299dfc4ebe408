"""`coe batch`: many prompts from a file of JSON lines, their answers as JSON lines."""

from __future__ import annotations

import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from coe_cli.commands.options import (
    CatalogFileOption,
    FallbackOption,
    ProfileOption,
    ProfilesFileOption,
    a_number,
    complete_experts,
    complete_models,
    read_catalog,
    read_profiles,
    utf8_text,
)
from coe_cli.core.answers.limits import MAX_TOKENS, SEED
from coe_cli.core.command_line import command_line
from coe_cli.errors import ExitCode, UsageError
from coe_cli.output.console import Output

EXAMPLES = """Examples:

coe batch questions.jsonl -o answers.jsonl

coe batch - < questions.jsonl | jq -r .answer

coe batch questions.jsonl -o answers.jsonl -e math_expert --max-tokens 200 --keep-order

coe batch questions.jsonl -o answers.jsonl --engine ray --address 192.168.1.10:6379
"""


class EngineName(StrEnum):
    """Where rows are run."""

    LOCAL = "local"
    RAY = "ray"


def batch(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="A file of JSON lines; - reads them from stdin.")],
    output_file: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the answers here, resumably. Without it: stdout.")
    ] = None,
    keep_order: Annotated[
        bool, typer.Option("--keep-order", help="Answers in the input's order, not as they get ready.")
    ] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first row that fails.")] = False,
    retries: Annotated[
        int, typer.Option(min=0, max=100, help="Try a row so often again when memory or the device failed.")
    ] = 2,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw away what an earlier run wrote, and begin anew.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run the rows again that failed in an earlier run.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="For rows that name nobody: this model.", autocompletion=complete_models),
    ] = None,
    expert: Annotated[
        str | None,
        typer.Option("--expert", "-e", help="For rows that name nobody: this expert.", autocompletion=complete_experts),
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", "-s", help="System prompt of rows without one.", callback=utf8_text)
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, max=MAX_TOKENS.most, help="Tokens of an answer at most, if the row is silent.")
    ] = (None),
    temperature: Annotated[
        float | None,
        typer.Option(min=0.0, max=2.0, callback=a_number, help="Temperature of rows without one; 0 is greedy."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=SEED.most, help="Seed of rows without one.")] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, max=64, help="Rows at once; without it as many as the profile has slots.")
    ] = None,
    engine: Annotated[EngineName, typer.Option(help="Where the rows are run.")] = EngineName.LOCAL,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="The Ray cluster; without it this machine's.")
    ] = None,
    fallback: FallbackOption = False,
    no_pull: Annotated[bool, typer.Option("--no-pull", help="Never fetch a model or an embedder.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress; failures are still told.")] = False,
    no_serve: Annotated[
        bool, typer.Option("--no-serve", envvar="COE_NO_SERVE", help="Use no running college: run one in this process.")
    ] = False,
    profile: ProfileOption = None,
    profiles_file: ProfilesFileOption = None,
    catalog_file: CatalogFileOption = None,
) -> None:
    """Answer many prompts, each model loaded once.

    A row is {"prompt": …} or {"messages": […]}, optionally with id, expert, model, system, max_tokens, temperature, seed,
    or a line of OpenAI's batch format. Rows that name nobody are routed. With -o the same command goes on where an
    earlier run was stopped. Exit code 0: every row has its answer; 1: some have an error instead.
    """
    if retry_failed and (restart or output_file is None):
        problem = "--restart runs every row again" if restart else "without -o no earlier run is known"
        raise UsageError(f"--retry-failed goes on with an earlier run, and {problem}", "See `coe batch --help`.")
    if restart and output_file is None:
        raise UsageError("--restart throws away what an earlier run wrote with -o", "Add -o FILE, or leave it out.")
    if address is not None and not re.fullmatch(r"auto|local|(ray://)?\S+:\d{1,5}", address):
        raise UsageError(f"--address is `{address}`", "Write HOST:PORT, as in 192.168.1.10:6379.")
    if address is not None and engine is not EngineName.RAY:
        raise UsageError("--address is that of a Ray cluster", "Add --engine ray.")
    from coe_cli.runtime.batch.batch import BatchJob
    from coe_cli.runtime.batch.batch_index import RowDefaults
    from coe_cli.use_cases.batching import BatchOptions, run
    from coe_cli.use_cases.clients import CollegePlace

    path = None if source == "-" else Path(source)
    failed = run(
        BatchOptions(
            job=BatchJob(
                path,
                output_file,
                RowDefaults(expert, model, system, max_tokens, temperature, seed, fallback or None),
                keep_order=keep_order,
                fail_fast=fail_fast,
                restart=restart,
                retry_failed=retry_failed,
                again=command_line(["coe", *(a for a in sys.argv[1:] if a != "--restart")]),
            ),
            retries=retries,
            concurrency=concurrency,
            engine=engine.value,
            address=address,
            pull=not no_pull,
            quiet=quiet,
            place=CollegePlace(profile, profiles_file, catalog_file, not no_serve),
        ),
        read_catalog(catalog_file),
        read_profiles(profiles_file),
        Output(),
    )
    if failed:
        raise typer.Exit(ExitCode.UNEXPECTED)
