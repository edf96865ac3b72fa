# The commands of the project. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

export CARGO_TARGET_DIR ?= $(CURDIR)/target

.PHONY: help
help: ## List the commands.
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## From nothing to a verified Webhook: cluster, image, chart, examples.
	@scripts/demo.sh up

.PHONY: demo-down
demo-down: ## Take the demo and its cluster away.
	@scripts/demo.sh down

.PHONY: test
test: ## Everything: format, lints, unit, integration, image and cluster tests.
	@scripts/test.sh

.PHONY: test-quick
test-quick: ## Unit and integration tests only.
	cargo test --locked --lib --bins --test it

.PHONY: test-cluster
test-cluster: ## The tests on a real Kubernetes. TESTS=name runs some, KEEP=1 leaves the cluster.
	@scripts/test-cluster.sh $(TESTS)

.PHONY: lint
lint: ## Format and lints.
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings

.PHONY: generate
generate: ## Write crds/ and the chart's copies after a change of src/api.
	cargo run --quiet --locked -- crds --output crds
	cp crds/*.yaml charts/posthorn/crd-files/

.PHONY: image
image: ## Build the container image (an archive, without Docker).
	@scripts/image.sh

.PHONY: faults
faults: ## The long forms of the fault tests, with a report; takes long. TESTS=name runs some.
	@scripts/faults.sh

.PHONY: bench
bench: ## How fast a pod delivers, as ratios inside one run. FIGURES="single many" runs some.
	@scripts/bench.sh

.PHONY: bench-controller
bench-controller: ## 10,000 Webhooks on a real API server; prints the figures.
	@scripts/bench-controller.sh

.PHONY: deny
deny: ## Licences, sources and duplicate versions of dependencies.
	@scripts/deny.sh
