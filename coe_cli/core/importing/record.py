"""The record beside a converted model (``coe_conversion.json``): what today's recipe would write, and whether it did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from msgspec.structs import replace

from coe_cli.core.importing.encodings import Precision, encoding_of, rules_for, table_encoding
from coe_cli.core.importing.ggml import BLOCK_TYPES
from coe_cli.core.providers import GraphRules
from coe_cli.errors import UsageError

RECORD: Final = "coe_conversion.json"
"""Its name."""
_BEFORE: Final = 2
"""The recipe of records that count their matrices and name none. For the CPU it had scales in fp32, and is older where it put into
blocks of 32 what is in larger ones today: a tenth of a Q4_K_M file. For CUDA it stands for some with lengths on the card too, which answer wrongly."""


def new_record(
    source: str, architecture: str, provider: str, precision: Precision, matrices: Mapping[str, int]
) -> dict[str, Any]:
    """``matrices`` counts them by source type and ``Encoding.label``, such as ``Q4_K: 4 bits, blocks of 32, exact``."""
    recipe = {"provider": provider, "precision": precision, "version": rules_for(provider, precision).recipe}
    return {"source": source, "architecture": architecture, "recipe": recipe, "matrices": dict(matrices)}


def is_older(record: Any) -> bool:
    """Whether something else than today's recipe wrote the model of a ``record``, whatever that is."""
    found = record if isinstance(record, dict) else {}
    recipe, matrices = found.get("recipe"), found.get("matrices")
    if not isinstance(recipe, dict) or not isinstance(matrices, dict):
        return True
    try:
        rules = rules_for(str(recipe.get("provider")), str(recipe.get("precision")))
    except UsageError:
        return True
    version = recipe.get("version", _BEFORE)
    if version != rules.recipe and not (version == _BEFORE >= rules.alike_since):
        return True
    smaller = version == rules.recipe
    return not all(_is_todays(str(label), rules, recipe["precision"], smaller=smaller) for label in matrices)


def _is_todays(entry: str, rules: GraphRules, precision: Precision, *, smaller: bool) -> bool:
    """``smaller``: what is not in whole blocks of the usual size is in blocks of 32."""
    source_type, _, label = entry.partition(": ")
    if source_type not in BLOCK_TYPES:
        return False
    encodings = [
        encoding_of(source_type, rules, precision, head=head, small=small)
        for head in (False, True)
        for small in (False, True)
    ]
    # Columns that are no whole blocks lose their offsets (DecoderGraph).
    encodings += [replace(encoding, offsets=False, exact=False) for encoding in encodings if encoding.offsets]
    if smaller:
        encodings += [replace(encoding, block_size=32) for encoding in encodings]
        encodings += [table_encoding(source_type, 1, rules)]
    encodings += [table_encoding(source_type, 0, rules)]
    return label in {encoding.label() for encoding in encodings}
