# make demo, make test: the environment is made in .venv and kept up with the requirements files.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
DEMO := method_config/Demo/SOFS.yaml
GENERAL := method_config/General/SOFS.yaml
TIMED := tests/tools/benchmark/test_bounds.py
# Threads that wait in a loop take the cores from the loader's workers.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: help app demo test test-long lint clean

help:
	@echo "make demo   write demo data, segment an unknown object at once, then train on some products and test on others"
	@echo "make app    serve the page on which defects are taught; APP=\"--port 8000\" gives options"
	@echo "make test   lint, then every test"
	@echo "make test-long   what takes longer: many kills, long runs, more invented files"
	@echo "make lint   ruff check"
	@echo "make clean  remove .venv, demo_data, the demo's runs and caches; other runs in log/ stay"
	@echo "PYTHON=...  the Python, 3.11 or later, that .venv is made with (now: $(PYTHON))"

demo: $(VENV)/requirements.stamp
	$(PY) -m datasets.demo demo_data
	rm -rf log/demo log/demo_open_domain log/demo_general
	@echo "one example of an unknown object, nothing trained"
	PYTHON=$(PY) CFG="$(GENERAL) method_config/Demo/Open_Domain.yaml" sh test.sh RUN_NAME demo_general \
		TEST.load_model_path $(GENERAL:.yaml=.safetensors)
	$(PY) train.py --cfg $(DEMO) --opts RUN_NAME demo
	PYTHON=$(PY) CFG="$(DEMO) method_config/Demo/Open_Domain.yaml" sh test.sh RUN_NAME demo_open_domain
	@$(PY) -m tools.summary log/demo_general log/demo log/demo_open_domain

app: $(VENV)/requirements.stamp
	$(PY) -m tools.app $(APP)

# What is timed comes last, alone.
test: lint
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n auto --dist worksteal --ignore $(TIMED) --ignore tests/long
	$(PY) -m pytest -q $(TIMED)

test-long: $(VENV)/requirements-dev.stamp
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n auto tests/long

lint: $(VENV)/requirements-dev.stamp
	$(PY) -m ruff check .

clean:
	rm -rf $(VENV) demo_data log/demo log/demo_general log/demo_open_domain .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is newer than the requirements it was made from; a broken .venv is made anew.
$(VENV)/requirements-dev.stamp: requirements.txt requirements-export.txt
$(VENV)/%.stamp: %.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: $(PYTHON) is older than Python 3.11; run make PYTHON=python3.11")'
	@$(PY) -m pip --version >/dev/null 2>&1 || { echo "making $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "installing $< (the first time some GB, several minutes)"
	@$(PY) -m pip install -qq --disable-pip-version-check --root-user-action=ignore -r $<
	@touch $@
