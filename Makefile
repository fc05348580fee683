SHELL := bash
.DEFAULT_GOAL := help

# Variables, the same for every target that runs something.
SCALE ?= mini#      mini: embedded data, minutes on a CPU; small: a tenth of COCO, one GPU; coco: the paper's recipe
SIZE ?=#            model size: vit-mini, vit-ti, vit-b, vit-l, vit-h, swin-b, ...; default: the study's
SEEDS ?=#           number of seeds; default: the study's; auto: until every verdict is decided
MAX_SEEDS ?=#       with SEEDS=auto: at most; default: 17
BUDGET ?=#          with SEEDS=auto: time of all runs, added up, e.g. 90m, 2h, 1.5d; of plan: what it buys
VARIANTS ?=#        some rows only, comma-separated
SWEEP ?=#           each row at its best of factors on its own value: optimizer.lr=0.5,1,2
OVERRIDES ?=#       config keys, e.g. "train.max_iter=4 model.backbone.count=2"
JOBS ?=#            runs side by side; default: one per GPU or core
YES ?=#             YES=1: train at small or coco scale without a GPU, however long it takes
KEEP ?=#            KEEP=1: keep the tables and plots in results/ too
DELTA ?=#           AP; smaller differences are of no interest; default: 0.5, at mini scale 2
WIDE ?=#            WIDE=1: tables of masks, IoUs, object sizes, costs and categories, too
STUDY ?=#           of plan (default: global-vs-conv), export and bundle
TO ?= csv#          of export: csv, mlflow, trackio or wandb
OFFLINE ?=#         OFFLINE=1: export into the tracker's own files in runs/export/
GPUS ?=#            devices of one run; of plan: of one run, or of as many side by side
LAUNCHER ?= local#  local, or slurm: docs/cluster.md, slurm.toml
DEVICE ?=#          of plan: a GPU by name, e.g. h100; default: this machine
KIND ?=#            of data: coco or lvis
DATASET ?=#         train on your own COCO-format set: annotations.json,images/
VAL ?=#             evaluate on your own: annotations.json,images/
RECIPE ?=#          of pretrain: mae, sup, flip, ... (docs/pretraining.md)
IMAGES ?=#          pre-train on your own: a folder of images, in ImageNet's layout
CONFIG ?=#          of eval-coco: a .py under configs/ or a run's config.yaml
WEIGHTS ?=#         of eval-coco: checkpoint of a whole detector
SPLIT ?=#           of eval-coco: val2017, train2017, test-dev2017, lvis_v1_val, ...; default: the config's
SUITE ?= default#   of bench: default, growth, table-3, full, weights, evaluation, input, training, pretraining, rotary or probe
ONLY ?=#            of bench: cases with all these words, e.g. "128 train"; of gpu-check: parts
OUT ?=#             of gpu-check: folder of its rows and page; default: in results/benchmarks/<device>/
MINUTES ?= 8#       of gpu-check: all that it may take
PYTHON ?= python3#  3.11 to 3.13, makes .venv
TORCH ?=#           another torch, e.g. "torch==2.11.0 torchvision==0.26.0"
DETECTRON2 ?=#      another detectron2, e.g. git+https://github.com/facebookresearch/detectron2.git

VENV := .venv
PY := $(VENV)/bin/python
RUN := $(PY) -W ignore -m
UV := $(VENV)/bin/uv
INSTALLED := $(VENV)/.installed
INSTALLED_TEST := $(VENV)/.installed-test
# The community wheel of detectron2 with ViTDet in it is pure Python for our purposes, but tagged
# for CPython 3.10; hence the way it is installed below. Its own needs are in requirements.txt.
DETECTRON2_WHEEL := sal-detectron2==0.7.2
# lvis and tidecv ask for OpenCV with windows, which needs libGL (requirements.txt has the one without), and for
# Cython, which they do not use.
NOT_INSTALLED := opencv-python cython
# What a machine with torch, torchvision, timm, transformers, pandas, pytest and the like still lacks.
KIT := gpu-kit
KIT_PYTHON ?= 3.12# of the machine that gpu-kit/ is carried to
KIT_PACKAGES := fvcore hydra-core iopath lvis omegaconf pycocotools segment-anything shapely submitit termcolor yacs

