package harness

import (
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
)

// The request limits of the API server; the defaults of 400 and 200 would throttle the benchmarks, which
// write tens of thousands of objects.
const (
	apiServerRequestsMax         = 1600
	apiServerMutatingRequestsMax = 800
)

// etcdQuotaBytes is the largest database that etcd keeps; a benchmark's garbage exceeds the default of 2 GiB.
const etcdQuotaBytes = 4 << 30

// controllerRequestsPerSecond lets the controllers keep up with a benchmark: at the default of 20 the
// removal of its namespace would take an hour.
const (
	controllerRequestsPerSecond = 300
	controllerRequestsBurst     = 600
)

// component is one process of the cluster.
type component struct {
	name string
	// program is empty for what this binary itself is.
	program   string
	arguments []string
	// isHealthy says whether it serves now. Its process runs when this is asked.
	isHealthy healthCheck
}

// Components by name, as the commands take them.
const (
	etcdComponent              = "etcd"
	apiServerComponent         = "kube-apiserver"
	controllerManagerComponent = "kube-controller-manager"
	schedulerComponent         = "kube-scheduler"
	runtimeComponent           = "containerd"
	kubeletComponent           = "kubelet"
	proxyComponent             = "kube-proxy"
	dnsComponent               = "coredns"
	volumesComponent           = "volumes"
)

// components lists the processes of this cluster in the order in which they start.
func (c *Cluster) components() []component {
	list := []component{c.etcd(), c.apiServer()}
	if c.settings.APIOnly {
		return append(list, c.controllerManager())
	}
	return append(list, c.containerd(), c.controllerManager(), c.scheduler(), c.kubelet(), c.proxy(), c.dns(), c.volumes())
}

func (c *Cluster) component(name string) (component, error) {
	var names []string
	for _, candidate := range c.components() {
		if candidate.name == name {
			return candidate, nil
		}
		names = append(names, candidate.name)
	}
	return component{}, fmt.Errorf("cluster %s has no component %q; it has: %s", c.name, name, strings.Join(names, " "))
}

func (c *Cluster) etcd() component {
	client := "https://" + hostPort(loopback, c.settings.Ports.EtcdClient)
	peer := "https://" + hostPort(loopback, c.settings.Ports.EtcdPeer)
	authority := c.certificatePath(etcdAuthority)
	certificate, key := c.certificatePath("etcd"), c.keyPath("etcd")
	return component{
		name: etcdComponent,
		arguments: []string{
			"--name=" + nodeName,
			"--data-dir=" + c.path("etcd"),
			"--listen-client-urls=" + client, "--advertise-client-urls=" + client,
			"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer,
			"--initial-cluster=" + nodeName + "=" + peer,
			// Without client certificates each user of the machine could write to the cluster.
			"--client-cert-auth", "--trusted-ca-file=" + authority, "--cert-file=" + certificate, "--key-file=" + key,
			"--peer-client-cert-auth", "--peer-trusted-ca-file=" + authority,
			"--peer-cert-file=" + certificate, "--peer-key-file=" + key,
			// The cluster is thrown away after the tests, so that speed counts for more than what a
			// power failure would cost: `up` makes a new cluster after the machine was started anew.
			"--unsafe-no-fsync",
			fmt.Sprintf("--quota-backend-bytes=%d", int64(etcdQuotaBytes)),
			"--auto-compaction-mode=periodic", "--auto-compaction-retention=5m",
			"--log-level=warn",
		},
		isHealthy: c.httpsHealth(client+"/health", etcdAuthority, "etcd-client"),
	}
}

func (c *Cluster) apiServer() component {
	arguments := []string{
		"--bind-address=" + c.apiServerAddress(),
		fmt.Sprintf("--secure-port=%d", c.settings.Ports.APIServer),
		"--advertise-address=" + c.apiServerAddress(),
		"--tls-cert-file=" + c.certificatePath("kube-apiserver"), "--tls-private-key-file=" + c.keyPath("kube-apiserver"),
		"--client-ca-file=" + c.certificatePath(clusterAuthority),
		"--etcd-servers=https://" + hostPort(loopback, c.settings.Ports.EtcdClient),
		"--etcd-cafile=" + c.certificatePath(etcdAuthority),
		"--etcd-certfile=" + c.certificatePath("etcd-client"), "--etcd-keyfile=" + c.keyPath("etcd-client"),
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--service-cluster-ip-range=" + serviceRange,
		"--service-account-issuer=" + serviceAccountIssue,
		"--api-audiences=" + serviceAccountIssue,
		"--service-account-key-file=" + c.path("pki", "service-accounts.pub"),
		"--service-account-signing-key-file=" + c.keyPath("service-accounts"),
		// The aggregation layer: these headers are believed from this certificate alone.
		"--requestheader-client-ca-file=" + c.certificatePath(frontProxyAuthority),
		"--requestheader-allowed-names=" + frontProxyName,
		"--requestheader-username-headers=X-Remote-User",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + c.certificatePath("front-proxy-client"),
		"--proxy-client-key-file=" + c.keyPath("front-proxy-client"),
		fmt.Sprintf("--max-requests-inflight=%d", apiServerRequestsMax),
		fmt.Sprintf("--max-mutating-requests-inflight=%d", apiServerMutatingRequestsMax),
		"--event-ttl=15m", // Runs are short; older events only fill the database.
	}
	if c.settings.APIOnly {
		// A Service may not have a loopback address for an endpoint, and nobody asks for this one.
		arguments = append(arguments, "--endpoint-reconciler-type=none")
	} else {
		arguments = append(arguments,
			// Only the address is known to the machine; the node's name resolves nowhere. Without this
			// `exec` and `logs` fail.
			"--kubelet-preferred-address-types=InternalIP",
			"--kubelet-certificate-authority="+c.certificatePath(clusterAuthority),
			"--kubelet-client-certificate="+c.certificatePath("kube-apiserver-kubelet-client"),
			"--kubelet-client-key="+c.keyPath("kube-apiserver-kubelet-client"))
	}
	return component{
		name:      apiServerComponent,
		arguments: arguments,
		isHealthy: c.httpsHealth(c.apiServerURL()+"/readyz", clusterAuthority, "admin"),
	}
}

