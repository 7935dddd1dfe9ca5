# Both targets set up .venv by themselves on a fresh machine, and are quick the second time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test figures clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade-strategy only-if-needed -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e ".[test]"
	@touch $@

# The same sevens by four methods, from the model that comes with the package, and a page to look at: runs/demo/compare.html
demo: $(READY)
	$(BIN)/viot compare --model digits --reward digit:7 --methods base,fkd,vasr,fvd --particles 64 --steps 40 --batch-size 64 --out runs/demo

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -n auto

# The README's figures and its numbers of the digits model.
figures: $(READY)
	$(BIN)/python benchmarks/figures.py

clean:
	rm -rf $(VENV) runs
