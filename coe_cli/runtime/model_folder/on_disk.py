"""The models of the models folder: which there are, and what their ``genai_config.json`` says of them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from coe_cli.core.hardware.profile import Provider
from coe_cli.core.models.catalog import Catalog
from coe_cli.core.models.model_spec import GENAI_CONFIG, ModelSpec, spec_from_catalog, spec_from_config
from coe_cli.errors import CoeError


def models_on_disk(models_dir: Path) -> dict[str, Path]:
    """Model folders by name: every folder of ``models_dir`` that holds a ``genai_config.json``; hidden ones are skipped."""
    if not models_dir.is_dir():
        return {}
    return {
        folder.name: folder
        for folder in sorted(models_dir.iterdir())
        if not folder.name.startswith(".") and (folder / GENAI_CONFIG).exists()
    }


def find_spec(name: str, catalog: Catalog, models_dir: Path) -> ModelSpec:
    """The spec of ``name`` from disk if the model is there, else from the catalog.

    Raises:
        ModelDamaged: the folder is there but its configuration cannot be used.
        ModelMissing: neither knows the name.
    """
    folders = models_on_disk(models_dir)
    if name in folders:
        return spec_from_folder(name, folders[name])
    if name in catalog.models:
        return spec_from_catalog(name, catalog.models[name])
    raise catalog.unknown_model(name, list(folders))


def spec_from_folder(name: str, folder: Path) -> ModelSpec:
    """What the ``genai_config.json`` in ``folder`` says, with the size of the graph and its external data on disk.

    Raises:
        ModelDamaged: as ``read_config``; also where a part of the shape is missing.
    """
    from coe_cli.runtime.model_folder.model_files import read_config

    config = read_config(name, folder)
    return spec_from_config(name, folder, config, _bytes_beside(folder / config.graph))


def provider_on_disk(name: str, models_dir: Path) -> Provider | None:
    """What the model of that name was built for; None where there is none that can be read."""
    with suppress(CoeError):
        return spec_from_folder(name, models_dir / name).provider
    return None


def _bytes_beside(graph: Path) -> int:
    """Bytes of the graph and of the files beside it whose names begin with its name."""
    with suppress(OSError):  # not there, or removed meanwhile: that a file is missing is said by who needs it
        files = [file for file in graph.parent.iterdir() if file.name.startswith(graph.name) and file.is_file()]
        return sum(file.stat().st_size for file in files)
    return 0
