"""OpenAI's files and batches by its own client: upload, run, count, fetch, cancel, bounds, and a college that ended meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from conftest import Coe, eventually
from model_store.tiny_model import write_tiny_model
from serving import Served, serving

from coe_cli.runtime.server import batch_store
from coe_cli.runtime.server.batch_store import BatchStore
from coe_cli.runtime.server.http_errors import HttpError


@pytest.fixture(scope="module")
def coe(home: Coe) -> Coe:
    write_tiny_model(home.models / "tiny", seed=3)
    return home


@pytest.fixture(scope="module")
def served(coe: Coe) -> Iterator[Served]:
    with serving(coe) as it:
        yield it


def row(number: int, **fields: Any) -> bytes:
    body = {"model": "tiny", "messages": [{"role": "user", "content": f"{number}"}], "max_tokens": 4, **fields}
    return json.dumps(
        {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    ).encode()


def begun(client: openai.OpenAI, rows: list[bytes]) -> Any:
    file = client.files.create(file=("rows.jsonl", b"\n".join(rows)), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"for": "a test"}
    )


def ended(client: openai.OpenAI, batch: Any) -> Any:
    def look() -> Any:
        found = client.batches.retrieve(batch.id)
        return None if found.status in OPEN else found

    return eventually(look, 120)


OPEN = ("validating", "in_progress", "finalizing", "cancelling")


def test_a_batch_from_its_file_to_its_answers(client: openai.OpenAI) -> None:
    batch = begun(client, [row(1), row(2), row(3, min_p=0.5), b"no row", b""])
    assert (batch.status, batch.metadata, batch.request_counts.total) == ("validating", {"for": "a test"}, 4)
    batch = ended(client, batch)
    assert batch.status == "completed", batch
    assert (batch.request_counts.completed, batch.request_counts.failed) == (2, 2)
    lines = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    said = {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in lines}
    alone = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "1"}], max_tokens=4)
    assert set(said) == {"r1", "r2"} and said["r1"] == alone.choices[0].message.content
    failed = [json.loads(line) for line in client.files.content(batch.error_file_id).text.splitlines()]
    assert [line.get("custom_id") for line in failed] == ["r3", None] and "min_p" in failed[0]["error"]["message"]
    assert client.files.retrieve(batch.output_file_id).purpose == "batch_output"
    assert batch.id in [each.id for each in client.batches.list(limit=1)]
    names = [each.id for each in client.files.list()]
    assert {batch.input_file_id, batch.output_file_id, batch.error_file_id} <= set(names)
    assert client.files.delete(batch.output_file_id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(batch.output_file_id)


def test_a_batch_that_is_cancelled_keeps_what_it_has(client: openai.OpenAI) -> None:
    batch = begun(client, [row(number, max_tokens=400) for number in range(400)])
    with pytest.raises(openai.BadRequestError, match="has not ended"):
        client.files.delete(batch.input_file_id)
    behind = begun(client, [row(1)])
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    batch = ended(client, batch)
    assert batch.status == "cancelled" and batch.request_counts.completed < 400
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)
    assert ended(client, behind).status == "completed"


def test_what_is_no_batch_is_refused(client: openai.OpenAI, served: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.files.create(file=("x.jsonl", b"{}"), purpose="fine-tune")
    with pytest.raises(openai.NotFoundError):
        client.batches.create(input_file_id="file-x", endpoint="/v1/completions", completion_window="24h")
    wrong = served.request("POST", "/v1/batches", {"input_file_id": "file-x", "endpoint": "/v1/embeddings"})
    assert (wrong.status, wrong.error["param"]) == (400, "endpoint")
    assert served.request("POST", "/v1/files", {"file": "x"}).status == 400
    for path in ("/v1/files/..%2f..%2fcollege", "/v1/batches/batch_", "/v1/files/file-x/content"):
        assert served.request("GET", path).status == 404


@pytest.mark.slow
def test_a_batch_goes_on_in_the_next_college(tmp_path: Path) -> None:
    coe = Coe(tmp_path, tmp_path / "models")
    write_tiny_model(coe.models / "tiny", seed=3)
    with serving(coe) as served:
        client = served.client()
        batch = begun(client, [row(number, max_tokens=200) for number in range(60)])
        eventually(lambda: (counts := client.batches.retrieve(batch.id).request_counts) and counts.completed > 0, 120)
    with serving(coe) as served:
        client = served.client()
        batch = ended(client, batch)
        assert batch.status == "completed" and batch.request_counts.completed == 60
        lines = client.files.content(batch.output_file_id).text.splitlines()
        assert len({json.loads(line)["custom_id"] for line in lines}) == len(lines) == 60
        empty = ended(client, begun(client, [b""]))
        assert empty.status == "failed" and empty.errors.data[0].message
    coe.end_all()


def test_the_newest_comes_first_at_one_reading_of_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, names = BatchStore(tmp_path, []), [f"{n}" for n in range(6)]
    monkeypatch.setattr("time.time", lambda: 10.0)
    monkeypatch.setattr("time.time_ns", lambda: 10**10)
    for name in names:
        store.add(b"1", name)
    assert [each.filename for each in store.files()] == names[::-1]


def test_files_are_bounded_in_number_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = BatchStore(tmp_path, [])
    monkeypatch.setattr(batch_store, "MOST_FILES", 2)
    monkeypatch.setattr(batch_store, "MOST_FILES_BYTES", 10)
    first = store.add(b"12345", "a")
    with pytest.raises(HttpError, match="at most"):
        store.add(b"123456", "b")
    store.add(b"1", "b")
    with pytest.raises(HttpError, match="at most"):
        store.add(b"1", "c")
    store.delete(first.id)
    assert [each.filename for each in store.files()] == ["b"]
