# Two commands for a newcomer: `make serve` and `make test`. Each sets up .venv on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS ?= constraints/cpu.txt
TARGET ?= cpu
EXPLAIN := $(if $(findstring gpu,$(CONSTRAINTS)),explain,explain-cpu)
# Two workers, for two cores. The tests of a file stay together, and files are started in the order of collection,
# long ones first.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint $(CONSTRAINTS) --editable

# The trainers of `make test-trainers`, and the version of torch in their environments.
TRAINERS ?= trl ms_swift verl openrlhf
TORCH := $(shell grep '^torch==' constraints/cpu.txt)

.DEFAULT_GOAL := help
.PHONY: help serve demo rl-demo test test-all test-trainers check docs dist fuzz mutants bench soak screenshots image image-test train-tiny format clean

help: ## print this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 16

serve: $(VENV)/.service ## serve a tiny checkpoint on http://127.0.0.1:8000 (CHECKPOINT=DIR for yours)
	@$(BIN)/jrm serve $(if $(CHECKPOINT),--checkpoint $(CHECKPOINT)) $(FLAGS)

demo: $(VENV)/.service ## score edits of a drawn scene through the SDK and print a table
	@$(BIN)/python examples/demo.py

rl-demo: $(VENV)/.train ## train with Flow-GRPO against the service, and save edits from before and after (about 10 minutes)
	@$(BIN)/python -m examples.flow_grpo.demo $(FLAGS)

test: $(VENV)/.dev ## run the everyday tests (about eight minutes); once set up, they need no network, GPU or model hub
	@$(PYTEST) -m "not heavy" $(ARGS)
	@echo "Not run: heavy tests (vLLM, a soak, the benchmarks, the base install). make test-all runs everything."

test-all: $(VENV)/.dev ## run every test, including vLLM, a one-minute soak and the benchmarks
	@$(PYTEST) $(ARGS)

test-trainers: $(VENV)/.service $(TRAINERS:%=.trainers/%/.ready) ## test our rewards in the real trainers, each in an environment of its own
	@for trainer in $(TRAINERS); do \
	JRM=$(abspath $(BIN)/jrm) HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 .trainers/$$trainer/bin/python -m pytest \
	-c tests/trainers/pytest.ini tests/trainers/real_$$trainer.py $(ARGS) || exit 1; done

fuzz: $(VENV)/.dev ## fuzz images and requests until something breaks; add what it finds to tests/fuzz/corpus
	@$(BIN)/python -m pytest tests/fuzz --hypothesis-profile=fuzz --hypothesis-seed=random --timeout=0 $(ARGS)

mutants: $(VENV)/.mutants ## change the pure core in small ways and count what its tests notice (MODULES="planner queue")
	@$(BIN)/python -m tools.mutants $(MODULES)

check: $(VENV)/.dev ## check lint, format, types and import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

docs: $(VENV)/.docs ## build the documentation site in out/site, with search, and check its links
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "out/site/index.html; with search: $(PYTHON) -m http.server --directory out/site"

dist: $(VENV)/.dist ## build wheel and source distribution into out/dist, install each in an environment of its own, serve and score
	@rm -rf out/dist
	@$(BIN)/python -m build --outdir out/dist
	@$(BIN)/python -m tools.check_dist out/dist $(CONSTRAINTS)

bench: $(VENV)/.bench ## compare ways to score on this machine and draw docs/performance-*.png (about 20 minutes)
	@$(BIN)/python -m benchmarks.work
	@$(BIN)/python -m benchmarks.compare --save docs/performance.json $(FLAGS)
	@$(BIN)/python -m benchmarks.plots docs/performance.json docs

soak: $(VENV)/.dev ## kill Redis, replicas, workers and clients at random under load (10 minutes; FLAGS="--seconds 3600")
	@$(BIN)/python -m benchmarks.soak $(FLAGS)

screenshots: $(VENV)/.dev ## take docs/page-*.png, screenshots of the page of a server with the bundled checkpoint (needs Chromium)
	@$(BIN)/python -m tools.screenshots docs

