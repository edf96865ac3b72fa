#!/usr/bin/env bash
# `make bench-controller`: see bench/controller.rs. Uses the project's own cluster,
# because it reads the memory of the processes on this machine.
. "$(dirname "$0")/lib.sh"

unset CONTEXT
export CLUSTER=own
STATE=$(mktemp)
was_up=no

finish() {
  rm -f "$STATE"
  [ "$was_up" = yes ] || [ "${KEEP:-0}" = 1 ] || "$REPOSITORY/scripts/cluster.sh" down
}

cluster_up() { "$REPOSITORY/scripts/cluster.sh" up >"$STATE"; }

run_bench() {
  # shellcheck disable=SC2086 # KUBECTL may be a command with an argument
  $KUBECTL apply -f "$REPOSITORY/bench/inbox.yaml" >&2 &&
    $KUBECTL rollout status deployment/inbox -n posthorn-bench --timeout=60s >&2 &&
    (cd "$REPOSITORY" && cargo bench --profile dev --quiet --locked --bench controller)
}

binary=$(cluster_binary)
if "$binary" status >/dev/null 2>&1; then was_up=yes; fi
archive=$(image_archive)
trap finish EXIT
step "Bringing the cluster up" cluster_up
while IFS='=' read -r name value; do export "$name=$value"; done <"$STATE"
step "Loading the image into the cluster" "$REPOSITORY/scripts/cluster.sh" load "$archive"
step "Installing the chart" "$REPOSITORY/scripts/install.sh" --values "$REPOSITORY/bench/values.yaml"
step "Running the benchmark" run_bench
