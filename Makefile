# Plain targets over .venv; works with make 3.81 (macOS). `make help` lists them.
PYTHON ?= python3
PROFILE ?= quick
BIN := .venv/bin
STAMP := .venv/.stamp

.DEFAULT_GOAL := help
.PHONY: help run standard test lint lab demo opensearch-up opensearch-down lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=python3.12 make run   another Python (3.11 to 3.13)"
	@echo "  $(BIN)/python -m nblib --help   parameters, single notebooks, resume"

run: $(STAMP) ## set up, then run the notebooks with profile quick (PROFILE=name for another)
	@$(BIN)/python -m nblib run --profile $(PROFILE)

standard: $(STAMP) ## set up, then run the notebooks with profile standard (up to an hour on 2 cores)
	@$(BIN)/python -m nblib run --profile standard

test: lint ## set up, then all checks and tests, in as many processes as there are cores, 4 at most
	@$(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist loadscope --no-loadscope-reorder

lint: $(STAMP) ## ruff, and notebooks stripped of outputs
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m nbstripout --verify --extra-keys "metadata.papermill cell.metadata.papermill" notebooks/*.ipynb

lab: $(STAMP) ## set up, then open the notebooks in JupyterLab
	@PYTHONPATH="$(CURDIR)" JUPYTER_PREFER_ENV_PATH=1 $(BIN)/jupyter lab \
	  --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/notebooks

demo: $(STAMP) ## a search page on 127.0.0.1:8765 over the quick run's model and test set
	@$(BIN)/python -m nblib.demo

opensearch-up: $(STAMP) ## start an OpenSearch node on 127.0.0.1:9200 (Linux; Java 21 or newer, Maven)
	@$(BIN)/python -m nblib.opensearch.node up

opensearch-down: $(STAMP) ## stop it; what it holds stays
	@$(BIN)/python -m nblib.opensearch.node down

# The version test comes first; the stamp comes last, so an interrupted set-up is taken up again.
$(STAMP): requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "Python %d.%d found; want 3.11, 3.12 or 3.13: PYTHON=python3.12 make ..." % v)'
	@echo "Setting up .venv once; some minutes, 6 GB of disk on Linux."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@touch $@

# One set of versions for Linux and macOS, Python 3.11 to 3.13; needs uv (pip install uv).
lock: ## resolve requirements.txt anew into requirements.lock
	uv pip compile --quiet --universal --no-header --no-annotate --python-version 3.11 --upgrade \
	  requirements.txt --output-file requirements.lock

clean: ## remove results and caches (outputs/reference and .venv stay)
	rm -rf .pytest_cache .ruff_cache
	find outputs -mindepth 1 -maxdepth 1 ! -name reference -exec rm -rf {} +
	find nblib tests -name __pycache__ -prune -exec rm -rf {} +
