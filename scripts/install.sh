#!/usr/bin/env bash
# Installs the chart into the cluster of KUBECONFIG, or upgrades it. Further
# arguments go to Helm.
. "$(dirname "$0")/lib.sh"

: "${KUBECONFIG:?run scripts/cluster.sh up first}" "${HELM:?run scripts/cluster.sh up first}"

# shellcheck disable=SC2086 # HELM may be a command with an argument
$HELM upgrade --install posthorn "$REPOSITORY/charts/posthorn" \
  --namespace "$RELEASE_NAMESPACE" --create-namespace \
  --set "image.repository=${IMAGE%:*}" --set "image.tag=${IMAGE##*:}" \
  --wait --timeout 3m "$@"
