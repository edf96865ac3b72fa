#!/usr/bin/env bash
# `make bench`: see bench/delivery/main.rs. FIGURES="single many" runs some.
. "$(dirname "$0")/lib.sh"

cd "$REPOSITORY"
# Each connection is a file at both ends, and the generator and the receiver share a process.
ulimit -n "$(ulimit -Hn)"
# shellcheck disable=SC2086 # names of figures are words
cargo bench --quiet --locked --bench delivery -- ${FIGURES:-}
