"""What a sentence-transformers folder may ask for: known module types, weights that are no pickles, nothing outside of it."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import msgspec

from coe_cli.core.importing.hub_files import PICKLED
from coe_cli.errors import ModelDamaged
from coe_cli.runtime.regular_file import lies_in, read_regular

_MAX_BYTES = 2**20
_PREFIX = "sentence_transformers."
_KINDS = frozenset(
    {"Transformer", "Pooling", "Normalize", "Dense", "LayerNorm", "Dropout", "WeightedLayerPooling"}
)  # the kinds that take token ids and a mask, as the export's graph does


class Module(msgspec.Struct):
    """One step of the embedder, ``path`` its folder in the model's."""

    type: str
    path: str = ""

    @property
    def kind(self) -> str:
        """The name of its class."""
        return self.type.rpartition(".")[2]


def check_embedder(name: str, folder: Path, *, pickles: bool = False) -> None:
    """Refuse a folder whose loading would import or unpickle code of its own; nothing of it is run to find out.

    sentence-transformers before 6.0 imports whatever class a local folder's ``modules.json`` names. ``pickles``: the
    folder is a pinned one, whose weights may be pickles.

    Raises:
        ModelDamaged: it names a module that is not sentence-transformers' own or lies outside of it, brings weights as
            pickles alone, or its ``modules.json`` cannot be read.
    """
    places = [folder]
    try:
        modules = read_modules(folder)
    except (OSError, msgspec.MsgspecError, ValueError, RecursionError) as error:
        _refuse(name, f"modules.json cannot be read: {error}")
    for module in modules:
        if not module.type.startswith(_PREFIX) or module.kind not in _KINDS:
            _refuse(name, f"modules.json names {module.type!r}, which is not a module that can be exported")
        places.append(folder / module.path)
    for place in places:
        if place != folder and not lies_in(place, folder):
            _refuse(name, f"modules.json names the folder {str(place)!r} outside of the model's own")
        found = next((path for pattern in PICKLED for path in place.glob(pattern)), None)
        if found is not None and not pickles and not any(place.glob("*.safetensors")):
            _refuse(name, f"the weights {found.name} are a pickle, and loading those runs whatever code is in them")


def read_modules(folder: Path) -> list[Module]:
    """What ``modules.json`` lists; nothing where there is none.

    Raises:
        OSError, msgspec.MsgspecError, ValueError, RecursionError: it cannot be read.
    """
    path = folder / "modules.json"
    return msgspec.json.decode(read_regular(path, _MAX_BYTES), type=list[Module]) if path.exists() else []


def _refuse(name: str, problem: str) -> NoReturn:
    raise ModelDamaged(
        f"the embedder `{name}` is refused: {problem}",
        "Use a sentence-transformers model of plain modules with safetensors weights, or name no embedder.",
    )
