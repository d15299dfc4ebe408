"""`coe node`: the exact `ray start` line from a checked profile, and a node that it really starts."""

from __future__ import annotations

import json
import shlex
import sys
from typing import Any

import psutil
import pytest
from conftest import Coe, eventually
from fleet_fixtures import PROFILE
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from coe_cli.core.fleet.ray_node import actor_mb, actor_pool, actor_resources, node_resources, node_start
from coe_cli.core.scheduling.scheduler import Scheduler
from coe_cli.core.scheduling.scheduler_events import Load, Loaded, Request, Start
from coe_cli.core.scheduling.scheduler_state import ModelCost
from coe_cli.errors import CoeError, UsageError
from coe_cli.package import install_command


def test_the_line_is_exact(bare_coe: Coe) -> None:
    """The embedded profile has 4000 MB, 2000 of them fixed; 0.95 of the rest may be used, and two slots."""
    assert bare_coe.run("node", "-p", "embedded", COE_THREADS="8").check().stdout == (
        "RAY_USAGE_STATS_ENABLED=0 ray start --head --port=6379 --include-dashboard=false --num-cpus=1 --num-gpus=0"
        ' --object-store-memory=83886080 \'--resources={"vram_mb": 1900, "cpu_slots": 2}\' --disable-usage-stats\n'
    )
    joined = bare_coe.run("node", "-p", "embedded", "--address", "10.0.0.1:6379").check().stdout
    assert "--address=10.0.0.1:6379" in joined and "--head" not in joined
    assert "--port=7000" in bare_coe.run("node", "-p", "embedded", "--head", "--port", "7000").check().stdout


def test_json_keys_are_pinned(coe: Coe) -> None:
    found = json.loads(coe.run("node", "-p", "embedded", "--format", "json", COE_THREADS="1").check().stdout)
    assert list(found) == ["schema_version", "profile", "resources", "environment", "arguments"]
    assert (found["schema_version"], found["profile"]) == (1, "embedded")
    assert found["resources"] == {"vram_mb": 1900.0, "cpu_slots": 1.0, "model:smollm2-135m": 1_000_000.0}
    assert found["arguments"][:2] == ["ray", "start"]


def test_a_profile_that_does_not_suit_this_machine(bare_coe: Coe) -> None:
    (bare_coe.config / "hardware_profiles.yaml").write_text(
        "profiles:\n  huge: {vram_budget_mb: 90000000, max_concurrent_slots: 1, context_length: 4096, provider: cpu}\n"
    )
    result = bare_coe.run("node", "-p", "huge")
    assert result.code == 5 and result.stdout == ""
    assert "profile huge does not suit this machine" in result.stderr and "coe node --auto" in result.stderr


@pytest.mark.parametrize("arguments", [{"head": True, "address": "h:1"}, {"address": "h:1", "port": 5}])
def test_what_excludes_each_other(arguments: dict[str, Any]) -> None:
    from coe_cli.commands.node import node

    with pytest.raises(UsageError):
        node(**{"head": False, "address": None, "port": None, **arguments})


def test_without_ray_one_line_says_what_to_install(bare_coe: Coe) -> None:
    """A module finder that knows no Ray stands before the others."""
    site = bare_coe.folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, package=None: None if name == 'ray' else find(name, package)\n"
    )
    path = f"{site}:{bare_coe.environment['PYTHONPATH']}"
    result = bare_coe.run("node", "-p", "embedded", PYTHONPATH=path)
    assert result.code == 2 and result.stdout == ""
    assert result.stderr == f"coe: Ray is not installed. Install it: {install_command('ray')}\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        from coe_cli.runtime.fleet.ray_cluster import RayCluster

        with pytest.raises(CoeError, match="Ray is not installed"):
            RayCluster(None, {})


@given(
    weights_mb=st.floats(1, 8000), kv_mb=st.floats(0, 5000), slots=st.integers(1, 8), activation_mb=st.floats(0, 900)
)
def test_an_actors_college_runs_all_its_slots_in_what_ray_set_aside(
    weights_mb: float, kv_mb: float, slots: int, activation_mb: float
) -> None:
    cost = ModelCost(weights_mb, kv_mb, activation_mb, max_slots=slots)
    demand_mb = actor_mb(cost, slots)
    assert demand_mb >= weights_mb + slots * (kv_mb + activation_mb)
    scheduler = Scheduler(actor_pool(PROFILE, demand_mb, slots), {"m": cost})
    assert [type(d) for d in scheduler.handle(Request(0, "m"), 0.0)][:1] == [Load]
    for number in range(1, slots):
        scheduler.handle(Request(number, "m"), 0.0)
    started = scheduler.handle(Loaded("m"), 1.0)
    assert sum(isinstance(decision, Start) for decision in started) == slots


@given(budget_mb=st.integers(2001, 200_000))
def test_a_node_offers_less_than_critical_pressure(budget_mb: int) -> None:
    profile = structs.replace(PROFILE, vram_budget_mb=budget_mb)
    offered = node_resources(profile, ["x", "y.z"], 4)
    assert 0 <= offered["vram_mb"] <= 0.95 * (budget_mb - profile.fixed_mb)
    assert set(offered) == {"vram_mb", "cpu_slots", "model:x", "model:y.z"}
    assert set(actor_resources("x", 5, 1)) <= set(offered)


def test_windows_gets_powershell() -> None:
    line = node_start({"vram_mb": 5.0}, address="h:1", windows=True).line(windows=True)
    assert line.startswith("$env:RAY_USAGE_STATS_ENABLED=0; $env:RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=1; ray start ")
    assert """'--resources={\\"vram_mb\\": 5}'""" in line


@pytest.mark.slow
@pytest.mark.parametrize("with_token", [False, True])
def test_start_runs_a_node_that_offers_the_memory(coe: Coe, with_token: bool) -> None:
    """With and without the token that Ray leaves in the home folder when it first starts a cluster of its own."""
    pytest.importorskip("ray")
    if with_token:
        token = coe.folder / ".ray" / "auth_token"
        token.parent.mkdir()
        token.write_text("0123456789abcdef" * 4)
    home: dict[str, Any] = {"HOME": str(coe.folder), "USERPROFILE": str(coe.folder)}
    port = "6391"
    look = f"""
import json
from coe_cli.runtime.fleet.ray_cluster import RayCluster
cluster = RayCluster("127.0.0.1:{port}", {{}})
print(json.dumps(cluster.nodes()))
cluster.close()
"""
    before = {process.pid for process in psutil.process_iter()}
    result = coe.run("node", "-p", "embedded", "--head", "--port", port, "--start", **home)
    try:
        assert result.code == 0, result.stderr
        assert shlex.split(result.stdout)[1:4] == ["ray", "start", "--head"]
        found = coe.run(command=[sys.executable, "-c", look], **home)
        (node,) = json.loads(found.check().stdout)
        assert node["vram_mb"] == 1900 and node["model:smollm2-135m"] > 0
    finally:
        _end_ray(before, port)


def _end_ray(before: set[int], port: str) -> None:
    """End what this test's `ray start` began: processes that are new and of that head."""
    began = [p for p in psutil.process_iter(["pid", "cmdline"]) if p.info["pid"] not in before]
    mine = [p for p in began if any(f":{port}" in a or f"={port}" in a for a in p.info["cmdline"] or [])]
    for process in mine:
        process.kill()
    eventually(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in mine))
