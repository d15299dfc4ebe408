"""GGUF files and Hugging Face folders that lie: refused by what is wrong with them, before anything is made of them."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from importing.configurations import write_folder
from importing.gguf_files import write_gguf
from model_store.conftest import Coe
from operating_system import make_fifo

from coe_cli.core.importing import gguf_header
from coe_cli.core.importing.gguf_header import parse_gguf
from coe_cli.errors import CoeError
from coe_cli.runtime.importing.source import inspect

Q, U = struct.Struct("<Q").pack, struct.Struct("<I").pack
UINT8, UINT32, TEXT, ARRAY, UINT64 = 0, 4, 8, 9, 10


def text(value: bytes) -> bytes:
    return Q(len(value)) + value


def entry(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + U(kind) + value


def tensor(name: bytes, shape: tuple[int, ...], offset: int, kind: int = 0) -> bytes:
    return text(name) + U(len(shape)) + b"".join(Q(dim) for dim in shape) + U(kind) + Q(offset)


def gguf(
    entries: list[bytes], tensors: list[bytes], data: int = 256, *, counts: tuple[int, int] | None = None
) -> bytes:
    """A file with these records; ``counts`` (tensors, entries) where the header says something else."""
    said = counts or (len(tensors), len(entries))
    head = b"GGUF" + U(3) + Q(said[0]) + Q(said[1]) + b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % 32 + data)


LLAMA = entry(b"general.architecture", TEXT, text(b"llama"))
HEADERS: dict[str, tuple[bytes, str]] = {
    "94 bytes and 2^40 values": (
        gguf([entry(b"tokenizer.ggml.tokens", ARRAY, U(TEXT) + Q(2**40))], [], 0)[:94],
        "counts 1099511627776 values",
    ),
    "94 bytes and 2^40 numbers": (gguf([entry(b"k", ARRAY, U(UINT8) + Q(2**40))], [], 0)[:94], "counts 1099511627776"),
    "2^40 tensors": (gguf([LLAMA], [], counts=(2**40, 1)), "counts 1099511627776 tensors"),
    "2^63 entries": (gguf([LLAMA], [], counts=(0, 2**63)), "metadata entries"),
    "a key of 2^40 bytes": (gguf([Q(2**40) + b"k"], []), "counts 1099511627776 characters"),
    "a text of 2^64 - 1 bytes": (gguf([entry(b"k", TEXT, Q(2**64 - 1))], []), "characters"),
    "a long key": (gguf([entry(b"k" * 2000, UINT8, b"\0")], []), "at most 1024"),
    "a key of control characters": (gguf([entry(b"\x1b[2J", UINT8, b"\0")], []), r"'\x1b[2J'"),
    "a key twice": (gguf([LLAMA, LLAMA], []), "`general.architecture` twice"),
    "no such type": (gguf([entry(b"k", 13, b"\0" * 8)], []), "unknown type 13"),
    "arrays in arrays in arrays": (
        gguf([entry(b"k", ARRAY, (U(ARRAY) + Q(1)) * 4 + U(UINT8) + Q(0))], []),
        "unknown type",
    ),
    "no dimensions": (gguf([LLAMA], [tensor(b"t", (), 0)]), "has 0 dimensions"),
    "five dimensions": (gguf([LLAMA], [tensor(b"t", (1,) * 5, 0)]), "has 5 dimensions"),
    "2^32 dimensions": (gguf([LLAMA], [text(b"t") + U(2**32 - 1) + bytes(64)]), "dimensions"),
    "an empty tensor": (gguf([LLAMA], [tensor(b"t", (0, 4), 0)]), "is empty"),
    "a tensor of 2^64 elements": (gguf([LLAMA], [tensor(b"t", (2**32, 2**32), 0)]), "beyond its end"),
    "a tensor of 2^256 elements": (gguf([LLAMA], [tensor(b"t", (2**64 - 1,) * 4, 0)]), "beyond its end"),
    "a tensor behind the end": (gguf([LLAMA], [tensor(b"t", (4,), 2**40)]), "beyond its end"),
    "an unknown type behind the end": (gguf([LLAMA], [tensor(b"t", (4,), 2**40, 99)]), "beyond its end"),
    "an offset that wraps": (gguf([LLAMA], [tensor(b"t", (4,), 2**64 - 32)]), "beyond its end"),
    "a tensor over another": (gguf([LLAMA], [tensor(b"a", (16,), 0), tensor(b"b", (16,), 32)]), "lies over"),
    "a tensor that is not aligned": (gguf([LLAMA], [tensor(b"a", (4,), 4)]), "multiple of 32"),
    "a tensor twice": (gguf([LLAMA], [tensor(b"a", (4,), 0), tensor(b"a", (4,), 32)]), "a tensor twice"),
    "part of a block": (gguf([LLAMA], [tensor(b"t", (31,), 0, 2)]), "not whole blocks"),
    "a name of control characters": (gguf([LLAMA], [tensor(b"\x1b[2J", (4,), 0)]), r"'\x1b[2J'"),
    **{
        f"an alignment of {value}": (gguf([entry(b"general.alignment", UINT64, Q(value))], []), "its alignment is")
        for value in (0, 3, 2**21, 2**63)
    },
    "an alignment of words": (gguf([entry(b"general.alignment", TEXT, text(b"32"))], []), "its alignment is"),
    "cut in the table": (gguf([LLAMA], [tensor(b"t", (4,), 0)])[:80], "ends in the middle|more than there are bytes"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_lies_is_refused_at_once(tmp_path: Path, name: str) -> None:
    raw, says = HEADERS[name]
    tracemalloc.start()
    with pytest.raises(ValueError) as refused:
        parse_gguf(memoryview(raw))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert any(word in str(refused.value) for word in says.split("|")), refused.value
    (tmp_path / "a.gguf").write_bytes(raw)
    with pytest.raises(CoeError) as damaged:
        inspect(tmp_path / "a.gguf")
    assert damaged.value.exit_code == 4 and damaged.value.message.isprintable()


def test_arrays_have_a_budget_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four bytes a number in the file are forty in memory."""
    monkeypatch.setattr(gguf_header, "_MAX_VALUES", 2**22)
    many = entry(b"a", ARRAY, U(UINT8) + Q(2**21) + bytes(2**21))
    twice = entry(b"b", ARRAY, U(UINT8) + Q(2**21) + bytes(2**21))
    assert len(parse_gguf(memoryview(gguf([many, twice], []))).metadata["b"]) == 2**21
    with pytest.raises(ValueError, match="at most 0 can be read"):
        parse_gguf(memoryview(gguf([many, twice, entry(b"c", ARRAY, U(UINT8) + Q(1) + b"\0")], [])))


