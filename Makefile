# The commands a person needs:
#   make quickstart    set up all it needs, evolve a merge of the shipped experts
#   make test          set up all it needs, run every test
#   make bench         measure every performance claim
#   make lint          what reviewers would otherwise say
# UV_TORCH_BACKEND=cpu (or auto) in the environment chooses another build of torch; plain PyPI's is the default.

PYTHON ?= python3
PYTEST_ARGS ?= -n 2 --dist loadfile
CLUSTER_ARGS ?= tests/cluster --durations=8
VENV := .venv
BIN := $(VENV)/bin
LAB := $(BIN)/python tests/cluster/lab
OPERATOR := .venv-operator
ORACLE := .venv-mergekit
EVOLVE := .venv-mergekit-evolve
export UV_PYTHON_DOWNLOADS := never
export OMP_WAIT_POLICY := passive
export TOKENIZERS_PARALLELISM := false

.PHONY: quickstart quickstart-models test test-unit test-operator test-parity test-run test-gpu test-cluster cluster-up cluster-down bench lint format crds constraints clean

quickstart: $(VENV)/.ready
	$(BIN)/evomerge run examples/quickstart/evomerge.yaml

quickstart-models: $(VENV)/.ready
	$(BIN)/python examples/quickstart/items.py
	$(BIN)/python examples/quickstart/train.py

test: $(VENV)/.ready-dev $(ORACLE)/.ready
	$(LAB) check
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/unit tests/parity tests/run --cov --durations=8 $(PYTEST_ARGS)
	OMP_NUM_THREADS=1 $(LAB) test $(CLUSTER_ARGS)

test-unit: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/unit $(PYTEST_ARGS)

# The tests of contract and operator, in an environment like that of the operator's image: without torch. Those of the
# worker import it; one that reaches it by a detour fails.
test-operator: $(OPERATOR)/.ready
	$(OPERATOR)/bin/pytest $$(grep -LE '^ *(from|import) (torch|evomerge_worker|prepare_tasks)\b' tests/unit/test_*.py) $(PYTEST_ARGS)

test-parity: $(VENV)/.ready-dev $(ORACLE)/.ready
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/parity $(PYTEST_ARGS)

test-run: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/run $(PYTEST_ARGS)

# What a GPU does. Where there is none, the tests are skipped and say why; EVOMERGE_TEST_DEVICE=cpu tries them on a CPU.
test-gpu: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/gpu $(PYTEST_ARGS)

# On a Kubernetes of its own (Linux, root), or on the one whose kubectl context EVOMERGE_TEST_CONTEXT names.
test-cluster: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(LAB) test $(CLUSTER_ARGS)

# To work on the operator: bring the cluster up once, then `make test-cluster CLUSTER_ARGS=tests/cluster/test_one.py`
# uses it, and `.venv/bin/python tests/cluster/lab exec kubectl …` looks into it.
cluster-up: $(VENV)/.ready-dev
	$(LAB) up

cluster-down: $(VENV)/.ready-dev
	$(LAB) down

bench: $(VENV)/.ready-dev $(ORACLE)/.ready $(EVOLVE)/.ready
	for script in pipeline_share dfs search_busy search_replay merge merge_memory merge_vs_mergekit candidates_per_hour quickstart_margin \
			store_pull operator_overhead operator_memory candidate_cost; do \
		$(BIN)/python bench/$$script.py || exit 1; \
	done
	$(BIN)/python bench/candidates_per_hour.py --size 0.5B
	$(BIN)/python bench/store_pull.py --gigabits 4 --repeats 3

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# crds/ and the chart's copy of it, from the contract.
crds: $(VENV)/.ready
	$(BIN)/python -m evomerge_operator.crd

# A plain list of exact versions without any index address, so that every set-up gets the same ones.
constraints: $(BIN)/uv
	$(BIN)/uv pip compile --quiet --no-header --no-annotate --no-emit-index-url --all-extras --universal \
		--python-version 3.11 --upgrade pyproject.toml --output-file constraints.txt

$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "uv>=0.9"

$(VENV)/.ready: $(BIN)/uv pyproject.toml constraints.txt worker/evomerge_worker/merge/kernels.c
	@echo "installing into $(VENV) (PyTorch alone is a download of about 3 GB, once)"
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[operator,worker]'
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	touch $@

$(OPERATOR)/.ready: $(BIN)/uv pyproject.toml constraints.txt
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(OPERATOR)
	$(BIN)/uv pip install --quiet --python $(OPERATOR)/bin/python --constraint constraints.txt \
		--editable '.[operator,test]'
	touch $@

# mergekit (LGPL) is a test oracle: installed beside us, never imported by what we ship.
$(ORACLE)/.ready: $(BIN)/uv constraints-mergekit.txt
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(ORACLE)
	$(BIN)/uv pip install --quiet --python $(ORACLE)/bin/python --constraint constraints-mergekit.txt mergekit
	touch $@

# mergekit-evolve, for bench/candidates_per_hour.py alone.
$(EVOLVE)/.ready: $(BIN)/uv bench/reference/constraints-mergekit-evolve.txt
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(EVOLVE)
	$(BIN)/uv pip install --quiet --python $(EVOLVE)/bin/python \
		--constraint bench/reference/constraints-mergekit-evolve.txt 'mergekit[evolve]' lm-eval
	touch $@

clean:
	rm -rf $(VENV) $(OPERATOR) $(ORACLE) $(EVOLVE) .cache build *.egg-info
