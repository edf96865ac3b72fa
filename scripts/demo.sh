#!/usr/bin/env bash
# From nothing to a verified Webhook: cluster, image, chart, examples. A second
# run reuses what is there. `demo.sh down` takes everything away again.
. "$(dirname "$0")/lib.sh"

DEMO_NAMESPACE=posthorn-demo
READY_SECONDS_MAX=120
STATE=$CACHE/demo.env

# shellcheck disable=SC2086 # KUBECTL and HELM may be commands with an argument
k() { $KUBECTL "$@"; }

read_state() {
  [ -f "$STATE" ] || return 1
  while IFS='=' read -r name value; do export "$name=$value"; done <"$STATE"
}

cluster_up() {
  "$REPOSITORY/scripts/cluster.sh" up >"$STATE.new" && mv "$STATE.new" "$STATE"
}

show_until_ready() {
  local deadline=$((SECONDS + READY_SECONDS_MAX)) before="" now
  while :; do
    now=$(k get webhooks -n "$DEMO_NAMESPACE" 2>&1 | sed -E 's/ +[0-9smh]+$//')
    if [ "$now" != "$before" ]; then
      printf '\n%s  kubectl get webhooks -n %s\n%s\n' "$(date +%T)" "$DEMO_NAMESPACE" "$now"
      before=$now
    fi
    if k wait webhooks --all -n "$DEMO_NAMESPACE" --for=condition=Ready --timeout=1s >/dev/null 2>&1; then return; fi
    if [ $SECONDS -ge $deadline ]; then
      k get webhooks -n "$DEMO_NAMESPACE" -o yaml >&2
      return 1
    fi
  done
}

show_result() {
  printf '\nkubectl get webhooks,subscriptions -n %s\n' "$DEMO_NAMESPACE"
  k get webhooks,subscriptions -n "$DEMO_NAMESPACE"
  printf '\nWhat the receiver saw: kubectl logs deployment/inbox -n %s\n' "$DEMO_NAMESPACE"
  k logs deployment/inbox -n "$DEMO_NAMESPACE" --tail=20
  printf '\nLook further with:\n  export KUBECONFIG=%s\n  %s describe webhook improvado -n %s\n' "$KUBECONFIG" "$KUBECTL" "$DEMO_NAMESPACE"
  printf 'Take it all away again with: make demo-down\n'
}

demo_up() {
  toolchains
  local start=$SECONDS archive
  step "Bringing a cluster up" cluster_up
  read_state
  archive=$(image_archive)
  step "Loading the image into the cluster" "$REPOSITORY/scripts/cluster.sh" load "$archive"
  step "Installing the chart" "$REPOSITORY/scripts/install.sh" --values "$REPOSITORY/examples/values.yaml"
  step "Applying examples/" apply_examples
  step "Waiting until every Webhook is Ready" show_until_ready
  show_result
  printf '\nThe demo is up after %d s.\n' $((SECONDS - start))
}

apply_examples() {
  local file
  for file in "$REPOSITORY"/examples/[0-9]*.yaml; do
    # The examples name the image as `make image` does.
    sed "s|image: posthorn:dev|image: $IMAGE|" "$file" | k apply -f - || return 1
  done
}

demo_down() {
  if ! read_state; then
    echo "No demo is up." >&2
    return
  fi
  if [ "$CLUSTER" = context ]; then
    k delete namespace "$DEMO_NAMESPACE" --ignore-not-found
    # shellcheck disable=SC2086
    $HELM uninstall posthorn --namespace "$RELEASE_NAMESPACE" --wait || true
    k delete namespace "$RELEASE_NAMESPACE" --ignore-not-found
    k delete -f "$REPOSITORY/crds" --ignore-not-found
  else
    "$REPOSITORY/scripts/cluster.sh" down
  fi
  rm -f "$STATE"
}

case ${1:-up} in
  up) demo_up ;;
  down) demo_down ;;
  *) die "usage: demo.sh [up|down]" ;;
esac
