"""Where the rows of a batch are in its input and who answers them: a few bytes a row, the prompts stay on disk."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, Protocol

from msgspec import Struct, structs

from coe_cli.core.batch.batch_rows import MAX_LINE_BYTES, InvalidRow, Parsed, Row, RowId, parse_line
from coe_cli.core.hardware.profile import HardwareProfile
from coe_cli.core.models.catalog import GENERAL_EXPERT, Catalog
from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.core.notes import in_lines
from coe_cli.errors import CoeError, ModelMissing, UsageError
from coe_cli.runtime.batch.batch_engine import PreparedRow, RowFailure, RowResult
from coe_cli.runtime.batch.batch_requests import to_chat_request
from coe_cli.runtime.college.chat_request import AUTO, ChatRequest
from coe_cli.runtime.college.resolver import RequestResolver
from coe_cli.runtime.folders import Folders

if TYPE_CHECKING:
    from coe_cli.runtime.routing.router_cache import QuestionRouter

_ROUTED_AT_ONCE = 256
_CHUNK_BYTES = 2**20
_SETTLED = -1


class RowDefaults(Struct, frozen=True):
    """What rows of coe's own format get that do not say it themselves; None leaves it to the expert or the model."""

    expert: str | None = None
    model: str | None = None
    system: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    fallback: bool | None = None


class InputFacts(NamedTuple):
    """The input as a whole: SHA-256 in hex, number of lines."""

    sha256: str
    lines: int


class RowHead(NamedTuple):
    """What the output needs of a row besides its result."""

    line: int
    row_id: RowId | None
    is_openai: bool
    is_chat: bool = True


class Unusable(NamedTuple):
    """A row that will not be run, and why."""

    head: RowHead
    result: RowResult


Route = Callable[[Sequence[str]], list[str]]
"""Questions → experts, in their order."""


class Watch(Protocol):
    """Hears how far the indexing is."""

    def indexed(self, lines: int) -> None: ...

    def routed(self, routes: Mapping[int, str]) -> None: ...

    def ignored(self, key: str, line: int) -> None: ...


def look_through(path: Path) -> InputFacts:
    """Digest and number of lines of a file.

    Raises:
        UsageError: it cannot be read.
    """
    digest, lines, last = hashlib.sha256(), 0, b"\n"
    try:
        file = path.open("rb")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}", "Name a file of JSON lines.") from None
    with file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            lines += chunk.count(b"\n")
            last = chunk[-1:]
    return InputFacts(digest.hexdigest(), lines + (last != b"\n"))


