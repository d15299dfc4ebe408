"""A worker whose CPU provider may run paged models: those of ``model_store.tiny_model`` attend to nothing, so they need no kernel."""

from __future__ import annotations

from coe_cli.core.providers.base import Capabilities
from coe_cli.core.providers.cpu import Cpu
from coe_cli.runtime.worker.worker import main

Cpu.capabilities = Capabilities(continuous_batching=True)

if __name__ == "__main__":
    main()
