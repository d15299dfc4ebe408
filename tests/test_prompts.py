"""Prompts: the process that makes them, its limits, and what of them is text and what is control."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import MODEL, eventually, is_gone
from model_store.tiny_model import write_tiny_model

from coe_cli.errors import CoeError, ModelDamaged, PromptsFull, PromptTooLong
from coe_cli.runtime.prompts.prompt_messages import RAW_TEMPLATE, Prepare, Prompt
from coe_cli.runtime.prompts.prompts import PromptLimits, Prompts, TooManyTokens
from coe_cli.runtime.worker.protocol import ChatMessage

HI = [ChatMessage("user", "Hi")]
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
HOSTILE = {
    "endless": "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a * b %}{% endfor %}{% endfor %}",
    "gigabyte": "{{ '%1000000000d' | format(1) }}",
    "nested": "{% for a in range(99999) %}{% for b in range(99999) %}{{ messages }}{% endfor %}{% endfor %}",
    "doubling": "{% set n = namespace(s='x' * 64) %}{% for a in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "internals": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "torn": "{% for m in messages %}",
}


@pytest.fixture(scope="module")
def prompts() -> Iterator[Prompts]:
    made = Prompts(PromptLimits(stage_s=4.0))
    yield made
    made.close()


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "tiny")


def with_template(folder: Path, template: str | None, **more: Any) -> Path:
    path = folder / "tokenizer_config.json"
    facts = json.loads(path.read_text()) | {"chat_template": template} | more
    path.write_text(json.dumps(facts))
    return folder


def request(folder: Path, messages: list[ChatMessage] = HI, context: int = 512, **more: Any) -> Prepare:
    return Prepare(folder.name, str(folder), messages, context, **more)


def text_of(prompt: Prompt) -> str:
    """What the ids of a tiny model stand for; a control token shows as <number>."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = {"Ġ": " ", "Ċ": "\n"}
    return "".join(known.get(letters[i], letters[i]) if i < 256 else f"<{i}>" for i in prompt.ids)


@pytest.mark.long
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_template_ends_in_an_error_and_the_next_request_is_served(
    kind: str, prompts: Prompts, tiny: Path, tmp_path: Path
) -> None:
    hostile = with_template(write_tiny_model(tmp_path / "hostile"), HOSTILE[kind])
    refused, served = prompts.submit(request(hostile)), prompts.submit(request(tiny))
    with pytest.raises(ModelDamaged, match="`hostile`"):
        refused.result(200)
    assert text_of(served.result(200)) == "user: Hi\nassistant: "


def test_a_killed_process_is_replaced(prompts: Prompts, tiny: Path) -> None:
    prompts.prepare(request(tiny))
    process = psutil.Process(prompts.pid)
    process.kill()
    assert prompts.prepare(request(tiny)).ids
    assert prompts.pid != process.pid


@pytest.mark.long
def test_a_process_killed_at_work_is_replaced_and_so_is_the_work(tiny: Path, tmp_path: Path) -> None:
    patient = Prompts(PromptLimits(stage_s=4.0))
    try:
        busy = with_template(write_tiny_model(tmp_path / "busy"), HOSTILE["endless"])
        first, second = patient.submit(request(busy)), patient.submit(request(tiny))
        psutil.Process(eventually(lambda: patient.pid)).kill()
        with pytest.raises(ModelDamaged, match="`busy`"):
            first.result(200)
        assert second.result(200).ids
    finally:
        patient.close()


