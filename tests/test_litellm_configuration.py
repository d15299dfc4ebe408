"""The LiteLLM configuration that the documentation ships: valid for coe's own options, and for LiteLLM where it is there."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from conftest import REPOSITORY

CONFIGURATION = REPOSITORY / "docs" / "balancer" / "litellm.yaml"


def read() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(CONFIGURATION.read_text())
    return content


def test_each_machine_is_there_once_and_a_failure_moves_on_at_once() -> None:
    content = read()
    machines = [entry["litellm_params"]["api_base"] for entry in content["model_list"]]
    assert machines == ["http://127.0.0.1:8081/v1", "http://127.0.0.1:8082/v1"]
    settings = content["router_settings"]
    assert settings["num_retries"] >= len(machines) and settings["allowed_fails"] == 0


@pytest.mark.slow
def test_litellms_router_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    monkeypatch.setenv("COE_API_KEY", "key")
    litellm = pytest.importorskip("litellm", reason="LiteLLM is not installed (pip install litellm)")
    content = read()
    router = litellm.Router(model_list=content["model_list"], **content["router_settings"])
    assert {entry["model_info"]["id"] for entry in router.get_model_list()} == {"first", "second"}
