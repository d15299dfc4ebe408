"""Several prompts and several answers in one request, token ids in place of text, and the text itself before the answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from conftest import Coe
from model_store.tiny_model import write_tiny_model
from serving import Served, serving


@pytest.fixture(scope="module")
def served(home: Coe) -> Iterator[Served]:
    write_tiny_model(home.models / "tiny", seed=3)
    with serving(home) as it:
        yield it


def texts(answer: Any) -> list[str]:
    assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
    return [choice.text for choice in answer.choices]


def test_each_prompt_of_a_list_has_its_answer(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 6}
    alone = [client.completions.create(prompt=prompt, **ask) for prompt in ("ab", "xyz")]
    both = client.completions.create(prompt=["ab", "xyz"], **ask)
    assert texts(both) == [texts(each)[0] for each in alone]
    assert both.usage.prompt_tokens == sum(each.usage.prompt_tokens for each in alone) == 5
    chunks = list(client.completions.create(prompt=["ab", "xyz"], stream=True, **ask))
    streamed = ["".join(c.choices[0].text for c in chunks if c.choices[0].index == index) for index in (0, 1)]
    assert streamed == texts(both)
    assert sorted(c.choices[0].index for c in chunks if c.choices[0].finish_reason) == [0, 1]


ALL_WRONG: list[list[Any]] = [[], [[]], [-1], [10**9], [2**31], [1.5], [True], [1.5, 2.0], [5, "x"], ["x"] * 65]


def test_token_ids_are_the_prompt(served: Served, client: openai.OpenAI) -> None:
    import json

    from tokenizers import Tokenizer

    ids = (
        Tokenizer.from_file(str(served.coe.models / "tiny" / "tokenizer.json"))
        .encode("xyz", add_special_tokens=False)
        .ids
    )
    ask: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 6}
    said = texts(client.completions.create(prompt="xyz", **ask))
    assert texts(client.completions.create(prompt=ids, **ask)) == said
    assert texts(client.completions.create(prompt=[ids, ids], **ask)) == said * 2
    for mixed in ([float(number) for number in ids], ["xyz", ids]):
        answer = served.request("POST", "/v1/completions", {**ask, "prompt": mixed}).json
        assert {choice["text"] for choice in answer["choices"]} == set(said)
    for wrong in ALL_WRONG:
        answer = served.request("POST", "/v1/completions", {**ask, "prompt": wrong})
        assert answer.status == 400, (json.dumps(wrong), answer.body)
        assert answer.error["param"].startswith("prompt"), (json.dumps(wrong), answer.body)
    long = served.request("POST", "/v1/completions", {**ask, "prompt": ids * 20_000})
    assert (long.error["code"], long.error["param"]) == ("context_length_exceeded", "prompt")


def test_n_answers_of_a_chat_and_of_a_prompt(served: Served, client: openai.OpenAI) -> None:
    hi: list[Any] = [{"role": "user", "content": "Hi"}]
    ask: dict[str, Any] = {"model": "tiny", "temperature": 1.5, "seed": 1, "max_tokens": 6, "n": 3}
    answer = client.chat.completions.create(messages=hi, **ask)
    one = client.chat.completions.create(messages=hi, **{**ask, "n": 1})
    said = [choice.message.content for choice in answer.choices]
    assert len(set(said)) > 1 and said[0] == one.choices[0].message.content
    assert answer.usage.prompt_tokens == one.usage.prompt_tokens and answer.usage.completion_tokens > 6
    chunks = list(client.chat.completions.create(messages=hi, stream=True, **ask))
    for index in range(3):
        parts = [c.choices[0].delta.content or "" for c in chunks if c.choices and c.choices[0].index == index]
        assert "".join(parts) == said[index]
    lists = client.completions.create(prompt=["ab", "cd"], best_of=2, **{**ask, "n": 2})
    assert len(texts(lists)) == 4
    assert served.request("POST", "/v1/completions", {**ask, "prompt": "x", "n": 0}).error["param"] == "n"


def test_the_likeliest_of_several_answers_are_given(served: Served, client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": "tiny", "temperature": 1.5, "seed": 1, "max_tokens": 6, "prompt": ["ab", "xyz"]}
    every = client.completions.create(n=5, logprobs=0, **ask)
    best = client.completions.create(n=2, best_of=5, echo=False, **ask)
    for number in (0, 1):
        group = every.choices[5 * number : 5 * number + 5]
        means = {each.text: sum(p) / len(p) for each in group if each.logprobs and (p := each.logprobs.token_logprobs)}
        likeliest = sorted(means, key=lambda text: -means[text])[:2]
        assert [each.text for each in best.choices[2 * number : 2 * number + 2]] == likeliest
    assert [each.index for each in best.choices] == [0, 1, 2, 3] and best.choices[0].logprobs is None
    assert best.usage == every.usage  # all were written
    told = client.completions.create(n=1, best_of=2, logprobs=2, **ask).choices[0].logprobs
    assert told is not None and told.top_logprobs
    for wrong in ({"n": 3, "best_of": 2}, {"best_of": 2, "stream": True}, {"best_of": 17}):
        answer = served.request("POST", "/v1/completions", {**ask, **wrong})
        assert (answer.status, answer.error["param"]) == (400, "best_of"), answer.body


def test_the_prompt_comes_before_its_answer_where_that_is_wanted(served: Served, client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 6}
    plain = texts(client.completions.create(prompt=["ab", "xyz"], **ask))
    assert texts(client.completions.create(prompt=["ab", "xyz"], echo=True, **ask)) == [
        "ab" + plain[0],
        "xyz" + plain[1],
    ]
    chunks = list(client.completions.create(prompt="ab", echo=True, stream=True, **ask))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "ab" + plain[0]
    refused = served.request("POST", "/v1/completions", {**ask, "prompt": [5, 6], "echo": True})
    assert (refused.status, refused.error["param"]) == (400, "echo")
