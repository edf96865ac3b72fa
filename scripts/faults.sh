#!/usr/bin/env bash
# `make faults`: the long forms of tests/faults (below the store: they mount file
# systems and need root) and tests/pod. They send to loopback alone and end by
# themselves. TESTS=name runs some.
. "$(dirname "$0")/lib.sh"

cd "$REPOSITORY"
toolchains
apt_need strace strace
apt_need mkfs.ext4 e2fsprogs
apt_need losetup mount
apt_need xfs_io xfsprogs
apt_need faketime faketime
ulimit -n "$(ulimit -Hn)"
# One after the other: some of them measure times.
step "Faults below the store (long forms)" env POSTHORN_FAULTS=full \
  cargo test --locked --test faults -- --test-threads 1 --nocapture ${TESTS:-}
step "Faults, seen from outside a pod (long forms)" env POSTHORN_FAULTS=full \
  cargo test --locked --test pod -- --test-threads 1 --nocapture ${TESTS:-}
