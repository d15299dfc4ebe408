"""/v1/embeddings over the embedder that was prepared for routing, where there is one."""

from __future__ import annotations

import base64 as base64_module
import contextlib
import functools
from pathlib import Path
from typing import Any

from coe_cli.errors import CoeError, ModelMissing
from coe_cli.runtime.college.chat_request import AUTO
from coe_cli.runtime.folders import folders
from coe_cli.runtime.routing.embedder import Embedder
from coe_cli.runtime.routing.shared_router import SharedRouter
from coe_cli.runtime.server.http_errors import HttpError


def embed(
    name: str, given: str | list[str], router: SharedRouter, *, base64: bool, cuts: bool
) -> tuple[dict[str, Any], list[str]]:
    """OpenAI's embedding list, and notes on it; from the router's own embedder where that is the one. Runs in a thread.

    ``cuts``: texts that are too long are cut, of which the notes tell; else they are refused.

    Raises:
        HttpError: no embedder is prepared (404); a text is too long (400).
        ModelMissing: there is none of that name.
        ModelDamaged: it cannot be loaded.
    """
    embedder = _embedder(name, router)
    texts = [given] if isinstance(given, str) else given
    counts = embedder.token_counts(texts)
    fields = ["input" if given is texts[0] else f"input.{number}" for number, (_, cut) in enumerate(counts) if cut]
    limit = f"{embedder.info.max_tokens} tokens"
    if fields and not cuts:
        message = f"This model's maximum context length is {limit}. However, `{fields[0]}` exceeds the context length"
        hint = f"Shorten it; texts of more than {embedder.max_chars} characters are too long in any case."
        raise HttpError(400, message, hint, code="context_length_exceeded", param=fields[0])
    vectors, tokens = embedder.embed(texts), sum(count for count, _ in counts)
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
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    answer = {"object": "list", "data": data, "model": embedder.info.name, "usage": usage}
    return answer, [f"`{field}` was cut to {limit}" for field in fields]


def _embedder(name: str, router: SharedRouter) -> Embedder:
    with contextlib.suppress(CoeError):
        embedder = router.embedder()
        if name in (AUTO, embedder.info.name):
            return embedder
    return _load(_folder(name))


def _folder(name: str) -> Path:
    root = folders().cache / "embedders"
    prepared = {path.name: path for path in sorted(root.iterdir())} if root.is_dir() else {}
    prepared = {key: path for key, path in prepared.items() if (path / "embedder.json").is_file()}
    if not prepared:
        raise HttpError(404, "no embedder is prepared", "Prepare it: coe route --rebuild.", code="no_embedder")
    if name == AUTO:
        return next(iter(prepared.values()))
    for key, path in prepared.items():
        if name in (key, key.rsplit("-", 1)[-1]):
            return path
    raise ModelMissing(f"no embedder is called `{name}`", f"There is {', '.join(prepared)}.")


_load = functools.lru_cache(maxsize=1)(Embedder)
