#!/usr/bin/env bash
# Checks dependencies against deny.toml. The advisories need a database that is
# fetched from the Internet: `scripts/deny.sh --advisories` adds them.
. "$(dirname "$0")/lib.sh"

CARGO_DENY_VERSION=0.20.2

deny=$CACHE/bin/cargo-deny
if ! "$deny" --version 2>/dev/null | grep -qF "$CARGO_DENY_VERSION"; then
  step "Installing cargo-deny $CARGO_DENY_VERSION (some minutes, once)" \
    env CARGO_TARGET_DIR="$CACHE/target-tools" cargo install --quiet --locked --root "$CACHE" --version "$CARGO_DENY_VERSION" cargo-deny
fi
checks=(licenses bans sources)
[ "${1:-}" != --advisories ] || checks+=(advisories)
cd "$REPOSITORY" && "$deny" --locked check "${checks[@]}"
