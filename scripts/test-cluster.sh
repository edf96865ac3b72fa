#!/usr/bin/env bash
# Runs the cluster tests: cluster up, image, chart, tests, cluster down again if
# this script brought it up (KEEP=1 leaves it). Arguments go to the test binary.
. "$(dirname "$0")/lib.sh"

run_tests() {
  (cd "$REPOSITORY" && cargo test --locked --test cluster -- --test-threads "${TEST_THREADS:-8}" "$@")
}

own_cluster "$REPOSITORY/tests/cluster/values.yaml"
# shellcheck disable=SC2086 # HELM is a command with an argument
step "Running helm test" $HELM test posthorn --namespace "$RELEASE_NAMESPACE" --timeout 2m
step "Running the cluster tests" run_tests "$@"
if [ $# = 0 ]; then
  step "Upgrading, uninstalling and installing the chart" "$REPOSITORY/scripts/test-chart.sh"
fi
