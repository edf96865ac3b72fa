#!/usr/bin/env bash
# The life of a release, after the cluster tests: an upgrade brings the CRDs up
# to date, an uninstall leaves them and the Webhooks, and an install finds them.
. "$(dirname "$0")/lib.sh"

: "${KUBECONFIG:?}" "${KUBECTL:?}" "${HELM:?}"
NAMESPACE=posthorn-chart-test

# shellcheck disable=SC2086 # KUBECTL and HELM may be commands with an argument
k() { $KUBECTL "$@"; }

columns() {
  k get crd webhooks.posthorn.dev -o jsonpath='{.spec.versions[0].additionalPrinterColumns[*].name}'
}

wanted=$(columns)
echo "An upgrade puts back a CRD of an older release."
k patch crd webhooks.posthorn.dev --type=json -p '[{"op":"remove","path":"/spec/versions/0/additionalPrinterColumns/0"}]'
[ "$(columns)" != "$wanted" ] || die "the test could not change the CRD"
"$REPOSITORY/scripts/install.sh" --values "$REPOSITORY/tests/cluster/values.yaml" --force-conflicts --set controller.logFormat=json
[ "$(columns)" = "$wanted" ] || die "the upgrade left an old CRD: $(columns)"

echo "An uninstall leaves CRDs and Webhooks, and namespaces still end."
k create namespace "$NAMESPACE"
printf '%s\n' '{"apiVersion":"posthorn.dev/v1alpha1","kind":"Webhook","metadata":{"name":"kept"},"spec":{"url":"https://hooks.example.com/","suspend":true}}' | k apply -n "$NAMESPACE" -f -
# shellcheck disable=SC2086
$HELM uninstall posthorn --namespace "$RELEASE_NAMESPACE" --wait --timeout 2m
k get webhook kept -n "$NAMESPACE" >/dev/null || die "the uninstall took the Webhook away"
k delete namespace "$NAMESPACE" --timeout=60s || die "the namespace does not end while Posthorn is uninstalled"
[ "$(columns)" = "$wanted" ] || die "the uninstall took the CRD away"

echo "An install finds what was left."
"$REPOSITORY/scripts/install.sh" --values "$REPOSITORY/tests/cluster/values.yaml"
echo "The chart keeps its promises."