@given(st.data())
@settings(max_examples=examples(100), deadline=None, suppress_health_check=list(HealthCheck))
def test_a_header_with_other_bytes_is_read_or_refused(data: st.DataObject) -> None:
    whole = gguf(
        [LLAMA, entry(b"n", ARRAY, U(UINT32) + Q(2) + bytes(8)), entry(b"t", ARRAY, U(TEXT) + Q(1) + text(b"x"))],
        [tensor(b"a", (4, 2), 0), tensor(b"b", (32,), 32, 2)],
    )
    raw = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(4, len(raw) - 1))
        new = data.draw(st.binary(max_size=9) | st.sampled_from([Q(2**40), Q(2**64 - 1), U(9), U(8)]))
        raw[at : at + len(new)] = new
    try:
        header = parse_gguf(memoryview(bytes(raw)))
    except ValueError:
        return
    assert all(0 < found.offset < len(raw) for found in header.tensors)


def test_a_whole_file_is_still_read(tmp_path: Path) -> None:
    assert inspect(write_gguf(tmp_path / "a.gguf")).architecture == "llama"


# --- safetensors and config.json

WEIGHT = "model.norm.weight"
FACTS: dict[str, dict[str, Any]] = {
    "a shape of infinity": {"shape": [float("inf")]},
    "a shape of 2^60": {"shape": [2**60]},
    "a negative shape": {"shape": [-64]},
    "a shape of texts": {"shape": ["64"]},
    "a shape of thousands": {"shape": [2**40] * 4000},
    "no shape": {"shape": None},
    "offsets behind the end": {"data_offsets": [2**40, 2**40 + 256]},
    "negative offsets": {"data_offsets": [-256, 0]},
    "three offsets": {"data_offsets": [0, 256, 512]},
    "one offset": {"data_offsets": [0]},
    "offsets of text": {"data_offsets": "ab"},
    "another type": {"dtype": "I64"},
}


