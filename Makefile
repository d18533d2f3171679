# Each target runs a command of `cargo xtask`. `cargo xtask help` lists all commands.
.DEFAULT_GOAL := help
.PHONY: help demo test faults fuzz check images stack

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Run the whole service on this machine, with real servers and a stream of orders, until Ctrl-C
	@cargo xtask demo

test: ## Run every test on a private PostgreSQL and Kafka (some tests only: cargo xtask test -p api cache)
	@cargo xtask test

faults: ## Run the tests that take minutes: kills, frozen processes, cut connections (some only: cargo xtask faults zombie)
	@cargo xtask faults

fuzz: ## Feed hostile inputs to the parsers, for about a minute (one parser only: cargo xtask fuzz order --seconds 600)
	@cargo xtask fuzz

check: ## Check formatting, lints, documentation and the rules of this repository: the quick part of .ci/run
	@cargo xtask check

images: ## Build the images with a private Docker engine and run them as docker-compose.yaml says (needs root; 20 minutes)
	@cargo xtask images

stack: ## Run PostgreSQL and Kafka alone, for tests from an editor: source .stack/dev.env
	@cargo xtask stack
