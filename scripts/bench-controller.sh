#!/usr/bin/env bash
# `make bench-controller`: see bench/controller.rs. Uses the project's own cluster,
# because it reads the memory of the processes on this machine.
. "$(dirname "$0")/lib.sh"

run_bench() {
  # shellcheck disable=SC2086 # KUBECTL is a command with an argument
  $KUBECTL apply -f "$REPOSITORY/bench/inbox.yaml" >&2 &&
    $KUBECTL rollout status deployment/inbox -n posthorn-bench --timeout=60s >&2 &&
    (cd "$REPOSITORY" && cargo bench --profile dev --quiet --locked --bench controller)
}

own_cluster "$REPOSITORY/bench/values.yaml"
step "Running the benchmark" run_bench
