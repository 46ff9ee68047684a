# Everything a new machine needs: python3 (3.11 or 3.12) with venv, make, and a C++ compiler for the fused scan.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
comma := ,
BIN := .venv/bin
# CI runs the tests of the optional packages too; their libraries come from .ci/apt-packages.txt.
EXTRAS := dev$(if $(filter 1,$(VMP_CI)),$(comma)ffcv$(comma)torchcodec)

.PHONY: demo test lint venv clean slurm-dev

demo: venv
	$(BIN)/vmp demo

test: venv lint
	$(BIN)/python -m pytest

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A SLURM of three nodes on this machine, until Ctrl-C; prints the SLURM_CONF line to export.
slurm-dev: venv
	$(BIN)/python -m tests.slurm.cluster

venv: .venv/.installed

# torch goes first and alone: its exact version selects the wheel (CPU or CUDA) of this machine.
.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf .venv runs demo