func (c *Cluster) controllerManager() component {
	arguments := c.localServer(c.settings.Ports.ControllerManager)
	arguments = append(arguments,
		"--kubeconfig="+c.componentKubeconfig(controllerManagerComponent),
		"--leader-elect=false",
		"--use-service-account-credentials",
		"--root-ca-file="+c.certificatePath(clusterAuthority),
		"--service-account-private-key-file="+c.keyPath("service-accounts"),
		"--cluster-signing-cert-file="+c.certificatePath(clusterAuthority),
		"--cluster-signing-key-file="+c.keyPath(clusterAuthority),
		fmt.Sprintf("--kube-api-qps=%d", controllerRequestsPerSecond),
		fmt.Sprintf("--kube-api-burst=%d", controllerRequestsBurst))
	return component{
		name:      controllerManagerComponent,
		arguments: arguments,
		isHealthy: c.localHealth(c.settings.Ports.ControllerManager),
	}
}

func (c *Cluster) scheduler() component {
	return component{
		name: schedulerComponent,
		arguments: append(c.localServer(c.settings.Ports.Scheduler),
			"--kubeconfig="+c.componentKubeconfig(schedulerComponent),
			"--leader-elect=false"),
		isHealthy: c.localHealth(c.settings.Ports.Scheduler),
	}
}

// localServer are the arguments of a component that serves its health and metrics on loopback.
func (c *Cluster) localServer(port int) []string {
	return []string{
		"--bind-address=" + loopback,
		fmt.Sprintf("--secure-port=%d", port),
		"--tls-cert-file=" + c.certificatePath("local-server"),
		"--tls-private-key-file=" + c.keyPath("local-server"),
	}
}

func (c *Cluster) localHealth(port int) healthCheck {
	return c.httpsHealth("https://"+hostPort(loopback, port)+"/healthz", clusterAuthority, "admin")
}

func (c *Cluster) containerd() component {
	return component{
		name:      runtimeComponent,
		program:   "/usr/bin/containerd",
		arguments: []string{"--config", c.runtimeConfigPath()},
		isHealthy: socketHealth(c.runtimeSocket()),
	}
}

func (c *Cluster) kubelet() component {
	return component{
		name: kubeletComponent,
		arguments: []string{
			"--config=" + c.kubeletConfigPath(),
			"--kubeconfig=" + c.componentKubeconfig(kubeletComponent),
			"--hostname-override=" + nodeName,
			"--node-ip=" + nodeAddress,
			"--root-dir=" + c.path("kubelet"),
			"--cert-dir=" + c.path("kubelet", "pki"),
		},
		isHealthy: httpHealth("http://" + hostPort(loopback, c.settings.Ports.KubeletHealth) + "/healthz"),
	}
}

func (c *Cluster) proxy() component {
	return component{
		name: proxyComponent,
		arguments: []string{
			"--kubeconfig=" + c.componentKubeconfig(proxyComponent),
			"--hostname-override=" + nodeName,
			"--proxy-mode=nftables",
			"--cluster-cidr=" + podRange,
			"--metrics-bind-address=" + hostPort(nodeAddress, proxyMetricsPort),
			"--healthz-bind-address=" + hostPort(nodeAddress, proxyHealthPort),
			// Zero leaves the machine's connection tracking as it is.
			"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0",
		},
		isHealthy: httpHealth("http://" + hostPort(nodeAddress, proxyMetricsPort) + "/healthz"),
	}
}

func (c *Cluster) dns() component {
	return component{
		name:      dnsComponent,
		arguments: []string{"-conf", c.dnsConfigPath()},
		isHealthy: httpHealth("http://" + hostPort(loopback, c.settings.Ports.DNSHealth) + "/health"),
	}
}

func (c *Cluster) volumes() component {
	return component{
		name:      volumesComponent,
		arguments: []string{"--kubeconfig", c.componentKubeconfig("admin"), "--folder", c.volumesFolder()},
		isHealthy: alwaysHealthy,
	}
}

// start starts the component unless it runs.
func (c *Cluster) start(wanted component) error {
	program, arguments := wanted.program, wanted.arguments
	if program == "" {
		program = c.settings.Executable
		arguments = append([]string{wanted.name}, arguments...)
	}
	return c.ensureProcess(wanted.name, filepath.Clean(program), arguments)
}

func hostPort(host string, port int) string {
	return net.JoinHostPort(host, strconv.Itoa(port))
}