def change_header(path: Path, change: Callable[[Any], Any]) -> None:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.dumps(change(json.loads(raw[8 : 8 + length]))).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length :])


@pytest.mark.parametrize("name", FACTS)
def test_safetensors_that_lie_are_refused(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "folder", "llama")
    change_header(folder / "model.safetensors", lambda header: {**header, WEIGHT: header[WEIGHT] | FACTS[name]})
    with pytest.raises(CoeError) as refused:
        inspect(folder)
    assert refused.value.exit_code in (2, 4) and refused.value.message.isprintable()


@pytest.mark.parametrize(
    "raw",
    [
        *(b"", b"\0" * 7, Q(2**40), Q(2**64 - 1) + b"{}", Q(17 * 2**20) + bytes(17 * 2**20), Q(2) + b"[]"),
        *(Q(4) + b"null", Q(9) + b'{"a": []}', Q(100_000) + b"[" * 100_000, Q(6) + b"\xff" * 6),
    ],
    ids=range(10),
)
def test_safetensors_that_are_none_are_refused(tmp_path: Path, raw: bytes) -> None:
    folder = write_folder(tmp_path / "folder", "llama")
    (folder / "model.safetensors").write_bytes(raw)
    with pytest.raises(CoeError) as refused:
        inspect(folder)
    assert refused.value.exit_code == 4


CONFIGURATIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "2^40 layers": lambda config: config | {"num_hidden_layers": 2**40},
    "10^400 heads": lambda config: config | {"num_attention_heads": 10**400},
    "no heads": lambda config: config | {"num_key_value_heads": 0},
    "code of its own": lambda config: config | {"auto_map": {"AutoModelForCausalLM": "evil.Evil"}},
    "a list": lambda config: [config],
    "no architecture": lambda config: config | {"architectures": []},
    "a megabyte": lambda config: config | {"more": "x" * 2**20},
    "epsilon of infinity": lambda config: config | {"rms_norm_eps": float("inf")},
    "theta of text": lambda config: config | {"rope_theta": "x"},
    "layers of text": lambda config: config | {"num_hidden_layers": "many"},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_hostile_config_is_refused_by_import(coe: Coe, tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "folder", "llama")
    path = folder / "config.json"
    path.write_text(json.dumps(CONFIGURATIONS[name](json.loads(path.read_text()))))
    done = coe("models", "import", str(folder), "--name", "mine")
    assert done.code in (2, 4), done.stderr
    assert "Traceback" not in done.stderr
    assert not (coe.models / "mine").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "a.gguf"])
def test_a_fifo_in_a_source_is_not_waited_for(coe: Coe, tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "folder", "llama")
    (folder / name).unlink(missing_ok=True)
    make_fifo(folder / name)
    done = coe("models", "import", str(folder / name if name == "a.gguf" else folder), "--name", "mine")
    assert done.code in (2, 4) and "Traceback" not in done.stderr, done.stderr


def test_a_gguf_that_lies_is_refused_by_import(coe: Coe, tmp_path: Path) -> None:
    raw, says = HEADERS["94 bytes and 2^40 values"]
    (tmp_path / "a.gguf").write_bytes(raw)
    done = coe("models", "import", str(tmp_path / "a.gguf"), "--name", "mine")
    assert done.code == 4 and says in done.stderr
    assert not (coe.models / "mine").exists()
