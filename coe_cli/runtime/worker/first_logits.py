"""The logits that a model gives for the first token of an answer, on any provider, read in a process of its own.

The child is ``python -m coe_cli.runtime.worker.first_logits``; it writes an array of float32, shape [prompts, vocabulary].
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coe_cli.core.hardware.profile import Provider
from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.providers.settings import configure, default_provider_options, default_session_options
from coe_cli.runtime.child import Message, run_child, serve_as_child

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CONTEXT = 512


def first_logits(spec: ModelSpec, provider: Provider, prompts: Sequence[str]) -> NDArray[np.float32]:
    """Load ``spec`` on ``provider`` and read each of ``prompts``, as they are; shape [prompts, vocabulary].

    Raises:
        ModelDamaged, OutOfMemory, DeviceLost: as ONNX Runtime GenAI says, or by how the child ends.
    """
    import numpy as np

    assert spec.folder is not None
    with tempfile.TemporaryDirectory(prefix="coe-logits-", ignore_cleanup_errors=True) as scratch:
        asked, answer = Path(scratch) / "prompts.json", Path(scratch) / "logits.npy"
        asked.write_text(json.dumps(list(prompts)), encoding="utf-8")
        arguments = [
            "--model",
            str(spec.folder),
            "--provider",
            provider,
            "--prompts",
            str(asked),
            "--output",
            str(answer),
        ]
        arguments += ["--context", str(min(_CONTEXT, spec.context_length))]
        run_child(
            "coe_cli.runtime.worker.first_logits",
            arguments,
            lambda message: None,
            task=f"run of `{spec.name}` on {provider}",
        )
        found: NDArray[np.float32] = np.load(answer, allow_pickle=False)
    return found


def _read(folder: Path, provider: Provider, prompts: list[str], context: int) -> Any:
    import numpy as np
    import onnxruntime_genai as oga

    from coe_cli.runtime.worker.oga_errors import from_oga
    from coe_cli.runtime.worker.private_folder import private_folder

    rows = []
    try:
        config = oga.Config(str(private_folder(folder)[0]))
        configure(oga, config, provider, default_provider_options(provider), default_session_options(provider))
        model = oga.Model(config)
        tokenizer = oga.Tokenizer(model)
        for prompt in prompts:
            parameters = oga.GeneratorParams(model)
            parameters.set_search_options(max_length=context, do_sample=False)
            generator = oga.Generator(model, parameters)
            generator.append_tokens(tokenizer.encode(prompt))
            logits = np.asarray(generator.get_logits(), np.float32)
            rows.append(logits.reshape(-1, logits.shape[-1])[-1].copy())
            del generator
    except RuntimeError as error:
        raise from_oga(error, model=folder.name, provider=provider, loading=not rows) from None
    return np.stack(rows)


def main(arguments: list[str]) -> int:
    """The child: read as told and report on stdout; returns the exit code."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m coe_cli.runtime.worker.first_logits")
    for name in ("model", "prompts", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--provider", required=True)
    parser.add_argument("--context", type=int, required=True)
    options = parser.parse_args(arguments)

    def work(send: Callable[[Message], None]) -> None:
        import numpy as np

        prompts = json.loads(options.prompts.read_text(encoding="utf-8"))
        np.save(options.output, _read(options.model, options.provider, prompts, options.context))

    return serve_as_child(work, "run of the model")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
