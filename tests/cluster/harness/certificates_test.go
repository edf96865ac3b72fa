package harness

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"testing"
)

// issued makes the certificates of a cluster in a folder of the test.
func issued(t *testing.T) *Cluster {
	t.Helper()
	cluster := &Cluster{name: "test", root: t.TempDir(), settings: settings{APIOnly: true, Ports: ports{APIServer: 6443}}}
	if err := cluster.ensureCertificates(); err != nil {
		t.Fatal(err)
	}
	return cluster
}

func (c *Cluster) parse(t *testing.T, name string) *x509.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(c.certificatePath(name), c.keyPath(name))
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func TestEachCertificateIsTrustedByItsAuthorityForItsUse(t *testing.T) {
	cluster := issued(t)
	for _, wanted := range certificates(loopback) {
		pool := x509.NewCertPool()
		pool.AddCert(cluster.parse(t, wanted.authority))
		for _, usage := range wanted.usages {
			options := x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{usage}}
			if _, err := cluster.parse(t, wanted.name).Verify(options); err != nil {
				t.Errorf("%s: %v", wanted.name, err)
			}
		}
	}
}

func TestAClientOfKubernetesIsNoClientOfEtcd(t *testing.T) {
	cluster := issued(t)
	pool := x509.NewCertPool()
	pool.AddCert(cluster.parse(t, etcdAuthority))
	options := x509.VerifyOptions{Roots: pool, KeyUsages: clientUsage}
	if _, err := cluster.parse(t, "admin").Verify(options); err == nil {
		t.Error("etcd's authority vouches for the administrator of Kubernetes")
	}
}

func TestTheAPIServerHasTheNamesThatPodsAndUsersKnow(t *testing.T) {
	certificate := issued(t).parse(t, "kube-apiserver")
	for _, name := range []string{"kubernetes.default.svc.cluster.local", "kubernetes.default.svc", "localhost", loopback, firstServiceAddress} {
		if err := certificate.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
}

func TestTheKubeletIsTheNodeToTheAuthorizer(t *testing.T) {
	subject := issued(t).parse(t, "kubelet").Subject
	if subject.CommonName != "system:node:node1" || len(subject.Organization) != 1 || subject.Organization[0] != "system:nodes" {
		t.Errorf("got %s", subject)
	}
}

func TestEachKubeconfigHasACertificate(t *testing.T) {
	cluster := issued(t)
	for name := range kubeconfigUsers {
		if _, err := newClient(cluster.componentKubeconfig(name)); err != nil {
			t.Error(err)
		}
	}
	if _, err := newClient(cluster.kubeconfigPath()); err != nil {
		t.Error(err)
	}
}

func TestCertificatesAreIssuedOnce(t *testing.T) {
	cluster := issued(t)
	before := cluster.parse(t, clusterAuthority).SerialNumber
	if err := cluster.ensureCertificates(); err != nil {
		t.Fatal(err)
	}
	if cluster.parse(t, clusterAuthority).SerialNumber.Cmp(before) != 0 {
		t.Error("a second call made another authority")
	}
}

func TestAnInterruptedIssueStartsOver(t *testing.T) {
	cluster := issued(t)
	before := cluster.parse(t, clusterAuthority).SerialNumber
	if err := os.Remove(cluster.path("pki", "complete")); err != nil {
		t.Fatal(err)
	}
	if err := cluster.ensureCertificates(); err != nil {
		t.Fatal(err)
	}
	if cluster.parse(t, clusterAuthority).SerialNumber.Cmp(before) == 0 {
		t.Error("certificates of an interrupted run were kept")
	}
}
