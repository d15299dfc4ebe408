"""The Ray engine on real clusters of several nodes on this machine, with workers that answer without a model."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx.helper
import psutil
import pytest
from byte_prompts import write_byte_tokenizer
from conftest import REPOSITORY, eventually, is_gone
from fleet_fixtures import PROFILE
from msgspec import structs
from test_batch_engine import Rows

from coe_cli.core.fleet.ray_node import CPU_SLOTS_RESOURCE, VRAM_RESOURCE, actor_mb, model_resource
from coe_cli.core.scheduling.scheduler_state import ModelCost
from coe_cli.errors import DeviceLost
from coe_cli.runtime.fleet.ray_cluster import RayCluster
from coe_cli.runtime.fleet.ray_engine import RayEngine
from coe_cli.runtime.store.integrity import write_manifest

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Ray's clusters of several nodes need Linux")

MODELS = ("a", "b", "c", "d")
COST = ModelCost(weights_mb=200, kv_mb=50, max_slots=2)
DEMAND_MB = actor_mb(COST, 1)  # on the CPU an actor has one slot


def resources(rooms: float, models: tuple[str, ...] = MODELS) -> dict[str, float]:
    """A node with room for so many actors."""
    return {VRAM_RESOURCE: rooms * DEMAND_MB, CPU_SLOTS_RESOURCE: 8.0} | {
        model_resource(name): 1000.0 for name in models
    }


class Nodes:
    """A cluster on this machine: a head that offers nothing, and nodes that are added and taken away."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._common: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=self._common)
        self._gone: list[Any] = []
        self.address: str = self._cluster.address

    def add(self, rooms: float, models: tuple[str, ...] = MODELS) -> Any:
        return self._cluster.add_node(**self._common, resources=resources(rooms, models))

    def remove(self, node: Any) -> None:
        """As if its plug were pulled; once is enough."""
        if node in self._gone:
            return
        self._gone.append(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def shutdown(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module", autouse=True)
def without_rays_changes() -> Iterator[None]:
    """Ray takes these of the process for its own, and never gives them back."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONBREAKPOINT", "")
        yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("ray")
    shape = {
        "type": "llama", "context_length": 4096, "vocab_size": 100,
        "decoder": {
            "filename": "model.onnx", "hidden_size": 64, "num_attention_heads": 1, "num_key_value_heads": 1,
            "num_hidden_layers": 1, "head_size": 64,
        },
    }  # fmt: skip
    for name in MODELS:
        (folder / name).mkdir()
        (folder / name / "genai_config.json").write_text(json.dumps({"model": shape}))
        graph = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []))
        (folder / name / "model.onnx").write_bytes(graph.SerializeToString())
        write_byte_tokenizer(folder / name)
        write_manifest(folder / name, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COE_MODELS_DIR", str(folder))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_health_check_initial_delay_ms", "500")
        patch.setenv("RAY_health_check_period_ms", "500")
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        nodes = Nodes()
        yield nodes
        nodes.shutdown()


@pytest.fixture
def nodes(cluster: Nodes) -> Iterator[Callable[..., Any]]:
    """Adds nodes for one test: ``nodes(rooms)``."""
    added: list[Any] = []

    def add(rooms: float, models: tuple[str, ...] = MODELS) -> Any:
        added.append(cluster.add(rooms, models))
        return added[-1]

    yield add
    for node in added:
        cluster.remove(node)


@contextmanager
def engine(
    address: str,
    folder: Path,
    faults: dict[str, Any] | None = None,
    *,
    keep_alive_s: float | None = 60.0,
    **options: Any,
) -> Iterator[RayEngine]:
    (folder / "faults.json").write_text(json.dumps(faults or {}))
    command = [sys.executable, str(Path(__file__).with_name("faulty_worker.py")), str(folder)]
    profile = structs.replace(PROFILE, keep_alive_s=keep_alive_s)
    made = RayEngine(RayCluster(address, {}), profile, lambda spec: (COST, 1024), worker_command=command, **options)
    try:
        yield made
    finally:
        made.close()


def workers(folder: Path) -> list[psutil.Process]:
    """Worker processes that are alive."""
    path = folder / "pids"
    found = []
    for line in path.read_text().split() if path.exists() else []:
        try:
            process = psutil.Process(int(line))
        except psutil.NoSuchProcess:
            continue
        if not is_gone(process):
            found.append(process)
    return found


def starts(folder: Path) -> int:
    return len(list(folder.glob("*.start-*")))


@pytest.mark.long
def test_two_nodes_share_the_rows_and_the_next_batch_finds_the_models_loaded(
    cluster: Nodes, nodes: Callable[..., Any], tmp_path: Path
) -> None:
    nodes(1), nodes(1)
    slow = {"a": [{"step_s": 0.01, "together": 2}]}
    for batch in range(2):
        rows = Rows(tmp_path, {"a": 60})
        with engine(cluster.address, tmp_path, slow) as running:
            results = list(running.run(rows))
            status = running.status()
        assert Counter(result.line for result in results) == Counter(range(1, 61))
        assert all(rows.right(result) for result in results)
        assert status.loads == (0 if batch else 2)
    assert starts(tmp_path) == 2 and len(workers(tmp_path)) == 2


@pytest.mark.slow
def test_more_models_than_room_are_never_resident_together(
    cluster: Nodes, nodes: Callable[..., Any], tmp_path: Path
) -> None:
    """Three nodes of different size with room for three actors; four models, each loaded once for all of its rows."""
    nodes(1), nodes(1.9), nodes(0.9), nodes(1.2)
    rows = Rows(tmp_path, {"a": 6, "b": 5, "c": 4, "d": 3})
    most, done = [0], threading.Event()

    def look() -> None:
        while not done.is_set():
            most[0] = max(most[0], len(workers(tmp_path)))
            time.sleep(0.01)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        with engine(cluster.address, tmp_path, {m: [{"step_s": 0.02, "together": 3}] for m in MODELS}) as running:
            results = list(running.run(rows))
    finally:
        done.set()
        watcher.join()
    assert Counter(result.line for result in results) == Counter(range(1, 19))
    assert all(rows.right(result) for result in results)
    assert most[0] == 3 and starts(tmp_path) == 4


@pytest.mark.slow
def test_the_rows_of_a_node_that_is_lost_in_mid_batch_run_elsewhere(
    cluster: Nodes, nodes: Callable[..., Any], tmp_path: Path
) -> None:
    kept, lost = nodes(1), nodes(1)
    rows = Rows(tmp_path, {"a": 80})
    results, removed = [], False
    with engine(cluster.address, tmp_path, {"a": [{"step_s": 0.03, "together": 2}]}) as running:
        for result in running.run(rows):
            results.append(result)
            if not removed and len(results) >= 12 and len(workers(tmp_path)) == 2:
                removed = True
                cluster.remove(lost)
    assert kept is not lost and removed
    assert Counter(result.line for result in results) == Counter(range(1, 81))
    assert all(rows.right(result) for result in results)


@pytest.mark.slow
def test_the_only_node_with_the_model_is_lost(cluster: Nodes, nodes: Callable[..., Any], tmp_path: Path) -> None:
    """Its rows fail in words, those of the other model are answered."""
    nodes(1, ("b",))
    lost = nodes(1, ("a",))
    rows = Rows(tmp_path, {"a": 40, "b": 8})
    results = []
    with engine(cluster.address, tmp_path, {m: [{"step_s": 0.02}] for m in MODELS}) as running:
        for result in running.run(rows):
            results.append(result)
            if lost is not None and sum(r.model == "a" for r in results) == 3:
                cluster.remove(lost)
                lost = None
    assert Counter(result.line for result in results) == Counter(range(1, 49))
    assert all(rows.right(result) for result in results if result.model == "b")
    failed = {r.failure.message for r in results if r.failure is not None}
    assert failed == {"no node of the cluster has `a` on its disk"}


@pytest.mark.long
def test_idle_actors_end_and_give_their_memory_back(cluster: Nodes, nodes: Callable[..., Any], tmp_path: Path) -> None:
    nodes(1)
    with engine(cluster.address, tmp_path, keep_alive_s=1.5) as running:
        assert len(list(running.run(Rows(tmp_path, {"a": 4})))) == 4
        assert starts(tmp_path) == 1
        eventually(lambda: not workers(tmp_path))
        eventually(lambda: ray.available_resources().get(VRAM_RESOURCE) == DEMAND_MB)
        assert ray.util.list_named_actors() == []


@pytest.mark.slow
def test_an_idle_actor_of_another_batch_makes_room(
    cluster: Nodes, nodes: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coe_cli.runtime.fleet.ray_engine._IDLE_ELSEWHERE_S", 0.5)
    nodes(1)
    for model in ("a", "b"):
        rows = Rows(tmp_path, {model: 4})
        with engine(cluster.address, tmp_path) as running:
            results = list(running.run(rows))
        assert len(results) == 4 and all(rows.right(result) for result in results)
    assert starts(tmp_path) == 2 and len(workers(tmp_path)) == 1


@pytest.mark.long
def test_what_no_node_can_hold_is_refused_in_words(cluster: Nodes, nodes: Callable[..., Any], tmp_path: Path) -> None:
    nodes(0.5)
    with engine(cluster.address, tmp_path) as running:
        results = list(running.run(Rows(tmp_path, {"a": 3})))
    assert {r.failure.code for r in results if r.failure} == {"does_not_fit"} and len(results) == 3
    assert results[0].failure is not None and f"needs {DEMAND_MB} MB" in results[0].failure.message


@pytest.mark.slow
def test_failures_are_the_rows_own_and_transient_ones_are_retried(
    cluster: Nodes, nodes: Callable[..., Any], tmp_path: Path
) -> None:
    nodes(2)
    rows = Rows(tmp_path, {"a": 6, "b": 3})
    faults = {"a": [{"answer": "crash", "after": 5}, {"answer": "crash", "after": 3}, {}], "b": [{"load": "damaged"}]}
    with engine(cluster.address, tmp_path, faults) as running:
        results = list(running.run(rows))
    assert Counter(result.line for result in results) == Counter(range(1, 10))
    assert all(rows.right(result) for result in results if result.model == "a")
    assert {r.failure.code for r in results if r.failure} == {"model_damaged"}
    assert {r.model for r in results if r.failure} == {"b"}


@pytest.mark.slow
def test_stop_takes_no_more_and_close_drops_what_runs(
    cluster: Nodes, nodes: Callable[..., Any], tmp_path: Path
) -> None:
    nodes(1)
    rows = Rows(tmp_path, {"a": 500})
    with engine(cluster.address, tmp_path, {"a": [{"step_s": 0.02}]}) as running:
        results = []
        for result in running.run(rows):
            results.append(result)
            if len(results) == 3:
                running.stop()
    assert len(results) == len(rows.taken) <= 8 and all(rows.right(result) for result in results)
    rows = Rows(tmp_path, {"a": 500})
    with engine(cluster.address, tmp_path) as running:
        next(running.run(rows))
    with engine(cluster.address, tmp_path) as running:  # the actor is free again at once
        assert len(list(running.run(Rows(tmp_path, {"a": 4})))) == 4


@pytest.mark.long
def test_no_cluster_at_the_address() -> None:
    with pytest.raises(DeviceLost, match=r"there is no Ray cluster at 127\.0\.0\.1:9"):
        RayCluster("127.0.0.1:9", {})
    assert type(sys.stdout).__name__ != "_WithoutRay"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
