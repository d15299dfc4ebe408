"""What `coe models import` fetches from a hub: chosen and refused by the repository's listing, before anything is fetched."""

from __future__ import annotations

from coe_cli.core.importing.architectures import SUPPORTED_GGUF, by_gguf
from coe_cli.core.importing.hub_files import choose_gguf, guess_name, is_importable
from coe_cli.core.models.catalog import Source
from coe_cli.core.models.model_name import check_name
from coe_cli.core.models.source_uri import HubSource, default_name, parse_uri
from coe_cli.errors import ModelMissing, UnsupportedArchitecture, UsageError
from coe_cli.runtime.store.hub import HubFile, list_files
from coe_cli.runtime.store.install import Recipe, Request
from coe_cli.runtime.store.source_errors import SourceFailed


def remote_request(uri: str, name: str | None, recipe: Recipe, quant: str | None, room_bytes: float) -> Request:
    """The request that imports what lies at ``uri``: of several GGUF files the one of ``quant``, or that suits ``room_bytes``.

    Raises:
        UsageError: it is no address, or has nothing that can be imported.
        UnsupportedArchitecture: the hub says that its GGUF files are of another architecture.
        ModelMissing: the hub cannot be reached, or has no such repository.
        DoesNotFit: all its files are larger than the room.
    """
    source = parse_uri(uri)
    size_mb = None
    if isinstance(source, HubSource):
        try:
            listing = list_files(source)
        except SourceFailed as error:
            raise ModelMissing(f"{uri} {error.message}", error.hint or "Check the address and the network.") from None
        chosen = _chosen(uri, listing.files, recipe, quant, room_bytes)
        by_name = {file.path: file for file in listing.files}
        if chosen and listing.gguf_architecture and by_gguf(listing.gguf_architecture) is None:
            raise UnsupportedArchitecture(
                f"{uri} is a `{listing.gguf_architecture[:40]}` model, which cannot be imported",
                f"These can: {', '.join(SUPPORTED_GGUF)}.",
            )
        sizes = [by_name[chosen].size] if chosen else [file.size for file in _importable(source, listing.files)]
        size_mb = sum(size or 0 for size in sizes) / 2**20 or None
        if chosen and chosen != source.path:
            revision = f"@{source.revision}" if source.revision else ""
            uri = f"hf:{source.repo}{revision}/{chosen}"
    elif quant is not None:
        raise UsageError("--quant chooses among the files of a hub's repository", "Leave it out.")
    return Request(check_name(name or guess_name({}, default_name(uri))), [Source(uri, size_mb=size_mb)], recipe=recipe)


def _chosen(uri: str, files: list[HubFile], recipe: Recipe, quant: str | None, room_bytes: float) -> str | None:
    """The path of a GGUF file; None for a repository with a folder of safetensors."""
    ggufs = {file.path: file.size or 0 for file in files if file.path.endswith(".gguf")}
    if ggufs:
        return choose_gguf(ggufs, quant, room_bytes, recipe.provider, recipe.precision)
    names = {file.path.rsplit("/", 1)[-1] for file in files}
    if quant is not None:
        raise UsageError(f"{uri} has no GGUF files", "Leave --quant out, or name a repository that has some.")
    if "genai_config.json" in names:
        raise UsageError(f"{uri} is in ONNX Runtime GenAI's layout already", f"Fetch it: coe models pull {uri}")
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise UsageError(f"{uri} has neither GGUF files nor safetensors", "Name another repository or file.")
    return None


def _importable(source: HubSource, files: list[HubFile]) -> list[HubFile]:
    below = f"{source.path}/" if source.path else ""
    return [file for file in files if is_importable(file.path.removeprefix(below))]
