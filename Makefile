# `make help` lists the targets. Variables, with the defaults that the published tables use:
#   SCALE=cpu            cpu, gpu, ... : which experiment, <task>_<scale>
#   SEEDS=201,202,203    evaluation seeds: the first of the study's
#   JOBS=2               runs at a time
#   OPTIMIZERS=adamw_clip,fadam  what is compared
#   ARGS=                of reproduce-* and tune-*: further Hydra overrides, such as ARGS="logger=wandb" or, to try two steps,
#                        ARGS="debug=fast"; of study-* and compare-own: ARGS="--set key=value"; elsewhere: the options of the command
#   OWN=<config>         the task of `make compare-own`
#   PYTHON=python3       makes the environment in .venv; 3.11 or newer
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

SCALE ?= cpu
SEEDS ?= 201,202,203
JOBS ?= 2
OPTIMIZERS ?= adamw_clip,fadam
ARGS ?=
PYTHON ?= python3
VENV ?= .venv
DATA := $(or $(FADAM_DATA),data)
RUNS := $(or $(FADAM_RUNS),runs)
PY := $(VENV)/bin/python
GPU_PY ?= $(if $(wildcard $(PY)),$(PY),python3)
READY := $(VENV)/.ready
# Lightning and transformers ask no hub while local data are used; wandb stays silent unless chosen.
export PYTHONUNBUFFERED := 1
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help
help: ## list the targets
	@awk -v width="$${COLUMNS:-$$(tput cols 2>/dev/null || echo 80)}" -f scripts/help.awk $(firstword $(MAKEFILE_LIST))

.PHONY: install
install: $(READY) ## make the environment in .venv (about 6 GB; a few minutes)

$(READY): pyproject.toml constraints.txt scripts/make_env.sh
	@scripts/make_env.sh "$(PYTHON)" "$(VENV)"
	@touch $@

# ---- data: the embedded ones are made, at other scales they are fetched ---------------------------------------------
TASKS := asr llm vqvae
TASK ?= llm
comma := ,
EMBEDDED := $(filter cpu,$(SCALE))
FETCH = $(PY) -m scripts.fetch_data
.PHONY: $(TASKS:%=data-%)
data-asr: $(READY) ## write the synthesised speech (2 minutes, once); SCALE=gpu fetches LibriSpeech, and says so first
	@$(if $(EMBEDDED),$(PY) -m scripts.prepare_speech --out "$(DATA)/speech",$(FETCH) asr_$(SCALE))
data-llm: $(READY) ## tokenise the State of the Union speeches (seconds, once); SCALE=gpu: FineWeb-Edu
	@$(if $(EMBEDDED),$(PY) -m scripts.prepare_text --experiment llm_$(SCALE),$(FETCH) llm_$(SCALE))
data-vqvae: $(READY) ## fetch photographs from Debian's packages and cut them into tiles (once); SCALE=gpu: CIFAR-10
	@$(if $(EMBEDDED),$(PY) -m scripts.prepare_images --out "$(DATA)/images",$(FETCH) vqvae_$(SCALE))

# ---- the comparisons ------------------------------------------------------------------------------------------------
EXPERIMENTS_asr := asr_$(SCALE)
EXPERIMENTS_llm := llm_$(SCALE)
EXPERIMENTS_vqvae := vqvae_$(SCALE)

.PHONY: $(TASKS:%=reproduce-%) $(TASKS:%=tune-%)
reproduce-asr: ## Adam against FAdam on speech: trains, then compares with the published runs
reproduce-llm: ## the same on language modelling
reproduce-vqvae: ## the same on a VQ-VAE of photographs
$(TASKS:%=reproduce-%): reproduce-%: $(READY)
	@$(if $(EMBEDDED),$(MAKE) --no-print-directory data-$*)
	@$(if $(EMBEDDED),,$(FETCH) $*_$(SCALE) --gpu)
	@$(PY) -m experiments.train -m experiment=$(EXPERIMENTS_$*) optimizer=$(OPTIMIZERS) seed=$(SEEDS) \
		hydra.launcher.n_jobs=$(JOBS) $(ARGS)
	@$(if $(findstring debug=fast,$(ARGS)),echo "Two steps of each were tried; such runs stand in no table.",\
		$(PY) -m experiments.analysis compare $* --scale $(SCALE) --seeds $(SEEDS) --optimizers $(OPTIMIZERS) --runs "$(RUNS)")

tune-asr: ## with SCALE=gpu or paper: try learning rates for AdamW + clip and FAdam, on one seed, and choose
tune-llm: ## the same for language modelling
tune-vqvae: ## the same for the VQ-VAE
$(TASKS:%=tune-%): tune-%: $(READY)
	@$(if $(EMBEDDED),$(MAKE) --no-print-directory data-$*)
	@$(if $(EMBEDDED),,$(FETCH) $*_$(SCALE) --gpu)
	@$(PY) -m experiments.train -m experiment=$(EXPERIMENTS_$*) tune=lr hydra.launcher.n_jobs=$(JOBS) $(ARGS)
	@$(PY) -m experiments.study choose $(subst $(comma), ,$(EXPERIMENTS_$*)) --runs "$(RUNS)"

# ---- the study: configs/study declares it; each target goes on with what is missing ------------------------------------
.PHONY: study $(TASKS:%=study-%) status
STUDY = $(PY) -m experiments.study run --jobs $(JOBS) --runs "$(RUNS)"
study: data-asr data-llm data-vqvae ## make all runs of the declared studies that have no record yet (days; `make status`)
	@$(STUDY) $(ARGS)
