"""Options that several commands share, with their completion."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coe_cli.core.answers.limits import TOP_K
from coe_cli.core.providers import names
from coe_cli.errors import CoeError
from coe_cli.output.console import ReportFormat, TableFormat
from coe_cli.output.errors import warn_of
from coe_cli.runtime import settings
from coe_cli.runtime.folders import folders
from coe_cli.runtime.model_folder.on_disk import models_on_disk

if TYPE_CHECKING:
    from coe_cli.core.hardware.profile import ProfileSet
    from coe_cli.core.models.catalog import Catalog


def read_profiles(extra: Path | None = None) -> ProfileSet:
    """``settings.read_profiles``, with a warning for each entry of the user's own file that was left out."""
    profiles = settings.read_profiles(extra)
    warn_of(sys.stderr, profiles.problems)
    return profiles


def read_catalog(extra: Path | None = None) -> Catalog:
    """``settings.read_catalog``, with a warning for each entry of the user's own file that was left out."""
    catalog = settings.read_catalog(extra)
    warn_of(sys.stderr, catalog.problems)
    return catalog


def complete_profiles(incomplete: str) -> list[str]:
    return _complete(incomplete, lambda: settings.read_profiles().profiles)


def complete_experts(incomplete: str) -> list[str]:
    return _complete(incomplete, lambda: settings.read_catalog().experts)


def complete_models(incomplete: str) -> list[str]:
    return _complete(incomplete, lambda: {**settings.read_catalog().models, **models_on_disk(folders().models)})


def complete_installed(incomplete: str) -> list[str]:
    return _complete(incomplete, lambda: models_on_disk(folders().models))


def _complete(incomplete: str, names: object) -> list[str]:
    try:
        return [name for name in names() if name.startswith(incomplete)]  # type: ignore[operator]
    except CoeError:
        return []


def utf8_text(value: str | None) -> str | None:
    """A callback for arguments that are text: bytes that are none would fail later, in a file or on a connection.

    Raises:
        typer.BadParameter: it is not UTF-8.
    """
    if value is not None:
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise typer.BadParameter(f"it is not UTF-8 text (character {error.start + 1})") from None
    return value


def utf8_words(words: list[str] | None) -> list[str] | None:
    """The same for arguments that are several words."""
    for word in words or []:
        utf8_text(word)
    return words


def a_number(value: float | None) -> float | None:
    """A callback for options with a fraction: "nan" passes every comparison with the ends of a range.

    Raises:
        typer.BadParameter: it is not a number.
    """
    if value is not None and value != value:
        raise typer.BadParameter("it is not a number")
    return value


if TYPE_CHECKING:

    class ProviderName(StrEnum):
        """The providers' names: values of an option."""

else:
    ProviderName = StrEnum("ProviderName", {name.upper(): name for name in names()})


ProfileOption = Annotated[
    str | None,
    typer.Option("--profile", "-p", help="Hardware profile.", autocompletion=complete_profiles, envvar="COE_PROFILE"),
]
ProfilesFileOption = Annotated[
    Path | None, typer.Option("--profiles", help="A hardware_profiles.yaml of your own; it wins over the shipped one.")
]
CatalogFileOption = Annotated[
    Path | None, typer.Option("--catalog", help="An experts.yaml of your own; it wins over the shipped one.")
]
ReportFormatOption = Annotated[ReportFormat, typer.Option("--format", help="How the result is written.")]
ListFormatOption = Annotated[TableFormat, typer.Option("--format", help="How the list is written.")]

ModelOption = Annotated[str | None, typer.Option("--model", "-m", help="This model.", autocompletion=complete_models)]
ExpertOption = Annotated[
    str | None, typer.Option("--expert", "-e", help="This expert.", autocompletion=complete_experts)
]
SystemOption = Annotated[
    str | None, typer.Option("--system", "-s", help="A system prompt of your own.", callback=utf8_text)
]
TemperatureOption = Annotated[
    float | None, typer.Option(min=0.0, max=2.0, callback=a_number, help="0 takes the likeliest token each time.")
]
TopPOption = Annotated[float | None, typer.Option(min=0.0, max=1.0, callback=a_number, help="Nucleus sampling.")]
TopKOption = Annotated[int | None, typer.Option(min=1, max=TOP_K.most, help="Sample from the k likeliest tokens.")]
ShowThinkingOption = Annotated[bool, typer.Option(help="Thoughts of reasoning models, on stderr.")]
RawOption = Annotated[
    bool, typer.Option("--raw", help="The answer's own characters on a terminal too: no Markdown, no live view.")
]
ContinueOption = Annotated[bool, typer.Option("--continue", "-c", help="Go on with the last conversation.")]
FallbackOption = Annotated[
    bool, typer.Option("--fallback", help="Let the fallback model answer for an expert whose own is not installed.")
]
NoPullOption = Annotated[bool, typer.Option("--no-pull", help="Never fetch the embedded model or the embedder.")]
NoServeOption = Annotated[
    bool, typer.Option("--no-serve", envvar="COE_NO_SERVE", help="Use no running college, and leave none behind.")
]
