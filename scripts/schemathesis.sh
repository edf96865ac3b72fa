#!/usr/bin/env bash
# Prints the path of schemathesis, which fuzzes an API by its description. It is
# installed once, into a virtual environment of its own below the cache.
. "$(dirname "$0")/lib.sh"

SCHEMATHESIS_VERSION=4.32.5

folder=$CACHE/schemathesis-$SCHEMATHESIS_VERSION
program=$folder/bin/schemathesis
install() {
  rm -rf "$folder" &&
    python3 -m venv "$folder" &&
    "$folder/bin/pip" install --quiet --disable-pip-version-check "schemathesis==$SCHEMATHESIS_VERSION"
}
if ! "$program" --version >/dev/null 2>&1; then
  need python3 "install Python 3.10 or later, with venv (Debian: apt-get install python3-venv)"
  step "Installing schemathesis $SCHEMATHESIS_VERSION (once)" install
fi
printf '%s\n' "$program"
