"""The record beside a converted model (``coe_conversion.json``): what today's recipe would write, and whether it did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from coe_cli.core.importing.encodings import Precision, encoding_of, rules_for, table_encoding
from coe_cli.core.importing.ggml import BLOCK_TYPES
from coe_cli.errors import UsageError

RECORD: Final = "coe_conversion.json"
"""Its name."""
RECIPE_VERSION: Final = 2
"""Raised with each change of the written graphs that ``matrices`` does not tell. 1 was written by way of PyTorch."""


def new_record(
    source: str, architecture: str, provider: str, precision: Precision, matrices: Mapping[str, int]
) -> dict[str, Any]:
    """``matrices`` counts them by source type and ``Encoding.label``, such as ``Q4_K: 4 bits, blocks of 32, exact``."""
    recipe = {"provider": provider, "precision": precision, "version": RECIPE_VERSION}
    return {"source": source, "architecture": architecture, "recipe": recipe, "matrices": dict(matrices)}


def is_older(record: Any) -> bool:
    """Whether something else than today's recipe wrote the model of a ``record``, whatever that is.

    Records without a version that count their matrices are of version 2.
    """
    found = record if isinstance(record, dict) else {}
    recipe, matrices = found.get("recipe"), found.get("matrices")
    if not isinstance(recipe, dict) or not isinstance(matrices, dict):
        return True
    if recipe.get("version", RECIPE_VERSION) != RECIPE_VERSION:
        return True
    try:
        rules_for(str(recipe.get("provider")), str(recipe.get("precision")))
    except UsageError:
        return True
    return not all(_is_todays(str(label), recipe["provider"], recipe["precision"]) for label in matrices)


def _is_todays(entry: str, provider: str, precision: Precision) -> bool:
    source_type, _, label = entry.partition(": ")
    if source_type not in BLOCK_TYPES:
        return False
    rules = rules_for(provider, precision)
    encodings = [
        encoding_of(source_type, rules, precision, head=head, small=small)
        for head in (False, True)
        for small in (False, True)
    ]
    # Columns that are no whole blocks lose their offsets (DecoderGraph).
    encodings += [replace(encoding, offsets=False, exact=False) for encoding in encodings if encoding.offsets]
    encodings += [table_encoding(source_type, columns, rules) for columns in (0, 1)]  # whole blocks, and not
    return label in {encoding.label() for encoding in encodings}
