#!/usr/bin/env bash
# Brings a cluster up or down and says how to reach it.
#
#   cluster.sh up     prints KUBECONFIG=…, KUBECTL=…, HELM=…, CLUSTER=… lines
#   cluster.sh load   loads the image archive into it
#   cluster.sh down   takes down what `up` started
#
# Which one: CONTEXT=NAME an existing context of your kubeconfig; else kind where
# a Docker engine runs; else the project's own single-node Kubernetes
# (tests/cluster/README.md). CLUSTER=own or CLUSTER=kind decides by hand.
. "$(dirname "$0")/lib.sh"

KIND_VERSION=v0.31.0
KIND_NAME=posthorn
HELM_VERSION=v4.1.4

choice() {
  if [ -n "${CONTEXT:-}" ]; then echo context
  elif [ -n "${CLUSTER:-}" ]; then echo "$CLUSTER"
  elif docker info >/dev/null 2>&1; then echo kind
  else echo own; fi
}

kind_command() {
  if command -v kind >/dev/null 2>&1; then echo kind; return; fi
  [ -x "$CACHE/bin/kind" ] || step "Installing kind $KIND_VERSION" env GOBIN="$CACHE/bin" go install "sigs.k8s.io/kind@$KIND_VERSION" >&2
  echo "$CACHE/bin/kind"
}

helm_command() {
  if command -v helm >/dev/null 2>&1 && helm version --short 2>/dev/null | grep -q '^v4'; then echo helm; return; fi
  [ -x "$CACHE/bin/helm" ] || step "Installing Helm $HELM_VERSION" env GOBIN="$CACHE/bin" go install "helm.sh/helm/v4/cmd/helm@$HELM_VERSION" >&2
  echo "$CACHE/bin/helm"
}

up() {
  local binary kind
  case $(choice) in
    own)
      binary=$(cluster_binary)
      kubeconfig=$("$binary" up)
      printf 'CLUSTER=own\nKUBECONFIG=%s\nKUBECTL=%s kubectl\nHELM=%s helm\n' "$kubeconfig" "$binary" "$binary"
      ;;
    kind)
      need kubectl "install kubectl, which kind does not bring"
      kind=$(kind_command)
      kubeconfig=$CACHE/kind.kubeconfig
      "$kind" get clusters 2>/dev/null | grep -qx "$KIND_NAME" || "$kind" create cluster --name "$KIND_NAME" --kubeconfig "$kubeconfig" >&2
      printf 'CLUSTER=kind\nKUBECONFIG=%s\nKUBECTL=kubectl\nHELM=%s\n' "$kubeconfig" "$(helm_command)"
      ;;
    context)
      need kubectl "install kubectl"
      kubeconfig=$CACHE/context.kubeconfig
      kubectl config view --minify --flatten --context "$CONTEXT" >"$kubeconfig" || die "the kubeconfig has no context $CONTEXT: see kubectl config get-contexts"
      chmod 600 "$kubeconfig"
      printf 'CLUSTER=context\nKUBECONFIG=%s\nKUBECTL=kubectl\nHELM=%s\n' "$kubeconfig" "$(helm_command)"
      ;;
    *) die "CLUSTER must be own or kind" ;;
  esac
}

load() {
  local archive=$1
  case $(choice) in
    own) "$(cluster_binary)" load-image "$archive" >&2 ;;
    kind) "$(kind_command)" load image-archive --name "$KIND_NAME" "$archive" >&2 ;;
    context)
      case $CONTEXT in
        kind-*) "$(kind_command)" load image-archive --name "${CONTEXT#kind-}" "$archive" >&2 ;;
        *) printf 'The image %s must be where the nodes of %s can pull it: push it there and set IMAGE.\n' "$IMAGE" "$CONTEXT" >&2 ;;
      esac
      ;;
  esac
}

down() {
  case $(choice) in
    own) "$(cluster_binary)" down ;;
    kind) "$(kind_command)" delete cluster --name "$KIND_NAME" ;;
    context) : ;;
  esac
}

case ${1:-} in
  up) up ;;
  load) load "${2:?the archive}" ;;
  down) down ;;
  *) die "usage: cluster.sh up | load ARCHIVE | down" ;;
esac
