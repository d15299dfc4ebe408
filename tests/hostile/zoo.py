"""Model folders that want more than to be a model, made by code; ``{outside}`` in a row stands for a folder beside them."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from model_store.tiny_model import write_tiny_model
from onnx import TensorProto, helper
from operating_system import make_fifo, make_link

Make = Callable[[Path, Path], None]
"""Turns the tiny model in the first folder into a hostile one; the second is a folder beside it."""


def configured(*path: str | int, value: Any) -> Make:
    """A model whose configuration has ``value`` at ``path``."""

    def make(folder: Path, outside: Path) -> None:
        def change(config: Any) -> None:
            for step, following in itertools.pairwise(path):
                if isinstance(config, dict):
                    config = config.setdefault(step, [] if isinstance(following, int) else {})
                else:
                    while len(config) <= int(step):
                        config.append({})
                    config = config[int(step)]
            last = json.loads(json.dumps(value).replace("{outside}", outside.as_posix()))
            if isinstance(config, list):
                config.insert(int(path[-1]), last)
            else:
                config[path[-1]] = last

        edit_json(folder / "genai_config.json", change)

    return make


def tokenizer_configured(**values: Any) -> Make:
    def make(folder: Path, outside: Path) -> None:
        edit_json(folder / "tokenizer_config.json", lambda config: config.update(values))

    return make


def raw_config(change: Callable[[bytes], bytes]) -> Make:
    def make(folder: Path, outside: Path) -> None:
        path = folder / "genai_config.json"
        path.write_bytes(change(path.read_bytes()))

    return make


def edit_json(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def _weights_at(location: str) -> Make:
    def make(folder: Path, outside: Path) -> None:
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        shutil.move(folder / "model.onnx.data", outside / "weights")
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location.format(outside=outside.as_posix())
        onnx.save(model, folder / "model.onnx")

    return make


def _constant_at(folder: Path, outside: Path) -> None:
    """A constant of a node has its data outside; initializers do not."""
    (outside / "secret").write_bytes(b"x" * 64)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    tensor = TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[16])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": f"../{outside.name}/secret", "offset": "0", "length": "64"}.items():
        tensor.external_data.add(key=key, value=value)
    branch = helper.make_graph([helper.make_node("Constant", [], ["hidden"], value=tensor)], "branch", [], [])
    model.graph.node.append(helper.make_node("If", ["nothing"], ["unused"], then_branch=branch, else_branch=branch))
    onnx.save(model, folder / "model.onnx")


def _two_graphs(folder: Path, outside: Path) -> None:
    """Protobuf merges a record that comes twice, so a reader of the first sees half of what is run."""
    path = folder / "model.onnx"
    second = onnx.load(path, load_external_data=False)
    path.write_bytes(path.read_bytes() + second.SerializeToString())


def _linked(name: str) -> Make:
    def make(folder: Path, outside: Path) -> None:
        shutil.move(folder / name, outside / name)
        make_link(folder / name, outside / name)

    return make


def _fifo(name: str) -> Make:
    def make(folder: Path, outside: Path) -> None:
        (folder / name).unlink()
        make_fifo(folder / name)

    return make


def _to_device(name: str) -> Make:
    def make(folder: Path, outside: Path) -> None:
        (folder / name).unlink()
        make_link(folder / name, "/dev/zero")

    return make


def _as(name: str) -> Make:
    """The graph under another name, which the configuration gives it."""

    def make(folder: Path, outside: Path) -> None:
        shutil.copyfile(folder / "model.onnx", folder / name)
        edit_json(folder / "genai_config.json", lambda config: config["model"]["decoder"].update(filename=name))

    return make


SESSION = ("model", "decoder", "session_options")
PROVIDERS = (*SESSION, "provider_options", 0)

CONFIGURATIONS: dict[str, tuple[Make, str]] = {
    "custom ops": (configured(*SESSION, "custom_ops_library", value="model.onnx.png"), "custom_ops_library"),
    "custom ops, absolute": (configured(*SESSION, "custom_ops_library", value="{outside}/x.so"), "custom_ops_library"),
    "custom ops, elsewhere": (configured("model", "custom_ops_library", value="x.so"), "custom_ops_library"),
    **{
        f"custom ops, {component}": (
            configured("model", component, "session_options", "custom_ops_library", value="x.so"),
            f"model.{component}.session_options.custom_ops_library",
        )
        for component in ("encoder", "embedding", "vision", "speech", "joiner", "vad", "mtp", "draft", "next_one")
    },
    "custom ops, stage": (
        configured("model", "decoder", "pipeline", 0, "one", "session_options", "custom_ops_library", value="x.so"),
        "custom_ops_library",
    ),
    "custom ops, vision stage": (
        configured("model", "vision", "pipeline", "one", "session_options", "custom_ops_library", value="x.so"),
        "custom_ops_library",
    ),
    "profiling": (configured(*SESSION, "enable_profiling", value="{outside}/trace"), "enable_profiling"),
    "profiling of runs": (
        configured("model", "decoder", "run_options", "enable_profiling", value="{outside}/trace"),
        "enable_profiling",
    ),
    "optimized model": (
        configured(*SESSION, "session.optimized_model_filepath", value="{outside}/graph"),
        "session.optimized_model_filepath",
    ),
    "data folder": (
        configured(*SESSION, "session.model_external_initializers_file_folder_path", value="{outside}"),
        "session.model_external_initializers_file_folder_path",
    ),
    "EP context": (configured(*SESSION, "ep.context_enable", value="1"), "ep.context_enable"),
    "memory statistics": (
        configured(*SESSION, "session.collect_node_memory_stats_to_file", value="{outside}/stats"),
        "session.collect_node_memory_stats_to_file",
    ),
    "unknown option": (configured(*SESSION, "session.of_next_year", value="1"), "session.of_next_year"),
    "number for a text": (configured(*SESSION, "session.disable_prepacking", value=1), "session.disable_prepacking"),
    "threads": (configured(*SESSION, "intra_op_num_threads", value=10**6), "intra_op_num_threads"),
    "provider library": (configured(*PROVIDERS, "QNN", value={"backend_path": "x.so"}), "QNN"),
    "allocator": (configured(*PROVIDERS, "cuda", value={"gpu_external_alloc": "4096"}), "gpu_external_alloc"),
    "provider of a component": (
        configured(
            "model", "vision", "session_options", "provider_options", 0, "OpenVINO", value={"load_config": "x.json"}
        ),
        "OpenVINO",
    ),
    "graph elsewhere": (configured("model", "decoder", "filename", value="../model.onnx"), "model.decoder.filename"),
    "graph, absolute": (configured("model", "decoder", "filename", value="/etc/model.onnx"), "model.decoder.filename"),
    "graph, backslash": (configured("model", "decoder", "filename", value="..\\m.onnx"), "model.decoder.filename"),
    "graph, ORT format": (_as("model.ort"), "model.decoder.filename"),
    "encoder elsewhere": (configured("model", "encoder", "filename", value="../e.onnx"), "model.encoder.filename"),
    "processor elsewhere": (
        configured("model", "vision", "config_filename", value="../../x.json"),
        "model.vision.config_filename",
    ),
    "adapter elsewhere": (
        configured("model", "speech", "adapter_filename", value="{outside}/x.onnx_adapter"),
        "model.speech.adapter_filename",
    ),
    "tokenizer elsewhere": (configured("model", "tokenizer_dir", value="{outside}"), "model.tokenizer_dir"),
    "initializers elsewhere": (
        configured("model", "decoder", "shared_initializers", 0, "data_file", value="{outside}/x"),
        "shared_initializers",
    ),
    "format string": (
        configured("model", "decoder", "inputs", "past_key_names", value="%s%s%n.%d"),
        "model.decoder.inputs.past_key_names",
    ),
    "beams": (configured("search", "num_beams", value=4), "search.num_beams"),
    "sequences": (configured("search", "num_return_sequences", value=64), "search.num_return_sequences"),
    "batch": (configured("search", "batch_size", value=2**20), "search.batch_size"),
    "context": (configured("model", "context_length", value=2**40), "model.context_length"),
    "layers": (configured("model", "decoder", "num_hidden_layers", value=2**31), "num_hidden_layers"),
    "escape sequence": (configured(*SESSION, "log_id", value="\x1b]0;x\x07"), "log_id"),
    "same key twice": (
        raw_config(lambda raw: raw.replace(b'"log_id"', b'"custom_ops_library": "x.so", "log_id": "", "log_id"')),
        "twice",
    ),
    "deep": (raw_config(lambda raw: b'{"model": ' + b"[" * 50_000), "cannot be read"),
    "no number": (raw_config(lambda raw: raw.replace(b'"context_length": 512', b'"context_length": NaN')), "NaN"),
    "large": (raw_config(lambda raw: raw + b" " * 2**20), "has more than"),
    "not UTF-8": (raw_config(lambda raw: raw.replace(b"llama", b"\xff\xfe")), "cannot be read"),
}
"""What a ``genai_config.json`` may not ask for, and what the refusal names."""

FOLDERS: dict[str, tuple[Make, str]] = {
    "weights above": (_weights_at("../outside/weights"), "../outside/weights"),
    "weights, absolute": (_weights_at("{outside}/weights"), "outside of the model's folder"),
    "weights in a constant": (_constant_at, "../outside/secret"),
    "two graphs": (_two_graphs, "not one graph"),
    "weights linked": (_linked("model.onnx.data"), "model.onnx.data is a link"),
    "graph linked": (_linked("model.onnx"), "model.onnx is a link"),
    "configuration linked": (_linked("genai_config.json"), "genai_config.json is a link"),
    "tokenizer linked": (_linked("tokenizer.json"), "tokenizer.json is a link"),
    "vocabulary elsewhere": (tokenizer_configured(tiktoken_file="../../../etc/passwd"), "../../../etc/passwd"),
    "tokenizer FIFO": (_fifo("tokenizer.json"), "tokenizer.json is not a regular file"),
    "configuration FIFO": (_fifo("genai_config.json"), "is not a regular file"),
    "graph FIFO": (_fifo("model.onnx"), "model.onnx"),
    "endless configuration": (_to_device("genai_config.json"), "is not a regular file"),
    "endless tokenizer": (_to_device("tokenizer_config.json"), "tokenizer_config.json"),
}
"""What a folder may not be, and what the refusal names."""


def make_hostile(folder: Path, make: Make) -> Path:
    """The tiny model in ``folder``, turned by ``make``; what lies beside it is in ``outside``."""
    outside = folder.parent / "outside"
    outside.mkdir(exist_ok=True)
    write_tiny_model(folder)
    make(folder, outside)
    return folder


def compile_library(target: Path, marker: Path) -> bool:
    """A shared object that makes ``marker`` when it is loaded; False where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or os.name == "nt":
        return False
    source = target.with_suffix(".c")
    source.write_text(
        "#include <stdio.h>\n__attribute__((constructor)) static void loaded(void)"
        f'{{ FILE *f = fopen("{marker}", "w"); if (f) fclose(f); }}\n'
        "void *RegisterCustomOps(void *options, const void *api) { return 0; }\n",
        encoding="utf-8",
    )
    return not subprocess.run([compiler, "-shared", "-fPIC", "-o", str(target), str(source)]).returncode
