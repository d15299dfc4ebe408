"""What is wrong with an entry of a profile or catalog file of the user's own."""

from __future__ import annotations

from msgspec import Struct

from coe_cli.errors import ProfileInvalid


class Problem(Struct, frozen=True):
    """Why an entry of the user's own file was left out."""

    message: str
    hint: str

    def error(self) -> ProfileInvalid:
        """The error for a command that asks for the entry."""
        return ProfileInvalid(self.message, self.hint)
