"""Figures by the names that dashboards are made for, for each model and expert."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml
from conftest import Coe
from model_store.tiny_model import catalog_entry, write_tiny_model
from prometheus_client.parser import text_string_to_metric_families
from serving import Served, serving


@pytest.fixture(scope="module")
def served(home: Coe) -> Iterator[Served]:
    write_tiny_model(home.models / "tiny", seed=3)
    expert = {"description": "x", "system_prompt": "", "model": "tiny"}
    catalog = {"default_model": "tiny", "models": {"tiny": catalog_entry("file:/nowhere")}}
    catalog |= {"experts": {"general_reasoner": expert, "poet": expert}}
    (home.config / "experts.yaml").write_text(yaml.safe_dump(catalog))
    with serving(home) as it:
        yield it


def test_times_and_tokens_by_model_and_expert(served: Served) -> None:
    def read() -> dict[str, float]:
        text = served.request("GET", "/metrics").body.decode()
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        keep = ("model_name", "expert", "finished_reason")
        return {
            f"{s.name} {' '.join(s.labels.get(key, '-') for key in keep)}": s.value
            for s in samples
            if s.labels.get("le") in (None, "+Inf")
        }

    for _ in range(2):
        answer = served.chat(model="poet", max_tokens=5)
    usage = answer.json["usage"]
    found = read()
    for name in ("time_to_first_token", "inter_token_latency", "request_queue_time", "e2e_request_latency"):
        assert found[f"vllm:{name}_seconds_count tiny poet -"] == found[f"vllm:{name}_seconds_bucket tiny poet -"] == 2
        assert found[f"vllm:{name}_seconds_sum tiny poet -"] > 0
    whole, first = (
        found[f"vllm:{name}_seconds_sum tiny poet -"] for name in ("e2e_request_latency", "time_to_first_token")
    )
    assert whole >= first
    assert found["vllm:prompt_tokens_total tiny poet -"] == found["vllm:prefix_cache_queries_total tiny poet -"]
    assert found["vllm:prompt_tokens_total tiny poet -"] == 2 * usage["prompt_tokens"]
    assert found["vllm:generation_tokens_total tiny poet -"] == 2 * usage["completion_tokens"]
    assert found["vllm:prefix_cache_hits_total tiny poet -"] == usage["prompt_tokens_details"]["cached_tokens"] > 0
    assert found["vllm:request_success_total tiny poet length"] == 2
    assert found["vllm:num_requests_running tiny - -"] == found["vllm:num_requests_waiting tiny - -"] == 0
