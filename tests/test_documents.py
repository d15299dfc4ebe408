"""Profile and catalog files: what ships, whose file wins, and how every mistake is told."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY, Coe, examples, one_line
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coe_cli.errors import ProfileInvalid
from coe_cli.runtime.settings import load_catalog, load_profiles

PROFILES = REPOSITORY / "profiles" / "hardware_profiles.yaml"
CATALOG = REPOSITORY / "profiles" / "experts.yaml"
SHAPE = "{num_hidden_layers: 1, hidden_size: 8, num_attention_heads: 1, num_key_value_heads: 1, head_size: 8, vocab_size: 9}"
ENTRY = f"{{provider: cpu, context_length: 64, weights_mb: 1, shape: {SHAPE}}}"


def test_shipped_profiles() -> None:
    profiles = load_profiles([PROFILES])
    assert profiles.default_profile == "standard"
    assert {
        name: (p.provider, p.vram_budget_mb, p.max_concurrent_slots, p.context_length, p.preload_enabled)
        for name, p in profiles.profiles.items()
    } == {
        "embedded": ("cpu", 4000, 2, 4096, False),
        "minimal": ("dml", 8000, 1, 4096, False),
        "compact": ("dml", 16000, 1, 8192, True),
        "standard": ("dml", 32000, 2, 8192, True),
        "performance": ("dml", 48000, 4, 16384, True),
        "unlimited": ("dml", 64000, 6, 16384, True),
    }
    standard = profiles.select()
    assert standard.fixed_mb == 2000
    assert standard.vram_components.per_slot_estimate.total == 8000
    thresholds = standard.pressure_thresholds
    assert (thresholds.elevated, thresholds.high, thresholds.critical) == (0.80, 0.90, 0.95)
    policy = standard.eviction_policy
    assert (policy.target, policy.min_resident_seconds, policy.retry_delay_seconds) == ("largest_consumer", 60, 5)
    auto = standard.auto_detect
    assert (auto.enabled, auto.safety_margin, auto.fallback_profile) == (True, 0.90, "standard")


def test_keep_alive_of_a_profile_or_of_all(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "keep_alive: 90s\n"
        "profiles:\n"
        "  a: {vram_budget_mb: 9000, max_concurrent_slots: 1, context_length: 4096, keep_alive: never}\n"
        "  b: {vram_budget_mb: 9000, max_concurrent_slots: 1, context_length: 4096, keep_alive: 2.5}\n"
        "  c: {vram_budget_mb: 9000, max_concurrent_slots: 1, context_length: 4096}\n"
    )
    assert load_profiles([PROFILES]).select().keep_alive_s == 300.0
    profiles = load_profiles([PROFILES, mine])
    assert [profiles.select(name).keep_alive_s for name in ("a", "b", "c", "standard")] == [None, 2.5, 90.0, 90.0]


def test_shipped_experts() -> None:
    catalog = load_catalog([CATALOG])
    deepseek, coder = "DeepSeek-R1-Distill-Qwen-7B-DML", "Qwen2.5-Coder-7B-DML"
    assert {name: (e.model, e.slot_cost, e.prompt_format) for name, e in catalog.experts.items()} == {
        "python_backend": (coder, 1, "chat_template"),
        "sql_schema_architect": (coder, 1, "chat_template"),
        "sql_query": ("sqlcoder-7b-2-DML", 1, "plain"),
        "html_css_specialist": (coder, 1, "chat_template"),
        "security_architect": (deepseek, 2, "chat_template"),
        "legal_contracts": (deepseek, 2, "chat_template"),
        "math_expert": ("Qwen2.5-Math-7B-DML", 1, "chat_template"),
        "medical_expert": ("BioMistral-7B-DML", 1, "chat_template"),
        "architecture_expert": (deepseek, 2, "chat_template"),
        "general_reasoner": (deepseek, 2, "chat_template"),
    }
    assert all(e.system_prompt.strip() and e.description for e in catalog.experts.values())
    assert {e.fallback for e in catalog.experts.values()} == {"smollm2-135m"}
    assert "{question}" in (catalog.experts["sql_query"].template or "")
    assert catalog.experts_of(coder) == ["python_backend", "sql_schema_architect", "html_css_specialist"]


def test_shipped_models() -> None:
    catalog = load_catalog([CATALOG])
    assert catalog.default_model == "smollm2-135m"
    shapes = {
        name: (
            m.provider,
            m.context_length,
            m.shape.num_hidden_layers,
            m.shape.hidden_size,
            m.shape.num_attention_heads,
            m.shape.num_key_value_heads,
            m.shape.head_size,
            m.shape.vocab_size,
        )
        for name, m in catalog.models.items()
    }
    assert shapes == {
        "smollm2-135m": ("cpu", 8192, 30, 576, 9, 3, 64, 49152),
        "qwen2.5-1.5b-instruct": ("cpu", 32768, 28, 1536, 12, 2, 128, 151936),
        "DeepSeek-R1-Distill-Qwen-7B-DML": ("dml", 131072, 28, 3584, 28, 4, 128, 152064),
        "Qwen2.5-Coder-7B-DML": ("dml", 32768, 28, 3584, 28, 4, 128, 152064),
        "Qwen2.5-Math-7B-DML": ("dml", 4096, 28, 3584, 28, 4, 128, 152064),
        "BioMistral-7B-DML": ("dml", 32768, 32, 4096, 32, 8, 128, 32000),
        "sqlcoder-7b-2-DML": ("dml", 16384, 32, 4096, 32, 32, 128, 32016),
        "law-LLM-DML": ("dml", 2048, 32, 4096, 32, 32, 128, 32001),
    }
    embedded = catalog.models["smollm2-135m"]
    assert [source.uri.split(":")[0] for source in embedded.sources] == ["hf", "pypi"]
    assert len({source.sha256 for source in embedded.sources}) == 1 and embedded.sources[0].sha256
    assert all(model.sources and model.sources[0].uri.startswith("hf:") for model in catalog.models.values())


MISTAKES_IN_PROFILES: list[tuple[str, int, str]] = [
    ("profiles:\n  a:\n    vram_budget: 1\n", 3, "profiles.a.vram_budget: unknown key. Did you mean `vram_budget_mb`?"),
    ("profile:\n  a: {}\n", 1, "profile: unknown key. Did you mean `profiles`"),
    (
        "profiles:\n  a:\n    vram_budget_mb: lots\n    max_concurrent_slots: 1\n    context_length: 64\n",
        3,
        "profiles.a.vram_budget_mb: `lots` is no amount of memory",
    ),
    (
        "profiles:\n  a:\n    vram_budget_mb: 1\n    max_concurrent_slots: true\n    context_length: 64\n",
        4,
        "profiles.a.max_concurrent_slots: expected `int`, got `bool`",
    ),
    (
        "profiles:\n  ok: {vram_budget_mb: 1, max_concurrent_slots: 1, context_length: 64}\n"
        "  a:\n    vram_budget_mb: 0\n    max_concurrent_slots: 1\n    context_length: 64\n",
        4,
        "profiles.a.vram_budget_mb: expected `int` >= 1",
    ),
    (
        "profiles:\n  a:\n    vram_budget_mb: 1\n    context_length: 64\n",
        2,
        "profiles.a: the key `max_concurrent_slots`",
    ),
    (
        "profiles:\n  a: {vram_budget_mb: 1, max_concurrent_slots: 1, context_length: 64, provider: vulkan}\n",
        2,
        "profiles.a: invalid provider 'vulkan': it is one of dml, cuda, webgpu, cpu",
    ),
    ("profiles:\n  - a\n", 1, "profiles: expected `object`, got `array`"),
    ("profiles:\n  a: 7\n", 2, "profiles.a: expected `object`, got `int`"),
    (
        "pressure_thresholds:\n  elevated: 0.8\n  high: 0.7\n  critical: 0.95\n",
        3,
        "pressure_thresholds.high: 0.7 is not above elevated (0.8)",
    ),
    (
        "pressure_thresholds:\n  elevated: 0.8\n  high: 0.9\n  critical: 0.9\n",
        4,
        "pressure_thresholds.critical: 0.9 is not above high (0.9)",
    ),
    ("pressure_thresholds:\n  high: 1.5\n", 2, "pressure_thresholds.high: expected `float` <= 1.0"),
    ("pressure_thresholds:\n  high: .nan\n", 2, "pressure_thresholds.high: "),
    (
        "vram_components:\n  fixed_overhead:\n    total: 1\n",
        3,
        "vram_components.fixed_overhead.total: 1 is not the sum of the parts (2000)",
    ),
    ("default_profile: nobody\n", 1, "default_profile: no profile is called `nobody`"),
    (
        "auto_detect:\n  fallback_profile: standrad\n",
        2,
        "auto_detect.fallback_profile: no profile is called `standrad`",
    ),
    ("eviction_policy:\n  target: smallest\n", 2, "eviction_policy.target: invalid enum value"),
    ("keep_alive: soon\n", 1, "keep_alive: `soon` is not a time"),
    ("keep_alive: .nan\n", 1, "keep_alive: `nan` is not a time"),
    ("keep_alive: [5m]\n", 1, "keep_alive: "),
    (
        "profiles:\n  a: {vram_budget_mb: 1, max_concurrent_slots: 1, context_length: 16, keep_alive: 1 day}\n",
        2,
        "profiles.a.keep_alive: `1 day` is not a time",
    ),
    ("profiles: {}\nprofiles: {}\n", 2, "profiles: the key is written twice"),
    ("profiles:\n  a: {context_length: 1, context_length: 2}\n", 2, "context_length: the key is written twice"),
    ("- profiles\n", 1, "the file: expected keys and values"),
    ("just words\n", 1, "the file: expected keys and values"),
    ("", 1, "the file: expected keys and values"),
    ("# nothing but a remark\n", 1, "the file: expected keys and values"),
    ("profiles:\n\ta: 1\n", 2, "not valid YAML"),
    ("profiles: [1, 2\n", 2, "not valid YAML"),
    ("profiles: *unknown\n", 1, "not valid YAML"),
    ("profiles: !!python/object:os.system {}\n", 1, "not valid YAML"),
    ("a: 1\n---\nb: 2\n", 2, "not valid YAML"),
    ("1: {}\n", 1, "1: expected `str`"),
    ("profiles:\n  2: {}\n", 2, "profiles.2: expected `str`, got `int`. Put it in quotes."),
    ("? [a, b]\n: 1\n", 1, ""),
    ("? {a: b}\n: 1\n", 1, ""),
]

MISTAKES_IN_CATALOGS: list[tuple[str, int, str]] = [
    ("experts:\n  a:\n    modle: x\n", 3, "experts.a.modle: unknown key. Did you mean `model`?"),
    ("experts:\n  a:\n    model: law-LLM-DLM\n    system_prompt: ''\n", 3, "experts.a.model: no model is called"),
    (
        "experts:\n  a: {model: law-LLM-DML, system_prompt: '', fallback: x}\n",
        2,
        "experts.a.fallback: no model is called `x`",
    ),
    ("experts:\n  a: {model: law-LLM-DML}\n", 2, "experts.a: the key `system_prompt` is missing"),
    (
        "experts:\n  a: {model: law-LLM-DML, system_prompt: '', prompt_format: plain}\n",
        2,
        "experts.a.template: a plain prompt needs a template",
    ),
    (
        "experts:\n  a: {model: law-LLM-DML, system_prompt: '', template: '{question}'}\n",
        2,
        "experts.a.template: a template goes with",
    ),
    ("experts:\n  a: {model: law-LLM-DML, system_prompt: '', slot_cost: 0}\n", 2, "experts.a.slot_cost: expected"),
    (f"models:\n  a: {ENTRY[:-1]}, sources: [{{uri: 'ftp:x'}}]}}\n", 2, "models.a.sources.0.uri: "),
    (f"models:\n  a: {ENTRY[:-1]}, sources: [{{uri: 'hf:a/b', sha256: 12}}]}}\n", 2, "models.a.sources.0.sha256: "),
    (f"models:\n  ../evil: {ENTRY}\n", 2, "models.../evil: expected `str` matching"),
    (f"models:\n  good: {ENTRY}\n  a: {ENTRY.replace('vocab_size: 9', 'vocab: 9')}\n", 3, "models.a.shape.vocab"),
    ('experts:\n  a:\n    "x\\ny\\e[31m": 1\n', 3, "experts.a.x\\ny\\x1b[31m: unknown key"),
    (
        "experts:\n  auto: {model: law-LLM-DML, system_prompt: ''}\n",
        2,
        "experts.auto: the router is asked by that name",
    ),
    ("default_model: nobody\n", 1, "default_model: no model is called `nobody`"),
]


@pytest.mark.parametrize(("text", "line", "says"), MISTAKES_IN_PROFILES)
def test_a_mistake_in_a_profile_file(tmp_path: Path, text: str, line: int, says: str) -> None:
    _check_mistake(lambda path: load_profiles([PROFILES, path]), tmp_path, text, line, says)


@pytest.mark.parametrize(("text", "line", "says"), MISTAKES_IN_CATALOGS)
def test_a_mistake_in_a_catalog_file(tmp_path: Path, text: str, line: int, says: str) -> None:
    _check_mistake(lambda path: load_catalog([CATALOG, path]), tmp_path, text, line, says)


def _check_mistake(load: Any, tmp_path: Path, text: str, line: int, says: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ProfileInvalid) as caught:
        load(path)
    error = caught.value
    assert error.exit_code == 3
    assert "\n" not in error.message + error.hint
    assert error.hint
    assert f"{error.message}. {error.hint}".startswith(f"{path}:{line}: {says}")


@pytest.mark.parametrize("data", [b"\xff\xfe\x00b", b"PK\x03\x04\x00\x00", b"\x00" * 100, b"a: \x07"])
def test_a_binary_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(data)
    with pytest.raises(ProfileInvalid, match=r"mine\.yaml"):
        load_profiles([PROFILES, path])


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "a: " + "{b: " * 20_000, "- " * 20_000, "&a [*a, *a]", "a: &a {b: *a}"]
)
def test_a_file_nested_too_deep_or_into_itself(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ProfileInvalid, match=r"mine\.yaml"):
        load_profiles([PROFILES, path])


def test_a_file_that_grows_by_its_anchors(tmp_path: Path) -> None:
    """Nine levels of ten references each: 10**9 items if anything walked them all."""
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    path = tmp_path / "mine.yaml"
    path.write_text("a0: &a0 [x]\n" + "\n".join(levels) + "\n")
    with pytest.raises(ProfileInvalid):
        load_profiles([PROFILES, path])


def test_a_folder_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ProfileInvalid, match="cannot be read"):
        load_catalog([CATALOG, tmp_path])


_scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates(), st.binary(max_size=3)
)
_KNOWN_KEYS = [
    "profiles",
    "models",
    "experts",
    "standard",
    "shape",
    "sources",
    "uri",
    "vram_budget_mb",
    "pressure_thresholds",
    "high",
    "context_length",
    "default_profile",
    "default_model",
    "provider",
    "model",
    "system_prompt",
    "...",
]
_keys = st.one_of(st.sampled_from(_KNOWN_KEYS), st.text(max_size=6), st.integers(), st.booleans(), st.none())
_trees = st.recursive(
    _scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_keys, inner, max_size=4)),
    max_leaves=12,
)


@settings(max_examples=examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=st.dictionaries(_keys, _trees, min_size=1, max_size=4))
def test_any_yaml_is_taken_or_refused_in_one_line(tmp_path: Path, tree: dict[Any, Any]) -> None:
    _taken_or_refused(tmp_path, yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass"))


@settings(max_examples=examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda t: t.encode("utf-8", "replace"))))
def test_any_bytes_are_taken_or_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    _taken_or_refused(tmp_path, data)


@pytest.mark.long
@settings(max_examples=examples(100), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_shipped_files_with_one_change(tmp_path: Path, data: st.DataObject) -> None:
    """Any value anywhere in a shipped file replaced by any other."""
    tree = yaml.safe_load(data.draw(st.sampled_from([PROFILES, CATALOG])).read_text())
    node: Any = tree
    for _ in itertools.count():
        key = data.draw(st.sampled_from(list(node) if isinstance(node, dict) else list(range(len(node)))))
        if not isinstance(node[key], dict | list) or not node[key] or data.draw(st.booleans()):
            node[key] = data.draw(_trees)
            break
        node = node[key]
    _taken_or_refused(tmp_path, yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass"))


def _taken_or_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(data)
    for load, shipped in ((load_profiles, PROFILES), (load_catalog, CATALOG)):
        try:
            load([shipped, path])
        except ProfileInvalid as error:
            assert str(path) in error.message
            assert len((error.message + error.hint).splitlines()) == 1


def test_the_users_files_win(coe: Coe) -> None:
    profile = "profiles:\n  {0}: {{vram_budget_mb: 3000, max_concurrent_slots: 1, context_length: 64, provider: {1}}}\n"
    (coe.config / "hardware_profiles.yaml").write_text(profile.format("standard", "cpu"))
    named = coe.folder / "named.yaml"
    named.write_text(profile.format("standard", "cuda"))
    own = load_profiles([PROFILES, coe.config / "hardware_profiles.yaml"])
    assert own.select("standard").provider == "cpu" and own.select("minimal").provider == "dml"
    assert load_profiles([PROFILES, coe.config / "hardware_profiles.yaml", named]).select("standard").provider == "cuda"

    (coe.config / "experts.yaml").write_text(f"models:\n  own-model: {ENTRY}\n  other-model: {ENTRY}\n")
    catalog = coe.folder / "catalog.yaml"
    catalog.write_text(f"models:\n  own-model: {ENTRY.replace('64', '2048')}\n")
    listed = coe.run("models", "list", "--format", "csv", "--catalog", str(catalog)).check().stdout.splitlines()
    context = {line.split(",")[0]: line.split(",")[3] for line in listed[1:]}
    assert (context["own-model"], context["other-model"], context["law-LLM-DML"]) == ("2048", "64", "2048")

    result = coe.run("ask", "-m", "smollm2-135m", "-p", "standard", "word " * 100)
    assert result.code == 2
    assert "profile standard allows 64" in one_line(result.stderr)
    (coe.config / "hardware_profiles.yaml").write_text("profiles:\n  standard: {vram: 1}\n")
    result = coe.run("ask", "Hi", "--profiles", str(named))
    assert (result.code, result.stdout) == (3, "")
    assert f"{coe.config / 'hardware_profiles.yaml'}:2: profiles.standard.vram: unknown key" in result.stderr
    assert "profiles.standard, which is left out, is needed here" in result.stderr.splitlines()[-1]
