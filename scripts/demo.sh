#!/usr/bin/env bash
# From nothing to delivered events: cluster, image, chart, examples; then GitHub's
# example events are published, delivered, dead-lettered where the receiver is
# broken, and replayed once it is repaired. A second run reuses what is there.
# `demo.sh down` takes everything away again.
. "$(dirname "$0")/lib.sh"

DEMO_NAMESPACE=posthorn-demo
READY_SECONDS_MAX=120
STATE=$CACHE/demo.env
# How long events may take to arrive, to be given up, to be replayed.
EVENTS_SECONDS_MAX=120
RECEIVER_IMAGE=posthorn-receiver:dev
# A Webhook has at most that many cards.
CARDS_MAX=100

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

# The receiver of the examples, which authenticates with the reference library
# of Standard Webhooks, as an image.
receiver_archive() {
  local archive=$CACHE/image/receiver.tar
  (cd "$REPOSITORY/examples/receiver" && CGO_ENABLED=0 go build -trimpath -o "$CACHE/bin/receiver" . >&2) &&
    "$CACHE/bin/posthorn-image" --binary "$CACHE/bin/receiver" --arch "$(go env GOARCH)" --name "$RECEIVER_IMAGE" \
      --out "$archive" >&2 &&
    "$REPOSITORY/scripts/cluster.sh" load "$archive"
}

# What a receiver of the examples counted, as JSON.
stats() { k get --raw "/api/v1/namespaces/$DEMO_NAMESPACE/services/$1:http/proxy/stats"; }

# number FIELD: the number of that name in JSON on one line.
number() { sed -E "s/.*\"$1\": ?([0-9]+).*/\1/;t;d"; }

# until_equal TEXT WANTED COMMAND…: runs the command until it prints what is wanted.
until_equal() {
  local text=$1 wanted=$2 now="" before="" deadline=$((SECONDS + EVENTS_SECONDS_MAX))
  shift 2
  while now=$("$@" 2>&1 || true) && [ "$now" != "$wanted" ]; do
    [ "$now" = "$before" ] || printf '%s  %s: %s, to become %s\n' "$(date +%T)" "$text" "$now" "$wanted"
    before=$now
    [ $SECONDS -lt $deadline ] || die "$text: still ${now:-nothing}, not $wanted, after $EVENTS_SECONDS_MAX s"
    sleep 1
  done
  printf '%s  %s: %s\n' "$(date +%T)" "$text" "$now"
}

accepted_by() { stats "$1" | number unique; }
cards() { k get deadletters -n "$DEMO_NAMESPACE" --no-headers 2>/dev/null | wc -l; }

# Publishes through a forwarded port, as from a laptop; inside the cluster it is
# http://posthorn-default.posthorn-system/.
publish_events() {
  local folder=$CACHE/publish log forward port token
  need node "install Node.js 20 or later; it publishes the example events"
  mkdir -p "$folder" && cp "$REPOSITORY"/examples/publish/* "$folder/" || return 1
  (cd "$folder" && npm install --no-package-lock --no-audit --no-fund --loglevel=error >&2) || return 1
  token=$(k create token publisher -n "$DEMO_NAMESPACE" --audience posthorn) || return 1
  log=$(mktemp)
  k port-forward -n "$RELEASE_NAMESPACE" service/posthorn-default :80 >"$log" 2>&1 &
  forward=$!
  until port=$(sed -nE 's/^Forwarding from 127.0.0.1:([0-9]+) .*/\1/p' "$log") && [ -n "$port" ]; do
    kill -0 "$forward" 2>/dev/null || { cat "$log" >&2; return 1; }
    sleep 0.2
  done
  PUBLISHED=$(POSTHORN_TOKEN=$token node "$folder/publish.mjs" "http://127.0.0.1:$port" "$DEMO_NAMESPACE")
  local code=$?
  kill "$forward" 2>/dev/null || true
  wait "$forward" 2>/dev/null || true
  rm -f "$log"
  return $code
}

# The type names of the broken Webhook's Subscription.
count_of() { sed -E "s/.*\"github\.$1\":([0-9]+).*/\1/;t;s/.*/0/" <<<"$PUBLISHED"; }

