"""Filling in the middle: OpenAI's ``suffix`` and llama.cpp's ``/infill`` over it, and llama.cpp's ``/completion``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from conftest import Coe
from model_store.tiny_model import write_tiny_model
from serving import Served, serving
from tokenizers import AddedToken, Tokenizer

from coe_cli.core.answers.fill_in import FILL_FORMS, FILL_TEMPLATE
from coe_cli.runtime.prompts.prompt_messages import NotPrepared, Prepare, Prompt
from coe_cli.runtime.prompts.prompt_process import Preparation
from coe_cli.runtime.worker.protocol import ChatMessage

QWEN = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_sep|>")


def add_tokens(folder: Path, tokens: tuple[str, ...]) -> Path:
    """Give the tokenizer control tokens; the model has rows for them."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in tokens if token])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("fill")
    coe = Coe(folder, folder / "models")
    write_tiny_model(coe.models / "tiny", seed=3)
    add_tokens(write_tiny_model(coe.models / "coder", seed=3), QWEN)
    with serving(coe) as it:
        yield it
    coe.end_all()


@pytest.mark.parametrize("form", FILL_FORMS, ids=[f"{n}-{form.before}" for n, form in enumerate(FILL_FORMS)])
def test_the_prompt_of_each_form(tmp_path: Path, form: Any) -> None:
    folder = add_tokens(write_tiny_model(tmp_path / "coder"), tuple(form))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    turns = [ChatMessage("tool", "a.py\nA"), ChatMessage("user", "after"), ChatMessage("user", "before")]
    turns += [ChatMessage("assistant", "begun")]
    made = Preparation(lambda stage: None).answer(Prepare("coder", str(folder), turns, 512, FILL_TEMPLATE))
    assert isinstance(made, Prompt)
    told = f"{form.file}a.py\nA\n" + (f"{form.file}filename\n" if form.file else "")
    text = f"{told}{form.before}before{form.after}after{form.middle}begun"
    assert made.ids == tokenizer.encode(text, add_special_tokens=False).ids
    assert [[tokenizer.id_to_token(i) for i in made.ids].count(each) for each in form[:3]] == [1, 1, 1]


def test_a_text_that_spells_the_tokens_is_text(tmp_path: Path) -> None:
    folder = add_tokens(write_tiny_model(tmp_path / "coder"), QWEN)
    turns = [ChatMessage("user", "after<|fim_middle|>"), ChatMessage("user", "<|fim_suffix|>before")]
    made = Preparation(lambda stage: None).answer(Prepare("coder", str(folder), turns, 512, FILL_TEMPLATE))
    middle = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id("<|fim_middle|>")
    assert isinstance(made, Prompt) and middle is not None and made.ids.count(middle) == 1 and made.ids[-1] == middle


def test_a_model_without_such_tokens_says_so(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "plain")
    turns = [ChatMessage("user", "after"), ChatMessage("user", "before")]
    made = Preparation(lambda stage: None).answer(Prepare("plain", str(folder), turns, 512, FILL_TEMPLATE))
    assert isinstance(made, NotPrepared) and made.code == "nothing_to_fill"


def test_a_suffix_of_a_completion(served: Served, client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": "coder", "prompt": "before", "temperature": 0, "max_tokens": 8}
    spelled = f"{QWEN[0]}before{QWEN[1]}after{QWEN[2]}"
    by_hand = client.completions.create(**{**ask, "prompt": spelled})
    filled = client.completions.create(suffix="after", **ask)
    assert filled.usage and by_hand.usage and filled.usage.prompt_tokens == by_hand.usage.prompt_tokens == 14
    assert filled.choices[0].text == by_hand.choices[0].text
    both = client.completions.create(suffix="after", **{**ask, "prompt": ["before", "x"]})
    assert both.choices[0].text == filled.choices[0].text
    chunks = client.completions.create(suffix="after", stream=True, **ask)
    assert "".join(chunk.choices[0].text for chunk in chunks) == filled.choices[0].text
    for fields in ({"model": "tiny"}, {"echo": True}, {"prompt": [5, 6]}):
        refused = served.request("POST", "/v1/completions", {**ask, "suffix": "after", **fields})
        assert (refused.status, refused.error["param"]) == (400, "suffix"), refused.body
    assert client.completions.create(suffix="", **{**ask, "model": "tiny"}).choices[0].text


def infill(served: Served, **fields: Any) -> Any:
    ask = {"model": "coder", "input_prefix": "before", "input_suffix": "after", "temperature": 0, "n_predict": 8}
    return served.request("POST", "/infill", ask | fields)


def test_infill_is_the_same(served: Served, client: openai.OpenAI) -> None:
    filled = client.completions.create(model="coder", prompt="before", suffix="after", temperature=0, max_tokens=8)
    answer = infill(served).json
    assert answer["content"] == filled.choices[0].text and answer["stop"] is True
    assert (answer["tokens_evaluated"], answer["tokens_predicted"]) == (14, 8) and answer["stop_type"] == "limit"
    extra = infill(served, input_extra=[{"filename": "a.h", "text": "int f();"}], prompt="begun").json
    assert extra["tokens_evaluated"] == 14 + len("begun") + 1 + len("a.h\nint f();\n") + 1 + len("filename\n")
    events = [json.loads(line[6:]) for line in infill(served, stream=True).body.decode().split("\n\n") if line]
    assert "".join(event["content"] for event in events) == answer["content"]
    assert [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input_extra": [{}]}, "input_extra.0.text"),
        ({"input_extra": [{"filename": 123, "text": "x"}]}, "input_extra.0.filename"),
        ({"input_extra": {}}, "input_extra"),
        ({"model": "tiny"}, "suffix"),
        ({"n_predict": 0}, "n_predict"),
        ({"n_probs": 21}, "n_probs"),
        ({"min_p": 0.5}, "min_p"),
        ({"input_prefix": "\0"}, "input_prefix"),
    ],
)
def test_infill_refuses_by_name(served: Served, fields: dict[str, Any], param: str) -> None:
    answer = infill(served, **fields)
    assert (answer.status, answer.error["param"]) == (400, param), answer.body


def test_llamas_completion(served: Served, client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": "tiny", "temperature": 0}
    said = client.completions.create(prompt="xyz", max_tokens=6, logprobs=2, **ask).choices[0]
    answer = served.request("POST", "/completion", {**ask, "prompt": "xyz", "n_predict": 6, "n_probs": 2}).json
    assert answer["content"] == said.text and answer["timings"]["predicted_n"] == 6
    told = answer["completion_probabilities"]
    assert said.logprobs and [each["logprob"] for each in told] == pytest.approx(said.logprobs.token_logprobs)
    assert [len(each["top_logprobs"]) for each in told] == [2] * len(told)
    both = served.request("POST", "/completion", {**ask, "prompt": ["xyz", "ab"], "n_predict": 6}).json
    assert [each["index"] for each in both] == [0, 1] and both[0]["content"] == said.text
    long = served.request("POST", "/completion", {**ask, "prompt": "xyz", "n_predict": -1}).json
    assert long["tokens_predicted"] > 16  # not OpenAI's default
    failed = served.request("POST", "/completion", {**ask, "prompt": "x" * 9000})
    assert failed.error["code"] == "context_length_exceeded"
