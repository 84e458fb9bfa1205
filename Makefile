# SPDX-License-Identifier: Apache-2.0
# scaleoutd: everything a developer or a new user runs.  `make demo` and `make test` need nothing done before.
.PHONY: help setup demo deb test test-full fuzz lint format attack-report bench pictures lock proto seccomp clean

PYTEST = .venv/bin/python -m pytest

help:
	@echo "make demo           set up, then a combiner, two nodes and three rounds on this machine; the trail is shown"
	@echo "make test           set up, then every test once (linters included)"
	@echo "make deb            the package for Debian 12 in dist/ (DISTRIBUTION=trixie: 13; ARCH=arm64), the same bits each time; without a network when dist/wheels is filled"
	@echo "make test-full      the same with repetitions: TEST_SCALE=10 unless set"
	@echo "make fuzz           coverage-guided fuzzing of every parser, SECONDS=60 each unless set; TARGETS=\"yaml npz\" for some"
	@echo "make lint           ruff and mypy alone"
	@echo "make attack-report  the attack matrix as a table"
	@echo "make bench          every benchmark, one JSON object each"
	@echo "make pictures       docs/images again, from real runs of a combiner and a node"
	@echo "make lock           compile requirements/*.in to hash-locked *.txt"
	@echo "make proto          generate scaleoutd/proto from edge.proto with the oldest grpcio-tools of the targets"
	@echo "make seccomp        compile policy/seccomp to scaleoutd/step/filters"

setup:
	@tools/setup.sh

demo: setup
	@.venv/bin/scaleoutctl demo

deb: setup
	@tools/setup.sh package
	@.venv/bin/python packaging/deb.py --distribution $(or $(DISTRIBUTION),bookworm) $(if $(ARCH),--arch $(ARCH))

test: setup
	@tools/setup.sh official
	@tools/setup.sh system
	@tools/setup.sh package
	@$(PYTEST) tests

test-full: setup
	@tools/setup.sh official
	@tools/setup.sh system
	@tools/setup.sh package
	@TEST_SCALE=$${TEST_SCALE:-10} $(PYTEST) --timeout=3600 tests

fuzz: setup
	@tools/setup.sh fuzz
	@nice -n 15 .venv/bin/python -m tests.fuzz $(TARGETS) --seconds $${SECONDS:-60}

lint: setup
	@.venv/bin/ruff check scaleoutd tests benchmarks tools packaging
	@.venv/bin/ruff format --check scaleoutd tests benchmarks tools packaging
	@.venv/bin/mypy scaleoutd tests benchmarks tools packaging

format: setup
	@.venv/bin/ruff check --fix scaleoutd tests benchmarks tools
	@.venv/bin/ruff format scaleoutd tests benchmarks tools

attack-report: setup
	@.venv/bin/python -m tests.attack.report

bench: setup
	@tools/setup.sh bench
	@tools/setup.sh official
	@tools/setup.sh system
	@tools/setup.sh package
	@for file in benchmarks/[a-z]*.py; do .venv/bin/python -m "benchmarks.$$(basename "$$file" .py)" --json || exit 1; done

pictures: setup
	@.venv/bin/python -m tools.pictures

seccomp: setup
	@.venv/bin/python tools/compile_seccomp.py

lock: setup
	@tools/lock.sh

proto:
	@tools/proto.sh

clean:
	@rm -rf .venv .venv-official .venv-steps .venv-fuzz .venv-model-signing dist build *.egg-info
