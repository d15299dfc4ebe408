"""`coe mcp`: the college as tools for agents, over stdin and stdout."""

from __future__ import annotations

from coe_cli.commands.options import CatalogFileOption, ProfileOption, ProfilesFileOption


def mcp(
    profile: ProfileOption = None, profiles_file: ProfilesFileOption = None, catalog_file: CatalogFileOption = None
) -> None:
    """Serve ask, route and plan as tools of the Model Context Protocol, until stdin ends. Needs the extra `mcp`.

    Example, in an agent's settings: {"command": "coe", "args": ["mcp"]}
    """
    from coe_cli import Client
    from coe_cli.use_cases.mcp_server import serve_tools

    with Client(profile, profiles_file=profiles_file, catalog_file=catalog_file) as client:
        serve_tools(client)
