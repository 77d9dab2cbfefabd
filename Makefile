# Two commands for a newcomer: `make reproduce` and `make test`. Both build the environment when it is missing.
#
# Your own environment (conda, a container): PYTHON=python, after environment.yml or pip install -e .[dev,docs].
# Without it everything goes into .venv. TORCH_INDEX=https://download.pytorch.org/whl/cpu avoids the CUDA build of torch.

PROFILE     ?= cpu
DATA        ?=
SEED        ?= 0
SEEDS       ?=
SETUP       ?= G
TORCH_INDEX ?=

STAGES  := 00_start_here 01_data base_model 02_knowledge_rag 03_vf_voting 04_trace_qc 05_sft 06_grpo 07_evaluation \
           08_paper_figures
# Pinned once, in pyproject.toml. torch comes first and outside the lock: its file and hash differ between CPU and CUDA.
TORCH   := $(shell sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
STAMP   := $(if $(PYTHON),,.venv/.complete)
PY      := $(if $(PYTHON),$(PYTHON),.venv/bin/python)
CHOICE   = --profile $(PROFILE) --seed $(SEED) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(DATA),--data "$(DATA)")
RUNS     = $(PY) -m fundus_lib.runs

.PHONY: help reproduce test status compare data-status bench drills recorded book export lab env lock clean $(STAGES)
.DEFAULT_GOAL := help

help:            ## this list
	@awk -F ':.*## ' '/^[a-z0-9_-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "make STAGE        one stage and what it needs: $(STAGES)"
	@echo "variables         PROFILE=smoke|cpu|single_gpu|paper (now $(PROFILE))  DATA=<folder of unpacked downloads>  SEED=  SEEDS=  SETUP="

reproduce: env   ## every notebook, table and figure; only what is missing or stale is executed
	@$(RUNS) reproduce $(CHOICE)

$(STAGES): env
	@$(RUNS) stage $@ $(CHOICE)

status: env      ## each stage of the profile: finished, stale and why, missing; hours and device
	@$(RUNS) status $(CHOICE)

compare: env     ## ours beside the published tables, with verdicts, into papers_figs/
	@$(PY) -m fundus_lib.tables compare --profile $(PROFILE)

data-status: env ## what of the catalogue lies in DATA, with counts and problems, and how to get the rest
	@$(PY) -m fundus_lib.data status "$(DATA)"

# Tests of whole runs: against a server, in several processes, through the settings of the GPU profiles.
WHOLE := served processes profiles_walk
# Two threads are many times slower than one as soon as two processes share the cores.
test: export OMP_NUM_THREADS = 1
test: env        ## lint, unit tests, all notebooks through papermill (smoke), through nbval, and against a real server
	$(PY) -m ruff check .
	$(PY) -m nbstripout --verify --keep-id notebooks/*.ipynb
	$(PY) -m pytest -q -n 2 --dist loadscope $(WHOLE:%=--ignore tests/test_%.py) tests
	$(RUNS) reproduce --profile smoke
	$(PY) -m pytest -q -n 2 --dist loadscope --nbval-lax --nbval-current-env notebooks $(WHOLE:%=tests/test_%.py)

bench: env       ## what things cost on this machine, into papers_figs/recorded/bench.csv
	@$(PY) tests/bench.py

recorded: env    ## long runs with several seeds, resumable run by run, each a small record in papers_figs/recorded/runs
	@$(PY) -m fundus_lib.recorded

drills: env      ## client, votes and traces killed at 50 random moments, into papers_figs/recorded/drills.csv
	@$(PY) tests/drills.py

book: env        ## the executed notebooks as web pages with an index: runs/<profile>/book/index.html
	@$(PY) -m fundus_lib.book --profile $(PROFILE) $(if $(DATA),--data "$(DATA)")

export: env      ## the model of SETUP with its card, and its data for LLaMA-Factory and verl: runs/<profile>/export/
	@$(PY) -m fundus_lib.export --profile $(PROFILE) --setup $(SETUP) --seed $(SEED) $(if $(DATA),--data "$(DATA)")

lab: env         ## JupyterLab on the notebooks
	@$(PY) -m jupyterlab --notebook-dir=notebooks

clean:           ## remove the runs of one profile, which has to be named: make clean PROFILE=smoke
	$(if $(filter command environment,$(firstword $(origin PROFILE))),,$(error which runs? make clean PROFILE=smoke))
	@$(RUNS) clean $(CHOICE)

env: $(STAMP)    ## the environment alone (.venv, about two minutes)
	@:

# The lock has every dependency but torch, with hashes; --no-deps because it is complete. deepspeed is a source package:
# built without its compiled operators, and in the usual build isolation, where pip does not ask for hashes of setuptools.
.venv/.complete: pyproject.toml requirements.lock
	@set -e; base="$$(command -v python3.11 || command -v python3.12 || command -v python3)"; \
	"$$base" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || { \
	  echo "$$base is not Python 3.11 or 3.12.  install one, or use your own environment: make ... PYTHON=python"; exit 1; }; \
	echo "building .venv: $(TORCH) and $$(grep -c '^[A-Za-z0-9]' requirements.lock) locked packages, about two minutes"; \
	"$$base" -m venv .venv; \
	.venv/bin/python -m pip install -q "$(TORCH)" $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)); \
	DS_BUILD_OPS=0 DS_ACCELERATOR=cpu .venv/bin/python -m pip install -q --require-hashes --no-deps -r requirements.lock; \
	PYTHONWARNINGS=ignore .venv/bin/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@

lock: env        ## resolve pyproject.toml again into requirements.lock (all but torch and what only CUDA builds bring)
	CUSTOM_COMPILE_COMMAND="make lock" $(PY) -m piptools compile --quiet --extra dev --extra docs --generate-hashes \
	  --strip-extras --unsafe-package torch --unsafe-package pip --no-emit-index-url --no-emit-find-links \
	  --no-emit-options $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --output-file requirements.lock pyproject.toml
