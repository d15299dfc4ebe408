"""These tests run on WebGPU's software card alone: `make test-webgpu`."""

import os

import pytest

pytest.register_assert_rewrite("two_experts")

collect_ignore_glob = [] if os.environ.get("COE_WEBGPU_MODELS") else ["test_*.py"]
