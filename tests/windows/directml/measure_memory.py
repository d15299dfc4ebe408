"""What a model asks of Direct3D 12, beside the plan: `python -m tests.windows.directml.measure_memory MODEL CONTEXT:PROMPT…`.

It prints lines of JSON, sizes in MB of 2**20 bytes, of everything that is in the card's own memory. In the DirectML lab alone: its d3d12.dll writes
each buffer into the file that COE_D3D12_LOG names. Contexts and prompts should rise: nothing is given back.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from coe_cli.core.units import BYTES_PER_MB
from coe_cli.runtime.planning.plan_inputs import memory_of
from coe_cli.runtime.store.model_store import open_model

ON_THE_CARD = "1"  # D3D12_HEAP_TYPE_DEFAULT


class Log:
    """Bytes that are asked for at the moment, by the log."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def live_mb(self) -> float:
        live: dict[str, int] = {}
        for line in self.path.read_text(encoding="ascii").splitlines():
            address, _, rest = line[1:].partition(" ")
            if line[0] == "+":
                kind, size = rest.split()
                live[address] = int(size) if kind == ON_THE_CARD else 0
            else:
                live.pop(address, None)
        return sum(live.values()) / BYTES_PER_MB


def main(folder: Path, rows: list[str]) -> None:
    log = Log(Path(tempfile.mkdtemp()) / "d3d12.log")
    os.environ |= {"COE_D3D12_LOG": str(log.path), "ORT_DISABLE_TELEMETRY": "1"}
    import numpy as np
    import onnxruntime_genai as oga

    from coe_cli.providers.settings import configure

    memory = memory_of(open_model(folder.name, folder))
    config = oga.Config(str(folder))
    configure(oga, config, "dml", {}, {})
    model = oga.Model(config)
    before = log.live_mb()
    print(
        json.dumps({"step": "load", "asked_mb": before, "planned_mb": memory.on.load_bytes(memory) / BYTES_PER_MB}),
        flush=True,
    )
    for row in rows:
        context, prompt = (int(number) for number in row.split(":"))
        parameters = oga.GeneratorParams(model)
        parameters.set_search_options(max_length=context, do_sample=False)
        generator = oga.Generator(model, parameters)
        with_cache = log.live_mb()
        generator.append_tokens(np.arange(prompt, dtype=np.int32) % 200)
        generator.generate_next_token()
        after = log.live_mb()
        for step, asked, planned in (
            (f"generator {context}", with_cache - before, memory.on.kv_cache_bytes(memory, context)),
            (f"prompt {prompt} at {context}", after - with_cache, memory.on.activation_bytes(memory, context, prompt)),
        ):
            print(json.dumps({"step": step, "asked_mb": asked, "planned_mb": planned / BYTES_PER_MB}), flush=True)
        before = after
        del generator


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
