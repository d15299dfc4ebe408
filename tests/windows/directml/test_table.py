"""The table of DirectML's operators is what ONNX Runtime's own registry of kernels says."""

from __future__ import annotations

import onnxruntime.capi.onnxruntime_pybind11_state as state

from coe_cli.core.providers import spec_of

NOT_IN_MODELS = ("MemcpyFromHost", "MemcpyToHost")


def test_the_table_is_the_registry() -> None:
    kernels: dict[tuple[str, str], tuple[set[int], set[str]]] = {}
    for kernel in state.get_all_opkernel_def():
        if kernel.provider != spec_of("dml").ort_name or kernel.op_name in NOT_IN_MODELS:
            continue
        if kernel.domain == "com.microsoft.dml":  # only the provider's own rewrites put these into a graph
            continue
        versions, types = kernels.setdefault((kernel.domain, kernel.op_name), (set(), set()))
        versions.add(kernel.version_range[0])
        types |= {str(name) for names in kernel.type_constraints.values() for name in names}
    table = spec_of("dml").graph.operators
    assert table is not None
    assert set(table) == set(kernels)
    for name, support in table.items():
        versions, types = kernels[name]
        assert support.since == min(versions), name
        assert all(support.takes(version) for version in versions), name
        if len(support.types) < 12:  # all that there are stands for sequences, too
            assert {f"tensor({one})" for one in support.types} <= types, name
