"""`coe serve`: the college with its OpenAI-compatible HTTP server."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from coe_cli.commands.options import CatalogFileOption, ProfileOption, ProfilesFileOption
from coe_cli.core.duration import HOW_TO_WRITE, parse_duration_s
from coe_cli.errors import UsageError
from coe_cli.output.console import Output

if TYPE_CHECKING:
    from coe_cli.runtime.server.discovery import CollegeState


def serve(
    context: typer.Context,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than 127.0.0.1 need --api-key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 0,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay here and show what it does.")] = False,
    keep_alive: Annotated[
        str | None,
        typer.Option(
            help="End after so long without requests: 300, 30s, 5m, 1h; 0, never or a number below 0, as in Ollama: do not end. "
            "Without it the profile's keep_alive, which is 5m as shipped."
        ),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="Key that clients must send (better in the variable).", envvar="COE_API_KEY")
    ] = None,
    max_queue: Annotated[
        int, typer.Option(min=1, max=100_000, help="Requests that may wait; more get 429 and a Retry-After.")
    ] = 256,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="A name that a balancer puts into the Host header; may be given several times."),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="A web page that may ask, as http://HOST:PORT; may be given several times. None by default."),
    ] = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Whether there is a page at /.")] = True,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write requests in full to the log.")] = False,
    profile: ProfileOption = None,
    profiles_file: ProfilesFileOption = None,
    catalog_file: CatalogFileOption = None,
) -> None:
    """Keep models loaded, and answer over HTTP as OpenAI does. Prints the URL and leaves the college running.

    Example: coe serve --port 8080 --keep-alive never
    """
    from coe_cli.runtime.server.college_client import find, find_or_start
    from coe_cli.runtime.server.serve_options import ServeOptions

    if keep_alive is not None:
        try:
            parse_duration_s(keep_alive)
        except ValueError as error:
            raise UsageError(str(error), HOW_TO_WRITE) from None
    output = Output()
    with output.waiting("asking the college that runs"):
        running = find()
    if running is not None:
        _settle_for(running.state, context, output)
        return
    if api_key:
        os.environ["COE_API_KEY"] = api_key
    options = ServeOptions(
        host=host,
        port=port,
        keep_alive=keep_alive,
        profile=profile,
        profiles_file=str(profiles_file.absolute()) if profiles_file else None,
        catalog_file=str(catalog_file.absolute()) if catalog_file else None,
        log_prompts=log_prompts,
        prepare_api=True,
        max_queue=max_queue,
        allowed_hosts=allowed_host or [],
        cors_origins=cors_origin or [],
        page=page,
    )
    if not foreground:
        with output.waiting("the college is starting"):
            url = find_or_start(options).state.url
        output.stdout.write(url + "\n")
        return
    from coe_cli.output.college_view import foreground_view
    from coe_cli.runtime.server.serve_process import serve as run

    with foreground_view(output) as view:
        run(options, view.ready, view.show)


_PLACE = ("host", "port", "foreground")


def _settle_for(running: CollegeState, context: typer.Context, output: Output) -> None:
    """Print the URL of the college that runs, and say what was asked for in vain.

    Raises:
        UsageError: it was to be at another address, or in the foreground.
    """
    given = {
        name: value
        for name, value in context.params.items()
        if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }
    other_address = (
        given.get("foreground", False)
        or given.get("port", 0) not in (0, running.port)
        or given.get("host", running.host) != running.host
    )
    already = f"a college is running already (process {running.pid})"
    if other_address:
        raise UsageError(f"{already} at {running.url}", "Use that one, or end it first: coe stop")
    ignored = [f"--{name.removesuffix('_file').replace('_', '-')}" for name in given if name not in _PLACE]
    output.note(f"{already}; {', '.join(ignored)} not applied: `coe stop` ends it" if ignored else already)
    output.stdout.write(running.url + "\n")