# Recipes read what users write from the environment, so that any character may be in it.
export STUDY TO GPUS DEVICE DELTA SCALE SIZE SEEDS MAX_SEEDS BUDGET SWEEP VARIANTS OVERRIDES LAUNCHER JOBS YES KEEP KIND DATASET VAL RECIPE IMAGES CONFIG WEIGHTS SPLIT SUITE ONLY OUT MINUTES PYTHON TORCH DETECTRON2
data_options := --dataset "$$DATASET" --val "$$VAL"
delta = $(if $(DELTA),--delta "$$DELTA")
seeds = --seeds "$${SEEDS:-0}" $(if $(MAX_SEEDS),--max-seeds "$$MAX_SEEDS")

# Another PYTHON, TORCH or DETECTRON2 than the installed one means installing again.
CHOSEN := $(if $(filter file,$(origin PYTHON)),,$(PYTHON))|$(TORCH)|$(DETECTRON2)
ifneq ($(CHOSEN),||)
ifneq ($(CHOSEN),$(shell cat $(VENV)/.chosen 2>/dev/null))
.PHONY: $(INSTALLED)
endif
endif

.PHONY: help
help: ## List targets and variables
	@grep -hE '^[a-z%-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 24
	@echo; echo "Variables (make TARGET VARIABLE=value):"
	@grep -hE '^[A-Z0-9_]+ \?=' Makefile | sed -E 's/ \?= *([^#]*)# */\t\1\t/' | expand -t 14,22

.PHONY: install
install: $(INSTALLED) ## Make .venv with everything that runs need

$(INSTALLED): requirements.txt
	@"$$PYTHON" -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else \
		"Python %d.%d does not fit: 3.11 to 3.13 do, choose one with PYTHON=python3.12" % v)'
	@$(PY) -m pip --version >/dev/null 2>&1 && [ "$$($(PY) --version)" = "$$("$$PYTHON" --version)" ] \
		|| "$$PYTHON" -m venv --clear $(VENV)
	@test -x $(UV) || $(PY) -m pip install --quiet --disable-pip-version-check uv==0.13.9
	@tr ' ' '\n' <<< "$$TORCH" > $(VENV)/.torch
	@tr ' ' '\n' <<< "$(NOT_INSTALLED)" > $(VENV)/.excludes
	$(UV) pip install --quiet --compile-bytecode --python $(PY) --overrides $(VENV)/.torch --excludes $(VENV)/.excludes -r requirements.txt
	@if [ -z "$$DETECTRON2" ]; then $(UV) pip install --quiet --compile-bytecode --no-deps --python-version 3.10 $(DETECTRON2_WHEEL) \
		--target "$$($(PY) -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')"; \
	else $(UV) pip install --quiet --python $(PY) --no-deps --no-build-isolation "$$DETECTRON2"; fi
	@echo '$(CHOSEN)' > $(VENV)/.chosen
	@touch $@

$(INSTALLED_TEST): $(INSTALLED) requirements-test.txt
	$(UV) pip install --quiet --compile-bytecode --python $(PY) --excludes $(VENV)/.excludes -r requirements-test.txt
	@touch $@

# Rows that are finished get their table also if another row failed.
.PHONY: ablation-%
ablation-%: $(INSTALLED) ## Run a study and write its tables and plots, e.g. make ablation-global-vs-conv
	@$(RUN) experiments run $* --scale "$$SCALE" --size "$$SIZE" $(seeds) --budget "$$BUDGET" --sweep "$$SWEEP" $(delta) \
		--variants "$$VARIANTS" --jobs "$${JOBS:-0}" --gpus "$${GPUS:-1}" --launcher "$$LAUNCHER" --overrides "$$OVERRIDES" \
		$(data_options) --images "$$IMAGES" \
		$(if $(filter 1,$(YES)),--yes); \
	code=$$?; [ $$code = 2 ] || $(RUN) analysis study "runs/$$SCALE/$*" $(data_options) $(delta) $(if $(filter 1,$(KEEP)),--keep) $(if $(filter 1,$(WIDE)),--wide) || exit; exit $$code

