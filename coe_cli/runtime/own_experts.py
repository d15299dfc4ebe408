"""Experts in the user's own catalog file: what there is, and entries written and taken out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from msgspec import Struct

from coe_cli.core.models.catalog import EXPERT_NAME, GENERAL_EXPERT, Catalog
from coe_cli.errors import ModelMissing, UsageError
from coe_cli.runtime.folders import catalog_paths, folders, own_catalog
from coe_cli.runtime.model_folder.on_disk import models_on_disk
from coe_cli.runtime.own_settings import SHIPPED, write_setting
from coe_cli.runtime.settings import read_document


class ExpertCard(Struct, frozen=True):
    """An expert for list and show. ``installed``: its model is in the models folder; ``own``: the user's file has an entry."""

    name: str
    model: str
    installed: bool
    own: bool
    description: str
    examples: list[str]
    system_prompt: str
    prompt_format: str
    template: str | None
    fallback: str | None


def expert_cards(catalog: Catalog) -> list[ExpertCard]:
    here, own = models_on_disk(folders().models), _entries(own_catalog())
    return [
        ExpertCard(
            name,
            expert.model,
            expert.model in here,
            name in own,
            expert.description,
            expert.examples,
            expert.system_prompt,
            expert.prompt_format,
            expert.template,
            expert.fallback,
        )
        for name, expert in catalog.experts.items()
    ]


def write_expert_entry(catalog: Catalog, name: str, changes: dict[str, Any]) -> Path:
    """Write these keys of the expert's entry into the user's file, and no others.

    Raises:
        UsageError: no expert can have that name.
        ModelMissing: a model that is named is neither in the catalog nor here.
        ProfileInvalid: the entry would not be valid; the file is as it was.
    """
    if not re.fullmatch(EXPERT_NAME, name):
        hint = "Use letters, digits, `.`, `_` and `-`; begin with a letter or a digit."
        raise UsageError(f"`{name}` cannot be the name of an expert", hint)
    here = models_on_disk(folders().models)
    for key in ("model", "fallback"):
        if (model := changes.get(key)) and model not in catalog.models and model not in here:
            raise catalog.unknown_model(model, list(here))
    before = _entries(own_catalog()).get(name)
    return write_setting(["experts", name], {**(before if isinstance(before, dict) else {}), **changes})


def remove_expert(catalog: Catalog, name: str) -> str:
    """Take the expert's entry out of the user's file, or put a shipped expert aside; returns what was done, in words.

    Raises:
        UsageError: there is no such expert, or it is the one for everything else.
    """
    own, shipped = _entries(own_catalog()), _entries(catalog_paths()[0])
    if name in own:
        write_setting(["experts", name], SHIPPED)
        return f"{name} is as it was shipped" if name in shipped else f"{name} is removed"
    catalog.expert(name)
    if name == GENERAL_EXPERT:
        raise UsageError(f"{name} answers what suits no other expert", f"Change it: coe experts edit {name}")
    path = write_setting(["experts", name], None)
    return f"{name} is put aside by a line in {path}; `coe experts rm {name}` once more brings it back"


def check_model_is_here(catalog: Catalog, model: str) -> None:
    """
    Raises:
        ModelMissing: the model is not in the models folder.
    """
    if model not in models_on_disk(folders().models):
        raise ModelMissing(f"its model `{model}` is not here", f"Fetch it: coe models pull {model}")


def _entries(path: Path) -> dict[str, Any]:
    data = read_document(path).data if path.exists() else None
    found = data.get("experts") if isinstance(data, dict) else None
    return found if isinstance(found, dict) else {}
