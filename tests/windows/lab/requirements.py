"""Print what the lab installs: coe's own requirements, and what its tests need."""

import os
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

TEST_TOOLS = {
    "gguf",
    "hypothesis",
    "jsonschema",
    "openai",
    "pyte",
    "pytest",
    "pytest-timeout",
    "schemathesis",
}
OF_THE_LAB = ["hatchling", "editables", "msvc-runtime", "pytest-xdist"]
"""What `pip install -e .` needs there, the C++ runtime, which a Windows machine has, and tests on both cores."""

project = tomllib.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
wanted = [
    *project["dependencies"],
    *(line for line in extras["dev"] if Requirement(line).name in TEST_TOOLS),
    *extras[os.environ.get("COE_WINLAB_EXTRA", "directml")],
    *extras["fleet"],
    *OF_THE_LAB,
]
print("\n".join(wanted))
