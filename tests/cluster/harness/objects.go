package harness

import (
	"context"
	"fmt"

	rbac "k8s.io/api/rbac/v1"
	failures "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// dnsRole is the name of the role and of its binding that let CoreDNS read what it answers from.
const dnsRole = "posthorn-cluster:coredns"

// ensureDNSRole gives CoreDNS its rights. It runs on each start, since it costs nothing.
func ensureDNSRole(ctx context.Context, client kubernetes.Interface) error {
	role := &rbac.ClusterRole{
		ObjectMeta: meta.ObjectMeta{Name: dnsRole},
		Rules: []rbac.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"services", "pods", "namespaces"}, Verbs: []string{"list", "watch"}},
			{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: []string{"list", "watch"}},
		},
	}
	binding := &rbac.ClusterRoleBinding{
		ObjectMeta: meta.ObjectMeta{Name: dnsRole},
		RoleRef:    rbac.RoleRef{APIGroup: rbac.GroupName, Kind: "ClusterRole", Name: dnsRole},
		Subjects:   []rbac.Subject{{APIGroup: rbac.GroupName, Kind: rbac.UserKind, Name: "system:coredns"}},
	}
	if _, err := client.RbacV1().ClusterRoles().Create(ctx, role, meta.CreateOptions{}); err != nil && !failures.IsAlreadyExists(err) {
		return fmt.Errorf("make the role of CoreDNS: %w", err)
	}
	_, err := client.RbacV1().ClusterRoleBindings().Create(ctx, binding, meta.CreateOptions{})
	if err != nil && !failures.IsAlreadyExists(err) {
		return fmt.Errorf("bind the role of CoreDNS: %w", err)
	}
	return nil
}
