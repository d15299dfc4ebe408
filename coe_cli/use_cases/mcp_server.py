"""The tools of `coe mcp` over a client of the college. Calls run in threads, so that one does not wait for another."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from coe_cli.errors import CoeError, UsageError
from coe_cli.package import install_command

if TYPE_CHECKING:
    from collections.abc import Callable

    from coe_cli.client import Client

_ABOUT = "A college of small specialist language models on this machine: hand it questions that one of them can answer."


def serve_tools(client: Client) -> None:
    """Serve until stdin ends.

    Raises:
        UsageError: the package `mcp` is not installed.
    """
    try:
        from mcp.server import MCPServer
        from mcp.server.mcpserver.exceptions import ToolError
    except ImportError:
        raise UsageError("the package `mcp` is not installed", f"Install it: {install_command('mcp')}") from None
    server: Any = MCPServer("coe", instructions=_ABOUT)

    async def told(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            return await asyncio.to_thread(call, *arguments, **options)
        except CoeError as error:
            raise ToolError(f"{error.message}. {error.hint}") from None

    async def ask(question: str, expert: str = "", system: str = "", max_tokens: int = 0) -> dict[str, Any]:
        """Answer a question. Without an expert (see route) the one that it suits answers."""
        given = {"expert": expert, "system": system, "max_tokens": max_tokens}
        answer = await told(client.ask, question, **{name: value for name, value in given.items() if value})
        who = {"expert": answer.expert, "model": answer.model, "finish_reason": answer.finish_reason}
        return {"answer": answer.answer, **who, "warnings": answer.warnings}

    async def route(question: str) -> dict[str, Any]:
        """Which experts a question suits, likeliest first, and which model would answer. Nothing is loaded."""
        found = await told(client.route, question)
        decision = found.routing.decision if found.routing is not None else None
        ranking = [
            {"expert": each.name, "probability": each.probability} for each in (decision.ranking if decision else ())
        ]
        return {"expert": found.expert, "model": found.model, "ranking": ranking, "notes": found.warnings}

    async def plan(experts: list[str] | None = None, context_length: int = 0) -> dict[str, Any]:
        """Whether experts fit the card's memory together, in MB; all of the profile's without names. Nothing is loaded."""
        import msgspec

        found = await told(client.plan, experts, context_length=context_length or None)
        return dict(msgspec.to_builtins(found))

    for tool in (ask, route, plan):
        server.tool()(tool)
    server.run("stdio")
