# The two commands a newcomer needs are `make demo` and `make test`; both set up all they need.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo run test test-rabbitmq test-cluster quick coverage chaos fleets day hostile fuzz bench bench-report bench-compare check format simulate simulate-long simulate-planted simulate-sweep compose-smoke lock audit clean
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

# uv installs in seconds; where it cannot run, pip installs the very same locked, hashed files. Both compile them once:
# the tests start hundreds of processes, and not every machine lets Python write what it compiles.
$(READY): requirements/uv.txt requirements/dev.txt pyproject.toml contracts/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Setting up $(VENV) (once) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt || true
	@{ test -x $(BIN)/uv && $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements/dev.txt; } || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e contracts -e .
	@touch $@

demo: $(READY) ## the whole system in one process: six commands, their replies, the events, the read model
	@$(BIN)/cml-workers demo

run: $(READY) ## run all roles, embedded unless configured by the environment (see README)
	@exec $(BIN)/cml-workers run

SUITE := -n 2 --dist loadscope --no-loadscope-reorder
test: $(READY) ## the full test suite, on a real RabbitMQ and on the embedded broker
	@tests/support/ensure-services
	@$(BIN)/python -m pytest $(SUITE) $(ARGS)

# What RabbitMQ's version matters to: port and adapter, rights, dead letters, whole processes that lose it, hostile messages.
ON_RABBITMQ := $(wildcard tests/conformance/test_broker_*.py) tests/bus tests/deadletters tests/fuzz/test_processes.py \
	$(addprefix tests/system/test_,callers.py chaos.py cut_at_the_reply.py deadletters.py health.py least_rights.py \
		lost_consumers.py misconfigured.py production_parts.py promises.py roles.py subscribers.py) \
	$(addprefix tests/trust/test_,bounds.py misconfigured.py operators.py roles.py secured_broker.py services.py)
test-rabbitmq: $(READY) ## the tests that the version of RabbitMQ matters to, on VERSION=4.0|4.3, which it makes once
	@commands=$$(tests/support/debian-rabbitmq $(or $(VERSION),4.3)) && export TEST_RABBITMQ_SERVER=$$commands/rabbitmq-server && \
		tests/support/ensure-services && $(BIN)/python -m pytest $(SUITE) -k "not embedded" $(ON_RABBITMQ) $(ARGS)

test-cluster: $(READY) ## a cluster of three, its nodes killed, restarted, frozen and separated under load: VERSION=4.0|4.3 ONLY=..
	@commands=$$(tests/support/debian-rabbitmq $(or $(VERSION),4.3)) && export TEST_RABBITMQ_SERVER=$$commands/rabbitmq-server && \
		tests/support/ensure-services && cd tests && exec ../$(BIN)/python -m system.cluster $(if $(ONLY),--only "$(ONLY)")

# One process more than cores: some of these tests wait.
QUICK := -n 3 --dist loadscope --no-loadscope-reorder -m "not slow"
quick: $(READY) ## the tests that need no server and are not slow, in less than a minute
	@$(BIN)/python -m pytest $(QUICK) $(ARGS)

coverage: $(READY) ## the quick tests, and how much of each room they ran; fails below the gate in pyproject.toml
	@rm -rf .coverage && mkdir .coverage
	@$(BIN)/python -m coverage run -m pytest $(QUICK) $(ARGS)
	@$(BIN)/python -m coverage combine --quiet
	@PYTHONPATH=tests $(BIN)/python -m support.covered

chaos: $(READY) ## kill -9, freeze and cut off at random and at chosen messages, under load: KILLS=200 SEED=.. STORE=sqlite|kurrentdb PACE=2 PLANT=..
	@tests/support/ensure-services
	@cd tests && exec ../$(BIN)/python -m system.chaos --kills $(or $(KILLS),200) $(if $(SEED),--seed $(SEED)) \
		$(if $(STORE),--store $(STORE)) $(if $(PACE),--pace $(PACE)) $(if $(PLANT),--plant $(PLANT))

fleets: $(READY) ## two fleets in one account, under random commands and outside interference: MINUTES=10 SEED=..
	@tests/support/ensure-services
	@cd tests && exec ../$(BIN)/python -m system.fleets --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

day: $(READY) ## honest and hostile users at once, a role killed twice, and whether the audit trail is true: MINUTES=10 SEED=..
	@tests/support/ensure-services
	@cd tests && exec ../$(BIN)/python -m trust.day --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

hostile: $(READY) ## what a hostile sender at full speed costs an honest one, and takes up: MINUTES=10 SEED=.. ALONE=60
	@tests/support/ensure-services
	@cd tests && exec ../$(BIN)/python -m system.hostile --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED)) $(if $(ALONE),--alone $(ALONE))

fuzz: $(READY) ## hostile messages against the roles, each accounted for (MESSAGES=100000 SEED=1)
	@tests/support/ensure-services
	@PYTHONPATH=tests $(BIN)/python -m fuzz.run --messages $(or $(MESSAGES),100000) --seed $(or $(SEED),1)

