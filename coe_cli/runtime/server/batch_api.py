"""OpenAI's ``/v1/files`` and ``/v1/batches``: rows of `coe batch`, run beside what the college answers otherwise."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import python_multipart  # noqa: F401 - what FastAPI reads uploads with
from fastapi import FastAPI, File, Form, Query, UploadFile
from msgspec import to_builtins
from pydantic import Field
from starlette.responses import FileResponse

from coe_cli.runtime.server.batch_store import BatchStore
from coe_cli.runtime.server.constraints import Body
from coe_cli.runtime.server.http_errors import HttpError

_Kept = TypeVar("_Kept")


class BatchRequest(Body):
    input_file_id: str = Field(max_length=64)
    endpoint: Literal["/v1/chat/completions", "/v1/completions"]
    completion_window: str = Field(default="24h", max_length=16)
    metadata: dict[str, Annotated[str, Field(max_length=512)]] | None = Field(default=None, max_length=16)


Limit = Annotated[int, Query(ge=1, le=10_000)]
After = Annotated[str | None, Query(max_length=64)]


def add_batch_api(app: FastAPI, store: BatchStore) -> None:
    """Add the endpoints to the application."""

    @app.post("/v1/files", operation_id="upload")
    async def upload(
        file: Annotated[UploadFile, File()], purpose: Annotated[str, Form(max_length=64)]
    ) -> dict[str, Any]:
        """Keep a file of rows; it is as large as the body of a request may be."""
        if purpose != "batch":
            raise HttpError(400, f"files are for batches, not for `{purpose}`", "Give purpose batch.", param="purpose")
        return _told(store.add(await file.read(), (file.filename or "rows.jsonl")[:256]))

    @app.get("/v1/files", operation_id="files")
    async def files(purpose: After = None, after: After = None, limit: Limit = 10_000) -> dict[str, Any]:
        return _page([each for each in store.files() if purpose in (None, each.purpose)], after, limit)

    @app.get("/v1/files/{file_id}", operation_id="file")
    async def file(file_id: str) -> dict[str, Any]:
        return _told(store.file(file_id))

    @app.get("/v1/files/{file_id}/content", operation_id="file_content", response_class=FileResponse)
    async def content(file_id: str) -> FileResponse:
        return FileResponse(store.content(file_id), media_type="application/jsonl")

    @app.delete("/v1/files/{file_id}", operation_id="delete_file")
    async def delete(file_id: str) -> dict[str, Any]:
        store.delete(file_id)
        return {"id": file_id, "object": "file", "deleted": True}

    @app.post("/v1/batches", operation_id="create_batch")
    async def create(request: BatchRequest) -> dict[str, Any]:
        """Run the rows of a file, one batch after the other."""
        made = store.create(request.input_file_id, request.endpoint, request.completion_window, request.metadata)
        return _told(made)

    @app.get("/v1/batches", operation_id="batches")
    async def batches(after: After = None, limit: Limit = 20) -> dict[str, Any]:
        return _page(store.batches(), after, limit)

    @app.get("/v1/batches/{batch_id}", operation_id="batch")
    async def batch(batch_id: str) -> dict[str, Any]:
        return _told(store.batch(batch_id))

    @app.post("/v1/batches/{batch_id}/cancel", operation_id="cancel_batch")
    async def cancel(batch_id: str) -> dict[str, Any]:
        return _told(store.cancel(batch_id))


def _told(made: Any) -> dict[str, Any]:
    fields: dict[str, Any] = to_builtins(made)
    return fields


def _page(found: list[_Kept], after: str | None, limit: int) -> dict[str, Any]:
    """OpenAI's list of what comes after an id."""
    ids = [getattr(each, "id", "") for each in found]
    rest = found[ids.index(after) + 1 :] if after in ids else found
    shown = [_told(each) for each in rest[:limit]]
    first, last = (shown[0]["id"], shown[-1]["id"]) if shown else (None, None)
    return {"object": "list", "data": shown, "first_id": first, "last_id": last, "has_more": len(rest) > limit}
