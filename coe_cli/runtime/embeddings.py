"""/v1/embeddings over the embedder that was prepared for routing, where there is one."""

from __future__ import annotations

import base64 as base64_module
import functools
import importlib
import threading
from pathlib import Path
from typing import Any

from coe_cli.errors import ModelMissing
from coe_cli.runtime.desk import AUTO
from coe_cli.runtime.folders import folders
from coe_cli.runtime.http_errors import HttpError

_one_at_a_time = threading.Lock()


def embed(name: str, texts: list[str], *, base64: bool) -> dict[str, Any]:
    """OpenAI's embedding list for ``texts``. Runs in a thread: the first call loads the embedder.

    ``usage`` counts 0 tokens, because the embedder does not report them.

    Raises:
        HttpError: this installation has no embedder, or no export of it is prepared (501).
        ModelMissing: it has no embedder of that name.
        ModelDamaged: it cannot be loaded.
    """
    with _one_at_a_time:
        embedder = _load(_folder(name))
        vectors = embedder.embed(texts)
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64_module.b64encode(vector.astype("<f4").tobytes()).decode()
            if base64
            else vector.tolist(),
        }
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": 0, "total_tokens": 0}
    return {"object": "list", "data": data, "model": embedder.info.name, "usage": usage}


def _folder(name: str) -> Path:
    root = folders().cache / "embedders"
    prepared = {path.name: path for path in sorted(root.iterdir())} if root.is_dir() else {}
    prepared = {key: path for key, path in prepared.items() if (path / "embedder.json").is_file()}
    if not prepared:
        raise HttpError(501, "no embedder is prepared", "Prepare it: coe route --rebuild.", code="no_embedder")
    if name == AUTO:
        return next(iter(prepared.values()))
    for key, path in prepared.items():
        if name in (key, key.rsplit("-", 1)[-1]):
            return path
    raise ModelMissing(f"no embedder is called `{name}`", f"There is {', '.join(prepared)}.")


@functools.lru_cache(maxsize=1)
def _load(folder: Path) -> Any:
    try:
        module = importlib.import_module("coe_cli.runtime.embedder")
    except ImportError as error:
        raise HttpError(
            501, f"this installation has no embedder: {error}", "Install coe-cli again.", code="no_embedder"
        ) from None
    return module.Embedder(folder)
