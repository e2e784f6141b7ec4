# Two commands: `make run` starts everything, `make test` tests everything. Both make .venv when it is needed
# (dev.py compares a stamp with pyproject.toml's content). Nothing else has to be installed first.
#   make run            stays up; Ctrl-C stops it         make run ONCE=1   samples through and back, then exit 0 or 1
#   make test           the whole suite                   make test ARGS="-k codec -x"
#   make test-gpu       what needs a CUDA device          make bench-gpu ARGS="--folder DIR --json FILE"
PYTHON ?= python3
ONCE ?=
ARGS ?=
FUZZ_SECONDS ?= 60

.PHONY: help setup run viewer test test-gpu bench-gpu fuzz lint wheel clean

help:
	@sed -n '1,5s/^# \{0,1\}//p' Makefile

setup:
	@$(PYTHON) dev.py setup

run:
	@$(PYTHON) dev.py run $(if $(filter-out 0 no false,$(ONCE)),--once) $(ARGS)

# OHIF for /viewer, by npm (ARGS="--from FILE": an npm pack of it), into PALIMPSEST_HOME or ./var.
viewer: setup
	@.venv/bin/python -m palimpsest viewer install $(ARGS)

test:
	@$(PYTHON) dev.py test $(ARGS)

# Hostile bytes for every decoder; by coverage with atheris (pip install '.[fuzz]'), else at random: tests/fuzz/decoders.py
fuzz: setup
	.venv/bin/python -m tests.fuzz.decoders --seconds $(FUZZ_SECONDS) $(ARGS)

# Both end at once, with the reason, where there is no CUDA device.
test-gpu: setup
	@.venv/bin/python -m codec.gpu_device
	@PALIMPSEST_REQUIRE_GPU=1 $(PYTHON) dev.py test -m gpu $(ARGS)

bench-gpu: setup
	@.venv/bin/python -m worker.gpubench $(ARGS)

lint: setup
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/bandit -q -ll -c pyproject.toml -r gateway codec stego service worker palimpsest
	.venv/bin/python .ci/licenses.py

wheel: setup
	.venv/bin/python -m build --wheel --outdir dist .

clean:
	rm -rf .venv dist build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
