"""One-operator models of everything that a decoder for DirectML may hold, with what DirectML makes of each.

``outcome`` is ``equal`` (to the CPU provider's result), ``refused`` (no kernel takes it, with fallback to the CPU forbidden) or
``wrong`` (another result and no error).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MS = "com.microsoft"
Outcome = Literal["equal", "refused", "wrong"]


class Case(NamedTuple):
    """``feeds`` are graph inputs, ``constants`` initializers; both in the order of the operator's inputs by ``order``."""

    name: str
    operator: str
    domain: str
    feeds: dict[str, np.ndarray]
    constants: dict[str, np.ndarray]
    order: list[str]
    outputs: list[str]
    attributes: dict[str, Any]
    outcome: Outcome = "equal"
    tolerance: float = 2e-2
    opset: int = 22

    def own(self, name: str) -> str:
        """``name`` as it is called in a model of several cases."""
        return f"{self.name}/{name}" if name else ""


def model_of(cases: Sequence[Case]) -> bytes:
    """A model of all ``cases``, which share an opset; shapes of its outputs are left to inference."""
    nodes, inputs, outputs, constants = [], [], [], []
    for case in cases:
        order, made = [case.own(name) for name in case.order], [case.own(name) for name in case.outputs]
        nodes.append(
            helper.make_node(case.operator, order, made, domain=case.domain, name=case.name, **case.attributes)
        )
        outputs += [onnx.ValueInfoProto(name=name) for name in made if name]
        constants += [numpy_helper.from_array(value, case.own(name)) for name, value in case.constants.items()]
        for name, value in case.feeds.items():
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            inputs.append(helper.make_tensor_value_info(case.own(name), kind, value.shape))
    imports = [helper.make_opsetid("", cases[0].opset), helper.make_opsetid(MS, 1)]
    graph = helper.make_graph(nodes, "cases", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()


def feeds_of(cases: Sequence[Case]) -> dict[str, np.ndarray]:
    return {case.own(name): value for case in cases for name, value in case.feeds.items()}


def _case(
    name: str,
    operator: str,
    inputs: list[tuple[str, np.ndarray | None, bool]],
    outputs: int | list[str] = 1,
    domain: str = "",
    outcome: Outcome = "equal",
    tolerance: float = 2e-2,
    opset: int = 22,
    **attributes: Any,
) -> Case:
    feeds = {n: v for n, v, constant in inputs if v is not None and not constant}
    constants = {n: v for n, v, constant in inputs if v is not None and constant}
    names = outputs if isinstance(outputs, list) else [f"out{i}" for i in range(outputs)]
    order = [n if v is not None else "" for n, v, _ in inputs]
    return Case(name, operator, domain, feeds, constants, order, names, attributes, outcome, tolerance, opset)


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _float(kind: str, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (_rng().normal(size=shape) * scale).astype(np.float16 if kind == "fp16" else np.float32)


def elementwise() -> Iterator[Case]:
    for kind in ("fp32", "fp16"):
        a, b = _float(kind, 2, 5, 64), _float(kind, 2, 5, 64)
        for operator in ("Add", "Sub", "Mul", "Div"):
            yield _case(f"{operator}-{kind}", operator, [("a", a, False), ("b", np.abs(b) + a.dtype.type(1), False)])
        for operator in ("Sigmoid", "Tanh", "Softmax", "Neg", "Sqrt", "Reciprocal", "Erf", "Exp"):
            yield _case(f"{operator}-{kind}", operator, [("a", np.abs(a) + a.dtype.type(0.1), False)])
        for operator in ("Cos", "Sin"):
            yield _case(f"{operator}-{kind}", operator, [("a", a, False)], opset=21)
            yield _case(f"{operator}-{kind}-opset22", operator, [("a", a, False)], outcome="refused")
        yield _case(f"Transpose-{kind}", "Transpose", [("a", a, False)], perm=[0, 2, 1])
        yield _case(f"Concat-{kind}", "Concat", [("a", a, False), ("b", b, False)], axis=-1)
        shape = np.array([0, 0, 4, 16], np.int64)
        yield _case(f"Reshape-{kind}", "Reshape", [("a", a, False), ("s", shape, True)])
        yield _case(f"Unsqueeze-{kind}", "Unsqueeze", [("a", a, False), ("x", np.array([1], np.int64), True)])
        yield _case(f"Squeeze-{kind}", "Squeeze", [("a", a[:, :1], False), ("x", np.array([1], np.int64), True)])
        yield _case(f"Gelu-ms-{kind}", "Gelu", [("a", a, False)], domain=MS)
        yield _case(f"FastGelu-{kind}", "FastGelu", [("a", a, False)], domain=MS)
        yield _case(f"QuickGelu-{kind}", "QuickGelu", [("a", a, False)], domain=MS, alpha=1.702)
        w = _float(kind, 64, 96)
        yield _case(f"MatMul-{kind}", "MatMul", [("a", a, False), ("w", w, True)], tolerance=4e-2)
        yield _case(
            f"Gather-{kind}",
            "Gather",
            [("t", _float(kind, 300, 64), True), ("ids", np.array([[5, 299, 0]]), False)],
            axis=0,
        )
        yield _case(f"ReduceMean-{kind}", "ReduceMean", [("a", a, False), ("x", np.array([-1], np.int64), True)])
        start, end, axes = (np.array([v], np.int64) for v in (1, 3, 1))
        yield _case(
            f"Slice-{kind}", "Slice", [("a", a, False), ("s", start, True), ("e", end, True), ("x", axes, True)]
        )
        yield _case(f"Expand-{kind}", "Expand", [("a", a[:, :1], False), ("s", np.array([2, 5, 64], np.int64), True)])
        yield _case(f"Where-{kind}", "Where", [("c", a > 0, False), ("a", a, False), ("b", b, False)])
        yield _case(f"Split-{kind}", "Split", [("a", a, False), ("s", np.array([16, 48], np.int64), True)], 2, axis=-1)
    for to, name in ((TensorProto.FLOAT, "fp32"), (TensorProto.FLOAT16, "fp16"), (TensorProto.INT32, "int32")):
        yield _case(f"Cast-fp16-{name}", "Cast", [("a", _float("fp16", 3, 8), False)], to=to)
        yield _case(f"Cast-int64-{name}", "Cast", [("a", np.arange(8), False)], to=to)
    mask = np.ones((1, 7), np.int64)
    yield _case("ReduceSum-int64", "ReduceSum", [("a", mask, False), ("x", np.array([1], np.int64), True)], keepdims=0)
    yield _case("Sub-int64", "Sub", [("a", mask, False), ("b", np.array([1], np.int64), True)])
    yield _case(
        "Gather-int64-scalar", "Gather", [("a", np.array([1, 7]), False), ("i", np.array(1, np.int64), True)], axis=0
    )
    yield _case(
        "Cast-opset23", "Cast", [("a", _float("fp16", 3, 8), False)], to=TensorProto.FLOAT, opset=23, outcome="refused"
    )
    yield _case("RotaryEmbedding-opset23", "RotaryEmbedding", _onnx_rotary(), opset=23, outcome="refused")
    yield _case(
        "RMSNormalization-opset23",
        "RMSNormalization",
        [("a", _float("fp16", 1, 4, 64), False), ("w", np.ones(64, np.float16), True)],
        opset=23,
        outcome="refused",
    )
    table, ids = _rng().integers(0, 256, (300, 32)).astype(np.uint8), np.array([[5, 299, 0]])
    yield _case(
        "GatherBlockQuantized",
        "GatherBlockQuantized",
        [("t", table, True), ("ids", ids, False), ("s", np.abs(_float("fp16", 300, 2)), True)],
        domain=MS,
        bits=4,
        block_size=32,
        gather_axis=0,
        quantize_axis=1,
        outcome="refused",
    )


def _onnx_rotary() -> list[tuple[str, np.ndarray | None, bool]]:
    cos = np.cos(np.arange(32 * 8).reshape(32, 8)).astype(np.float32)
    return [
        ("a", _float("fp32", 1, 2, 3, 16), False),
        ("c", cos, True),
        ("s", cos, True),
        ("p", np.array([[0, 1, 2]]), False),
    ]


def norms() -> Iterator[Case]:
    """RMS norms: in fp16 DirectML is wrong where the mean of the squares passes fp16's largest number."""
    for kind in ("fp32", "fp16"):
        for rms in (1, 200, 300, 4000):
            bad = kind == "fp16" and rms > 256
            x = _float(kind, 1, 4, 64, scale=rms)
            w = np.ones(64, x.dtype)
            yield _case(
                f"SimplifiedLayerNormalization-{kind}-rms{rms}",
                "SimplifiedLayerNormalization",
                [("x", x, False), ("w", w, True)],
                axis=-1,
                epsilon=1e-5,
                stash_type=1,
                outcome="wrong" if bad else "equal",
            )
            yield _case(
                f"SkipSimplifiedLayerNormalization-{kind}-rms{rms}",
                "SkipSimplifiedLayerNormalization",
                [("x", x, False), ("r", _float(kind, 1, 4, 64), False), ("w", w, True)],
                ["y", "", "", "sum"],
                domain=MS,
                epsilon=1e-5,
                outcome="wrong" if bad else "equal",
            )


def matrices() -> Iterator[Case]:
    """MatMulNBits by bits, block size, zero points and extra inputs."""
    for kind in ("fp32", "fp16"):
        for bits, block, zeros, outcome in (
            (4, 16, False, "equal"),
            (4, 32, False, "equal"),
            (4, 64, False, "equal"),
            (4, 128, False, "equal"),
            (4, 32, True, "equal"),
            (4, 128, True, "equal"),
            (8, 32, False, "equal"),
            (8, 128, True, "equal"),
            (2, 32, False, "refused"),
        ):
            k, n = 256, 96
            blocks = k // block
            codes = _rng().integers(0, 256, (n, blocks, block * bits // 8)).astype(np.uint8)
            scales = np.abs(_float(kind, n * blocks, scale=0.02))
            points = _rng(1).integers(0, 256, (n * -(-blocks * bits // 8),)).astype(np.uint8) if zeros else None
            yield _case(
                f"MatMulNBits-{kind}-{bits}bit-{block}{'-zeros' if zeros else ''}",
                "MatMulNBits",
                [("a", _float(kind, 1, 5, k), False), ("q", codes, True), ("s", scales, True), ("z", points, True)],
                domain=MS,
                K=k,
                N=n,
                bits=bits,
                block_size=block,
                outcome=outcome,  # type: ignore[arg-type]
                tolerance=5e-2,
            )


def attention() -> Iterator[Case]:
    """GroupQueryAttention and RotaryEmbedding, for a prompt and for one token more."""
    heads, kv_heads, size = 4, 2, 16
    angles = np.outer(np.arange(32), 1 / 10000 ** (np.arange(size // 2) / (size // 2)))
    for kind in ("fp32", "fp16"):
        kinds = np.float16 if kind == "fp16" else np.float32
        cos, sin = np.cos(angles).astype(kinds), np.sin(angles).astype(kinds)
        q = _float(kind, 1, 3, heads * size)
        places = np.array([[4, 5, 6]])
        for interleaved in (0, 1):
            yield _case(
                f"RotaryEmbedding-{kind}-interleaved{interleaved}",
                "RotaryEmbedding",
                [("q", q, False), ("p", places, False), ("c", cos, True), ("s", sin, True)],
                domain=MS,
                interleaved=interleaved,
            )
        yield _case(
            f"RotaryEmbedding-{kind}-partial",
            "RotaryEmbedding",
            [("q", q, False), ("p", places, False), ("c", cos[:, :4], True), ("s", sin[:, :4], True)],
            domain=MS,
            rotary_embedding_dim=8,
            num_heads=heads,
        )
        for rotary, window, softcap, past, tokens, outcome in (
            (0, -1, 0.0, 0, 3, "equal"),
            (0, -1, 0.0, 5, 1, "wrong"),  # it takes for granted that the old and the new cache are one buffer
            (1, -1, 0.0, 0, 3, "wrong"),
            (1, -1, 0.0, 5, 1, "wrong"),
            (0, 2, 0.0, 0, 3, "wrong"),
            (0, -1, 5.0, 0, 3, "wrong"),
        ):
            more = _float(kind, 1, tokens, heads * size, scale=8.0)
            keys = _float(kind, 1, tokens, kv_heads * size)
            cache = _float(kind, 1, kv_heads, past and 8, size)
            total = past + tokens
            inputs: list[tuple[str, np.ndarray | None, bool]] = [
                ("q", more, False),
                ("k", keys, False),
                ("v", keys[..., ::-1].copy(), False),
                ("pk", cache, False),
                ("pv", cache[..., ::-1].copy(), False),
                ("n", np.array([total - 1], np.int32), False),
                ("t", np.array(total, np.int32), False),
                ("c", cos if rotary else None, True),
                ("s", sin if rotary else None, True),
            ]
            yield _case(
                f"GroupQueryAttention-{kind}-rotary{rotary}-window{window}-softcap{softcap:g}-past{past}-new{tokens}",
                "GroupQueryAttention",
                inputs,
                ["y", "k2", "v2"],
                domain=MS,
                num_heads=heads,
                kv_num_heads=kv_heads,
                do_rotary=rotary,
                local_window_size=window,
                softcap=softcap,
                outcome=outcome,  # type: ignore[arg-type]
                tolerance=5e-2,
            )


CASES = [*elementwise(), *norms(), *matrices(), *attention()]