study-asr: ## the study of speech recognition alone
study-llm: ## the study of language modelling alone
study-vqvae: ## the study of the VQ-VAE alone
$(TASKS:%=study-%): study-%: data-%
	@$(STUDY) $* $(ARGS)

status: $(READY) ## what of the studies is published, done here, due, and the hours left
	@$(PY) -m experiments.study status --jobs $(JOBS) --runs "$(RUNS)"

.PHONY: compare-own
OWN ?= examples/own_task/textures.yaml
compare-own: $(READY) ## AdamW + clip against FAdam on a task of your own, OWN=<its config>: docs/own-task.md
	@$(PY) -m experiments.study own "$(OWN)" --jobs $(JOBS) --runs "$(RUNS)/own" $(ARGS)

# ---- results ------------------------------------------------------------------------------------------------------
.PHONY: publish tables report compare check-report
publish: $(READY) ## copy finished records of the studies and of other scales into results/runs
	@$(PY) -m experiments.study publish --runs "$(RUNS)"

tables: $(READY) ## make README's answer, docs/use.md, tables, figures and verdicts from the published records
	@$(PY) -m experiments.theory.knows
	@$(PY) -m experiments.analysis tables
	@$(PY) -m scripts.use_page

report: $(READY) ## make results/report.html, one page with everything, from the published records
	@$(PY) -m experiments.analysis report

compare: $(READY) ## this machine's runs of TASK (asr, llm or vqvae) beside the published ones
	@$(PY) -m experiments.analysis compare $(TASK) --scale $(SCALE) --seeds $(SEEDS) --optimizers $(OPTIMIZERS) --runs "$(RUNS)"

check-report: $(READY) ## look at the page in a headless Chromium or Chrome, which must be installed
	@$(PY) -m experiments.analysis.check results/report.html

.PHONY: fisher
fisher: $(READY) data-asr data-llm data-vqvae ## what the optimizer knows: four uses and its size, beside the published (about 15 minutes of one core)
	@$(PY) -m examples.fisher --out "$(RUNS)/fisher"
	@$(PY) -m experiments.theory.closed_forms --out "$(RUNS)/fisher/closed_forms.json"
	@$(PY) -m experiments.theory.fisher --out "$(RUNS)/fisher/toy.json"
	@$(PY) -m experiments.theory.tasks --out "$(RUNS)/fisher/tasks.json"
	@$(PY) -m experiments.theory.knows --own "$(RUNS)/fisher"

.PHONY: push
push: $(READY) ## push the run records, and offline runs, to Weights & Biases
	@$(PY) -m scripts.push_wandb --runs "$(RUNS)" $(ARGS)

.PHONY: bench bench-llm gpu-check
bench: $(READY) ## time, bandwidth and memory of an optimizer step, FAdam against the others (20 minutes, idle machine)
	@$(PY) -m scripts.bench_step

gpu-check: ## on a machine with a GPU, in 10 minutes and without a network: all that only a GPU can show (GPU_PY=python3)
	@$(GPU_PY) -m scripts.gpu_check $(ARGS)

bench-llm: $(READY) ## tokens per second of our training run against a bare PyTorch loop
	@$(PY) -m scripts.bench_llm

# ---- the house ----------------------------------------------------------------------------------------------------
.PHONY: test test-fast torture lint format wheel check-package clean
# Two processes, one a core; the tests of a file stay together, since they share what is dear to make.
PYTEST := $(PY) -m pytest -q -n 2 --dist loadfile
test: $(READY) ## lint, types and tests (about 16 minutes on 2 cores)
	@$(MAKE) --no-print-directory lint
	@$(PYTEST)

FAST := tests/fadam/test_reference.py tests/fadam/test_options.py tests/fadam/test_defaults.py tests/fadam/test_paths.py::test_float64 \
	tests/test_configs.py tests/core/test_callbacks.py tests/core/test_data.py tests/core/test_schedule.py \
	tests/study tests/core/test_plan.py tests/core/test_records.py tests/core/test_catalogue.py tests/core/test_menu.py \
	tests/test_additions.py tests/test_readme.py tests/scripts/test_structure.py \
	$(filter-out %/test_families.py %/test_looks.py,$(wildcard tests/analysis/test_*.py)) # without the simulated studies
test-fast: $(READY) ## format, structure and the most telling tests (less than 90 seconds on 2 cores)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(PY) -m scripts.structure
	@$(PYTEST) -p no:cacheprovider $(FAST)

torture: $(READY) ## end runs and sweeps at random moments, and feed rotten data (about an hour): docs/reliability.md
	@$(PY) -m pytest -q -s -m "long or not long" tests/torture $(wildcard tests/*/test_rotten*.py)

lint: $(READY) ## ruff, the structure's figures and mypy
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(PY) -m scripts.structure
	@$(VENV)/bin/mypy

format: $(READY) ## let ruff rewrite the sources
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

wheel: $(READY) ## build the optimizer's wheel into dist/
	@$(PY) -m build --wheel --outdir dist .

check-package: ## build the optimizer's package, look into it and try it in an environment of its own (ARGS=--contents: no torch)
	@$(PYTHON) -m scripts.check_package $(ARGS)

clean: ## remove the environment and caches; data and runs stay
	rm -rf "$(VENV)" dist build *.egg-info .pytest_cache .mypy_cache .ruff_cache
