"""`coe bench`: what this machine does with the models, and what limits it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coe_cli.commands.options import (
    CatalogFileOption,
    ProfileOption,
    ProfilesFileOption,
    ProviderName,
    a_number,
    complete_models,
    read_catalog,
    read_profiles,
)
from coe_cli.core.answers.limits import MAX_TOKENS, SECONDS_MOST
from coe_cli.errors import ExitCode, UsageError
from coe_cli.output.bench_view import BenchFormat
from coe_cli.output.console import Output

if TYPE_CHECKING:
    from coe_cli.core.bench.bench_rows import BenchReport
    from coe_cli.output.bench_view import Comparison

EXAMPLES = "Examples:  coe bench  ·  coe bench smollm2-135m --depth 0,1024 --save before.json  ·  coe bench --against before.json"


def bench(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Models to measure; all that are on disk without it.", autocompletion=complete_models),
    ] = None,
    prompt_tokens: Annotated[
        str | None,
        typer.Option("--prompt-tokens", help="Prompt lengths a,b,c; 16,512,4096 without it, as far as they fit."),
    ] = None,
    gen_tokens: Annotated[
        int, typer.Option("--gen-tokens", min=1, max=MAX_TOKENS.most, help="Tokens written after each prompt.")
    ] = 64,
    depth: Annotated[str, typer.Option("--depth", help="Tokens a,b,c in the cache before the prompt.")] = "0",
    max_length: Annotated[
        str | None, typer.Option("--max-length", help="Context lengths a,b,c of a slot; as in the college without it.")
    ] = None,
    slots: Annotated[str, typer.Option("--slots", help="Numbers a,b,c of answers at once.")] = "1",
    repeats: Annotated[int, typer.Option("--repeats", "-r", min=1, max=1000, help="Measured runs a row.")] = 3,
    warm_up: Annotated[int, typer.Option("--warm-up", min=0, max=1000, help="Runs before them that do not count.")] = 1,
    provider: Annotated[
        ProviderName | None, typer.Option("--provider", help="Run on another provider than the model's own.")
    ] = None,
    output_format: Annotated[
        BenchFormat, typer.Option("--format", help="How rows are written; jsonl writes each when it is finished.")
    ] = BenchFormat.HUMAN,
    save: Annotated[Path | None, typer.Option("--save", help="Also write the run to this file, as JSON.")] = None,
    against: Annotated[
        Path | None, typer.Option("--against", help="Compare with a run that --save wrote; above 1 is better.")
    ] = None,
    fail_below: Annotated[
        float | None,
        typer.Option(
            "--fail-below",
            min=0.0,
            max=1000.0,
            callback=a_number,
            help="Exit 1 when a speed is below this ratio to --against.",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the run as FILE.png or FILE.svg (needs coe-cli[plot]).")
    ] = None,
    timeout_s: Annotated[
        float,
        typer.Option(
            "--timeout", min=0.1, max=SECONDS_MOST, callback=a_number, help="Seconds that a worker may be silent."
        ),
    ] = 1800.0,
    profile_name: ProfileOption = None,
    profiles_file: ProfilesFileOption = None,
    catalog_file: CatalogFileOption = None,
) -> None:
    """Load time, time to first token, prefill and decode rates, memory against plan, swap time between two models.

    Each row is a process of its own: its prompt is read behind --depth tokens that are cached, then --gen-tokens are written. Ctrl-C prints the rows that are finished.

    Example: coe bench smollm2-135m --prompt-tokens 16,512 --depth 0,1024 -r 5 --save today.json
    """
    from coe_cli.core.bench.bench_compare import compare, differences
    from coe_cli.core.bench.bench_grid import Grid
    from coe_cli.output.bench_plot import check_plot
    from coe_cli.output.bench_view import BenchLines, Comparison, notes_of, write_report
    from coe_cli.output.progress_view import ProgressView
    from coe_cli.runtime.bench.bench_job import BenchJob, check_writable, read_report
    from coe_cli.runtime.bench.bench_run import BenchRequest
    from coe_cli.runtime.folders import folders
    from coe_cli.runtime.progress import ignore

    if fail_below is not None and against is None:
        raise UsageError("--fail-below needs an earlier run", "Name it with --against FILE.")
    grid = Grid(
        prompt_tokens=None if prompt_tokens is None else _numbers("--prompt-tokens", prompt_tokens, 1),
        gen_tokens=gen_tokens,
        depths=_numbers("--depth", depth, 0),
        max_lengths=None if max_length is None else _numbers("--max-length", max_length, 2),
        slots=_numbers("--slots", slots, 1),
    )
    if plot is not None:
        check_plot(plot)
    for path in filter(None, (save, plot)):
        check_writable(path)
    earlier = read_report(against) if against is not None else None
    request = BenchRequest(
        names=tuple(models or ()),
        grid=grid,
        repeats=repeats,
        warm_ups=warm_up,
        provider=provider.value if provider is not None else None,
        timeout_s=timeout_s,
    )
    profile = read_profiles(profiles_file).select(profile_name)
    output = Output()
    job = BenchJob(request, profile, read_catalog(catalog_file), folders().models)
    if earlier is not None:
        job.check_comparable(earlier)
    output.notes(job.notes)
    lines = BenchLines(output) if output_format is BenchFormat.JSONL else None
    # Lines that stream to the terminal which shows the bar would be overwritten by it.
    shared = lines is not None and output.stdout.isatty()
    with contextlib.nullcontext(ignore) if shared else ProgressView(output, "measuring") as progress:
        report = job.run(
            progress,
            on_start=lines.start if lines is not None else lambda report: None,
            on_row=lines.row if lines is not None else lambda row: None,
        )
    comparison = None
    if earlier is not None and against is not None:
        ratios = compare(report.rows, earlier)
        comparison = Comparison(str(against), differences(report.machine, report.versions, earlier), ratios)
    output.notes(note for note in notes_of(report, comparison) if note not in job.notes)
    if lines is not None:
        lines.finish(report, comparison)
    else:
        write_report(output, report, output_format, comparison)
    if report.interrupted:
        if save is not None or plot is not None:
            output.note("interrupted: nothing was written to the files named")
        raise typer.Exit(ExitCode.INTERRUPTED)
    _write_files(report, save, plot, output)
    if job.errors and all(row.error is not None for row in report.rows):
        raise job.errors[0]
    if comparison is not None and fail_below:
        _fail_if_slower(comparison, fail_below, output)


def _fail_if_slower(comparison: Comparison, fail_below: float, output: Output) -> None:
    worse = [line for ratio in comparison.ratios for line in ratio.complaints(fail_below)]
    output.notes(worse)
    if worse:
        raise typer.Exit(ExitCode.UNEXPECTED)


def _write_files(report: BenchReport, save: Path | None, plot: Path | None, output: Output) -> None:
    from coe_cli.output.bench_plot import draw
    from coe_cli.runtime.bench.bench_job import save_report

    if save is not None:
        save_report(report, save)
    if plot is not None:
        draw(report, plot)
    if written := [str(path) for path in (save, plot) if path is not None]:
        output.note(f"written: {', '.join(written)}")


def _numbers(option: str, text: str, least: int) -> tuple[int, ...]:
    """Whole numbers separated by commas, without repetitions.

    Raises:
        UsageError: something else, or a number below ``least``.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() and len(word) < 9 and int(word) >= least for word in words):
        raise UsageError(f"{option} is `{text}`", f"Give whole numbers of {least} or more, separated by commas.")
    return tuple(dict.fromkeys(map(int, words)))
