"""`coe stop`: end the college, or take one model out."""

from __future__ import annotations

from typing import Annotated

import typer

from coe_cli.output.console import Output


def stop(
    model: Annotated[str, typer.Argument(help="Take only this model out, as soon as it is idle.")] = "",
    drain: Annotated[
        bool, typer.Option("--drain", help="Finish what is being answered first, and wait for it.")
    ] = False,
) -> None:
    """End the college and give all its memory back; or take one model out of it.

    Example: coe stop --drain
    """
    from coe_cli.runtime.server.stopping import stop_college, unload_model

    output = Output()
    with output.waiting(f"waiting for {'its answers to end' if drain else model or 'the college to end'}"):
        done = unload_model(model, wait=drain) if model else stop_college(drain=drain)
    output.note(done)
