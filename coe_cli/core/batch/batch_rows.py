"""One line of a batch's input: coe's own format or OpenAI's, checked; what is wrong with it is said with its number."""

from __future__ import annotations

import contextlib
import json
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct, field

from coe_cli.core.answers.foreign_fields import OF_REQUESTS, unsupported
from coe_cli.core.answers.limits import MAX_TOKENS
from coe_cli.core.answers.sampling import SamplingFields, Stops
from coe_cli.core.plain_text import not_text
from coe_cli.errors import UsageError

MAX_LINE_BYTES = 8 * 2**20
"""No longer line is read: the same bound as for the body of a request to `coe serve`."""

RowId: TypeAlias = int | str

_Text = Annotated[str, Meta(min_length=1)]
_Name = Annotated[str, Meta(min_length=1, max_length=256)]


class InvalidRow(UsageError):
    """A line cannot be run. ``row_id`` is its id or custom_id where that could be read."""

    code = "invalid_row"

    def __init__(self, line: int, reason: str, row_id: RowId | None = None, *, is_openai: bool = False) -> None:
        super().__init__(
            f"line {line}: {reason}", 'A row is {"prompt": …} or {"messages": […]}: see `coe batch --help`.'
        )
        self.line, self.reason, self.row_id, self.is_openai = line, reason, row_id, is_openai


class Turn(Struct, frozen=True):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Row(SamplingFields, frozen=True, kw_only=True):
    """A line of coe's own format. What is None is left to the command's options, the expert or the model."""

    id: RowId | None = None
    prompt: _Text | None = None
    messages: Annotated[list[Turn], Meta(min_length=1, max_length=1024)] | None = None
    expert: _Name | None = None
    model: _Name | None = None
    system: str | None = None
    max_tokens: Annotated[int, Meta(ge=MAX_TOKENS.least, le=MAX_TOKENS.most)] | None = None
    stop: Stops = field(default_factory=list)

    @property
    def conversation(self) -> list[Turn]:
        """The messages; ``prompt`` and ``system`` are turned into them."""
        turns = self.messages if self.messages is not None else [Turn("user", self.prompt or "")]
        return turns if self.system is None else [Turn("system", self.system), *turns]


class OpenAIRow(Struct, frozen=True):
    """A line of OpenAI's batch format; ``body`` is checked by whoever knows the endpoint."""

    custom_id: str
    url: Literal["/v1/chat/completions", "/v1/completions"]
    body: dict[str, Any]
    method: Literal["POST"] = "POST"


class Parsed(Struct, frozen=True):
    """A line that can be run. ``ignored`` are keys that mean nothing to coe."""

    row: Row | OpenAIRow
    ignored: tuple[str, ...] = ()

    @property
    def row_id(self) -> RowId | None:
        return self.row.id if isinstance(self.row, Row) else self.row.custom_id

    @property
    def is_openai(self) -> bool:
        return isinstance(self.row, OpenAIRow)


_decode = msgspec.json.Decoder().decode
_OWN_KEYS = frozenset(Row.__struct_fields__)
_OPENAI_MARKS = frozenset({"custom_id", "body"})


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def parse_line(data: bytes, line: int) -> Parsed | None:
    """The row in ``data`` (one line without its end), or None for an empty line.

    Raises:
        InvalidRow: it is no row of either format; ``line`` counts from 1.
    """
    if len(data) > MAX_LINE_BYTES:
        raise InvalidRow(line, f"it is longer than {MAX_LINE_BYTES} bytes")
    if line == 1:
        data = data.removeprefix(b"\xef\xbb\xbf")
    if not data.strip():
        return None
    try:
        fields = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _no_json(data, line, error) from None
    if not isinstance(fields, dict):
        raise InvalidRow(line, "it is not a JSON object")
    if _OPENAI_MARKS & fields.keys():
        return Parsed(_convert(fields, OpenAIRow, line, "custom_id"))
    row: Row = _convert(fields, Row, line, "id")
    if (refused := unsupported(fields, _OWN_KEYS | OF_REQUESTS)) is not None:
        raise InvalidRow(line, f"`{refused[0]}` {refused[1]}", row.id)
    if (bad := not_text(fields)) is not None:
        raise InvalidRow(line, f"`{'.'.join(map(str, bad[0]))}` {bad[1]}", row.id)
    _check_own(row, line)
    return Parsed(row, tuple(key for key in fields if key not in _OWN_KEYS))


def _no_json(data: bytes, line: int, error: Exception) -> InvalidRow:
    """Why ``data`` could not be read; an unpaired surrogate, which no JSON text may have, is told with its field."""
    if not _is_utf8(data):
        return InvalidRow(line, "it is not UTF-8 text")
    with contextlib.suppress(ValueError, RecursionError):
        fields = json.loads(data)
        if isinstance(fields, dict) and (bad := not_text(fields)) is not None:
            row_id = _row_id(fields, "custom_id" if _OPENAI_MARKS & fields.keys() else "id")
            return InvalidRow(line, f"`{'.'.join(map(str, bad[0]))}` {bad[1]}", None if not_text(row_id) else row_id)
    return InvalidRow(line, f"it is not JSON ({error})")


def _check_own(row: Row, line: int) -> None:
    reason = ""
    if (row.prompt is None) == (row.messages is None):
        reason = "it needs either `prompt` or `messages`"
    elif row.prompt is not None and not row.prompt.strip():
        reason = "the prompt is empty"
    elif row.system is not None and row.messages is not None and any(m.role == "system" for m in row.messages):
        reason = "it has `system` and a system message too"
    if reason:
        raise InvalidRow(line, reason, row.id)


def _convert(fields: dict[str, Any], kind: type[Any], line: int, id_key: str) -> Any:
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise InvalidRow(line, in_words(error), _row_id(fields, id_key), is_openai=kind is OpenAIRow) from None


def _row_id(fields: dict[str, Any], key: str) -> RowId | None:
    given = fields.get(key)
    return given if isinstance(given, int | str) and not isinstance(given, bool) else None


def in_words(error: Exception) -> str:
    """msgspec's complaint with the place first: "`max_tokens`: expected `int`, got `str`"."""
    reason, separator, place = str(error).replace(" | null`", "`").partition(" - at `$.")
    return f"`{place.rstrip('`')}`: {reason[0].lower()}{reason[1:]}" if separator else reason[0].lower() + reason[1:]