.PHONY: pretrain
pretrain: $(INSTALLED) ## Pre-train an encoder, show how it learned: RECIPE= SCALE= SIZE= IMAGES=
	@$(RUN) experiments pretrain "$$RECIPE" --scale "$$SCALE" --size "$$SIZE" --seeds "$${SEEDS:-0}" \
		--jobs "$${JOBS:-0}" --gpus "$${GPUS:-1}" --launcher "$$LAUNCHER" --overrides "$$OVERRIDES" --images "$$IMAGES" \
		$(if $(filter 1,$(YES)),--yes) && $(RUN) analysis pretraining "runs/$$SCALE"

.PHONY: validity
validity: $(INSTALLED) ## Whether runs at mini or small scale order rows as the paper does: SCALE= SIZE=
	@$(RUN) analysis validity --scale "$$SCALE" --size "$$SIZE" $(if $(filter 1,$(KEEP)),--keep)

.PHONY: coverage
coverage: $(INSTALLED) ## Whether intervals and verdicts hold what they say, on simulated studies: two minutes
	@$(RUN) analysis coverage

.PHONY: mini-weights
mini-weights: $(INSTALLED) ## Make the weights that mini runs start from again: ten minutes on a core
	@$(RUN) experiments run experiments/studies/_windows_mini.py && $(RUN) experiments keep-mini-weights

.PHONY: paper-tables
paper-tables: $(INSTALLED) ## Every table of the paper beside our costs and AP: results/paper/
	@$(RUN) analysis paper-tables

.PHONY: plots
plots: $(INSTALLED) ## Every plot of every study that was run: PNG, SVG and the CSV behind each
	@$(RUN) analysis plots $(delta)

.PHONY: report
report: $(INSTALLED) ## All studies that were run on one page: runs/report/report.html and report.md
	@$(RUN) analysis report $(delta)

.PHONY: export
export: $(INSTALLED) ## Send finished runs to a tracker: TO=wandb|mlflow|trackio|csv STUDY= SCALE= OFFLINE=1
	@$(RUN) analysis export $(if $(STUDY),"runs/$$SCALE/$$STUDY") --to "$$TO" $(if $(filter 1,$(OFFLINE)),--offline)

.PHONY: bundle
bundle: $(INSTALLED) ## A study as one archive, to hand on: STUDY= SCALE=; runs/bundles/
	@$(RUN) analysis bundle "runs/$$SCALE/$$STUDY"

.PHONY: plan
plan: $(INSTALLED) ## What a study will take before it runs: STUDY= SCALE= GPUS= DEVICE=
	@$(RUN) experiments plan "$${STUDY:-global-vs-conv}" --scale "$$SCALE" --size "$$SIZE" $(seeds) --sweep "$$SWEEP" \
		--variants "$$VARIANTS" --overrides "$$OVERRIDES" --gpus "$${GPUS:-0}" --device "$$DEVICE" --budget "$$BUDGET" $(data_options)

.PHONY: studies
studies: $(INSTALLED) ## List the studies: question, rows, runs done
	@$(RUN) experiments studies

.PHONY: data
data: $(INSTALLED) ## Make or find the data of SCALE, count it, and write a picture sheet
	@$(RUN) experiments data "$$SCALE" --kind "$${KIND:-coco}" --show $(data_options) --overrides "$$OVERRIDES"

.PHONY: check-data
check-data: $(INSTALLED) ## Read every image of SCALE's data, or your own, and list what is wrong with it
	@$(RUN) experiments check-data "$$SCALE" --kind "$${KIND:-coco}" $(data_options) --overrides "$$OVERRIDES"

.PHONY: eval-coco
eval-coco: $(INSTALLED) ## Evaluate a checkpoint on COCO val2017 (or SPLIT, VAL): CONFIG= WEIGHTS= GPUS=
	$(if $(filter slurm,$(LAUNCHER)),$(error eval-coco runs where it is called: srun it, see docs/cluster.md))
	@$(RUN) experiments evaluate "$$CONFIG" "$$WEIGHTS" --split "$$SPLIT" --val "$$VAL" \
		--gpus "$${GPUS:-1}" --overrides "$$OVERRIDES" && $(RUN) analysis evaluation

