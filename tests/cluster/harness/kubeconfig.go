package harness

import (
	"fmt"
	"net/http"
	"net/url"
	"os"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// writeKubeconfigs writes one kubeconfig for each component, and the one of the user. Keys are held in
// the file, so that the user's can be copied elsewhere.
func (c *Cluster) writeKubeconfigs() error {
	authority, err := os.ReadFile(c.certificatePath(clusterAuthority))
	if err != nil {
		return fmt.Errorf("write the kubeconfigs: %w", err)
	}
	for name, certificateName := range kubeconfigUsers {
		certificate, err := os.ReadFile(c.certificatePath(certificateName))
		if err != nil {
			return fmt.Errorf("write the kubeconfig of %s: %w", name, err)
		}
		key, err := os.ReadFile(c.keyPath(certificateName))
		if err != nil {
			return fmt.Errorf("write the kubeconfig of %s: %w", name, err)
		}
		content, err := renderKubeconfig(c.apiServerURL(), "posthorn-"+c.name, name, authority, certificate, key)
		if err != nil {
			return fmt.Errorf("write the kubeconfig of %s: %w", name, err)
		}
		if err := writeFile(c.componentKubeconfig(name), content); err != nil {
			return err
		}
		if name == "admin" {
			if err := writeFile(c.kubeconfigPath(), content); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *Cluster) componentKubeconfig(name string) string {
	return c.path("kubeconfigs", name+".yaml")
}

func renderKubeconfig(server, cluster, user string, authority, certificate, key []byte) ([]byte, error) {
	config := api.NewConfig()
	config.Clusters[cluster] = &api.Cluster{Server: server, CertificateAuthorityData: authority}
	config.AuthInfos[user] = &api.AuthInfo{ClientCertificateData: certificate, ClientKeyData: key}
	config.Contexts[cluster] = &api.Context{Cluster: cluster, AuthInfo: user, Namespace: "default"}
	config.CurrentContext = cluster
	return clientcmd.Write(*config)
}

// newClient makes a client of the API server from a kubeconfig file.
func newClient(kubeconfig string) (*kubernetes.Clientset, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read the kubeconfig %s: %w", kubeconfig, err)
	}
	// The default of 5 requests a second would make `up` wait on itself.
	config.QPS, config.Burst = clientRequestsPerSecond, clientRequestsBurst
	config.Timeout = requestTimeMax
	// The cluster is on this machine: a proxy named in the environment cannot reach it.
	config.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil }
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make a client from the kubeconfig %s: %w", kubeconfig, err)
	}
	return client, nil
}
