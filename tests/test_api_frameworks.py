"""What drives a model through OpenAI's API: one conversation and one function with each. The extra `clients` installs them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from conftest import MODEL
from pydantic import BaseModel
from serving import Served

PARIS = "The capital of France is"
LONG = "word " * 9000


class Place(BaseModel):
    city: str
    is_capital: bool


def weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: its name
    """
    return f"sunny in {city}"


def test_langchain(served: Served) -> None:
    pytest.importorskip("langchain_openai")
    from langchain_core.exceptions import ContextOverflowError
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI

    def model(**fields: Any) -> Any:
        return ChatOpenAI(
            base_url=f"{served.url}/v1", api_key="none", model=MODEL, temperature=0, max_retries=0, **fields
        )

    assert "Paris" in model(max_tokens=24).invoke(PARIS).content
    assert "Paris" in "".join(part.content for part in model(max_tokens=24).stream(PARIS))
    called = model(max_tokens=60).bind_tools([tool(weather)], tool_choice="weather").invoke("Weather in Paris?")
    assert called.tool_calls[0]["name"] == "weather" and set(called.tool_calls[0]["args"]) == {"city"}
    for method in ("json_schema", "function_calling"):
        assert isinstance(model(max_tokens=80).with_structured_output(Place, method=method).invoke("Paris?"), Place)
    with pytest.raises(ContextOverflowError):
        model(max_tokens=1).invoke(LONG)
    with pytest.raises(ContextOverflowError):
        model(max_tokens=1, use_responses_api=True).invoke(LONG)
    responses = model(max_tokens=24, use_responses_api=True)
    assert "Paris" in json.dumps(responses.invoke(PARIS).content)


def test_litellm(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm")
    ask: dict[str, Any] = {
        "max_tokens": 24,
        "temperature": 0,
        "num_retries": 0,
        "messages": [{"role": "user", "content": PARIS}],
    }
    openai: dict[str, Any] = {"model": f"openai/{MODEL}", "api_base": f"{served.url}/v1", "api_key": "none"}
    assert "Paris" in litellm.completion(**openai, **ask).choices[0].message.content
    parts = litellm.completion(**openai, **ask, stream=True)
    assert "Paris" in "".join(part.choices[0].delta.content or "" for part in parts)
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**openai, **{**ask, "messages": [{"role": "user", "content": LONG}]})
    others = (
        {"model": f"ollama_chat/{MODEL}", "api_base": served.url},
        {"model": f"anthropic/{MODEL}", "api_base": served.url, "api_key": "none"},
    )
    for other in others:
        assert "Paris" in litellm.completion(**other, **ask).choices[0].message.content, other


def test_pydantic_ai(served: Served) -> None:
    pytest.importorskip("pydantic_ai")
    from pydantic_ai import Agent, NativeOutput
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=f"{served.url}/v1", api_key="none")
    for kind in (OpenAIChatModel, OpenAIResponsesModel):
        model: Any = kind(MODEL, provider=provider)
        settings: Any = {"max_tokens": 60, "temperature": 0}
        assert "Paris" in Agent(model, model_settings=settings).run_sync(PARIS).output
        assert isinstance(Agent(model, output_type=Place, model_settings=settings).run_sync("Paris?").output, Place)
        native = Agent(model, output_type=NativeOutput(Place), model_settings=settings)
        assert isinstance(native.run_sync("Paris?").output, Place)


def test_instructor(served: Served) -> None:
    instructor = pytest.importorskip("instructor")

    plain = served.client()
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON, instructor.Mode.JSON_SCHEMA):
        client = instructor.from_openai(plain, mode=mode)
        messages = [{"role": "user", "content": "Paris?"}]
        if mode is instructor.Mode.JSON:
            continue  # asks for any object and tries again: for larger models
        place = client.chat.completions.create(
            model=MODEL, response_model=Place, messages=messages, max_tokens=80, max_retries=0
        )
        assert isinstance(place, Place), mode


def test_openais_agents(served: Served) -> None:
    agents = pytest.importorskip("agents")
    import openai

    agents.set_tracing_disabled(True)
    client = openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    tool = agents.function_tool(weather)

    async def run(kind: Any) -> None:
        model = kind(model=MODEL, openai_client=client)
        settings = agents.ModelSettings(temperature=0, max_tokens=60)
        plain = agents.Agent(name="plain", model=model, model_settings=settings)
        assert "Paris" in (await agents.Runner.run(plain, PARIS)).final_output
        forced = agents.ModelSettings(temperature=0, max_tokens=60, tool_choice="required")
        caller = agents.Agent(
            name="caller", model=model, tools=[tool], model_settings=forced, tool_use_behavior="stop_on_first_tool"
        )
        assert "sunny in" in str((await agents.Runner.run(caller, "Weather in Paris?")).final_output)

    async def both() -> None:
        for kind in (agents.OpenAIChatCompletionsModel, agents.OpenAIResponsesModel):
            await run(kind)

    asyncio.run(both())


def test_smolagents(served: Served) -> None:
    smolagents = pytest.importorskip("smolagents")
    model = smolagents.OpenAIModel(
        model_id=MODEL, api_base=f"{served.url}/v1", api_key="none", temperature=0, max_tokens=60
    )
    assert "Paris" in model([{"role": "user", "content": [{"type": "text", "text": PARIS}]}]).content
    called = model(
        [{"role": "user", "content": [{"type": "text", "text": "Weather in Paris?"}]}],
        tools_to_call_from=[smolagents.tool(weather)],
    )
    assert called.tool_calls[0].function.name == "weather"


def test_llm(served: Served, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llm")
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: coe\n  model_name: {MODEL}\n  api_base: {served.url}/v1\n  supports_tools: true\n  supports_schema: true\n"
    )
    import llm

    model = llm.get_model("coe")
    model.key = "none"
    assert "Paris" in model.prompt(PARIS, temperature=0, max_tokens=24, stream=False).text()
    assert "Paris" in "".join(model.prompt(PARIS, temperature=0, max_tokens=24))
    assert set(json.loads(model.prompt("Paris?", schema=Place, max_tokens=80, stream=False).text())) == {
        "city",
        "is_capital",
    }
