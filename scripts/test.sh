#!/usr/bin/env bash
# What `make test` runs. Cheap checks first; the cluster tests last.
. "$(dirname "$0")/lib.sh"

cd "$REPOSITORY"
start=$SECONDS
toolchains
step "Format" cargo fmt --check
step "Lints" cargo clippy --quiet --locked --all-targets -- -D warnings
step "Unit and integration tests" cargo test --locked --lib --bins --test it
apt_need strace strace
apt_need mkfs.ext4 e2fsprogs
apt_need losetup mount
apt_need xfs_io xfsprogs
own_workplace
step "Faults below the store (short forms)" interruptible env TMPDIR="$WORKPLACE" cargo test --quiet --locked --test faults
apt_need faketime faketime
step "Fault tests of the delivery pod" cargo test --quiet --locked --test pod -- --test-threads 4
schemathesis=$(scripts/schemathesis.sh)
step "Fuzzing ingest by its description" env SCHEMATHESIS="$schemathesis" cargo test --quiet --locked --test openapi
step "Licences and sources of dependencies" scripts/deny.sh
step "Tests of the image tool" bash -c 'cd image && go vet ./... && go test ./...'
step "Tests of the cluster harness" bash -c 'cd tests/cluster && go test ./harness/...'
step "Cluster tests" scripts/test-cluster.sh
printf '\nAll tests passed in %d s.\n' $((SECONDS - start))
