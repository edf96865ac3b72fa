package harness

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"
)

// certificateLifetime is how long the keys of a cluster serve; it is made to be thrown away before.
const certificateLifetime = 365 * 24 * time.Hour

// certificateBackdate lets a certificate serve at once where clocks step back a little.
const certificateBackdate = 5 * time.Minute

// The three authorities are apart: who holds a client certificate of Kubernetes must not reach etcd with
// it, nor speak for another user through the headers of the aggregation layer.
const (
	clusterAuthority    = "ca"
	etcdAuthority       = "etcd-ca"
	frontProxyAuthority = "front-proxy-ca"
)

// frontProxyName is the only name that aggregated API servers take user headers from.
const frontProxyName = "front-proxy-client"

// certificate says what to issue; pki/NAME.crt and pki/NAME.key hold the result.
type certificate struct {
	name          string
	authority     string
	commonName    string
	organizations []string
	dnsNames      []string
	addresses     []string
	usages        []x509.ExtKeyUsage
}

var (
	serverUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	clientUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	// etcd uses its certificate for both ends of the connection to a peer.
	peerUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
)

// kubeconfigUsers maps a kubeconfig's name to the certificate that its user has.
var kubeconfigUsers = map[string]string{
	"admin":                   "admin",
	"coredns":                 "coredns",
	"kube-controller-manager": "kube-controller-manager",
	"kube-proxy":              "kube-proxy",
	"kube-scheduler":          "kube-scheduler",
	"kubelet":                 "kubelet",
}

// certificates lists all that a cluster needs. The order of the list is of no meaning.
func certificates(apiServerAddress string) []certificate {
	client := func(name, commonName string, organizations ...string) certificate {
		return certificate{name: name, authority: clusterAuthority, commonName: commonName,
			organizations: organizations, usages: clientUsage}
	}
	return []certificate{
		{name: "kube-apiserver", authority: clusterAuthority, commonName: "kube-apiserver", usages: serverUsage,
			dnsNames: []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc",
				"kubernetes.default.svc." + clusterDomain, "localhost"},
			addresses: distinct(loopback, firstServiceAddress, apiServerAddress)},
		{name: "kubelet-server", authority: clusterAuthority, commonName: nodeName, usages: serverUsage,
			dnsNames: []string{nodeName}, addresses: []string{nodeAddress}},
		{name: "local-server", authority: clusterAuthority, commonName: "localhost", usages: serverUsage,
			dnsNames: []string{"localhost"}, addresses: []string{loopback}},
		{name: "etcd", authority: etcdAuthority, commonName: "etcd", usages: peerUsage,
			dnsNames: []string{"localhost"}, addresses: []string{loopback}},
		{name: "etcd-client", authority: etcdAuthority, commonName: "kube-apiserver", usages: clientUsage},
		{name: "front-proxy-client", authority: frontProxyAuthority, commonName: frontProxyName, usages: clientUsage},
		client("kube-apiserver-kubelet-client", "kube-apiserver-kubelet-client", "system:masters"),
		client("admin", "posthorn-cluster-admin", "system:masters"),
		client("coredns", "system:coredns"),
		client("kube-controller-manager", "system:kube-controller-manager"),
		client("kube-proxy", "system:kube-proxy"),
		client("kube-scheduler", "system:kube-scheduler"),
		client("kubelet", "system:node:"+nodeName, "system:nodes"),
	}
}

func distinct(values ...string) []string {
	kept := make([]string, 0, len(values))
	seen := map[string]bool{}
	for _, value := range values {
		if !seen[value] {
			seen[value] = true
			kept = append(kept, value)
		}
	}
	return kept
}

func (c *Cluster) certificatePath(name string) string { return c.path("pki", name+".crt") }
func (c *Cluster) keyPath(name string) string         { return c.path("pki", name+".key") }

// ensureCertificates issues every certificate and kubeconfig, once for the life of the cluster.
func (c *Cluster) ensureCertificates() error {
	complete := c.path("pki", "complete")
	if _, err := os.Stat(complete); err == nil {
		return nil
	}
	authorities := map[string]*authority{}
	for _, name := range []string{clusterAuthority, etcdAuthority, frontProxyAuthority} {
		made, err := newAuthority("posthorn cluster " + c.name + " " + name)
		if err != nil {
			return fmt.Errorf("make the certificate authority %s: %w", name, err)
		}
		authorities[name] = made
		if err := c.writeKeyPair(name, made.certificate.Raw, made.key); err != nil {
			return err
		}
	}
	for _, wanted := range certificates(c.apiServerAddress()) {
		der, key, err := authorities[wanted.authority].issue(wanted)
		if err != nil {
			return fmt.Errorf("issue the certificate %s: %w", wanted.name, err)
		}
		if err := c.writeKeyPair(wanted.name, der, key); err != nil {
			return err
		}
	}
	if err := c.writeServiceAccountKeys(); err != nil {
		return err
	}
	if err := c.writeKubeconfigs(); err != nil {
		return err
	}
	// Last, so that an interrupted run issues all of them again: halves of two runs do not fit together.
	return writeFile(complete, nil)
}

// writeServiceAccountKeys makes the pair that signs and verifies the tokens of service accounts.
func (c *Cluster) writeServiceAccountKeys() error {
	key, err := newKey()
	if err != nil {
		return fmt.Errorf("make the key of the service accounts: %w", err)
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return fmt.Errorf("encode the public key of the service accounts: %w", err)
	}
	if err := c.writeKey("service-accounts", key); err != nil {
		return err
	}
	return writePEM(c.path("pki", "service-accounts.pub"), "PUBLIC KEY", public)
}

func (c *Cluster) writeKeyPair(name string, der []byte, key *ecdsa.PrivateKey) error {
	if err := writePEM(c.certificatePath(name), "CERTIFICATE", der); err != nil {
		return err
	}
	return c.writeKey(name, key)
}

func (c *Cluster) writeKey(name string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode the key %s: %w", name, err)
	}
	return writePEM(c.keyPath(name), "EC PRIVATE KEY", der)
}

func writePEM(path, kind string, der []byte) error {
	return writeFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newAuthority(commonName string) (*authority, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	template, err := newTemplate(pkix.Name{CommonName: commonName})
	if err != nil {
		return nil, err
	}
	template.IsCA = true
	template.BasicConstraintsValid = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{certificate: parsed, key: key}, nil
}

func (a *authority) issue(wanted certificate) ([]byte, *ecdsa.PrivateKey, error) {
	key, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	template, err := newTemplate(pkix.Name{CommonName: wanted.commonName, Organization: wanted.organizations})
	if err != nil {
		return nil, nil, err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = wanted.usages
	template.DNSNames = wanted.dnsNames
	for _, address := range wanted.addresses {
		parsed := net.ParseIP(address)
		if parsed == nil {
			return nil, nil, fmt.Errorf("%q is not an IP address", address)
		}
		template.IPAddresses = append(template.IPAddresses, parsed)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, &key.PublicKey, a.key)
	return der, key, err
}

func newKey() (*ecdsa.PrivateKey, error) {
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

func newTemplate(subject pkix.Name) (*x509.Certificate, error) {
	const serialBits = 127 // RFC 5280 allows 20 bytes and wants a positive number.
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), serialBits))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      subject,
		NotBefore:    now.Add(-certificateBackdate),
		NotAfter:     now.Add(certificateLifetime),
	}, nil
}
