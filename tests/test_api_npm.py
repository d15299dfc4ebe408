"""OpenAI's JavaScript client and Vercel's ai against a college, where Node.js and the registry of npm are."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import Coe
from model_store.saying_model import write_saying_model
from serving import serving

PACKAGES = ("openai@6.9.1", "ai@5.0.108", "@ai-sdk/openai-compatible@1.0.28")
SCRIPT = """
import OpenAI from "openai";
import { generateText, jsonSchema, streamText, tool } from "ai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";

const baseURL = process.argv[2] + "/v1";
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const ask = { model: "tiny", messages: [{ role: "user", content: "Hi" }], max_tokens: 4 };
const schema = { type: "object", properties: { city: { enum: ["Rome"] } }, required: ["city"], additionalProperties: false };
const functions = [{ type: "function", function: { name: "look", parameters: schema } }];
const joined = async (stream, of) => { let text = ""; for await (const each of stream) text += of(each) ?? ""; return text; };

const whole = await client.chat.completions.create({ ...ask, logprobs: true });
const streamed = await client.chat.completions.create({ ...ask, stream: true });
const called = await client.chat.completions.create({ ...ask, max_tokens: 99, tools: functions, tool_choice: "required" });
const response = await client.responses.create({ model: "tiny", input: "Hi", max_output_tokens: 4 });
const model = createOpenAICompatible({ name: "coe", baseURL, apiKey: "none" })("tiny");
const tools = { look: tool({ inputSchema: jsonSchema(schema) }) };
const generated = await generateText({ model, prompt: "Hi", maxOutputTokens: 4 });
const used = await generateText({ model, prompt: "Hi", maxOutputTokens: 99, tools, toolChoice: "required" });
console.log(JSON.stringify({
  texts: [
    whole.choices[0].message.content,
    whole.choices[0].logprobs.content.map((each) => each.token).join(""),
    await joined(streamed, (chunk) => chunk.choices[0]?.delta?.content),
    response.output_text,
    generated.text,
    await joined(streamText({ model, prompt: "Hi", maxOutputTokens: 4 }).textStream, (text) => text),
  ],
  calls: [JSON.parse(called.choices[0].message.tool_calls[0].function.arguments), used.toolCalls[0].input],
}));
"""


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="there is no Node.js")
def test_the_clients_of_npm(tmp_path: Path) -> None:
    npm = [str(shutil.which("npm")), "install", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES]
    if subprocess.run(npm, cwd=tmp_path, capture_output=True, timeout=300, check=False).returncode:
        pytest.skip("npm's registry cannot be reached")
    (tmp_path / "ask.mjs").write_text(SCRIPT, encoding="utf-8")
    coe = Coe(tmp_path, tmp_path / "models")
    write_saying_model(coe.models / "tiny", ["yes ", "no "], again_from=0)
    with serving(coe) as served:
        ran = subprocess.run(
            ["node", "ask.mjs", served.url], cwd=tmp_path, capture_output=True, timeout=120, check=False
        )
    assert ran.returncode == 0, ran.stderr.decode()
    found = json.loads(ran.stdout)
    assert found["texts"] == ["yes no yes no "] * 6 and found["calls"] == [{"city": "Rome"}] * 2
    coe.end_all()