image: $(VENV)/bin/python ## build the image with docker or podman (TARGET=gpu for the GPU image; BASE=stand-in without a registry)
	@$(BIN)/python -m tools.image build --target $(TARGET) $(if $(BASE),--base $(BASE))

image-test: $(VENV)/.service ## run the image as in production, score through it, and check its contents
	@$(BIN)/python -m tools.image check --target $(TARGET)

train-tiny: $(VENV)/.train ## retrain the bundled checkpoint into out/jrm-tiny (hours on two CPU cores; resumes if stopped)
	@train() { \
	  if command -v nvidia-smi >/dev/null; then $(BIN)/jrm train "$$@"; \
	  else OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node 2 -m jrm_training train "$$@"; fi; }; \
	train --recipe jrm-tiny --out out/jrm-tiny-first && \
	train --recipe jrm-tiny-votes --checkpoint out/jrm-tiny-first/checkpoint --out out/jrm-tiny-votes && \
	train --recipe jrm-tiny-sigma --checkpoint out/jrm-tiny-votes/checkpoint --out out/jrm-tiny-sigma && \
	train --recipe jrm-tiny-labels --name jrm-tiny --checkpoint out/jrm-tiny-sigma/checkpoint --out out/jrm-tiny

format: $(VENV)/.dev ## format, and fix lint errors that ruff can fix
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean: ## remove the environments and all caches
	rm -rf $(VENV) .trainers .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.service: $(VENV)/bin/python pyproject.toml $(CONSTRAINTS)
	@echo "installing jrm-serve[service] into $(VENV) (a few minutes, once)"
	@$(INSTALL) '.[service]'
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml $(CONSTRAINTS)
	@echo "installing jrm-serve[dev] into $(VENV) (a few minutes, once)"
	@$(INSTALL) '.[dev]'
	@$(BIN)/python tools/repair_cpu_torch.py
	@$(BIN)/python tools/fetch_prometheus.py
	@touch $(VENV)/.service $@

$(VENV)/.docs: $(VENV)/bin/python pyproject.toml
	@echo "installing jrm-serve[docs] into $(VENV) (once)"
	@$(INSTALL) '.[docs]'
	@touch $@

$(VENV)/.dist: $(VENV)/bin/python pyproject.toml $(CONSTRAINTS)
	@echo "installing jrm-serve[dist] into $(VENV) (once)"
	@$(INSTALL) '.[dist]'
	@touch $@

$(VENV)/.mutants: $(VENV)/.dev
	@echo "installing jrm-serve[mutants] into $(VENV) (once)"
	@$(INSTALL) '.[mutants]'
	@touch $@

$(VENV)/.bench: $(VENV)/bin/python pyproject.toml $(CONSTRAINTS)
	@echo "installing jrm-serve[bench] and vLLM, for comparison, into $(VENV) (a few minutes, once)"
	@$(INSTALL) '.[bench,$(EXPLAIN)]'
	@$(BIN)/python tools/repair_cpu_torch.py
	@touch $(VENV)/.service $@

$(VENV)/.train: $(VENV)/bin/python pyproject.toml $(CONSTRAINTS)
	@echo "installing jrm-serve[train] into $(VENV) (a few minutes, once)"
	@$(INSTALL) '.[train]'
	@touch $(VENV)/.service $@

# OpenRLHF depends on flash-attn, which needs CUDA to build, so it is installed without its dependencies; its requirements
# file lists the packages that the files under test import.
.trainers/%/.ready: tests/trainers/requirements/%.txt pyproject.toml
	@echo "installing $* into .trainers/$* (a few minutes, once)"
	@$(PYTHON) -m venv .trainers/$*
	@.trainers/$*/bin/python -m pip --disable-pip-version-check install --quiet $(TORCH) --editable . --requirement $<
	@$(if $(filter openrlhf,$*),.trainers/$*/bin/python -m pip --disable-pip-version-check install --quiet --no-deps openrlhf)
	@touch $@
