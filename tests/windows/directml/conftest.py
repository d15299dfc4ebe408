"""These tests run in the DirectML lab alone: `make test-directml`."""

import os

import pytest

pytest.register_assert_rewrite("two_experts")

collect_ignore_glob = [] if os.environ.get("COE_DIRECTML") else ["test_*.py"]
