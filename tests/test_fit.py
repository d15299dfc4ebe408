"""`coe fit`: cards by name, amounts of memory, and what they hold."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from conftest import REPOSITORY, Coe
from hypothesis import given
from hypothesis import strategies as st

from coe_cli.core.hardware.cards import CARDS, find_card, parse_memory_mb, similar_cards
from coe_cli.runtime.settings import load_catalog

EXPERTS = set(load_catalog([REPOSITORY / "profiles" / "experts.yaml"]).experts)
GPU_MODELS = {
    "DeepSeek-R1-Distill-Qwen-7B-DML",
    "Qwen2.5-Coder-7B-DML",
    "sqlcoder-7b-2-DML",
    "Qwen2.5-Math-7B-DML",
    "BioMistral-7B-DML",
}


@pytest.mark.parametrize(
    ("text", "memory_mb"),
    [
        ("16G", 16384),
        ("16 gb", 16384),
        ("16GiB", 16384),
        ("7.5G", 7680),
        ("16384M", 16384),
        ("512", 512),
        ("1t", 2**20),
    ],
)
def test_amounts_of_memory(text: str, memory_mb: int) -> None:
    assert parse_memory_mb(text) == memory_mb


@pytest.mark.parametrize("text", ["", "0", "0G", "-1G", "G", "1e3G", "16 apples", "٣G", "9" * 30, "1.5.5G"])
def test_what_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(ValueError, match="no amount of memory"):
        parse_memory_mb(text)


@given(st.text(max_size=12))
def test_any_text_is_an_amount_or_refused(text: str) -> None:
    try:
        assert parse_memory_mb(text) >= 1
    except ValueError as error:
        assert "no amount of memory" in str(error)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("RX 7800 XT", "RX 7800 XT"),
        ("rx7800xt", "RX 7800 XT"),
        ("AMD Radeon RX 7800 XT", "RX 7800 XT"),
        ("NVIDIA GeForce RTX 4070 SUPER", "RTX 4070 Super"),
        ("4070", "RTX 4070"),
        ("4060 ti", "RTX 4060 Ti 8G"),
        ("4060 Ti 16GB", "RTX 4060 Ti 16G"),
        ("Intel(R) Arc(TM) A770 Graphics", "Arc A770"),
        ("Radeon PRO W7900", "Radeon PRO W7900"),
    ],
)
def test_a_card_as_people_write_it(text: str, name: str) -> None:
    found = find_card(text)
    assert found is not None and found.name == name


def test_every_card_is_found_by_its_name_and_no_other_text_is() -> None:
    assert all(find_card(card.name) is card for card in CARDS)
    assert find_card("") is None and find_card("RX") is None and find_card("16G") is None
    assert similar_cards("RX 7800 XTX")[0] == "RX 7800 XT"


def _fit(coe: Coe, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
    result = coe.run("fit", *arguments, "--format", "json")
    assert result.code == code, result.stderr
    document = json.loads(result.stdout)
    assert set(document) == {"schema_version", "devices"}
    devices: list[dict[str, Any]] = document["devices"]
    keys = {"device", "memory_mb", "budget_mb", "provider", "profile", "context_length", "together_mb", "experts"}
    keys.add("bandwidth_gb_s")
    assert all(set(device) == keys for device in devices)
    fields = {"expert", "model", "how", "context_length", "weights_mb", "swap_s"}
    assert all(set(expert) == fields for device in devices for expert in device["experts"])
    return devices


def test_a_cards_bandwidth_bounds_the_speed(bare_coe: Coe) -> None:
    assert all(200 <= card.bandwidth_gb_s <= 2000 for card in CARDS)
    said = " ".join(bare_coe.run("fit", "RX", "7800", "XT").check().stdout.split())
    assert "read at 624 GB/s at most" in said and "tokens/s at most from the largest of them" in said
    (device,) = _fit(bare_coe, "16G")
    assert device["bandwidth_gb_s"] is None and "GB/s" not in bare_coe.run("fit", "16G").check().stdout


def test_a_card_holds_some_experts_together_and_others_in_turns(bare_coe: Coe) -> None:
    (device,) = _fit(bare_coe, "RX 7800 XT")
    how = {expert["model"]: expert["how"] for expert in device["experts"]}
    assert set(how) == GPU_MODELS and set(how.values()) == {"together", "in turns"}
    assert how["DeepSeek-R1-Distill-Qwen-7B-DML"] == "together"  # the general reasoner's
    assert device["together_mb"] <= device["budget_mb"] == int(16384 * 0.9)
    for expert in device["experts"]:
        assert (expert["swap_s"] > 0) == (expert["how"] == "in turns") and expert["context_length"] >= 1024


@pytest.mark.parametrize(("provider", "most"), [("webgpu", "48G"), ("dml", "96G")])
def test_more_memory_never_holds_less(bare_coe: Coe, provider: str, most: str) -> None:
    order = ["no", "in turns", "together"]
    ranks = [
        [order.index(expert["how"]) for expert in _fit(bare_coe, size, "--provider", provider, code=code)[0]["experts"]]
        for size, code in (("6G", 5), ("12G", 0), ("24G", 0), (most, 0))
    ]
    assert all(smaller <= larger for a, b in itertools.pairwise(ranks) for smaller, larger in zip(a, b, strict=True))
    assert set(ranks[0]) == {0} and set(ranks[-1]) == {2}


def test_what_the_plan_says_of_the_same_experts(bare_coe: Coe) -> None:
    (device,) = _fit(bare_coe, "16G", "--context", "2048", "--provider", "dml")
    together = {e["model"]: e["expert"] for e in device["experts"] if e["how"] == "together"}
    planned = bare_coe.run(
        "vram", "plan", "-p", "minimal", "--vram-mb", str(device["budget_mb"]), "--context", "2048",
        "-e", ",".join(together.values()), "--format", "json",
    ).check()  # fmt: skip
    assert json.loads(planned.stdout)["total_mb"] == pytest.approx(device["together_mb"], abs=0.2)


def test_two_cards_share_the_experts_out(bare_coe: Coe) -> None:
    first, second = _fit(bare_coe, "24G+24G")
    held = {e["expert"] for e in first["experts"] if e["how"] == "together"}
    rest = {e["expert"] for e in second["experts"]}
    assert not held & rest and held | rest == set(EXPERTS)
    assert "a college uses one card" in bare_coe.run("fit", "24G+24G").check().stderr


def test_integrated_graphics_leave_the_system_its_part(bare_coe: Coe) -> None:
    (device,) = _fit(bare_coe, "--igpu", "32G")
    assert device["budget_mb"] == 16384


def test_named_models_and_a_table_for_programs(bare_coe: Coe) -> None:
    (device,) = _fit(bare_coe, "16G", "-m", "sqlcoder-7b-2-DML")
    assert [e["model"] for e in device["experts"]] == ["sqlcoder-7b-2-DML"]
    rows = bare_coe.run("fit", "16G", "--format", "csv").check().stdout.splitlines()
    assert rows[0] == "device,expert,model,how,context_length,weights_mb,swap_s,profile" and len(rows) == 1 + len(
        EXPERTS
    )


def test_wrong_usage(bare_coe: Coe) -> None:
    for arguments, code, says in (
        (("RX 7800 XTX",), 2, "Did you mean `RX 7800 XT`?"),
        (("hello",), 2, "coe fit 16G"),
        (("0G",), 2, "no amount of memory"),
        (("16",), 2, "`16` is 16 MB. Did you mean 16G?"),
        (("--igpu", "32"), 2, "Did you mean 32G?"),
        (("16G", "--igpu", "32G"), 2, "exclude each other"),
        (("16G", "-m", "nothing"), 4, "unknown model"),
    ):
        result = bare_coe.run("fit", *arguments)
        assert (result.code, result.stdout) == (code, "") and says in result.stderr


def test_where_nothing_fits_no_profile_is_proposed(bare_coe: Coe) -> None:
    result = bare_coe.run("fit", "3G", "--provider", "webgpu")
    assert result.code == 5 and "no shipped profile" not in result.stderr and "together" not in result.stdout
    assert (
        "nothing fits: name a smaller model with -m, or see what suits this machine: coe setup --dry-run"
        in result.stderr
    )
    assert bare_coe.run("fit", "16T").check().stdout.startswith("16,384 GB · ")


def test_the_proposed_profile_is_one(bare_coe: Coe) -> None:
    said = bare_coe.run("fit", "12G").check().stderr.splitlines()
    (line,) = [line for line in said if line.startswith("profiles: ")]
    (bare_coe.config / "hardware_profiles.yaml").write_text(line + "\n")
    shown = json.loads(bare_coe.run("profile", "show", "mine", "--format", "json").check().stdout)
    assert shown["profile"]["vram_budget_mb"] == int(12 * 1024 * 0.9)