.PHONY: bench
bench: $(INSTALLED_TEST) ## Speed and memory beside other implementations; default: 15 minutes
	@$(RUN) benchmarks "$$SUITE" --only "$$ONLY"

# In a checkout without .venv, by the machine's own python3 and what was carried to it.
.PHONY: gpu-check
gpu-check: ## Everything a GPU has to tell, in 8 minutes; again: what is missing. ONLY= OUT= MINUTES=
	@command=(benchmarks gpu-check --device cuda --only "$$ONLY" --out "$$OUT" --minutes "$$MINUTES"); \
	if [ -d $(KIT) ] && ! [ -x $(PY) ]; then PYTHONPATH=$(CURDIR)/$(KIT) python3 -W ignore -m "$${command[@]}"; \
	else $(MAKE) --no-print-directory $(INSTALLED_TEST) && $(RUN) "$${command[@]}"; fi

.PHONY: gpu-kit
gpu-kit: $(INSTALLED) ## gpu-kit/, for a GPU machine without network: docs/speed.md. KIT_PYTHON=
	@rm -rf $(KIT)
	@$(UV) pip install --quiet --link-mode copy --no-deps --target $(KIT) --python-version $(KIT_PYTHON) \
		--python-platform x86_64-manylinux_2_28 antlr4-python3-runtime==4.9.3 \
		$(foreach name,$(KIT_PACKAGES),$(shell grep -h '^$(name)==' requirements.txt requirements-test.txt))
	@$(UV) pip install --quiet --link-mode copy --no-deps --target $(KIT) --python-version 3.10 $(DETECTRON2_WHEEL)
	@rm -rf $(KIT)/detectron2/_C* $(KIT)/bin
	@$(PY) -W ignore -c 'from experiments.costs import environment; print(environment.git_commit())' > $(KIT)/COMMIT
	@du -sm $(KIT) | sed 's/\t.*/ MiB in $(KIT)\//'

.PHONY: test
test: lint $(INSTALLED_TEST) ## Lint, then the tests
	$(PY) -m pytest

.PHONY: test-slow
test-slow: $(INSTALLED_TEST) ## The tests that take long: real COCO images, if there are some
	$(PY) -m pytest -m slow

.PHONY: test-slurm
test-slurm: $(INSTALLED_TEST) ## A real Slurm of its own: a study, preemption, time limit, failures; needs root
	@if ! { command -v slurmctld && command -v munged; } >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get install -y --no-install-recommends slurm-wlm munge || echo "no Slurm: its tests will say so"; fi
	$(PY) -m pytest -n 0 -m slurm -rs tests/slurm

.PHONY: test-faults
test-faults: $(INSTALLED_TEST) ## What may break, broken on purpose: docs/reliability.md
	$(PY) -m pytest -n 0 -m faults -rs

# Beside .venv's own packages, not among them: who exports chooses his own versions.
.PHONY: test-trackers
test-trackers: $(INSTALLED_TEST) ## Export to the real wandb and mlflow, installed for it, into their local files
	@$(UV) pip freeze --quiet --python $(PY) | grep == > $(VENV)/.frozen
	@$(UV) pip install --quiet --python $(PY) --target $(VENV)/trackers --constraints $(VENV)/.frozen -r requirements-trackers.txt \
		|| echo "no trackers to be had: their tests will say so"
	PYTHONPATH=$(VENV)/trackers $(PY) -m pytest -n 0 -rs tests/analysis/test_export.py

.PHONY: lint
lint: $(INSTALLED_TEST) ## Check style and formatting with ruff, and which room knows which
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/lint-imports --no-cache

.PHONY: format
format: $(INSTALLED_TEST) ## Reformat with ruff
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

.PHONY: clean
clean: ## Remove .venv and caches; runs and data stay
	rm -rf $(VENV) .pytest_cache .ruff_cache
