# Two commands matter: `make demo` and `make test`. Both set up what is missing first and say what they install.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MODEL ?= scripted
ENGINE ?= auto
SECONDS_EACH ?= 30
SECONDS ?= 180
CASES ?= 1000
FROM ?= HEAD~1

.PHONY: help demo test build setup setup-all bench load model-bench adversary canary upgrade compose fuzz api-fuzz queue-model lint deny advisories sbom engine-stop clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: ## Install and build what a server needs (ENGINE=docker or local; else Docker where an engine answers, and local where none does)
	scripts/setup demo $(ENGINE)

setup-all: ## Install and build what the tests need: both engines
	scripts/setup

build: ## Build the binaries into .caisson/bin
	scripts/setup build

demo: ## Do the main job end to end (MODEL=real talks to the real API and needs ANTHROPIC_API_KEY; ENGINE=docker or local)
	scripts/setup demo $(ENGINE)
	source .caisson/env && CAISSON_AGENTS_DIR="$$TEST_AGENTS_DIR" \
	  .caisson/bin/caisson demo --state-dir .caisson/state --model $(MODEL) --engine $(ENGINE)

test: setup-all ## Run every test: formatting, lints, unit, conformance, engine, end to end
	scripts/test

bench: setup-all ## Measure against a shell script that does the same, in one run (docs/benchmarks.md; FLAGS=--write puts the figures there)
	cargo build --quiet --locked --release -p caisson -p xtask
	source .caisson/env && target/release/xtask bench $(FLAGS)

load: setup-all ## Put the binary that is shipped under load: 50 sessions with the real agent, 200 with a stand-in, requests, events, lists (docs/benchmarks.md, docs/plans.md; FLAGS=--write puts the figures there)
	cargo build --quiet --locked --profile shipped -p caisson
	cargo build --quiet --locked --release -p xtask
	source .caisson/env && started=$$(scripts/postgres start) && { [ -z "$$started" ] || trap 'scripts/postgres stop' EXIT; } && \
	  target/release/xtask load $(FLAGS)

model-bench: setup-all ## Measure what the model door adds to a call (docs/benchmarks.md; FLAGS=--write puts the figures there)
	cargo build --quiet --locked --release -p caisson -p xtask
	source .caisson/env && target/release/xtask model-bench $(FLAGS)

adversary: setup-all ## Have the real agent try every way out of a real sandbox, each with controls without its walls (as root)
	cargo build --quiet --locked -p caisson --features checks-off
	install -D -m 755 target/debug/caisson .caisson/bin/checks-off/caisson
	cargo build --quiet --locked -p caisson -p xtask
	source .caisson/env && target/debug/xtask adversary $(FLAGS)

canary: setup-all ## Have runs of the real agent use a secret of each kind, and look for it everywhere else (as root)
	cargo build --quiet --locked -p xtask
	source .caisson/env && target/debug/xtask canary $(FLAGS)

upgrade: setup-all ## Have this version take over a run in a living sandbox of an earlier one (FROM=commit)
	source .caisson/env && scripts/upgrade $(FROM)

compose: setup-all ## Have deploy/compose.yaml do a run, with images built here
	scripts/compose

fuzz: ## Feed the parsers of strangers' bytes with libFuzzer (SECONDS_EACH=30)
	scripts/fuzz $(SECONDS_EACH)

api-fuzz: setup ## Check the API of a real server against its own OpenAPI document with Schemathesis (SECONDS=180)
	scripts/api-fuzz $(SECONDS)

queue-model: setup-all ## Try more sequences of the queue against its model, on both databases (CASES=1000)
	source .caisson/env && TEST_REQUIRE=1 TEST_QUEUE_CASES=$(CASES) cargo test --locked -p caisson-store --test conformance -- store_and_model_agree

lint: ## Formatting and lints alone
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

deny: ## Licences, bans and sources of the dependencies
	scripts/supply deny

advisories: ## Known holes in the dependencies, by the RustSec database (ADVISORY_DB=DIR for a local copy); fails where it cannot be had
	scripts/supply advisories

sbom: setup ## CycloneDX bills of materials of server, shim and default image, in .caisson/sbom
	scripts/supply sbom

engine-stop: ## Stop the Docker Engine that setup started
	scripts/setup stop

clean: ## Remove build output; .caisson/ keeps the agent and local state
	cargo clean
