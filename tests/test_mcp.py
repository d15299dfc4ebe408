"""`coe mcp` by the official client of the Model Context Protocol."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import Any

import pytest
from conftest import MODEL, REPOSITORY, Coe

mcp = pytest.importorskip("mcp")


def test_an_agent_asks_routes_and_plans(coe: Coe) -> None:
    from mcp import ClientSession
    from mcp.client.stdio import StdioServerParameters, stdio_client

    environment = {**os.environ, **coe.environment, "PYTHONPATH": str(REPOSITORY)}
    command = StdioServerParameters(command=sys.executable, args=["-m", "coe_cli", "mcp"], env=environment)

    async def talk() -> None:
        async with stdio_client(command) as streams, ClientSession(*streams) as session:
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            assert set(tools) == {"ask", "route", "plan"} and all(tool.description for tool in tools.values())

            async def call(name: str, **arguments: Any) -> Any:
                return await session.call_tool(name, arguments)

            asked = await call("ask", question="The capital of France is", max_tokens=24)
            assert "Paris" in asked.content[0].text and MODEL in asked.content[0].text
            routed = await call("route", question="The capital of France is")
            assert "general_reasoner" in routed.content[0].text and not _failed(routed)
            planned = await call("plan", experts=["general_reasoner"])
            assert "mb" in planned.content[0].text and not _failed(planned)
            wrong = await call("plan", experts=["nobody"])
            assert _failed(wrong) and "nobody" in wrong.content[0].text

    asyncio.run(asyncio.wait_for(talk(), 120))


def _failed(result: Any) -> bool:
    return bool(getattr(result, "is_error", None) or getattr(result, "isError", None))


def test_it_ends_with_its_input(coe: Coe) -> None:
    environment = {**os.environ, **coe.environment, "PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(
        [sys.executable, "-m", "coe_cli", "mcp"], input=b"", capture_output=True, env=environment, timeout=120
    )
    assert (ended.returncode, ended.stdout) == (0, b""), ended.stderr
