"""The ``genai_config.json`` that comes with a model: checked against one allow-list, and what is left of it for OGA.

ONNX Runtime GenAI (OGA) hands on what it finds there: ``custom_ops_library`` loads native code, ``enable_profiling`` writes
files, unknown session options go to ONNX Runtime as they are. So only what is listed here reaches it. Keys and their
types are those of OGA's ``src/config.cpp`` (0.13.1 to 0.18), option names those of ONNX Runtime's
``onnxruntime_session_options_config_keys.h`` and of its providers.
"""

from __future__ import annotations

import json
from typing import Any, Final

from msgspec import Struct

from coe_cli.core.models import genai_sections as sections
from coe_cli.core.models.genai_rules import Refused, Walk, printable
from coe_cli.errors import ModelDamaged, damaged, first_line

GENAI_CONFIG: Final = "genai_config.json"
MAX_CONFIG_BYTES: Final = 2**20


class GenaiConfig(Struct, frozen=True):
    """``content`` is what OGA may be given; ``written`` is all that the file says, for those who only read figures.

    ``files`` are the files in the model's folder that ``content`` names, and ``notes`` say what was dropped.
    """

    content: dict[str, Any]
    written: dict[str, Any]
    files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def decoder(self) -> dict[str, Any]:
        """The section ``model.decoder`` as it is written; empty where that is no section."""
        found = self.written["model"].get("decoder")
        return found if isinstance(found, dict) else {}

    @property
    def graph(self) -> str:
        """The decoder's file."""
        return str(self.decoder.get("filename") or "model.onnx")

    def search(self, key: str) -> int | None:
        """A whole number of the ``search`` section."""
        value = self.content.get("search", {}).get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def provider_options(self, provider: str) -> dict[str, str]:
        """The options that it sets for one provider, by the name that this has in coe."""
        session = self.content.get("model", {}).get("decoder", {}).get("session_options", {})
        sections = session.get("provider_options", [])
        spelled = (provider, f"{provider}executionprovider")
        return {
            key: value
            for section in sections
            for name, options in section.items()
            if name.lower() in spelled
            for key, value in options.items()
            if isinstance(value, str)
        }

    def with_files_below(self, folder: str) -> str:
        """``content`` as JSON text with ``folder`` before each file that it names.

        OGA's parser knows no ``\\u`` escapes, so text stays as it is.
        """
        moved = sections.with_files_below(self.content, folder)
        return json.dumps(moved, ensure_ascii=False, allow_nan=False, indent=1)


def parse_config(name: str, raw: bytes, where: str = GENAI_CONFIG) -> GenaiConfig:
    """Check the bytes of a ``genai_config.json``; ``where`` names the file in messages.

    Raises:
        ModelDamaged: it is no JSON, or asks for something that is not allowed; the message names it.
    """
    try:
        written = json.loads(
            raw.decode("utf-8-sig"), object_pairs_hook=_without_duplicates, parse_constant=_no_constant
        )
    except Refused as refused:
        raise _refused(name, where, str(refused)) from None
    except (ValueError, RecursionError) as error:
        raise damaged(name, f"{where} cannot be read: {first_line(error)}") from None
    if not isinstance(written, dict) or not isinstance(written.get("model"), dict):
        raise damaged(name, f"{where} has no `model` section")
    walk = Walk()
    try:
        content = sections.check(written, walk)
    except Refused as refused:
        raise _refused(name, where, str(refused)) from None
    except RecursionError:
        raise damaged(name, f"{where} is nested too deeply") from None
    return GenaiConfig(content, written, tuple(walk.files), tuple(walk.notes))


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """OGA acts on both of two equal keys, Python keeps the last: neither is trusted."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise Refused(f"has `{printable(twice)}` twice")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def _refused(name: str, where: str, problem: str) -> ModelDamaged:
    return ModelDamaged(
        f"model `{name}` is refused: {where} {problem}",
        "Nothing of it was run. Use another build of the model, or take that out of the file if you trust the rest.",
    )
