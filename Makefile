# Each command first sets up .venv, a Python environment of its own with the versions in constraints.txt.
# make PYTHON=/path/to/python3.12 demo    another Python
# make TORCH_INDEX=https://... demo       another build of PyTorch; empty: the one on PyPI

VENV := .venv
BIN := $(VENV)/bin
LAY := python=$(BIN)/python && . .ci/uv && lay --constraint constraints.txt
SHELL := bash
SENTENCE := a girl with long pink hair and a blue dress walks to the left in the snow

NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
PYTHON := $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	if $$python $(NEW_ENOUGH); then echo $$python; break; fi; done)

# PyPI's PyTorch for Linux is made for CUDA, gigabytes of it; without an NVIDIA card the CPU build does
ifeq ($(shell uname -s),Linux)
ifeq ($(shell command -v nvidia-smi),)
TORCH_INDEX := https://download.pytorch.org/whl/cpu
endif
endif

.PHONY: help demo test test-browser lab site export readme readme-picture clean-notebooks lint

help:
	@echo "make demo               generate a video from a sentence: make demo SENTENCE='...'"
	@echo "make test               run every chapter, then every test"
	@echo "make test-browser       the widgets in a real browser: needs Chromium or Chrome"
	@echo "make lab                open the course in JupyterLab"
	@echo "make site               make a static site of the course in _site/"
	@echo "make lint               check the form of notebooks, modules, tests and benchmarks"
	@echo "make export             write tav_nb/ and tests/ from the notebooks"
	@echo "make readme-picture     generate the image at the top of README.md: after the weights changed"
	@echo "make readme             write headings and contents from nbs/contents.toml, and README.md from nbs/index.ipynb"
	@echo "make clean-notebooks    take out of the notebooks what does not belong into git"

demo: $(VENV)/user
	$(BIN)/tav generate "$(SENTENCE)" --output demo.mp4
	@echo "The video lies in $(CURDIR)/demo.mp4"

test: $(VENV)/dev
	OMP_NUM_THREADS=1 $(BIN)/nbdev-test --n-workers 2
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

test-browser: $(VENV)/browser
	$(BIN)/pytest -m browser -rs

lab: $(VENV)/dev
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/nbs/index.ipynb

site: $(VENV)/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --config-file site/mkdocs.yml
	@echo "The site: $(CURDIR)/_site/index.html"

lint: $(VENV)/dev
	$(BIN)/ruff format --check nbs benchmarks site tests setup.py
	$(BIN)/ruff check nbs tav_nb tests benchmarks site setup.py

export: $(VENV)/dev
	$(BIN)/nbdev-export

readme: $(VENV)/dev
	$(BIN)/python -c 'from tav_nb.utils.notebook_tests import render_readme; render_readme()'

readme-picture: $(VENV)/dev
	$(BIN)/python benchmarks/readme_image.py

clean-notebooks: $(VENV)/dev
	$(BIN)/python -c 'from tav_nb.utils.notebook_images import shrink_images; from tav_nb.utils.notebook_tests import drop_widgets; drop_widgets(); shrink_images()'
	$(BIN)/nbdev-clean

$(BIN)/pip:
	@$(PYTHON) $(NEW_ENOUGH) || { echo "tav_nb needs Python 3.11 or newer; say where it is: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/user: settings.ini setup.py pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing the tested versions into $(VENV); the first time takes a minute or two."
	$(LAY) --no-deps torch $(addprefix --extra-index-url ,$(TORCH_INDEX))
	$(LAY) --editable .
	@touch $@

$(VENV)/dev: $(VENV)/user
	@echo "Installing what the course and its tests need."
	$(LAY) --editable '.[dev]'
	@touch $@

$(VENV)/browser: $(VENV)/dev
	$(LAY) --editable '.[dev,browser,site]'
	@touch $@

# The site needs neither PyTorch nor the package's other requirements.
$(VENV)/site: settings.ini constraints.txt | $(BIN)/pip
	$(LAY) $$($(BIN)/python -c 'from configparser import ConfigParser as Parser; settings = Parser(); \
		settings.read("settings.ini"); print(*settings["DEFAULT"]["site_requirements"].split())')
	@touch $@
