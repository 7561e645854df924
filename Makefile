# The commands that people and CI run. `make demo` and `make test` set up everything they need.
.PHONY: help setup demo test test-slow chaos lint format bench goals clean
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp-$(shell cat pyproject.toml constraints.txt | sha256sum | cut -c1-16)
PYTEST := $(BIN)/python -m pytest
export DO_NOT_TRACK := 1
export RAY_USAGE_STATS_ENABLED := 0

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(STAMP): pyproject.toml constraints.txt
	@bash infra/setup.sh $(STAMP)

setup: $(STAMP) ## make the virtual environment in .venv

demo: setup ## run the whole loop once on real images; DATA=DIR for your own, SERVE=1 to leave the page running
	@$(BIN)/python -m flows.demo $(if $(DATA),--data "$(DATA)") $(if $(SERVE),--serve)

lint: setup ## formatting, lint, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: setup ## everything that CI runs
	@bash infra/system-packages.sh & packages=$$!; $(MAKE) --no-print-directory lint; lint=$$?; wait $$packages && exit $$lint
	timeout --kill-after=30 1500 bash infra/test.sh $(PYTEST)

test-slow: setup ## the tests that take minutes
	@bash infra/system-packages.sh
	$(PYTEST) -m slow --timeout 1800

chaos: setup ## label a campaign while what it stands on dies, stops and fills; on SQLite, then PostgreSQL and S3; FAULTS=N each, SEED=N
	@bash infra/system-packages.sh
	@for stack in sqlite postgres; do \
	  $(BIN)/python -m tests.chaos.run --stack $$stack --faults $(or $(FAULTS),100) --seed $(or $(SEED),0) || exit 1; \
	done

bench: setup ## print the ratios of the hot paths, each from one run
	@for bench in $(filter-out benchmarks/goals.py,$(wildcard benchmarks/*.py)); do echo "== $$bench"; $(BIN)/python $$bench || exit 1; done

goals: setup ## print the performance goals as a table: figure, limit, what is missing; ONLY="G1 G3" for some
	@$(BIN)/python benchmarks/goals.py $(if $(ONLY),--only $(ONLY))

format: setup ## rewrite the code as lint wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove caches and the environment
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
