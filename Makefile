PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
WORKERS ?= 2

.PHONY: demo test test-slow lint clean

# Each stamp is a set of installed extras.
$(VENV)/core.ready: INSTALL = .
$(VENV)/test.ready: INSTALL = .[test]
$(VENV)/%.ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '$(INSTALL)'
	touch $@

# The first two minutes: trains, is killed, resumes, samples, exports, reports.
demo: $(VENV)/core.ready
	$(BIN)/python -m pretrain demo

test: $(VENV)/test.ready
	$(BIN)/python -m pytest -n $(WORKERS) -m 'not slow' --durations=25

test-slow: $(VENV)/test.ready
	$(BIN)/python -m pytest -n $(WORKERS) -m slow

lint: $(VENV)/test.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV) build dist *.egg-info
