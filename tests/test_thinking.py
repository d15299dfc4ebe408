"""Only a block at the beginning of an answer is a thought, and only of a model that thinks, through every way in."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from conftest import Coe
from model_store.saying_model import write_saying_model
from serving import Served, serving
from ways import WAYS, say

SAYINGS = {
    "in the middle": ["Use `", "<think>", "` here.", " Or `", "</think>", "`."],
    "a thought first": ["<think>", "hm", "</think>", "The `", "<think >", "` tag."],
    "two blocks": ["<think>", "a", "</think>", "b", "\n", "c"],
}
CASES = [
    ("a thought first", "The `<think >` tag.", "hm"),
    ("in the middle", "Use `<think>` here. Or `</think>`.", ""),
    ("two blocks", "b\nc", "a"),
]
NO_THINKER = ["<thi", "nk>", "not a thought", "</think>", "!"]


@pytest.fixture(scope="module")
def served(home: Coe) -> Iterator[Served]:
    for name, says in SAYINGS.items():
        write_saying_model(home.models / name.replace(" ", "-"), says)
    write_saying_model(home.models / "no-thinker", NO_THINKER)
    with serving(home) as it:
        yield it


@pytest.mark.parametrize("way", WAYS)
def test_thoughts_are_a_leading_block_only(way: str, served: Served) -> None:
    for name, text, thoughts in CASES if way.startswith("/") else CASES[:1]:
        if way.startswith("/completion"):  # what goes past the template has no thoughts
            text = "".join(SAYINGS[name])
            thoughts = ""
        said = say(way, served, model=name.replace(" ", "-"), temperature=0)
        assert said.text == text, name
        assert way == "chat" or said.thoughts == thoughts, name


@pytest.mark.parametrize("way", ["/v1", "/v1, streamed"])
def test_a_model_that_knows_no_such_tag_writes_it_as_text(way: str, served: Served) -> None:
    said = say(way, served, model="no-thinker", temperature=0)
    assert (said.text, said.thoughts) == ("<think>not a thought</think>!", "")


def test_a_streamed_thought_is_signed_as_anthropics_clients_expect(served: Served) -> None:
    hi = [{"role": "user", "content": "Hi"}]
    body = {"model": "two-blocks", "messages": hi, "max_tokens": 40, "temperature": 0, "stream": True}
    lines = served.request("POST", "/v1/messages", body).body.decode().splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    deltas = [event["delta"]["type"] for event in events if event["type"] == "content_block_delta"]
    assert list(dict.fromkeys(deltas)) == ["thinking_delta", "signature_delta", "text_delta"]
