"""The request resolver: from what a client asks for to what a model is asked. It installs and prepares nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import msgspec

from coe_cli.core.answers.answer_schema import check_functions, check_guidance
from coe_cli.core.answers.fill_in import FILL_TEMPLATE
from coe_cli.core.hardware.profile import HardwareProfile, RoutingSettings
from coe_cli.core.models.catalog import GENERAL_EXPERT, Catalog
from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.core.names import nearest
from coe_cli.core.notes import Note
from coe_cli.core.providers import on_host
from coe_cli.core.routing.router import Routing, swap_aware
from coe_cli.core.routing.selection import Choice, choose_model
from coe_cli.core.routing.synthesis import experts_to_ask
from coe_cli.errors import CoeError, ModelMissing, PromptTooLong, UsageError
from coe_cli.providers.installed import choose_provider, installed_providers
from coe_cli.runtime.college import college_events as ce
from coe_cli.runtime.college.chat_request import AUTO, AnswerFields, ChatRequest, Needed, Resolved
from coe_cli.runtime.college.costs import context_reason, slot_context
from coe_cli.runtime.model_folder.model_files import model_stamp
from coe_cli.runtime.model_folder.on_disk import models_on_disk
from coe_cli.runtime.planning.room import without_room
from coe_cli.runtime.prompts.prompt_messages import RAW_TEMPLATE, Prepare, Prompt
from coe_cli.runtime.prompts.prompts import TooManyTokens, own, prompt_of_ids, surely_fits
from coe_cli.runtime.store.model_store import open_model
from coe_cli.runtime.worker.protocol import ChatMessage, Sampling

if TYPE_CHECKING:
    from coe_cli.runtime.routing.shared_router import SharedRouter

_WHAT_SUITS = "What suits this machine: coe setup --dry-run"
MAX_PROMPT_CHARS = 2_000_000
"""No context that is in use holds more; longer texts are refused before they are tokenized."""


class ResolvedRequest(NamedTuple):
    """What the model is asked, and what the client is told first."""

    ask: ce.Ask
    told: Resolved


class NotProvided(ModelMissing):
    """The client has to provide something before this request can be resolved."""

    def __init__(self, needed: Needed, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.needed = needed


class RequestResolver:
    """Resolves each request against the catalog and the models on disk, as they are at that moment.

    ``router`` gives the decision for a question, from any thread; ``routing`` says when it is asked and what is made of it.
    ``memory_warning`` gives what is to be said before a model is loaded, or an empty text.
    """

    def __init__(
        self,
        catalog: Catalog,
        models_dir: Path,
        profile: HardwareProfile,
        router: SharedRouter,
        *,
        routing: RoutingSettings = RoutingSettings(),
        memory_warning: Callable[[ModelSpec], str] | None = None,
    ) -> None:
        self.catalog = catalog
        self.router = router
        self.models_dir = models_dir
        self._profile = profile
        self.routing = routing
        self._opened: dict[str, tuple[ModelSpec, str]] = {}
        self._memory_warning = memory_warning
        self._warned: set[str] = set()
        self._rooms: dict[str, str] = {}

    def names(self) -> dict[str, Path | None]:
        """Every name that ``resolve`` takes, with the folder of the model that it stands for; None where that is not on disk."""
        folders = models_on_disk(self.models_dir)
        experts = {AUTO: GENERAL_EXPERT} | {name: name for name in self.catalog.experts}
        return folders | {name: self._folder_of(expert, folders) for name, expert in experts.items()}

    def _folder_of(self, expert: str, folders: dict[str, Path]) -> Path | None:
        with contextlib.suppress(CoeError):
            choice = choose_model(self.catalog, folders, expert=expert, model=None)
            return folders.get(choice.model if self._profile.fallback else choice.missing or choice.model)
        return None

    def refuse_unknown(self, name: str, known: Iterable[str]) -> NoReturn:
        """Refuse what is neither a model's name nor an expert's, with the nearest of ``known``, which may be asked for.

        Raises:
            ModelMissing: always, or
            ProfileInvalid: its entry in the catalog is broken.
        """
        for section in ("models", "experts"):
            self.catalog.refuse_broken(section, name)
        raise ModelMissing(f"unknown model `{name}`", nearest(name, [*known]) + " See /v1/models.")

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
                built_for = spec.provider
                provider, why = choose_provider(name, built_for, installed_providers())
                spec = msgspec.structs.replace(spec, provider=provider)
                note = why if provider != built_for else ""
            known = self._opened[name] = (spec, note)
        return known

    def only_model(self, request: ChatRequest) -> ModelSpec | None:
        """The model that will answer whatever the router says of this request; None where that is open, or not asked."""
        if not self._is_routed(request):
            return None
        on_disk = models_on_disk(self.models_dir)
        models = {request.model} if request.model is not None else set()
        if not models:
            choices = [choose_model(self.catalog, on_disk, expert=name, model=None) for name in self.catalog.experts]
            models = {choice.missing or choice.model for choice in choices}
            if self._may_fall_back(request):
                models = {choice.model for choice in choices}
        return self.open(models.pop()) if len(models) == 1 and models <= on_disk.keys() else None

    async def resolve(self, request: ChatRequest, loaded_models: Collection[str] = ()) -> ResolvedRequest:
        """Settle experts, model, prompt and room. ``loaded_models`` are what the college has in memory.

        Raises:
            NotProvided: the client can provide what is missing.
            ModelMissing, ModelDamaged: there is no such name, or nothing on disk that could answer.
            UsageError: an unknown expert, a schema beyond the bounds, or a prompt of white space or of no text.
            PromptTooLong: neither the model nor the expert's fallback has room for the prompt.
        """
        if sum(len(message.content) for message in request.messages) > MAX_PROMPT_CHARS:
            raise PromptTooLong(f"the prompt has more than {MAX_PROMPT_CHARS} characters", "Shorten it.")
        says = request.prompt_ids is not None or any(message.content.strip() for message in request.messages)
        if request.raw and not says:
            raise UsageError("the prompt is empty", "Give it some text.")
        request.check_texts()
        expert, model = self._named(request)
        experts = [expert] if expert is not None else []
        routing: Routing | None = None
        notes: list[Note] = []
        if self._is_routed(request):
            experts, routing, notes = await self._route(request, loaded_models)
            expert = experts[0]
        choice, (spec, slower) = await asyncio.to_thread(self._settle, expert, model, request)
        if choice.missing is not None:
            instead = f"{choice.expert}: {choice.missing} is not on disk, {choice.model} answers instead"
            why = await asyncio.to_thread(self._no_room, choice.missing) or f"coe models pull {choice.missing}"
            notes.append(Note("fallback", f"{instead} ({why})"))
        notes += [Note("provider", slower)] if slower else []
        messages, template = _prompt(request, choice)
        special = request.raw if request.allow_special_tokens is None else request.allow_special_tokens
        fitting = await self._fit(spec, choice, _Wanted(messages, template, special, request))
        spec = fitting.spec
        if request.guidance is not None:
            check_guidance(request.guidance.kind, request.guidance.data, slot_context(spec, self._profile))
        if request.tools is not None:
            check_functions(request.tools.functions, slot_context(spec, self._profile))
        notes += fitting.notes
        notes += await self._memory_notes(spec)
        decision = routing.decision if routing is not None else None
        told = Resolved(
            model=spec.name,
            provider=spec.provider,
            profile=self._profile.name,
            expert=choice.expert,
            experts=experts,
            notes=notes,
            context_length=slot_context(spec, self._profile),
            prompt_tokens=fitting.tokens,
            system=next((message.content for message in messages if message.role == "system"), ""),
            plain=choice.template is not None,
            parts=decision.parts if decision is not None and set(decision.parts) == set(experts) else {},
            routing=routing,
        )
        of_answer = {key: getattr(request, key) for key in AnswerFields.__struct_fields__}
        ask = ce.Ask(
            model=spec,
            messages=messages,
            template=fitting.template,
            prompt=fitting.prompt,
            allow_special_tokens=special,
            max_answer_tokens=self._profile.max_answer_tokens,
            expert=choice.expert,
            **of_answer | {"sampling": _within(request.sampling, spec)},
        )
        return ResolvedRequest(ask, told)

    # --- who answers

    def _named(self, request: ChatRequest) -> tuple[str | None, str | None]:
        """Expert and model as the request names them."""
        expert, model = request.expert, request.model
        if request.name != AUTO and model is None:
            if request.name in self.catalog.experts or request.name == expert:
                expert = request.name
            else:
                model = request.name
        if expert == AUTO or (expert is None and model is None):
            expert = None if self._is_routed(request) else GENERAL_EXPERT
        return expert, model

    def _is_routed(self, request: ChatRequest) -> bool:
        open_to_all = request.expert == AUTO or (
            request.expert is None and request.model is None and request.name == AUTO
        )
        several = isinstance(request.experts, int) and request.experts > 1
        return open_to_all and ((request.route and self.routing.enabled) or several)

    async def _route(
        self, request: ChatRequest, loaded_models: Collection[str]
    ) -> tuple[list[str], Routing, list[Note]]:
        """The experts for the last question, why, and what is to be said about it."""
        try:
            decision, latency_ms, learning = await asyncio.to_thread(self.router.decide, request.question)
        except Exception as error:  # whatever it is, the question is answered
            if request.provides and isinstance(error, ModelMissing):
                raise NotProvided(Needed("router", reason=error.message), error.message, error.hint) from error
            known = isinstance(error, CoeError)
            problem = error.message if isinstance(error, CoeError) else f"{type(error).__name__}: {error}"
            remedy = error.hint.rstrip(".") if isinstance(error, CoeError) else "see `coe doctor`"
            routing = Routing(None, 0.0, problem if known else f"routing failed ({problem})", remedy)
            return [GENERAL_EXPERT], routing, [Note("routing", routing.unrouted)]
        if self.routing.prefer_resident:
            on_disk = await asyncio.to_thread(models_on_disk, self.models_dir)
            decision = swap_aware(decision, self.catalog, on_disk, loaded_models)
        two = self.routing.two_experts or request.experts == "auto"
        wanted = request.experts if isinstance(request.experts, int) else None
        experts = experts_to_ask(wanted, decision, two_experts=two)
        notes = [Note("fallback", learning)] if learning else []
        if decision.preferred_resident:
            likelier = decision.ranking[0].name
            notes.append(Note("routing", f"{experts[0]} answers because its model is loaded; {likelier} is as likely"))
        return experts, Routing(decision, latency_ms), notes

    def _settle(
        self, expert: str | None, model: str | None, request: ChatRequest
    ) -> tuple[Choice, tuple[ModelSpec, str]]:
        """Who answers, and the model; looks into folders, so not for the event loop's thread."""
        choice = self._choose(expert, model, request)
        return choice, self._open(choice.model)

    def _choose(self, expert: str | None, model: str | None, request: ChatRequest) -> Choice:
        on_disk = models_on_disk(self.models_dir)
        if model is not None and model == request.name and model not in {*on_disk, *self.catalog.models}:
            self.refuse_unknown(model, self.names())
        choice = choose_model(self.catalog, on_disk, expert=expert, model=model)
        if choice.missing is not None and not self._may_fall_back(request):
            raise self._not_installed(choice, choice.missing, request)
        if choice.install:
            message, hint = f"model `{choice.model}` is not on disk", f"Fetch it: coe models pull {choice.model}"
            if request.provides:
                raise NotProvided(Needed("model", choice.model), message, hint)
            raise ModelMissing(message, hint)
        return choice

    def _may_fall_back(self, request: ChatRequest) -> bool:
        return self._profile.fallback if request.fallback is None else request.fallback

    def _not_installed(self, choice: Choice, missing: str, request: ChatRequest) -> CoeError:
        size = self.catalog.on(self._profile.provider).size_words(missing)
        no_room = self._no_room(missing)
        message = f"{choice.expert}'s model {missing} is not installed{size}" + (f", and {no_room}" if no_room else "")
        instead = f"et {choice.model} answer: --fallback, or `fallback: true` in profile {self._profile.name}."
        hint = f"L{instead} {_WHAT_SUITS}" if no_room else f"Install it: coe models pull {missing}. Or l{instead}"
        if request.provides:
            needed = Needed("consent", missing, no_room, choice.expert or "", choice.model)
            return NotProvided(needed, message, hint)
        return ModelMissing(message, hint)

    def _no_room(self, model: str) -> str:
        """Why ``model``, which is not on disk, would not run here; empty where it would."""
        if model not in self._rooms:
            full = without_room([model], self._profile, self.catalog, self.models_dir)
            self._rooms[model] = f"profile {self._profile.name} has no room for it here" if full else ""
        return self._rooms[model]

    # --- is there room

    async def _made(self, spec: ModelSpec, wanted: _Wanted) -> Prompt | None:
        """The prompt, or None where it fits whatever its tokens are: then the college makes it.

        Raises:
            TooManyTokens: the model has no room for it.
        """
        context = slot_context(spec, self._profile)
        request, template = wanted.request, wanted.template
        if request.prompt_ids is not None:
            return prompt_of_ids(request.prompt_ids, spec, context)
        if request.tools is None and surely_fits(wanted.messages, template, context):
            return None
        tools, rendering = request.tools.templates() if request.tools is not None else None, request.rendering
        folder = str(spec.folder)
        return await own().prepared(
            Prepare(spec.name, folder, wanted.messages, context, template, wanted.special, tools, rendering)
        )

    async def _fit(self, spec: ModelSpec, choice: Choice, wanted: _Wanted) -> _Fitting:
        """The model that has room for the prompt: the chosen one, or the expert's fallback."""
        try:
            prompt = await self._made(spec, wanted)
            return _Fitting(spec, wanted.template, prompt, [], None if prompt is None else len(prompt.ids))
        except TooManyTokens as error:
            if wanted.request.resolve_only:
                return _Fitting(spec, wanted.template, None, [], error.tokens)
            too_long = error
        tokens = f"{too_long.tokens}" if too_long.exact else f"at least {too_long.tokens}"
        context = slot_context(spec, self._profile)
        reason, hint = context_reason(spec, self._profile)
        refusal = PromptTooLong(
            f"the prompt has {tokens} tokens and the context is {context} ({reason})", hint, too_long.tokens, context
        )
        if choice.fallback is None or not self._may_fall_back(wanted.request):
            raise refusal
        other = await asyncio.to_thread(self.open, choice.fallback)
        kept = wanted.template if wanted.template in (RAW_TEMPLATE, FILL_TEMPLATE) else None
        instead = wanted._replace(template=kept)
        try:
            prompt = await self._made(other, instead)
        except TooManyTokens:
            raise refusal from None
        note = f"the prompt has {tokens} tokens and {spec.name} has room for {context}: {other.name} answers instead"
        made = None if prompt is None else len(prompt.ids)
        return _Fitting(other, instead.template, prompt, [Note("context", note)], made)

    async def _memory_notes(self, spec: ModelSpec) -> list[Note]:
        """What is to be said, once, before a model is loaded."""
        if self._memory_warning is None or spec.name in self._warned:
            return []
        self._warned.add(spec.name)
        text = await asyncio.to_thread(self._memory_warning, spec)
        return [Note("memory", text)] if text else []


