# Each target is a command of `cargo xtask`, for machines that have make. `cargo xtask help` tells more.
.DEFAULT_GOAL := help
.PHONY: help demo test faults fuzz check stack

help: ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## The whole service on this machine, with real servers and a stream of orders, until Ctrl-C
	@cargo xtask demo

test: ## Every test, on a PostgreSQL and a Kafka of its own (some tests only: cargo xtask test -p api cache)
	@cargo xtask test

faults: ## The tests that take minutes: kills, frozen processes, cut connections (some only: cargo xtask faults zombie)
	@cargo xtask faults

fuzz: ## Hostile inputs for what reads strangers' bytes, about a minute (one only: cargo xtask fuzz order --seconds 600)
	@cargo xtask fuzz

check: ## Formatting, lints, documentation: the quick part of .ci/run
	@cargo xtask check

stack: ## PostgreSQL and Kafka alone, for tests from an editor: source .stack/dev.env
	@cargo xtask stack
