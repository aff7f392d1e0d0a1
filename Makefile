# Two commands for a newcomer: `make demo` and `make test`. Both rebuild nothing that is up to date.
PYTHON ?= python3
VENV   ?= .venv
OUT    ?= results/demo
PYTEST ?= -n 2 --dist loadfile
PY     := $(VENV)/bin/python

export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= passive
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help install assets browser demo test site lint clean

help:
	@echo "make demo   install, fetch the embedded model and data, run configs/demo.yaml, print where the page is"
	@echo "make test   install and run the test suite"
	@echo "make site   the page of $(OUT) and the docs as a static site in site/"
	@echo "make lint   ruff and mypy"
	@echo "make clean  remove the virtual environment and the demo results"

# One pip call with the constraints file, so that torch is resolved once, to the pinned version.
$(VENV)/installed.stamp: pyproject.toml constraints.txt
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet -c constraints.txt -e '.[eval,report,cluster,slurm,export,test]'
	@touch $@

install: $(VENV)/installed.stamp

# The cache (PRUNEBENCH_CACHE, default ~/.cache/prunebench) is hash-checked: nothing is fetched twice.
assets: $(VENV)/installed.stamp
	@$(PY) -m prunebench.models.assets

# nproc without --all would answer the OMP_NUM_THREADS that is exported above.
demo: assets
	OMP_NUM_THREADS=$$(nproc --all 2>/dev/null || echo 1) $(PY) run_all.py run --config configs/demo.yaml --out $(OUT)

# The leaderboard's browser tests drive Debian's Chromium; any chromium or google-chrome on the PATH will do.
$(VENV)/browser.stamp: $(VENV)/installed.stamp
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; } || \
	  echo "No Chromium found and it can't be installed here: install the package 'chromium', the browser tests need it." >&2
	@touch $@

browser: $(VENV)/browser.stamp

test: assets browser
	$(PY) -m pytest $(PYTEST)

# The page of $(OUT) and the docs as one static site.
site: $(VENV)/installed.stamp
	$(PY) -m prunebench.leaderboard.site $(OUT) --docs docs --to site

lint: $(VENV)/installed.stamp
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

clean:
	rm -rf $(VENV) results/demo