BENCH := PYTHONPATH=tests $(BIN)/python -m bench.run
bench: $(READY) ## measure beside an echo: SECONDS=2 ROUNDS=5 ONLY=latency,calls JSON=out.json CHECKOUT=.. AGAINST=../other
	@tests/support/ensure-services
	@$(BENCH) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(ONLY),--only $(ONLY)) \
		$(if $(JSON),--json $(JSON)) $(if $(CHECKOUT),--checkout $(CHECKOUT)) $(if $(AGAINST),--against $(AGAINST)) \
		$(if $(POSTGRESQL),--postgresql)
	@$(if $(ONLY)$(CHECKOUT)$(AGAINST),,PYTHONPATH=tests $(BIN)/python -m bench.bench_observability --rounds $(or $(ROUNDS),5))

bench-report: $(READY) ## write tests/bench/before.json, and after.json if there is one, into docs/performance.md
	@$(BENCH) --document docs/performance.md tests/bench/before.json $(wildcard tests/bench/after.json)

bench-compare: $(READY) ## two results side by side: BEFORE=before.json AFTER=after.json
	@$(BENCH) --compare $(or $(BEFORE),tests/bench/before.json) $(AFTER)

check: $(READY) ## format, lint, strict types, import rules, words, generated documents
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m cml_tools.import_rules
	@$(BIN)/python -m cml_tools.english
	@$(BIN)/python -m cml_tools.asyncapi --check docs/asyncapi.json
	@$(BIN)/python -m cml_tools.definitions --check deploy/rabbitmq/definitions.json
	@$(BIN)/python -m cml_tools.configuration --check docs/configuration.md
	@$(BIN)/python -m cml_tools.roles --check docs/roles.md
	@$(BIN)/python -m cml_tools.metrics --check docs/metrics.md
	@$(BIN)/python -m cml_tools.alerts --check deploy/observability/alerts.yml
	@$(BIN)/python -m cml_tools.runbook --check docs/alerts.md
	@$(BIN)/python -m cml_tools.dashboard --check deploy/observability/dashboard.json
	@$(BIN)/python -m cml_tools.ec2_calls --check docs/ec2-calls.md

format: $(READY) ## rewrite the code in the project's format
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .
	@$(BIN)/python -m cml_tools.asyncapi --write docs/asyncapi.json
	@$(BIN)/python -m cml_tools.definitions > deploy/rabbitmq/definitions.json
	@$(BIN)/python -m cml_tools.configuration --write docs/configuration.md
	@$(BIN)/python -m cml_tools.roles --write docs/roles.md
	@$(BIN)/python -m cml_tools.metrics --write docs/metrics.md
	@$(BIN)/python -m cml_tools.alerts --write deploy/observability/alerts.yml
	@$(BIN)/python -m cml_tools.runbook --write docs/alerts.md
	@$(BIN)/python -m cml_tools.dashboard --write deploy/observability/dashboard.json
	@$(BIN)/python -m cml_tools.ec2_calls --write docs/ec2-calls.md

SIMULATE := cd tests && ../$(BIN)/python -m simulation.campaign
simulate: $(READY) ## the roles on parts that fail, in virtual time: SEEDS=1000 runs, or one again: SEED=7
	@$(SIMULATE) $(if $(SEED),--replay $(SEED),--seeds $(or $(SEEDS),1000) --first $(or $(FIRST),0))

simulate-long: $(READY) ## simulate as many seeds as MINUTES=10 allow
	@$(SIMULATE) --minutes $(or $(MINUTES),10) --first $(or $(FIRST),0)

simulate-sweep: $(READY) ## every fault at every step of overlapping commands; SCRIPT="start, terminate" only those, at all steps
	@$(SIMULATE) --sweep $(if $(SCRIPT),--script "$(SCRIPT)") $(if $(STRIDE),--stride $(STRIDE))

simulate-planted: $(READY) ## see that the simulation catches every deliberate fault
	@$(SIMULATE) --planted

compose-smoke: $(if $(SECURED),$(READY)) ## bring the compose stack up on a Docker engine and take a worker through its life (SECURED=1: with TLS)
	@deploy/smoke

# One resolution, of everything; the other files are parts of it, so that what is tested is what is deployed.
COMPILE := $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate -q --no-emit-package cml-contracts
lock: $(READY) ## pin the dependencies again
	@$(COMPILE) pyproject.toml --extra embedded --group dev -o requirements/dev.txt
	@$(COMPILE) -c requirements/dev.txt pyproject.toml --extra embedded -o requirements/embedded.txt
	@$(COMPILE) -c requirements/dev.txt pyproject.toml -o requirements/prod.txt
	@echo hatchling | $(COMPILE) -c requirements/dev.txt - -o requirements/build.txt
	@echo uv | $(COMPILE) - -o requirements/uv.txt
	@echo pip-audit | $(COMPILE) - -o requirements/audit.txt

# The data is asked of pypi.org. --strict: a version that nothing could be learned about is a failure, too.
audit: requirements/audit.txt ## look the pinned versions up among known vulnerabilities
	@$(PYTHON) -m venv .audit
	@.audit/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/audit.txt
	@for pinned in dev uv build audit; do .audit/bin/pip-audit --strict --progress-spinner off --require-hashes --disable-pip -r requirements/$$pinned.txt || \
		{ echo "requirements/$$pinned.txt: a pinned version is known to be vulnerable, or https://pypi.org does not answer; see above" >&2; exit 1; }; done

clean: ## remove the virtual environment and caches
	@rm -rf $(VENV) .audit .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis
