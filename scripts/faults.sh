#!/usr/bin/env bash
# `make faults`: the long forms of tests/faults (below the store: they mount file
# systems and need root), of tests/pod, and of the one test of tests/cluster that
# has one. They send to loopback and to their own cluster alone and end by
# themselves. TESTS=name runs some. One after the other: some of them measure times.
# A test that fails stops no other; the report at the end has a line for each.
. "$(dirname "$0")/lib.sh"

# The row of tests/cluster: 500 × apply, wait for Ready, publish at once.
CLUSTER_ROW=delivery::apply_wait_for_ready_publish_at_once_and_no_event_is_missed
FAILED=0

# Also when a signal ends it: what was seen so far is worth telling.
leave() {
  if [ -s "${WORKPLACE:-}/report" ]; then
    printf '\nFaults, long forms:\n'
    cat "$WORKPLACE/report"
  fi
  leave_workplace
  # Set by own_cluster alone.
  [ -z "${CLUSTER_STATE:-}" ] || leave_cluster
}
ON_EXIT=leave

# The tests of a binary that TESTS names, or all.
tests_of() {
  # shellcheck disable=SC2086 # several names are several words
  cargo test --quiet --locked --test "$1" -- --list --format terse ${TESTS:-} | sed -n 's/: test$//p'
}

long_form() {
  env TMPDIR="$WORKPLACE/tests" POSTHORN_FAULTS=full \
    cargo test --quiet --locked --test "$1" -- --test-threads 1 --show-output --exact "$2" >"$WORKPLACE/output" 2>&1
}

# row BINARY TEST: runs it, and writes its line of the report: how it ended, how
# long it took, and the last thing that it said of itself.
row() {
  local start=$SECONDS result=ok said
  step "$1: $2" interruptible long_form "$1" "$2" || result=FAILED
  cat "$WORKPLACE/output"
  [ "$result" = ok ] || FAILED=$((FAILED + 1))
  said=$(awk -v begin="---- $2 stdout ----" '
    $0 == begin {on = 1; next} on && /^$/ {exit} on {last = $0} END {print last}' "$WORKPLACE/output")
  printf '%-6s %5d s  %s: %s%s\n' "$result" $((SECONDS - start)) "$1" "$2" "${said:+; $said}" >>"$WORKPLACE/report"
}

rows_of() {
  local name
  while read -r name <&3; do row "$1" "$name"; done 3< <(tests_of "$1")
}

cd "$REPOSITORY"
toolchains
apt_need strace strace
apt_need mkfs.ext4 e2fsprogs
apt_need losetup mount
apt_need xfs_io xfsprogs
apt_need faketime faketime
ulimit -n "$(ulimit -Hn)"
own_workplace
mkdir "$WORKPLACE/tests"
step "Building the tests" interruptible cargo test --quiet --locked --no-run --test faults --test pod --test cluster
rows_of faults
rows_of pod
if tests_of cluster | grep -qx "$CLUSTER_ROW"; then
  own_cluster "$REPOSITORY/tests/cluster/values.yaml"
  row cluster "$CLUSTER_ROW"
fi
[ -s "$WORKPLACE/report" ] || die "no test is named ${TESTS:-}"
[ "$FAILED" = 0 ] || die "$FAILED failed"