class _Wanted(NamedTuple):
    """A prompt before it is made; ``special``: what looks like a control token in it is one."""

    messages: list[ChatMessage]
    template: str | None
    special: bool
    request: ChatRequest


class _Fitting(NamedTuple):
    """The model that a prompt fits, with its template; ``prompt`` where it has been made."""

    spec: ModelSpec
    template: str | None
    prompt: Prompt | None
    notes: list[Note]
    tokens: int | None


def _prompt(request: ChatRequest, choice: Choice) -> tuple[list[ChatMessage], str | None]:
    """Messages and template: with the expert's system prompt, unless the conversation says otherwise."""
    if request.raw:
        return request.messages, FILL_TEMPLATE if request.fill else RAW_TEMPLATE
    spoken = [message for message in request.messages if message.role != "system" or message.content.strip()]
    own = choice.system_prompt.strip()
    if own and not any(message.role == "system" for message in request.messages):
        spoken.insert(0, ChatMessage("system", own))
    return spoken, choice.template


def _within(sampling: Sampling, spec: ModelSpec) -> Sampling:
    """A ``top_k`` of the whole vocabulary in place of a larger one, which the runtime refuses."""
    if sampling.top_k is None:
        return sampling
    return msgspec.structs.replace(sampling, top_k=min(sampling.top_k, spec.shape.vocab_size))
