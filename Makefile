# The two commands of the README: `make demo` and `make test`. Both install into .venv, once (stamps in .venv).
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   ?= safe-llamagen
TRUST  ?= demo-trust

.PHONY: demo test soak check docs clean

# A machine that keeps no bytecode would compile every library again in every process of the tests.
unexport PYTHONDONTWRITEBYTECODE

# A second `make demo` makes everything again from the start (--overwrite); an interrupted one continues. Exit codes 1
# and 3 are verdicts (FAIL, INCONCLUSIVE): the release is there and is verified with any of them.
demo: $(VENV)/.installed
	$(BIN)/safear-edit apply concepts/picasso.yaml --model llamagen --out $(DEMO) --throwaway-key $(TRUST) --overwrite \
		|| case $$? in 1|3) ;; *) exit 2;; esac
	$(BIN)/safear-edit verify $(DEMO) --trust $(TRUST)

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadscope --no-loadscope-reorder

test: $(VENV)/.installed-test check
	$(PYTEST) -m "not soak"

# What takes long: whole walks again, kills, processes side by side, programs end to end. Before a release.
soak: $(VENV)/.installed-test
	$(PYTEST) -m soak

check: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The API's pages, rendered to a folder that is not part of the checkout; its name is printed.
docs: $(VENV)/.installed-test
	folder=$$(mktemp -d) && $(BIN)/pdoc --output-directory "$$folder" safear_edit && echo "$$folder/index.html"

# Editable, so that what runs is always the checkout's own source; a wheel works as well (`pip install .`). Python
# compiles what is imported when it is imported first; all of every package takes pip nearly half of its processor time.
# The pip that a Python brings may be years old and take nearly twice the processor time of today's.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$@ -m pip install -q --upgrade pip

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q --no-compile -e .
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -q --no-compile -e '.[test,nudity,imagenet,diffusion]'
	touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) $(DEMO) $(TRUST)
