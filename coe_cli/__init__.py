"""coe: a college of experts on one consumer GPU. ``Client`` is its Python interface."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Client", "__version__"]

if TYPE_CHECKING:
    from coe_cli.client import Client


def __getattr__(name: str) -> Any:
    if name == "Client":  # not imported before it is used: commands start without it
        from coe_cli.client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
