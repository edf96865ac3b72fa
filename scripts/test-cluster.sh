#!/usr/bin/env bash
# Runs the cluster tests: cluster up, image, chart, tests, cluster down again if
# this script brought it up (KEEP=1 leaves it). Arguments go to the test binary.
. "$(dirname "$0")/lib.sh"

# Always the project's own: the tests stop parts of it and reach its pods from here.
unset CONTEXT
export CLUSTER=own
STATE=$(mktemp)
was_up=no

finish() {
  rm -f "$STATE"
  if [ "$was_up" = no ] && [ "${KEEP:-0}" != 1 ]; then
    "$REPOSITORY/scripts/cluster.sh" down || true
  fi
}

cluster_up() { "$REPOSITORY/scripts/cluster.sh" up >"$STATE"; }

run_tests() {
  (cd "$REPOSITORY" && cargo test --locked --test cluster -- --test-threads "${TEST_THREADS:-8}" "$@")
}

binary=$(cluster_binary)
if "$binary" status >/dev/null 2>&1; then was_up=yes; fi
if [ -f "$CACHE/demo.env" ] && [ "$was_up" = yes ]; then
  die "the demo is up in the cluster of the tests, and they would uninstall it: run make demo-down first"
fi
archive=$(image_archive)
trap finish EXIT
step "Bringing the cluster up" cluster_up
while IFS='=' read -r name value; do export "$name=$value"; done <"$STATE"
export CLUSTER_BINARY=$binary
step "Loading the image into the cluster" "$REPOSITORY/scripts/cluster.sh" load "$archive"
step "Installing the chart" "$REPOSITORY/scripts/install.sh" --values "$REPOSITORY/tests/cluster/values.yaml"
step "Running helm test" $HELM test posthorn --namespace "$RELEASE_NAMESPACE" --timeout 2m
step "Running the cluster tests" run_tests "$@"
if [ $# = 0 ]; then
  step "Upgrading, uninstalling and installing the chart" "$REPOSITORY/scripts/test-chart.sh"
fi
