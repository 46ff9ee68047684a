# Everything a new machine needs: python3 (3.11 or 3.12) with venv, and make. A C++ compiler makes the CPU scan fast.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN := .venv/bin
# Optional parts of pyproject.toml, e.g. `make venv EXTRAS=dev,ffcv,torchcodec`; docs/install.md says what each needs.
EXTRAS ?= dev
INSTALLED := .venv/.installed-$(EXTRAS)

.PHONY: demo test test-fast lint docs venv clean slurm-dev

demo: venv
	$(BIN)/vmp demo

# Two test processes fill two cores: a third of a test's time goes by in waiting.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder

test: lint
	$(PYTEST)

# The inner loop: what needs neither several ranks nor many seconds.
test-fast: venv
	$(PYTEST) -m "not slow and not dist"

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The documentation as a site in build/site; needs the extra `docs`, e.g. `make docs EXTRAS=dev,docs`.
docs: venv
	$(BIN)/python -m mkdocs build --strict

# A SLURM of three nodes on this machine, until Ctrl-C; prints the SLURM_CONF line to export.
slurm-dev: venv
	$(BIN)/python -m tests.slurm.cluster

venv: $(INSTALLED)
	@echo "Ready: call $(BIN)/vmp, or 'source $(BIN)/activate' once and then vmp."

# torch goes first and alone: its exact version selects the wheel (CPU or CUDA) of this machine.
$(INSTALLED): pyproject.toml constraints.txt
	@echo "== 1/3  virtual environment in .venv, with $(PYTHON)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "== 2/3  torch (the CUDA build is several GB; the CPU build about 200 MB)"
	$(BIN)/pip install --disable-pip-version-check torch==2.13.0
	@echo "== 3/3  videomambapro and its packages [$(EXTRAS)]: one to three minutes"
	$(BIN)/pip install --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf .venv runs demo
