#!/usr/bin/env bash
# Builds posthorn-cluster and prints the path of the binary.
#
# The result lies in a cache folder that is named by a hash of all that goes into it, so that a second
# call, from whichever checkout, only prints. Beside the binary lie `pause`, which `up` makes the
# sandbox image from, and the links `kubectl` and `helm`.
#
# usage: tests/cluster/build.sh
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"

# Keep in step with go.mod: without these, clients see programs of no version, or of a wrong one.
readonly kubernetes_version=1.35.4
readonly helm_version=4.1.4
readonly cache="${POSTHORN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/posthorn}/cluster-bin"

if ! command -v go >/dev/null; then
    echo "build.sh: Go is not installed; go.mod says which version is needed" >&2
    exit 1
fi
for line in "k8s.io/kubernetes v$kubernetes_version" "helm.sh/helm/v4 v$helm_version"; do
    if ! grep -qF "$line" go.mod; then
        echo "build.sh: go.mod does not require $line; keep the versions at the top of this script in step" >&2
        exit 1
    fi
done

# Names and contents of the inputs, and the compiler. Tests are no input of the binary.
hash=$({
    go version
    find . -name '*.go' ! -name '*_test.go' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum go.mod go.sum build.sh
} | sha256sum | cut -c 1-16)
readonly hash
readonly target="$cache/$hash"

if [[ ! -x "$target/posthorn-cluster" ]]; then
    mkdir -p "$cache"
    # Two builds at once would take twice as long; the second finds the result of the first.
    exec 9>"$cache/build.lock"
    flock 9
    if [[ ! -x "$target/posthorn-cluster" ]]; then
        echo "build.sh: build posthorn-cluster (Kubernetes, etcd, CoreDNS, Helm); without a build cache some 13 minutes of CPU time" >&2
        temporary=$(mktemp -d "$cache/new.XXXXXX")
        trap 'rm -rf "$temporary"' EXIT
        version=k8s.io/component-base/version
        flags="-s -w -X $version.gitVersion=v$kubernetes_version"
        flags+=" -X $version.gitMajor=${kubernetes_version%%.*}"
        minor=${kubernetes_version#*.}
        flags+=" -X $version.gitMinor=${minor%%.*}"
        flags+=" -X helm.sh/helm/v4/internal/version.version=v$helm_version"
        export CGO_ENABLED=0
        go build -buildvcs=false -trimpath -ldflags "$flags" -o "$temporary/posthorn-cluster" . >&2
        go build -buildvcs=false -trimpath -ldflags "-s -w" -o "$temporary/pause" ./pause >&2
        ln -s posthorn-cluster "$temporary/kubectl"
        ln -s posthorn-cluster "$temporary/helm"
        # In one step, so that an interrupted build is never taken for a finished one.
        chmod 0755 "$temporary"
        mv -T "$temporary" "$target"
        echo "build.sh: built in ${SECONDS}s" >&2
    fi
fi
echo "$target/posthorn-cluster"
