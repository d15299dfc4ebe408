"""These tests run in the DirectML lab alone: `make test-directml`."""

import os

collect_ignore_glob = [] if os.environ.get("COE_DIRECTML") else ["test_*.py"]