class BatchIndex:
    """The rows by their model. A ``batch_engine.RowSource`` once ``build`` has run."""

    def __init__(self, path: Path, resolver: RequestResolver, defaults: RowDefaults) -> None:
        self._file = path.open("rb")
        self._resolver, self._defaults = resolver, defaults
        self._loop = asyncio.new_event_loop()
        self._lines, self._offsets = array("Q"), array("Q")
        self._model_of, self._expert_of = array("h"), array("h")
        self._models: list[str] = []
        self._experts: list[str] = []
        self._left: Counter[int] = Counter()
        self._next: dict[int, int] = {}
        self._seen: dict[int, int] = {}

    def close(self) -> None:
        self._file.close()
        self._loop.close()

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def lines(self) -> Sequence[int]:
        """The line numbers of the rows, in the input's order."""
        return self._lines

    # --- building

    def build(self, done: Sequence[int], routes: Mapping[int, str], route: Route, watch: Watch) -> Iterator[Unusable]:
        """Read the input once and settle who answers each row. Rows whose line is marked in ``done`` are only counted.

        ``routes`` (line → expert) is what an earlier run found out; the other rows that name nobody go to ``route``,
        many at once. What cannot be run comes back, each as soon as it is known.

        Raises:
            CoeError: what ``route`` raises.
        """
        unrouted: list[tuple[int, RowHead, ChatRequest]] = []
        for line, offset, data in _lines(self._file):
            if line % 1000 == 0:
                watch.indexed(line)
            parsed = error = None
            try:
                parsed = parse_line(data, line)
                if parsed is None:
                    continue
                self._check_id(parsed.row_id, line)
            except InvalidRow as invalid:
                error = invalid
            row = self._add(line, offset)
            if done[line]:
                continue
            if error is not None or parsed is None:
                assert error is not None
                head = RowHead(line, error.row_id, error.is_openai)
                yield Unusable(head, RowResult(line, "", failure=RowFailure.of(error)))
                continue
            for key in parsed.ignored:
                watch.ignored(key, line)
            head = head_of(parsed, line)
            try:
                request = to_chat_request(parsed.row, self._defaults, line)
            except CoeError as problem:
                yield Unusable(head, RowResult(line, "", failure=RowFailure.of(problem)))
                continue
            if request.name == AUTO and line not in routes:
                unrouted.append((row, head, request))
                if len(unrouted) >= _ROUTED_AT_ONCE:
                    yield from self._route(unrouted, route, watch)
                    unrouted = []
            else:
                yield from self._settle(row, head, request, routes.get(line))
        yield from self._route(unrouted, route, watch)
        self._seen.clear()

    def _add(self, line: int, offset: int) -> int:
        self._lines.append(line)
        self._offsets.append(offset)
        self._model_of.append(_SETTLED)
        self._expert_of.append(_SETTLED)
        return len(self._lines) - 1

    def _route(self, rows: list[tuple[int, RowHead, ChatRequest]], route: Route, watch: Watch) -> Iterator[Unusable]:
        if not rows:
            return
        experts = route([request.question for _, _, request in rows])
        watch.routed({head.line: expert for (_, head, _), expert in zip(rows, experts, strict=True)})
        for (row, head, request), expert in zip(rows, experts, strict=True):
            yield from self._settle(row, head, request, expert)

    def _settle(self, row: int, head: RowHead, request: ChatRequest, expert: str | None) -> Iterator[Unusable]:
        if expert is not None and request.name == AUTO:
            request = structs.replace(request, name=expert)
        try:
            resolved = self._loop.run_until_complete(self._resolver.resolve(request))
        except CoeError as error:
            yield Unusable(head, RowResult(head.line, "", request.expert or expert, failure=RowFailure.of(error)))
            return
        model = _number(self._models, resolved.ask.model.name)
        self._model_of[row] = model
        self._left[model] += 1
        if expert is not None:
            self._expert_of[row] = _number(self._experts, expert)

    def _check_id(self, row_id: RowId | None, line: int) -> None:
        if row_id is None:
            return
        key = hash((type(row_id), row_id))
        row = self._seen.setdefault(key, len(self._lines))
        if row == len(self._lines):
            return
        first = self._parse(row)  # equal hashes are no proof
        if first is not None and first.row_id == row_id:
            raise InvalidRow(line, f"its id {row_id!r} is that of line {self._lines[row]} too", row_id)

    def _parse(self, row: int) -> Parsed | None:
        position = self._file.tell()
        self._file.seek(self._offsets[row])
        data = self._file.readline(MAX_LINE_BYTES + 1)
        self._file.seek(position)
        return parse_line(data.rstrip(b"\r\n"), self._lines[row])

    # --- giving rows out

    def remaining(self) -> Mapping[str, int]:
        """See ``RowSource.remaining``."""
        return {self._models[model]: count for model, count in self._left.items() if count}

    def spec(self, model: str) -> ModelSpec:
        """See ``RowSource.spec``."""
        return self._resolver.open(model)

    def take(self, model: str) -> PreparedRow | RowResult | None:
        """See ``RowSource.take``."""
        number = self._models.index(model)
        if not self._left[number]:
            return None
        row = self._model_of.index(number, self._next.get(number, 0))
        self._next[number] = row + 1
        self._left[number] -= 1
        line = self._lines[row]
        expert = self._experts[self._expert_of[row]] if self._expert_of[row] != _SETTLED else None
        try:
            parsed = self._parse(row)
            if parsed is None:
                raise InvalidRow(line, "it has vanished: the input was changed")
            request = to_chat_request(parsed.row, self._defaults, line)
            if expert is not None:
                request = structs.replace(request, name=expert)
            resolved = self._loop.run_until_complete(self._resolver.resolve(request))
        except CoeError as error:
            return RowResult(line, model, expert, failure=RowFailure.of(error))
        told, splits = resolved.told, not request.raw and request.guidance is None
        return PreparedRow(line, request, resolved.ask, told.expert, [note.text for note in told.notes], splits)

    def head(self, line: int) -> RowHead:
        """What the output needs of the row on ``line``."""
        row = bisect_left(self._lines, line)
        try:
            parsed = self._parse(row)
        except InvalidRow as error:
            return RowHead(line, error.row_id, error.is_openai)
        return head_of(parsed, line) if parsed is not None else RowHead(line, None, False)


def bulk_router(
    catalog: Catalog,
    where: Folders,
    profile: HardwareProfile,
    note: Callable[[str], None],
    *,
    fetch: bool,
    enabled: bool = True,
) -> Route:
    """Routes many questions at once; the router is opened, and fetched if need be, at the first of them.

    Where routing is not ``enabled`` all of them go to the general reasoner, which is said once.
    """

    @functools.cache
    def router() -> QuestionRouter:
        from coe_cli.runtime.routing.router_cache import Allowed, open_router

        may = Allowed(fetch=fetch)
        try:
            return open_router(catalog, where, in_lines(note), provider=profile.provider, may=may)
        except ModelMissing as error:
            raise ModelMissing(
                f"some rows name neither expert nor model, and they cannot be routed: {error.message}",
                f"{error.hint} Or give these rows an expert with -e.",
            ) from error

    @functools.cache
    def say_so() -> None:
        note(f"routing is off, so {GENERAL_EXPERT} answers the rows that name nobody")

    def general(questions: Sequence[str]) -> list[str]:
        say_so()
        return [GENERAL_EXPERT] * len(questions)

    def routed(questions: Sequence[str]) -> list[str]:
        return [decision.experts[0].name for decision in router().route_many(questions)]

    return routed if enabled else general


def head_of(parsed: Parsed, line: int) -> RowHead:
    """The head of a row that was just read."""
    row = parsed.row
    return RowHead(line, parsed.row_id, parsed.is_openai, isinstance(row, Row) or row.url.endswith("/chat/completions"))


def _number(names: list[str], name: str) -> int:
    if name not in names:
        names.append(name)
    return names.index(name)


def _lines(file: IO[bytes]) -> Iterator[tuple[int, int, bytes]]:
    """Number, offset and content of each line, never more than a bounded part of one in memory."""
    file.seek(0)
    line = offset = 0
    while data := file.readline(MAX_LINE_BYTES + 1):
        line += 1
        size = len(data)
        while not data.endswith(b"\n") and size > MAX_LINE_BYTES and (rest := file.readline(MAX_LINE_BYTES)):
            size += len(rest)
            if rest.endswith(b"\n"):
                break
        yield line, offset, data.rstrip(b"\r\n") if size <= MAX_LINE_BYTES + 1 else data
        offset += size
        file.seek(offset)
