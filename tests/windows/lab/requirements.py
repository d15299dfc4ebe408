"""Print what the lab installs: coe's own requirements without those that need PyTorch, and what its tests need."""

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

NEED_TORCH = {"sentence-transformers", "transformers", "accelerate"}
TEST_TOOLS = {
    "hypothesis",
    "jsonschema",
    "openai",
    "pyte",
    "pytest",
    "pytest-rerunfailures",
    "pytest-timeout",
    "schemathesis",
}
BY_WINDOWS_PIP = ["pip", "hatchling", "editables", "msvc-runtime"]
"""What `pip install -e .` needs there, and the C++ runtime, which a Windows machine has."""

project = tomllib.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
wanted = [
    *(line for line in project["dependencies"] if Requirement(line).name not in NEED_TORCH),
    *(line for line in extras["dev"] if Requirement(line).name in TEST_TOOLS),
    *extras["fleet"],
    *BY_WINDOWS_PIP,
]
print("\n".join(wanted))
