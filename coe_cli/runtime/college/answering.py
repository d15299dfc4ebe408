"""One answer of a college, from what a client asks for to the last event: for coe itself, here or by ``POST /coe/ask``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from coe_cli.errors import CoeError
from coe_cli.runtime.college import college_events as ce
from coe_cli.runtime.college.chat_request import ChatRequest
from coe_cli.runtime.college.college import College
from coe_cli.runtime.college.resolver import NotProvided, RequestResolver, ResolvedRequest


async def answer(
    college: College, resolver: RequestResolver, request: ChatRequest
) -> AsyncGenerator[ce.CollegeEvent, None]:
    """``Resolved`` and then the events of one answer, ending with ``Finished``; or only the first of them.

    Closing the iterator cancels the answer.

    Raises:
        CoeError: as ``RequestResolver.resolve`` and ``College.ask``.
    """
    try:
        resolved = await resolve(college, resolver, request)
    except NotProvided as missing:
        yield missing.needed
        return
    yield resolved.told
    if resolved.told.ends(request):
        return
    async with contextlib.aclosing(college.ask(resolved.ask)) as events:
        async for event in events:
            yield event


async def resolve(college: College, resolver: RequestResolver, request: ChatRequest) -> ResolvedRequest:
    """Who answers, and what. Where only one model can, it is loaded while the question is routed.

    Raises:
        CoeError: as ``RequestResolver.resolve``.
    """
    with contextlib.suppress(CoeError):  # what is wrong with it is said when it is asked
        early = None if request.resolve_only else await asyncio.to_thread(resolver.only_model, request)
        if early is not None:
            college.expect(early)
    return await resolver.resolve(request, college.loaded_models)
