# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
QUESTION ?= What is the capital of France?
OLD_OGA := .oga-0.13.1
WEBGPU := .webgpu
TESTS ?= not slow and not long
EXAMPLES ?= everyday
MODEL_TESTS := $(addprefix tests/,test_ask.py test_network.py test_streamed_text.py test_slots.py test_measured_answer.py \
  model_store/test_show_verify_rm.py model_store/test_optimize.py)

UNIT_TESTS := $(patsubst %,tests/test_%.py,arena atomic_write batch_order batch_rows bench_devices calibration footprint history litellm_configuration \
  markdown_stream memory_probe onnx_graph prefill process_exit profile_command quoting scheduler selection \
  vector_cache)

# Bytecode is kept: without it every process that a test starts compiles coe's source again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-long test-unit test-slow test-ray test-oga013 test-windows test-directml test-webgpu lint types imports resolve docs check clean programs

## install, fetch and convert the embedded model, ask a question
demo: $(VENV)/installed
	$(BIN)/coe models pull smollm2-135m
	$(BIN)/coe ask -m smollm2-135m "$(QUESTION)"

## the everyday test suite: minutes
test: $(VENV)/developed
	$(BIN)/coe models pull smollm2-135m
	HYPOTHESIS_PROFILE=$(EXAMPLES) $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "$(TESTS)" $(PYTEST_ARGS)

## the long tests: variants, in seconds each, of what an everyday test holds; `make test TESTS="not slow"` runs both
test-long: TESTS := long and not slow
test-long: EXAMPLES := whole
test-long: test

## tests of code that starts no process: seconds
test-unit: $(VENV)/developed
	$(BIN)/python -m pytest -m "not slow" $(UNIT_TESTS) $(PYTEST_ARGS)

## the slow tests
test-slow: $(VENV)/developed
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

## the tests on Ray clusters of several nodes that are slow
test-ray: $(VENV)/developed
	$(BIN)/python -m pytest -m slow tests/test_ray_engine.py tests/test_node_command.py $(PYTEST_ARGS)

## the tests that drive a model, against the ONNX Runtime GenAI that Windows has
test-oga013: $(VENV)/developed $(OLD_OGA)/installed
	$(BIN)/coe models pull smollm2-135m
	PYTHONPATH=$(CURDIR)/$(OLD_OGA) $(BIN)/python -m pytest -m "not slow" $(MODEL_TESTS) $(PYTEST_ARGS)

## nginx and Chromium for the tests of many machines and of the page, where they may be installed; without them these are skipped
programs:
	{ command -v nginx /usr/sbin/nginx >/dev/null && command -v chromium >/dev/null; } || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && apt-get update -qq && RUNLEVEL=1 apt-get install -y -qq --no-install-recommends nginx-light chromium >/dev/null; } \
	  || echo "nginx and Chromium cannot be installed here: the tests that need them are skipped"

## as a user of Windows would, then the test suite under Windows' own Python, on Linux (tests/windows)
test-windows: $(VENV)/developed
	$(BIN)/coe models pull smollm2-135m
	PYTHON=$(CURDIR)/$(BIN)/python bash tests/windows/lab.sh gate $(PYTEST_ARGS) || { [ $$? = 77 ] && [ -z "$$CI" ]; }

## DirectML itself on a software card, in a Windows on Linux (tests/windows); where that cannot be set up, it says so
test-directml: $(VENV)/developed
	PYTHON=$(CURDIR)/$(BIN)/python bash tests/windows/directml.sh gate $(PYTEST_ARGS)

## WebGPU on a software card, from Debian's packages (tests/webgpu); where that cannot be set up, it says so
test-webgpu: $(VENV)/developed $(WEBGPU)/installed
	PYTHONPATH=$(CURDIR)/$(WEBGPU) PYTHON=$(CURDIR)/$(BIN)/python bash tests/webgpu/webgpu.sh gate $(PYTEST_ARGS) \
	  || { [ $$? = 77 ] && [ -z "$$CI" ]; }

lint: $(VENV)/developed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/developed
	$(BIN)/mypy

imports: $(VENV)/developed
	$(BIN)/lint-imports

## the dependency ranges resolve on Windows and Linux
resolve: $(VENV)/developed
	for version in 3.11 3.12 3.13; do \
	  $(BIN)/uv pip compile -q pyproject.toml --extra directml --extra embedders --extra fleet --extra ray --python-platform windows --python-version $$version -o /dev/null && \
	  $(BIN)/uv pip compile -q pyproject.toml --extra winml --python-platform windows --python-version $$version -o /dev/null && \
	  $(BIN)/uv pip compile -q pyproject.toml --extra cpu --extra embedders --python-platform linux --python-version $$version -o /dev/null && \
	  MACOSX_DEPLOYMENT_TARGET=14.0 $(BIN)/uv pip compile -q pyproject.toml --extra cpu --python-platform macos --python-version $$version -o /dev/null && \
	  for system in windows linux aarch64-apple-darwin; do MACOSX_DEPLOYMENT_TARGET=14.0 $(BIN)/uv pip compile -q pyproject.toml --extra webgpu \
	    --python-platform $$system --python-version $$version -o /dev/null || exit 1; done && \
	  $(BIN)/uv pip compile -q pyproject.toml --extra cuda --extra fleet --extra ray --python-platform linux --python-version $$version -o /dev/null && \
	  echo "resolves on Windows, Linux and macOS for Python $$version" || exit 1; \
	done

## the documentation as a site, in site/
docs: $(VENV)/developed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q

check: lint types imports resolve docs

clean:
	rm -rf $(VENV) $(OLD_OGA) $(WEBGPU) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build

$(VENV)/installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt -e ".[cpu]"
	$(BIN)/python -m compileall -q coe_cli  # pip does so for a wheel, not for a checkout
	touch $@

# The tests compare with PyTorch. Its CPU build is enough: a wheel that pip is configured to find on disk, else PyTorch's
# own CPU index through uv, else whatever the package index has.
$(VENV)/torch: $(VENV)/installed
	$(PIP) install uv
	$(PIP) install --no-index --no-deps -c constraints.txt torch 2>/dev/null \
	  || $(BIN)/uv pip install -q --python $(BIN)/python --torch-backend cpu -c constraints.txt torch \
	  || $(PIP) install -c constraints.txt torch
	touch $@

$(VENV)/developed: $(VENV)/torch
	$(PIP) install -c constraints.txt -e ".[dev]"
	touch $@

$(OLD_OGA)/installed: $(VENV)/installed
	$(PIP) install --no-deps --target $(OLD_OGA) --upgrade onnxruntime==1.24.4 onnxruntime-genai==0.13.1
	touch $@

$(WEBGPU)/installed: $(VENV)/installed
	$(PIP) install --no-deps --target $(WEBGPU) --upgrade onnxruntime-ep-webgpu==0.4.0
	touch $@
