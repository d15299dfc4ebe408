"""One file for each way of asking the machine what memory it has. A probe never guesses: unknown is None."""

from __future__ import annotations

from typing import Protocol

from coe_cli.core.hardware.machine import Adapter


class ProbeFailed(Exception):
    """The source is there but gave no usable answer; the message says why in a few words."""


class Probe(Protocol):
    """One source of knowledge about graphics adapters."""

    name: str

    def available(self) -> bool:
        """Whether the source exists on this machine, found out without loading a driver."""

    def adapters(self) -> list[Adapter]:
        """The adapters that this source sees.

        Raises:
            ProbeFailed: it cannot be asked.
        """
