"""`coe doctor`: profile and catalog files. It goes on whatever is wrong with them, with what can be used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from coe_cli.core.findings import Finding, error
from coe_cli.core.hardware.profile import HardwareProfile, ProfileSet
from coe_cli.core.models.catalog import Catalog
from coe_cli.core.problem import Problem
from coe_cli.errors import CoeError, ProfileInvalid
from coe_cli.runtime.settings import read_catalog, read_profiles

T = TypeVar("T", Catalog, ProfileSet)


def usable_catalog(path: Path | None) -> tuple[Catalog, list[Finding]]:
    """The catalog as far as it can be read, and what is wrong with its files.

    Raises:
        ProfileInvalid: the shipped catalog is broken.
    """
    return _usable(read_catalog, path)


def usable_profiles(path: Path | None) -> tuple[ProfileSet, list[Finding]]:
    """The profiles as far as they can be read, and what is wrong with their files.

    Raises:
        ProfileInvalid: the shipped profiles are broken.
    """
    return _usable(read_profiles, path)


def usable_profile(profiles: ProfileSet, name: str | None) -> tuple[HardwareProfile | None, list[Finding]]:
    """The profile that commands use, or None and why there is none."""
    try:
        return profiles.select(name), []
    except ProfileInvalid as reason:
        return None, [_finding(reason)]


def _usable(read: Callable[[Path | None], T], path: Path | None) -> tuple[T, list[Finding]]:
    findings: list[Finding] = []
    content: T
    try:
        content = read(path)
    except ProfileInvalid as reason:
        if path is None:
            raise
        findings.append(_finding(reason))
        content = read(None)
    return content, [*findings, *_left_out(content.problems)]


def _left_out(problems: Mapping[str, Problem]) -> list[Finding]:
    return [
        error("configuration", f"{problem.message}; {key or 'the file'} is left out", problem.hint)
        for key, problem in problems.items()
    ]


def _finding(reason: CoeError) -> Finding:
    return error("configuration", reason.message, reason.hint)
