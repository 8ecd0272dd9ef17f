# Everything that is done to this project. Each target does its own set-up; a second run is quick.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
.PHONY: help setup guests build demo test fuzz bench lint format clippy docs deny clean-data

TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
ENV := $(TARGET_DIR)/setup.env
# All of the workspace is always named, because the features of shared dependencies follow from what is named: a build of
# less would compile wasmtime once more.
BUILD := cargo build --workspace
TOOLS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/millrace-tools
DENY_VERSION := 0.20.2
FUZZ_VERSION := 0.13.2

step = @printf '\n==> %s\n' "$(1)"

help: ## Say what there is
	@printf 'make demo      try it: build everything, run the orders application, check the accounts (DEMO_EXIT=1: then exit)\n'
	@printf 'make test      all tests\n'
	@printf 'make fuzz      each fuzz target for five minutes, on a nightly toolchain (ONLY=manifest MINUTES=60: as it says)\n'
	@printf 'make bench     how fast everything is, beside what its parts can do (ONLY=sandbox: some of it)\n'
	@printf 'make lint      format, clippy on both feature sets, documentation, dependencies\n'
	@printf 'make build     the runtime, unoptimised except for its dependencies\n'
	@printf 'make guests    the guest examples as WebAssembly components\n'
	@printf 'make setup     check for what is needed, and install what may be installed\n'
	@printf 'make clean-data  remove the data directories of the examples\n'

setup:
	$(call step,checking what is needed)
	@mkdir -p $(TARGET_DIR)
	@sdk/setup.sh >$(ENV).new && mv $(ENV).new $(ENV)

# A guest is a package that makes a component, which is a `cdylib` to Rust.
guests: setup
	$(call step,building the guests)
	@source $(ENV)
	packages=$$(grep -rl --include=Cargo.toml --exclude-dir=target '"cdylib"' guest-examples tests/bench tests/chaos 2>/dev/null | sort |
	  while read -r manifest; do sed -n 's/^name = "\(.*\)"/-p \1/p' "$$manifest" | head -n 1; done) || true
	if [ -z "$$packages" ]; then echo 'there are no guests yet'; exit 0; fi
	cargo build --profile guest --target wasm32-wasip2 $$packages || {
	  echo 'a guest did not build; the compiler says above which and why' >&2; exit 1; }

build: setup
	$(call step,building the runtime)
	@source $(ENV)
	$(BUILD) --bin millrace

demo: build guests
	$(call step,running the orders application)
	@source $(ENV)
	exec $(TARGET_DIR)/debug/millrace demo guest-examples/orders

# The Kafka tests use the cluster that KAFKA_BOOTSTRAP names, or one that is started for them. Brokers of tests end before it would be worth
# to optimise them.
test: guests
	$(call step,running all tests)
	@source $(ENV)
	export KAFKA_JVM=-XX:TieredStopAtLevel=1
	if [ -z "$${KAFKA_BOOTSTRAP:-}" ]; then
	  kafka=$$(mktemp -d)
	  trap 'tests/kafka/kafka.sh stop "$$kafka"' EXIT
	  if KAFKA_BOOTSTRAP=$$(tests/kafka/kafka.sh start "$$kafka"); then
	    export KAFKA_BOOTSTRAP
	  elif [ -n "$${KAFKA_REQUIRED:-}" ]; then
	    echo 'there is no Kafka to test on; the reason is above' >&2; exit 1
	  else
	    printf '\n##### SKIPPED: there is no Kafka to test on, for the reason above; its tests do nothing #####\n\n' >&2
	  fi
	fi
	cargo test --workspace --no-fail-fast || {
	  echo 'tests failed; each failure above names its test: run it alone with cargo test --workspace NAME' >&2; exit 1; }

# Inputs that lead somewhere new are kept beside the build, and those that fail in fuzz/artifacts. What is worth trying in each
# `make test` belongs into the corpus.
fuzz: setup
	$(call step,fuzzing)
	@source $(ENV)
	PATH="$$PATH:$(TOOLS)/bin"
	command -v cargo-fuzz >/dev/null ||
	  cargo install --quiet --locked --debug --root $(TOOLS) --version $(FUZZ_VERSION) cargo-fuzz
	fuzz=runtime/core/fuzz
	for target in $(or $(ONLY),$$(ls $$fuzz/corpus)); do
	  found=$(TARGET_DIR)/fuzz/corpus/$$target
	  mkdir -p $$found
	  cargo +nightly fuzz run --fuzz-dir $$fuzz --target-dir $(TARGET_DIR)/fuzz $$target $$found $$fuzz/corpus/$$target -- \
	    -max_total_time=$$(($(or $(MINUTES),5) * 60)) -max_len=4096 || {
	    echo "put the input that is named above into $$fuzz/corpus/$$target, and mend what fails" >&2; exit 1; }
	done

# An optimised build of everything takes some minutes, once.
bench: guests
	$(call step,measuring)
	@source $(ENV)
	cargo build --release --workspace --bin millrace
	cargo bench --workspace --bench speed -- $(ONLY) || {
	  echo 'a measure could not be made; its message is above' >&2; exit 1; }

lint: format clippy docs deny

format: setup
	$(call step,format)
	@source $(ENV)
	cargo fmt --all --check || { echo 'run: cargo fmt --all' >&2; exit 1; }

# Features only remove dependencies; with and without them the code must be clean. All of the workspace is named both times, because the
# features of shared dependencies follow from what is named: they are checked once.
clippy: setup
	$(call step,clippy)
	@source $(ENV)
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --workspace --all-targets --no-default-features -- -D warnings

docs: setup
	$(call step,documentation)
	@source $(ENV)
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps

# Licences, bans and sources of dependencies. The tool takes a minute or two to build, once, into a cache of its own. Where it
# cannot be had, nothing is checked, and that is an error only if CHECKS_REQUIRED is set.
deny: setup
	$(call step,dependencies)
	@source $(ENV)
	PATH="$$PATH:$(TOOLS)/bin"
	if ! command -v cargo-deny >/dev/null; then
	  echo 'building cargo-deny $(DENY_VERSION), once; this takes a minute or two'
	  cargo install --quiet --locked --debug --root $(TOOLS) --version $(DENY_VERSION) cargo-deny || {
	    echo 'cargo-deny could not be installed: licences, bans and sources of dependencies are NOT checked' >&2
	    exit $${CHECKS_REQUIRED:+1}; }
	fi
	cargo-deny --locked --all-features check --hide-inclusion-graph bans licenses sources

clean-data:
	find . -name .millrace -type d -not -path './target/*' -prune -exec rm -rf {} +
