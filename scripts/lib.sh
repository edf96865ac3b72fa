# Shared by the scripts beside it; to be sourced by bash.
# Steps show what runs and how long it took; the first failure names its step.
set -euo pipefail

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${POSTHORN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/posthorn}
RELEASE_NAMESPACE=posthorn-system
IMAGE=${IMAGE:-posthorn:dev}
# A registry may have a port: what follows the last slash must name the tag.
case ${IMAGE##*/} in
  *:*) ;;
  *) printf 'error: IMAGE must name a tag, such as posthorn:dev\n' >&2 && exit 1 ;;
esac
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$REPOSITORY/target}
mkdir -p "$CACHE"

# step TEXT COMMAND…: runs the command; its output appears as it comes. The shell
# does not stop inside a function that is run so: join its commands with &&.
step() {
  local text=$1 start=$SECONDS
  shift
  printf '\n==> %s\n' "$text" >&2
  if ! "$@"; then
    printf '==> FAILED after %d s: %s\n' $((SECONDS - start)) "$text" >&2
    return 1
  fi
  printf '==> done in %d s: %s\n' $((SECONDS - start)) "$text" >&2
}

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# need PROGRAM HINT: one clear line for what is missing.
need() {
  command -v "$1" >/dev/null 2>&1 || die "$1 is missing: $2"
}

# apt_need PROGRAM PACKAGE: installs a Debian package where we may, else says so.
apt_need() {
  command -v "$1" >/dev/null 2>&1 && return
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    step "Installing the Debian package $2" bash -c "apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $2 >/dev/null"
  else
    die "$1 is missing: install the package $2 (Debian: apt-get install $2)"
  fi
}

toolchains() {
  apt_need cc build-essential
  apt_need curl curl
  need cargo "install Rust 1.91 or later with rustup"
  need go "install Go 1.26 or later"
}

# own_workplace: a folder WORKPLACE for tests that mount file systems. What they
# leave there, because a signal ended them, goes with the script, however it ends;
# nothing else does. Run them by `interruptible` with TMPDIR in it.
own_workplace() {
  WORKPLACE=$(mktemp -d "${TMPDIR:-/tmp}/posthorn-faults.XXXXXX")
  trap "${ON_EXIT:-leave_workplace}" EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
}

# interruptible COMMAND…: in a process group of its own, which a signal to this
# script ends at once. The shell would else wait for the command first.
interruptible() {
  local code=0
  set -m
  "$@" &
  INTERRUPTIBLE=$!
  set +m
  wait "$INTERRUPTIBLE" || code=$?
  INTERRUPTIBLE=
  return "$code"
}

# Ends what still runs, with all that it started, then gives back the mounts and
# loop devices of the folder. May be called any number of times.
leave_workplace() {
  local place=${WORKPLACE:-} mount device try
  if [ -n "${INTERRUPTIBLE:-}" ]; then
    # All of the group, and until it is gone: a mount that has begun ends first.
    for try in {1..100}; do
      kill -KILL -- "-$INTERRUPTIBLE" 2>/dev/null || break
      sleep 0.1
    done
    wait "$INTERRUPTIBLE" 2>/dev/null || true
    INTERRUPTIBLE=
  fi
  [ -n "$place" ] && [ -d "$place" ] || return 0
  findmnt --raw --noheadings --output TARGET | awk -v place="$place/" 'index($0, place) == 1' | sort -r |
    while read -r mount; do umount "$mount" 2>/dev/null || umount --lazy "$mount" || true; done
  losetup --raw --noheadings --output NAME,BACK-FILE | awk -v place=" $place/" 'index($0, place) {print $1}' |
    while read -r device; do losetup --detach "$device" || true; done
  rm -rf --one-file-system "$place"
}

# The binary that is the whole test cluster: Kubernetes, etcd, Helm, CoreDNS.
cluster_binary() {
  "$REPOSITORY/tests/cluster/build.sh"
}

# The image as an archive; prints its path.
image_archive() {
  "$REPOSITORY/scripts/image.sh"
}

# own_cluster VALUES: the project's own cluster with the chart installed, for what
# stops parts of it or reads the processes of this machine. Sets KUBECONFIG,
# KUBECTL, HELM and CLUSTER_BINARY. It goes with the script if it was not up
# before (KEEP=1 leaves it). To be called outside of `step`.
own_cluster() {
  local archive name value
  # Whatever cluster the caller's environment means otherwise.
  unset CONTEXT
  export CLUSTER=own
  CLUSTER_BINARY=$(cluster_binary)
  export CLUSTER_BINARY
  CLUSTER_STATE=$(mktemp)
  if ! "$CLUSTER_BINARY" status >/dev/null 2>&1; then
    CLUSTER_IS_OURS=yes
  elif [ -f "$CACHE/demo.env" ]; then
    die "the demo is up in this cluster and would be changed: run make demo-down first"
  fi
  archive=$(image_archive)
  # A script with more to give back names who does it all.
  trap "${ON_EXIT:-leave_cluster}" EXIT
  step "Bringing the cluster up" write_cluster_state
  while IFS='=' read -r name value; do export "$name=$value"; done <"$CLUSTER_STATE"
  step "Loading the image into the cluster" "$REPOSITORY/scripts/cluster.sh" load "$archive"
  step "Installing the chart" "$REPOSITORY/scripts/install.sh" --values "$1"
}

write_cluster_state() { "$REPOSITORY/scripts/cluster.sh" up >"$CLUSTER_STATE"; }

leave_cluster() {
  rm -f "$CLUSTER_STATE"
  if [ "${CLUSTER_IS_OURS:-no}" = yes ] && [ "${KEEP:-0}" != 1 ]; then
    "$REPOSITORY/scripts/cluster.sh" down || true
  fi
}