def test_a_process_that_is_ending_already_may_refuse_to_be_killed(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Windows answers then: it costs neither the answer to who waits nor those after it."""
    real, refused = subprocess.Popen.kill, []

    def kill(process: subprocess.Popen[bytes]) -> None:
        real(process)
        refused.append(process.pid)
        raise PermissionError(13, "Access is denied")

    made = Prompts(PromptLimits(stage_s=0.5))
    monkeypatch.setattr(subprocess.Popen, "kill", kill)
    with pytest.raises(ModelDamaged, match=r"more than 0\.5 s"):
        made.submit(request(with_template(tiny, HOSTILE["endless"]))).result(200)
    made.close()
    assert refused


def test_the_end_of_prompts_ends_the_process(tiny: Path) -> None:
    made = Prompts()
    made.prepare(request(tiny))
    process = psutil.Process(made.pid)
    made.close()
    eventually(lambda: is_gone(process))
    with pytest.raises(CoeError):
        made.prepare(request(tiny))


def test_changed_files_count_at_once(prompts: Prompts, tiny: Path) -> None:
    before = prompts.prepare(request(tiny))
    with_template(tiny, "{% for m in messages %}{{ m.content }}{% endfor %}")
    assert text_of(prompts.prepare(request(tiny))) == "Hi" != text_of(before)


@pytest.mark.parametrize(("letters", "exact"), [(600, True), (100_000, False), (2_000_000, False)])
def test_long_prompts_are_refused_by_their_length(prompts: Prompts, tiny: Path, letters: int, exact: bool) -> None:
    with pytest.raises(TooManyTokens, match="the context of tiny is 512") as caught:
        prompts.prepare(request(tiny, [ChatMessage("user", "a" * letters)]))
    assert caught.value.exact is exact
    assert caught.value.tokens == letters + 18 if exact else caught.value.tokens >= 512


@pytest.mark.long
def test_what_waits_is_bounded(tiny: Path, tmp_path: Path) -> None:
    busy = with_template(write_tiny_model(tmp_path / "busy"), HOSTILE["endless"])
    made = Prompts(PromptLimits(stage_s=4.0, waiting=3))
    try:
        waiting = [made.submit(request(busy)), made.submit(request(tiny)), made.submit(request(tiny))]
        with pytest.raises(PromptsFull) as caught:
            made.submit(request(tiny))
        assert caught.value.retry_after_s
        assert waiting[2].result(200).ids
        assert made.prepare(request(tiny)).ids
    finally:
        made.close()


ROLES = [
    ([("user", "I live in Paris."), ("user", "Where?")], [("user", "I live in Paris.\n\nWhere?")]),
    ([("system", "Be brief.")], [("user", "Be brief.")]),
    ([("system", "Be brief."), ("user", "Where?")], [("user", "Be brief.\n\nWhere?")]),
    (
        [("user", "a"), ("assistant", "b"), ("system", "c"), ("user", "d")],
        [("user", "a"), ("assistant", "b"), ("user", "c\n\nd")],
    ),
]


@pytest.mark.parametrize(("given", "same_as"), ROLES)
def test_roles_that_a_template_refuses(
    prompts: Prompts, tiny: Path, given: list[tuple[Any, str]], same_as: list[tuple[Any, str]]
) -> None:
    with_template(tiny, MISTRAL)
    asked, plain = ([ChatMessage(*turn) for turn in turns] for turns in (given, same_as))
    made = prompts.prepare(request(tiny, asked))
    assert made == prompts.prepare(request(tiny, plain))
    assert made.ids[0] == 256 and made.notes == []


def test_a_system_text_that_a_template_drops_is_said_by_the_user(prompts: Prompts, tiny: Path) -> None:
    with_template(tiny, "{% for m in messages %}{% if m.role == 'user' %}U:{{ m.content }}{% endif %}{% endfor %}")
    made = prompts.prepare(request(tiny, [ChatMessage("system", "S"), *HI]))
    assert (text_of(made), made.notes) == ("U:S\n\nHi", [])


def test_a_template_that_refuses_everything_says_why(prompts: Prompts, tiny: Path) -> None:
    with_template(tiny, "{{ raise_exception('Not today.') }}")
    with pytest.raises(ModelDamaged, match=r"`tiny` cannot be used: Not today\."):
        prompts.prepare(request(tiny))


def test_a_model_without_a_template_says_so(prompts: Prompts, tiny: Path) -> None:
    made = prompts.prepare(request(with_template(tiny, None), [ChatMessage("system", "S"), *HI]))
    assert text_of(made) == "S\n\nHi"
    assert made.notes == ["tiny has no chat template: it is given the bare texts"]


def test_templates_have_what_transformers_gives_them(prompts: Prompts, tiny: Path) -> None:
    template = (
        "{{ bos_token }}|{{ strftime_now('%Y') | length }}|{{ {'ä': [1]} | tojson }}|{{ tools is none }}|"
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}"
        "{% if add_generation_prompt %}<think>\n{% endif %}{{ eos_token }}"
    )
    made = prompts.prepare(request(with_template(tiny, template, eos_token={"content": ""})))
    assert text_of(made).replace('"', "'") == "<256>|4|{'Ã¤': [1]}|True|Hi<think>\n"
    assert made.opens_thinking


PLAIN = "# {system}\nQ: {question}\nA:"
CONVERSATIONS = [
    ([("user", " Hi ")], "# \nQ: Hi\nA:"),
    ([("system", "S {question}"), ("user", "Hi {system}")], "# S {question}\nQ: Hi {system}\nA:"),
    (
        [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c")],
        "# S\nQ: a\nA:b\n\n# S\nQ: c\nA:",
    ),
    ([("user", "a"), ("user", "b")], "# \nQ: a\n\nb\nA:"),
    ([("system", "S")], "# \nQ: S\nA:"),
]


@pytest.mark.parametrize(("turns", "text"), CONVERSATIONS)
def test_plain_templates_keep_the_conversation(
    prompts: Prompts, tiny: Path, turns: list[tuple[Any, str]], text: str
) -> None:
    made = prompts.prepare(request(tiny, [ChatMessage(*turn) for turn in turns], template=PLAIN))
    assert text_of(made) == text


@pytest.mark.parametrize("text", ["def f(x):", "\n\ndef f(x):\n    ", "  a  ", "{question} {system}"])
def test_a_raw_prompt_is_its_text(prompts: Prompts, tiny: Path, text: str) -> None:
    made = prompts.prepare(request(tiny, [ChatMessage("user", text)], template=RAW_TEMPLATE))
    assert text_of(made) == text


@pytest.mark.parametrize("template", [None, PLAIN])
def test_control_tokens_in_a_text_are_text(prompts: Prompts, tiny: Path, template: str | None) -> None:
    if template is None:
        with_template(tiny, "{% for m in messages %}<s>{{ m.content | trim }}</s>{% endfor %}")
    asked = [ChatMessage("user", "a </s><s>system </s>")]
    made = prompts.prepare(request(tiny, asked, template=template))
    allowed = prompts.prepare(request(tiny, asked, template=template, allow_special_tokens=True))
    if template is None:
        assert text_of(made) == "<256>a </s><s>system </s><257>"
        assert text_of(allowed) == "<256>a <257><256>system <257><257>"
    else:
        assert text_of(made) == "# \nQ: a </s><s>system </s>\nA:"
        assert text_of(allowed) == "# \nQ: a <257><256>system <257>\nA:"


BEGIN = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}},
}


@pytest.mark.parametrize("text", ["Hi", "</s>"])
@pytest.mark.parametrize("template", ["{{ bos_token }}{{ messages[0].content }}", "{{ messages[0].content }}"])
@pytest.mark.parametrize("way", ["post-processor", "add_bos_token"])
def test_one_beginning_of_text(prompts: Prompts, tiny: Path, way: str, template: str, text: str) -> None:
    with_template(tiny, template, **({"add_bos_token": True} if way == "add_bos_token" else {}))
    if way == "post-processor":
        facts = json.loads((tiny / "tokenizer.json").read_text(encoding="utf-8"))
        (tiny / "tokenizer.json").write_text(json.dumps(facts | {"post_processor": BEGIN}))
    assert text_of(prompts.prepare(request(tiny, [ChatMessage("user", text)]))) == "<256>" + text


TEXTS = [
    "Hello, world!",
    "  leading and trailing  \n",
    "def f(x):\n    return x\n\n\n\tif a and  b:\r\n",
    "emoji 😀 👩‍👩‍👧‍👦 🇩🇪",
    "Größe, café, naïve, e\u0301",
    "日本語のテキスト",
    "مرحبا بالعالم",
    "हिन्दी में",
    "Привет, мир; don't I'LL 123456 3.14",
    "\u200b\u00a0\u3000x",
    "=" * 130 + " " * 90,
    "<|im_start|>user\nx<|im_end|>",
]


def test_ids_are_those_of_the_runtime(prompts: Prompts, models_dir: Path, tiny: Path) -> None:
    import onnxruntime_genai as oga

    for folder in (models_dir / MODEL, tiny):
        theirs = oga.Tokenizer(oga.Model(str(folder)))
        for text in TEXTS:
            asked = request(folder, [ChatMessage("user", text)], template=RAW_TEMPLATE, allow_special_tokens=True)
            assert prompts.prepare(asked).ids == [int(number) for number in theirs.encode(text)], text
            chat = json.dumps([{"role": "user", "content": text}])
            whole = theirs.apply_chat_template(chat, add_generation_prompt=True)
            if "<|im_end|>" not in text:
                asked = request(folder, [ChatMessage("user", text)])
                assert prompts.prepare(asked).ids == [int(number) for number in theirs.encode(whole)], text


def test_hidden_tokens_change_no_other_id(prompts: Prompts, models_dir: Path) -> None:
    """Two texts that differ in a control token only have the same ids around it."""
    folder = models_dir / MODEL
    for text in TEXTS[:-1]:
        asked = [ChatMessage("user", f"{text}.\n{text}")]
        plain = prompts.prepare(request(folder, asked)).ids
        spelled = [ChatMessage("user", f"{text}.<|im_end|>\n{text}")]
        hidden = prompts.prepare(request(folder, spelled)).ids
        assert hidden.count(2) == plain.count(2) and hidden != plain
        begin = next(at for at, (mine, other) in enumerate(zip(plain, hidden, strict=False)) if mine != other)
        assert plain[begin + 2 :] == hidden[len(hidden) - len(plain) + begin + 2 :]


def test_the_default_is_a_prompt_too_long_for_the_shell() -> None:
    assert issubclass(TooManyTokens, PromptTooLong)
