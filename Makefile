# The README uses `make quickstart` and `make test`. `make test-all` adds the slow tests, `make test-system` runs the
# system tests, and `make docs` builds the documentation site.
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
RUN := runs/quickstart-0

# Files with system tests. Those of SLURM come first because they take longest.
SYSTEM = tests/slurm $(filter-out tests/slurm/%,$(shell grep -rl 'mark\.system' tests --include='*.py' | sort))
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

.PHONY: quickstart test test-all test-system docs lint clean

ifneq ($(UV),)
install = $(UV) venv --quiet --allow-existing $(VENV) && $(UV) pip install --quiet --python $(BIN)/python -e '.[$(1)]'
else
install = test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(1)]'
endif

$(VENV)/.installed: pyproject.toml
	$(call install,timm)
	touch $@

$(VENV)/.installed-test: pyproject.toml
	$(call install,test)
	touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml
	$(call install,docs)
	touch $@ $(VENV)/.installed

quickstart: $(VENV)/.installed
	$(BIN)/crosschannel pretrain --config quickstart --out $(RUN)
	$(BIN)/crosschannel colorize builtin:sample --model $(RUN) --out $(RUN)/coloured
	$(BIN)/transfer linear-probe --config quickstart --backbone $(RUN) --out $(RUN)-probe
	$(BIN)/transfer linear-probe --config quickstart --backbone random:$(RUN) --out $(RUN)-probe-random
	$(BIN)/transfer compare $(RUN)-probe $(RUN)-probe-random
	$(BIN)/transfer report $(RUN) $(RUN)-probe $(RUN)-probe-random --out $(RUN)-report
	@echo
	@echo "coloured pictures:  $(RUN)/coloured (such as $(RUN)/coloured/coffee.png)"
	@echo "validation curve:   $(RUN)/curve.png"
	@echo "probe report:       $(RUN)-report/report.html"

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Pass flags to pytest with: make test FLAGS="-k probe -x".
test: lint
	$(PYTEST) $(FLAGS)

# Includes the slow tests.
test-all: lint
	$(PYTEST) -m 'not system' $(FLAGS)

# System tests: the built wheel with only its required dependencies, jobs of the local launcher, a real SLURM and a real
# browser. SLURM and the browser need root; missing Debian packages are installed. Processes may outnumber cores, since
# jobs mostly wait for each other.
test-system: $(VENV)/.installed-test
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! { command -v slurmctld && command -v chromium; } >/dev/null; then \
		(apt-get update -q && apt-get install -qy --no-install-recommends slurmctld slurmd slurm-client munge chromium) \
		>/dev/null; fi
	$(BIN)/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder -m system $(SYSTEM) $(FLAGS)

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --quiet
	@echo "site/index.html"

clean:
	rm -rf $(VENV) dist build site runs .pytest_cache .ruff_cache
