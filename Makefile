# Two commands do everything on a machine with Python (3.11 or newer) and make: `make demo` and `make test`.
PYTHON ?= python3
BIN = .venv/bin
.DEFAULT_GOAL := help

help:
	@echo "make demo    train the quick recipe and write its report"
	@echo "make test    run the tests"
	@echo "make lint    format, rules, types and the rooms' contract"
	@echo "make bench   speed and memory, as ratios, into benchmarks/results/"
	@echo "make faults  plant faults in many architectures and see each caught by its rule"
	@echo "make survey  discovery over every architecture of transformers, into docs/architectures.md"
	@echo "make docs    write the rules' pages, the gallery and the derivations' lines, draw the README's pictures (needs Chromium)"

.venv/demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@ .venv/demo

demo: .venv/demo
	$(BIN)/residuum train quick

test: .venv/dev
	$(BIN)/pytest

lint: .venv/dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/dev
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/gradient_reach.py
	$(BIN)/python benchmarks/healthy.py
	$(BIN)/python benchmarks/ternary_levels.py
	$(BIN)/python benchmarks/discovery.py
	$(BIN)/python benchmarks/monitor.py
	$(BIN)/python benchmarks/demo.py
	$(BIN)/python benchmarks/structure.py
	$(BIN)/python benchmarks/scalar.py
	$(BIN)/python benchmarks/products.py
	$(BIN)/python benchmarks/engines.py
	$(BIN)/python benchmarks/residuals.py
	$(BIN)/python benchmarks/freed_memory.py
	$(BIN)/python benchmarks/packed.py
	$(BIN)/python benchmarks/ternary_step.py

faults: .venv/dev
	$(BIN)/pytest tests/faults -m faults

survey: .venv/dev
	$(BIN)/python benchmarks/architectures/survey.py

docs: .venv/dev
	$(BIN)/python docs/write_rule_pages.py
	$(BIN)/python docs/write_backprop_lines.py
	$(BIN)/python docs/write_gallery.py
	$(BIN)/python -m pip install --quiet --constraint constraints.txt playwright
	$(BIN)/python docs/draw_pictures.py

.PHONY: help demo test lint bench faults survey docs