deliver_and_replay() {
  local total broken before given_up replayed
  before=$(accepted_by receiver)
  # Cards that an earlier run of the demo left.
  given_up=$(cards)
  step "Publishing GitHub's example events" publish_events
  total=$(number published <<<"$PUBLISHED")
  broken=$(($(count_of pull_request) + $(count_of issues)))
  until_equal "authenticated and accepted by the receiver" $((before + total)) accepted_by receiver
  given_up=$((given_up + broken))
  until_equal "given up by the broken receiver's Webhook, with a card" "$((given_up < CARDS_MAX ? given_up : CARDS_MAX))" cards
  printf '\nkubectl get deadletters -n %s\n' "$DEMO_NAMESPACE"
  # Not head, which would end kubectl by a signal.
  k get deadletters -n "$DEMO_NAMESPACE" | sed -n 1,6p
  show_attempts
  step "Repairing the receiver" repair
  k delete replay --all -n "$DEMO_NAMESPACE" >/dev/null
  # Another run of the demo is another run of the Replay.
  step "Applying examples/replay.yaml" bash -c "sed 's/^  webhookRef:/  runId: run-$$\n  webhookRef:/' '$REPOSITORY/examples/replay.yaml' | $KUBECTL apply -f -"
  step "Waiting until the Replay is complete" k wait replay/github-broken -n "$DEMO_NAMESPACE" --for=condition=Complete --timeout="${EVENTS_SECONDS_MAX}s"
  replayed=$(k get replay github-broken -n "$DEMO_NAMESPACE" -o jsonpath='{.status.delivered}')
  until_equal "accepted by the repaired receiver" "$replayed" accepted_by broken
  until_equal "cards that are left" 0 cards
  printf '\nkubectl get replays -n %s\n' "$DEMO_NAMESPACE"
  k get replays -n "$DEMO_NAMESPACE"
}

# The attempts of one event that was given up, as the broken receiver saw them.
show_attempts() {
  local event
  event=$(k get deadletters -n "$DEMO_NAMESPACE" -o jsonpath='{.items[0].spec.event.id}')
  printf '\nHow one of them was tried, by the schedule [1s, 2s]: kubectl logs deployment/broken -n %s | grep %s\n' "$DEMO_NAMESPACE" "$event"
  k logs deployment/broken -n "$DEMO_NAMESPACE" | sed -n "/$event/p"
}

repair() {
  k set env deployment/broken FAIL- -n "$DEMO_NAMESPACE" &&
    k rollout status deployment/broken -n "$DEMO_NAMESPACE" --timeout=60s
}

show_result() {
  printf '\nkubectl get webhooks,subscriptions -n %s\n' "$DEMO_NAMESPACE"
  k get webhooks,subscriptions -n "$DEMO_NAMESPACE"
  printf '\nWhat the receiver saw: kubectl logs deployment/receiver -n %s\n' "$DEMO_NAMESPACE"
  k logs deployment/receiver -n "$DEMO_NAMESPACE" --tail=5
  printf '\nLook further with:\n  export KUBECONFIG=%s\n  %s describe webhook github-broken -n %s\n' "$KUBECONFIG" "$KUBECTL" "$DEMO_NAMESPACE"
  printf 'Take it all away again with: make demo-down\n'
}

demo_up() {
  toolchains
  local start=$SECONDS archive
  step "Bringing a cluster up" cluster_up
  read_state
  archive=$(image_archive)
  step "Loading the image into the cluster" "$REPOSITORY/scripts/cluster.sh" load "$archive"
  step "Building the receiver of the examples" receiver_archive
  step "Installing the chart" "$REPOSITORY/scripts/install.sh" --values "$REPOSITORY/examples/values.yaml"
  step "Applying examples/" apply_examples
  step "Waiting until every Webhook is Ready" show_until_ready
  deliver_and_replay
  show_result
  printf '\nThe demo is up after %d s.\n' $((SECONDS - start))
}

apply_examples() {
  local file deployment
  for file in "$REPOSITORY"/examples/[0-9]*.yaml; do
    # The examples name the image as `make image` does.
    sed "s|image: posthorn:dev|image: $IMAGE|" "$file" | k apply -f - || return 1
  done
  # In a second run of the demo the receiver that was repaired is broken again.
  for deployment in inbox receiver broken; do
    k rollout status "deployment/$deployment" -n "$DEMO_NAMESPACE" --timeout=60s || return 1
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
