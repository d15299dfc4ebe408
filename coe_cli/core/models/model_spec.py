"""What a model is: by its ``genai_config.json``, or else by the catalog."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from coe_cli.core.hardware.profile import Provider
from coe_cli.core.models.catalog import ModelEntry, ModelShape
from coe_cli.core.models.genai_config import GENAI_CONFIG as GENAI_CONFIG
from coe_cli.core.models.genai_config import GenaiConfig
from coe_cli.core.models.genai_rules import INT32
from coe_cli.core.providers import all_specs, host
from coe_cli.core.units import BYTES_PER_MB as BYTES_PER_MB
from coe_cli.errors import damaged


class ModelSpec(Struct, frozen=True):
    """One model's shape and size. ``folder`` is None when only the catalog knows the model.

    ``stamp`` tells the files on disk from others of the same name (``store.model_files.model_stamp``).
    ``past_key`` (with one ``%d``, the layer) and ``logits`` are the names that its configuration gives the graph's cache
    inputs and its output.
    """

    name: str
    source: Literal["disk", "catalog"]
    provider: Provider
    context_length: int
    shape: ModelShape
    weights_bytes: int
    folder: Path | None = None
    graph: str = "model.onnx"
    model_type: str = ""
    past_key: str = "past_key_values.%d.key"
    logits: str = "logits"
    stamp: str = ""

    @property
    def has_gqa(self) -> bool:
        """Whether several query heads share one key-value head."""
        return self.shape.num_key_value_heads < self.shape.num_attention_heads

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """Bytes of key-value cache for one token: 2 · layers · kv_heads · head_size · element size (docs/memory.md)."""
        shape = self.shape
        return 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_size * element_bytes


def spec_from_catalog(name: str, entry: ModelEntry) -> ModelSpec:
    return ModelSpec(
        name=name,
        source="catalog",
        provider=entry.provider,
        context_length=entry.context_length,
        shape=entry.shape,
        weights_bytes=round(entry.weights_mb * BYTES_PER_MB),
    )


def spec_from_config(name: str, folder: Path, config: GenaiConfig, weights_bytes: int) -> ModelSpec:
    """What ``config`` says; the shape may be nested under ``model.decoder`` or lie directly under ``model``.

    Raises:
        ModelDamaged: it lacks a part of the shape.
    """
    model, decoder = config.written["model"], config.decoder

    def number(key: str, default: int | None = None) -> int:
        value = decoder.get(key, model.get(key, default))
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= INT32:
            raise damaged(name, f"{folder / GENAI_CONFIG} has no usable `{key}`")
        return value

    heads, hidden = number("num_attention_heads"), number("hidden_size")
    shape = ModelShape(
        num_hidden_layers=number("num_hidden_layers"),
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=number("num_key_value_heads", heads),
        head_size=number("head_size", max(1, hidden // heads)),
        vocab_size=number("vocab_size"),
    )
    return ModelSpec(
        name=name,
        source="disk",
        provider=_provider(decoder),
        context_length=number("context_length"),
        shape=shape,
        weights_bytes=weights_bytes,
        folder=folder,
        graph=config.graph,
        model_type=str(model.get("type", "")),
        **_graph_names(decoder),
    )


def _graph_names(decoder: dict[str, Any]) -> dict[str, str]:
    inputs, outputs = decoder.get("inputs"), decoder.get("outputs")
    past = inputs.get("past_key_names") if isinstance(inputs, dict) else None
    logits = outputs.get("logits") if isinstance(outputs, dict) else None
    names = {}
    if isinstance(past, str) and past.count("%d") == 1 and past.count("%") == 1:
        names["past_key"] = past
    if isinstance(logits, str):
        names["logits"] = logits
    return names


def _provider(decoder: dict[str, Any]) -> Provider:
    """The provider that the model was built for: the first in its session's ``provider_options``, else the host's."""
    known = {key: spec.name for spec in all_specs() for key in spec.config_names}
    session = decoder.get("session_options")
    options = session.get("provider_options") if isinstance(session, dict) else None
    for option in options if isinstance(options, list) else []:
        for key in option if isinstance(option, dict) else ():
            if (name := known.get(str(key).lower())) is not None:
                return name
    return host().name
