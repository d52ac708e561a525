# Two commands matter: `make demo` shows the product at work, `make test` passes its tests.
# Each does all its own set-up in .venv.

PYTHON ?= python3
BIN := .venv/bin
KEEP ?=
FACTOR ?= 20
ROUNDS ?=
MINUTES ?= $(if $(ROUNDS),,15)
SEED ?=
QUICK ?=
ALL ?= $(CI)

.PHONY: setup demo test test-all lint unit fuzz soak bench constraints clean

setup: .venv/.ready

.venv/.ready: constraints.txt pyproject.toml setup.py protocol/half_gates.c
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=python3.12, say")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r constraints.txt
	rm -f protocol/_half_gates.*
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/python -m compileall -q protocol transport insurer_agent service
	@touch $@

demo: setup
	$(BIN)/alliance demo --root build/demo $(if $(KEEP),--keep)

test: lint unit

# What CI runs: nothing is left out, and every property and fuzz test gets all its examples.
test-all:
	@$(MAKE) --no-print-directory test ALL=1

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The console's tests drive a Chromium, which is no Python package. CI must have one; elsewhere they are left out without it.
CHROMIUM := $(firstword $(foreach name,chromium chromium-browser google-chrome,$(shell command -v $(name))))
BROWSER := $(if $(CHROMIUM)$(CI),, and not browser)

# Everyday runs leave out what `long` and `soak` mark, and say how much that is; EVERYDAY also has properties and fuzz tests
# try fewer examples.
EVERYDAY := $(if $(ALL),,EVERYDAY=1)
SHORT := $(if $(ALL),, and not long and not soak)

# What starts no alliance runs beside what does: two cores are then busy, and no two alliances share them.
unit: setup
	@mkdir -p build
	$(if $(BROWSER),@echo '*** NOT RUN: the tests of the console in a browser. Have them run: apt-get install --no-install-recommends chromium ***' >&2)
	@$(EVERYDAY) $(BIN)/python -m pytest -q -m "not alliance$(BROWSER)$(SHORT)" > build/unit.txt 2>&1 & beside=$$!; \
	trap 'kill $$beside' INT TERM; \
	$(EVERYDAY) $(BIN)/python -m pytest -q -m "alliance$(BROWSER)$(SHORT)"; live=$$?; \
	wait $$beside; unit=$$?; cat build/unit.txt; \
	exit $$((live || unit))

# The fuzz tests of `make test` with FACTOR times the inputs, at random, and every bit flip; the tally goes to build/.
fuzz: setup
	@mkdir -p build && rm -f build/fuzz.json
	FUZZ_FACTOR=$(FACTOR) FUZZ_REPORT="$(CURDIR)/build/fuzz.json" LONG_TESTS=1 $(BIN)/python -m pytest -v --no-header \
		tests/fuzz tests/attacks/test_bit_flips.py tests/attacks/test_bit_flips_of_messages.py

# Policies by all doors while process after process is killed outright, and whether every total is the plain sum. It takes
# MINUTES, or as many ROUNDS as asked, a kill each; SEED repeats what was chance. The tally goes to build/soak.json.
soak: setup
	@mkdir -p build && rm -f build/soak.json
	SOAK_ROUNDS=$(ROUNDS) SOAK_MINUTES=$(MINUTES) SOAK_SEED=$(SEED) SOAK_REPORT="$(CURDIR)/build/soak.json" \
		$(BIN)/python -m pytest -s -q --no-header tests/soak

# A private check against a plain central one, and what an alliance bears: a table, and all figures in build/bench.json.
# Some 20 minutes on a machine that does nothing else; QUICK=1 takes 3.
bench: setup
	$(BIN)/python loadtests/bench.py $(if $(QUICK),--quick)

# Resolves anew to the newest versions that pyproject.toml allows. Needs `uv` on the PATH.
constraints:
	printf '%s\n' '# Exact versions and hashes of everything that make setup installs; pyproject.toml has the lower bounds.' \
		'# Renewed by: make constraints' > constraints.txt
	printf 'setuptools>=77\n' | uv pip compile --quiet --universal --python-version 3.11 --extra dev --generate-hashes \
		--no-header --no-annotate --no-emit-index-url pyproject.toml - >> constraints.txt

clean:
	rm -rf .venv build protocol/_half_gates.* .mypy_cache .ruff_cache .pytest_cache .hypothesis
