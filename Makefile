# The only commands to know. `make demo` and `make test` install what they need first.
.PHONY: changelog client reference setup demo test check unit fast test-one fmt fix it attack sim mutants mutants-check drill-check drills load bench million proto proto-check proto-release up down clean

RUN ?= run
SHAPE ?= steady
SECONDS ?= 0
RUNS ?= 10
COUNT ?= 1000
PYTEST = .venv/bin/python -m pytest

setup: ## install etcd, SoftHSM and the virtual environment
	@deploy/setup.sh

demo: setup ## the main job on one machine, with figures
	@.venv/bin/utrn demo

test: check sim mutants-check it drill-check ## everything that must hold

check: setup proto-check unit ## style, types, contracts, unit tests: under a minute
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo 2>/dev/null || .venv/bin/lint-imports
	.venv/bin/deptry .

unit: setup
	$(PYTEST) tests/unit tests/architecture -n 2

fast: ## pure tests only: no setup, no network, no process; seconds
	@$(PYTEST) tests/unit -n 2 -m "not slow"

test-one: ## what pytest is given: make test-one T="tests/unit/core -k effective_dated"
	@$(PYTEST) $(T)

fmt: ## the format
	@.venv/bin/ruff format .

fix: fmt ## what the linter can mend, and the format
	@.venv/bin/ruff check --fix .

it: setup ## real etcd, real SoftHSM, real processes, kills
	$(PYTEST) tests/contract tests/integration tests/attack tests/drills/test_crash_at_every_step.py -n 2

attack: setup ## strangers, the long attacks too, and an honest till beside them whose figures are asserted: an idle machine
	UTRN_WHOLE_ATTACK=1 $(PYTEST) tests/attack -rP

sim: setup ## a thousand seeds of a simulated cluster, and the controls that must turn red; or make sim FROM=500000 COUNT=10000
ifdef FROM
	@.venv/bin/python -m tests.sim --from $(FROM) --count $(COUNT)
else
	$(PYTEST) tests/sim -n 2
endif

mutants: setup ## small faults of the product, in copies of the tree: each must be noticed
	$(PYTEST) tests/mutants
	@.venv/bin/python -m tests.mutants

mutants-check: setup ## that every mutant still fits, and the quick ones are noticed
	$(PYTEST) tests/mutants
	@.venv/bin/python -m tests.mutants --quick

drill-check: setup ## the drills that CI runs, one after the other
	$(PYTEST) tests/drills/test_drills.py

drills: setup ## every drill, RUNS times each: docs/operating/drills-table.md, build/drills.html (hours; needs root)
	@mkdir -p build
	.venv/bin/utrn drill run all --runs $(RUNS) --html build/drills.html --markdown docs/operating/drills-table.md

load: setup ## Locust against a cluster on this machine: make load SHAPE=steady|peak|retry-storm SECONDS=3600 (a soak)
	@.venv/bin/python -m app.workloads.locust_run $(SHAPE) --seconds $(SECONDS)

million: setup ## a million meters loaded and mirrored: time, size, memory, start-up
	@.venv/bin/python -m tests.bench.registry

bench: setup ## ratios within one run; JSON lines in build/bench.jsonl
	@.venv/bin/python -m tests.bench.run

reference: setup ## the pages of docs/reference
	@.venv/bin/python -m typer app.__main__ utils docs --name utrn --output docs/reference/commands.md

proto: setup reference ## generate code from proto/, and the reference
	@proto/generate.sh
	@.venv/bin/buf lint proto

changelog: setup ## what the next version's section of the changelog will be
	@.venv/bin/towncrier build --draft --version next

client: setup ## the client kit's wheel, for sellers, in build/
	@mkdir -p build && client/build.sh build

proto-check: setup
	@.venv/bin/buf lint proto
	@.venv/bin/buf breaking proto --against proto/released.binpb

proto-release: setup ## what later versions must stay compatible with
	@.venv/bin/buf build proto -o proto/released.binpb

up: setup ## three etcd, three nodes and the sandbox, until `make down`
	@.venv/bin/python -m app.devstack.up $(RUN)

down:
	@.venv/bin/python -m app.devstack.up --stop $(RUN)

clean:
	rm -rf .venv build run .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
