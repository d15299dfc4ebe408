"""What the endpoints tell of models is what is on disk and in memory, or it is left out; which names may be asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from conftest import Coe
from model_store.tiny_model import write_tiny_model
from serving import Served, serving

WRITTEN_AT = 1_700_000_000
CATALOG = """\
experts:
  here: {model: tiny, system_prompt: ''}
  gone: {model: qwen2.5-1.5b-instruct, fallback: tiny, system_prompt: ''}
"""


@pytest.fixture(scope="module")
def served(home: Coe) -> Iterator[Served]:
    folder = home.models / "tiny"
    write_tiny_model(folder)
    os.utime(folder / "genai_config.json", (WRITTEN_AT, WRITTEN_AT))
    (home.config / "experts.yaml").write_text(CATALOG)
    with serving(home) as it:
        yield it


def by_name(models: list[dict[str, Any]], key: str) -> dict[str, dict[str, Any]]:
    return {each[key]: each for each in models}


def test_a_model_has_the_time_and_size_of_its_folder_under_each_name(served: Served) -> None:
    folder = served.coe.models / "tiny"
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    tags = by_name(served.request("GET", "/api/tags").json["models"], "name")
    known = by_name(served.request("GET", "/v1/models").json["data"], "id")
    for name in ("tiny", "here", "gone"):  # gone's own model is not there: its fallback answers
        assert datetime.fromisoformat(tags[name]["modified_at"]).timestamp() == WRITTEN_AT
        assert tags[name]["size"] == size and known[name]["created"] == WRITTEN_AT
        assert tags[name]["details"]["family"] == "llama" and tags[name]["details"]["format"] == "onnx"
        assert len(tags[name]["digest"]) == 64
        assert tags[name]["details"]["parent_model"] == ("" if name == "tiny" else "tiny"), "whose other name it is"
        shown = served.request("POST", "/api/show", {"model": name}).json
        assert datetime.fromisoformat(shown["modified_at"]).timestamp() == WRITTEN_AT
        assert shown["model_info"]["general.architecture"] == "llama" and shown["details"] == tags[name]["details"]
        assert served.request("GET", f"/v1/models/{name}").json == known[name]
    for missing in ("auto", "sql_query"):  # neither their model nor its fallback is there
        assert missing not in tags, "Ollama lists what is there"
        assert known[missing] == {"id": missing, "object": "model", "created": 0, "owned_by": "coe"}


def test_a_loaded_model_says_what_it_holds_and_when_it_goes(served: Served) -> None:
    assert served.chat(model="tiny", max_tokens=1).status == 200
    (loaded,) = served.request("GET", "/api/ps").json["models"]
    assert "expires_at" not in loaded, "nothing unloads it before the college ends"
    assert loaded["size"] > 0 and loaded["size_vram"] == 0, "on the CPU no card holds any of it"
    assert datetime.fromisoformat(loaded["modified_at"]).timestamp() == WRITTEN_AT


def test_what_is_on_disk_is_neither_fetched_nor_verified_anew(served: Served) -> None:
    assert served.request("POST", "/api/pull", {"model": "tiny"}).body == b'{"status":"success"}\n'


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
        ("/v1/completions", {"prompt": "Hi"}),
        ("/api/show", {}),
        ("/tokenize", {"content": "Hi"}),
        ("/v1/models/her", None),
    ],
)
def test_an_unknown_name_is_told_the_nearest_that_may_be_asked_for(
    served: Served, path: str, body: dict[str, Any] | None
) -> None:
    answer = served.request("GET", path) if body is None else served.request("POST", path, body | {"model": "her"})
    told = answer.json["error"] if path.startswith("/api/") else answer.error["message"]
    assert answer.status == 404 and told.startswith("unknown model `her`. Did you mean `here`?"), told
    assert told.endswith("See /v1/models.")


def test_where_none_is_near_all_kinds_of_names_are_told_and_not_too_many(served: Served) -> None:
    def told() -> str:
        return str(served.request("POST", "/api/show", {"model": "0000"}).json["error"])

    assert "`auto`" not in told() and all(name in told() for name in ("auto", "tiny", "sql_query"))
    for number in range(200):
        folder = served.coe.models / f"many-{number}"
        folder.mkdir()
        (folder / "genai_config.json").write_text("{}")
    assert len(told()) < 600 and "more" in told()
