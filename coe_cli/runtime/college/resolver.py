"""From what a client asks for to what the college is asked: which expert and model, which messages, does it fit."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import msgspec

from coe_cli.core.answer_schema import check_schema
from coe_cli.core.catalog import GENERAL_EXPERT, Catalog
from coe_cli.core.model_spec import GENAI_CONFIG, ModelSpec, models_on_disk
from coe_cli.core.profile import HardwareProfile, RoutingSettings
from coe_cli.core.providers import on_host
from coe_cli.core.router import swap_aware
from coe_cli.core.selection import Choice, choose_model
from coe_cli.errors import CoeError, ModelMissing, PromptTooLong, UsageError
from coe_cli.providers.installed import choose_provider, installed_providers
from coe_cli.runtime.college import college_events as ce
from coe_cli.runtime.college.costs import slot_context
from coe_cli.runtime.prompts.prompt_messages import RAW_TEMPLATE, Prepare, Prompt
from coe_cli.runtime.prompts.prompts import TooManyTokens, own, surely_fits
from coe_cli.runtime.routing.shared_router import SharedRouter
from coe_cli.runtime.store.model_files import model_stamp
from coe_cli.runtime.store.model_store import open_model
from coe_cli.runtime.worker.protocol import ChatMessage, Guidance, Sampling

AUTO = "auto"
MAX_PROMPT_CHARS = 2_000_000
"""No context that is in use holds more; longer texts are refused before they are tokenized."""


class ChatRequest(NamedTuple):
    """What a client wants: ``name`` is `auto`, an expert or a model; a raw prompt goes past the chat template.

    ``expert``: whose words a model named by ``name`` answers in; the same as ``name`` where that must be an expert.
    ``allow_special_tokens``: what looks like a control token in a text is one; None: in a raw prompt only.
    """

    name: str
    messages: list[ChatMessage]
    raw: bool = False
    max_tokens: int | None = None
    sampling: Sampling = Sampling()
    stop: list[str] = []  # noqa: RUF012 - never changed
    guidance: Guidance | None = None
    expert: str | None = None
    allow_special_tokens: bool | None = None


class ResolvedRequest(NamedTuple):
    """What to ask the college, and what to tell the client about the choice."""

    ask: ce.Ask
    expert: str | None
    notes: list[str]


class RequestResolver:
    """Settles each request against the catalog and the models on disk, as they are at that moment.

    ``router`` gives the expert for a question, from any thread; ``routing`` says whether it is asked, and whether of two
    likely experts the one is taken whose model is resident.
    """

    def __init__(
        self,
        catalog: Catalog,
        models_dir: Path,
        profile: HardwareProfile,
        router: SharedRouter,
        *,
        routing: RoutingSettings = RoutingSettings(),
    ) -> None:
        self.catalog = catalog
        self.router = router
        self.models_dir = models_dir
        self._profile = profile
        self.routing = routing
        self._opened: dict[str, tuple[ModelSpec, str]] = {}

    def names(self) -> list[tuple[str, int]]:
        """Every name that ``resolve`` takes, with the time (seconds since 1970) of its model's folder."""
        found = models_on_disk(self.models_dir)
        times = {name: int((folder / GENAI_CONFIG).stat().st_mtime) for name, folder in found.items()}
        newest = max(times.values(), default=0)
        experts = {name: times.get(expert.model, newest) for name, expert in self.catalog.experts.items()}
        return list({AUTO: newest, **times, **experts}.items())

    def open(self, name: str) -> ModelSpec:
        """The spec of a model on disk, on the provider that it gets here; looked at again when its files have changed.

        Raises:
            ModelMissing: it is not there.
            ModelDamaged: its files are not whole.
            DeviceLost: no provider for it is installed.
        """
        return self._open(name)[0]

    def _open(self, name: str) -> tuple[ModelSpec, str]:
        """The spec, and a note for the user if the model does not run where it was built for."""
        folder = self.models_dir / name
        if name not in models_on_disk(self.models_dir):
            raise ModelMissing(f"model `{name}` is not on disk", f"Fetch it: coe models pull {name}")
        known = self._opened.get(name)
        if known is None or known[0].stamp != model_stamp(folder):
            spec = open_model(name, folder)
            note = ""
            if not on_host(spec.provider):
                provider, why = choose_provider(name, spec.provider, self._profile, installed_providers())
                spec = msgspec.structs.replace(spec, provider=provider)
                note = why if why.startswith("slower:") else ""
            known = self._opened[name] = (spec, note)
        return known

    async def resolve(self, request: ChatRequest, resident_models: Collection[str] = ()) -> ResolvedRequest:
        """Settle expert, model, system prompt and room. ``resident_models`` are what the college has loaded.

        Raises:
            ModelMissing, ModelDamaged: there is no such name, or nothing on disk that could answer.
            UsageError: an unknown expert, a schema beyond the bounds, or a raw prompt that has nothing but white space.
            PromptTooLong: neither the model nor the expert's fallback has room for the prompt.
        """
        if sum(len(message.content) for message in request.messages) > MAX_PROMPT_CHARS:
            raise PromptTooLong(f"the prompt has more than {MAX_PROMPT_CHARS} characters", "Shorten it.")
        if request.raw and not any(message.content.strip() for message in request.messages):
            raise UsageError("the prompt is empty", "Give it some text.")
        name, notes = (
            await self._route(request.messages, resident_models) if request.name == AUTO else (request.name, [])
        )
        choice, (spec, slower) = await asyncio.to_thread(self._settle, name, request.expert)
        messages, template = request.messages, choice.template
        notes += [*choice.notes, slower] if slower else choice.notes
        if request.raw:
            template = RAW_TEMPLATE
        elif choice.system_prompt.strip() and not any(message.role == "system" for message in messages):
            messages = [ChatMessage("system", choice.system_prompt.strip()), *messages]
        special = request.raw if request.allow_special_tokens is None else request.allow_special_tokens
        fitting = await self._fit(spec, choice, _Wanted(messages, template, special))
        spec = fitting.spec
        if request.guidance is not None and request.guidance.kind == "json_schema":
            check_schema(msgspec.json.decode(request.guidance.data), slot_context(spec, self._profile))
        ask = ce.Ask(
            model=spec,
            messages=messages,
            template=fitting.template,
            prompt=fitting.prompt,
            allow_special_tokens=special,
            max_tokens=request.max_tokens,
            sampling=_within(request.sampling, spec),
            stop=request.stop,
            guidance=request.guidance,
        )
        return ResolvedRequest(ask, choice.expert, notes + fitting.notes)

    async def _route(self, messages: list[ChatMessage], resident_models: Collection[str]) -> tuple[str, list[str]]:
        """The expert for the last question, and what is to be said about the choice."""
        if not self.routing.enabled:
            return GENERAL_EXPERT, []
        question = next((m.content for m in reversed(messages) if m.role == "user"), "")
        try:
            decision = await asyncio.to_thread(self.router.route, question)
        except CoeError as error:
            return GENERAL_EXPERT, [f"{error.message}, so {GENERAL_EXPERT} answers ({error.hint.rstrip('.')})"]
        if self.routing.prefer_resident:
            on_disk = await asyncio.to_thread(models_on_disk, self.models_dir)
            decision = swap_aware(decision, self.catalog, on_disk, resident_models)
        chosen = decision.experts[0].name
        if decision.preferred_resident:
            return chosen, [f"{chosen} answers because its model is loaded; {decision.ranking[0].name} is as likely"]
        return chosen, []

    def _settle(self, name: str, words_of: str | None) -> tuple[Choice, tuple[ModelSpec, str]]:
        """Who answers, and the model; looks into folders, so not for the event loop's thread."""
        choice = self._choose(name, words_of)
        return choice, self._open(choice.model)

    def _choose(self, name: str, words_of: str | None) -> Choice:
        """``words_of``: the expert in whose words a model answers."""
        on_disk = models_on_disk(self.models_dir)
        if name in self.catalog.experts or name == words_of:
            choice = choose_model(self.catalog, on_disk, expert=name, model=None)
        else:
            choice = choose_model(self.catalog, on_disk, expert=words_of, model=name)
        if choice.install:
            raise ModelMissing(f"model `{choice.model}` is not on disk", f"Fetch it: coe models pull {choice.model}")
        return choice

    async def _made(self, spec: ModelSpec, wanted: _Wanted) -> Prompt | None:
        """The prompt, or None where it fits whatever its tokens are: then the college makes it.

        Raises:
            TooManyTokens: the model has no room for it.
        """
        context = slot_context(spec, self._profile)
        if surely_fits(wanted.messages, wanted.template, context):
            return None
        asked = Prepare(spec.name, str(spec.folder), wanted.messages, context, wanted.template, wanted.special)
        return await own().prepared(asked)

    async def _fit(self, spec: ModelSpec, choice: Choice, wanted: _Wanted) -> _Fitting:
        """The model that has room for the prompt: the chosen one, or the expert's fallback."""
        try:
            return _Fitting(spec, wanted.template, await self._made(spec, wanted), [])
        except TooManyTokens as error:
            if choice.fallback is None:
                raise
            too_long = error
        other = await asyncio.to_thread(self.open, choice.fallback)
        instead = wanted._replace(template=RAW_TEMPLATE if wanted.template == RAW_TEMPLATE else None)
        try:
            prompt = await self._made(other, instead)
        except TooManyTokens:
            raise too_long from None
        context = slot_context(spec, self._profile)
        tokens = f"{too_long.tokens}" if too_long.exact else f"at least {too_long.tokens}"
        note = f"the prompt has {tokens} tokens and {spec.name} has room for {context}: {other.name} answers"
        return _Fitting(other, instead.template, prompt, [note])


class _Wanted(NamedTuple):
    """A prompt before it is made; ``special``: what looks like a control token in it is one."""

    messages: list[ChatMessage]
    template: str | None
    special: bool


class _Fitting(NamedTuple):
    """The model that a prompt fits, with its template; ``prompt`` where it has been made."""

    spec: ModelSpec
    template: str | None
    prompt: Prompt | None
    notes: list[str]


def _within(sampling: Sampling, spec: ModelSpec) -> Sampling:
    """A ``top_k`` of the whole vocabulary in place of a larger one, which the runtime refuses."""
    if sampling.top_k is None:
        return sampling
    return msgspec.structs.replace(sampling, top_k=min(sampling.top_k, spec.shape.vocab_size))
