package harness

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func fullCluster(root string) *Cluster {
	return &Cluster{name: "test", root: root, settings: settings{
		Executable: "/bin/posthorn-cluster",
		Ports: ports{APIServer: 6443, EtcdClient: 20001, EtcdPeer: 20002, ControllerManager: 20003,
			Scheduler: 20004, KubeletHealth: 20005, DNSHealth: 20006},
	}}
}

func wantParts(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q is missing in:\n%s", part, text)
		}
	}
}

func TestTheRuntimeKeepsEverythingInTheFolder(t *testing.T) {
	config := fullCluster(`/with "quotes"`).runtimeConfig("overlayfs")
	wantParts(t, config,
		`root = "/with \"quotes\"/containerd/root"`,
		`state = "/with \"quotes\"/containerd/state"`,
		`address = "/with \"quotes\"/run/containerd.sock"`,
		`netns_mounts_under_state_dir = true`,
		`Root = "/with \"quotes\"/containerd/runc"`,
		`sandbox_image = "posthorn.dev/cluster/pause:1"`)
}

func TestTheKubeletConfigurationIsJSON(t *testing.T) {
	cluster := fullCluster("/folder")
	content, err := json.Marshal(cluster.kubeletConfig())
	if err != nil {
		t.Fatal(err)
	}
	wantParts(t, string(content), `"kind":"KubeletConfiguration"`, `"clusterDNS":["10.88.0.1"]`,
		`"containerRuntimeEndpoint":"unix:///folder/run/containerd.sock"`, `"failCgroupV1":false`, `"healthzPort":20005`)
}

func TestNamesOutsideOfTheClusterAreNotForwarded(t *testing.T) {
	config := fullCluster("/folder").dnsConfig()
	wantParts(t, config, "cluster.local in-addr.arpa {", "rcode NXDOMAIN", `kubeconfig "/folder/kubeconfigs/coredns.yaml"`,
		"bind 10.88.0.1", "health 127.0.0.1:20006")
	if strings.Contains(config, "forward") {
		t.Errorf("it forwards:\n%s", config)
	}
}

func TestAnAPIOnlyClusterListensOnLoopbackAlone(t *testing.T) {
	cluster := fullCluster("/folder")
	cluster.settings.APIOnly = true
	for _, component := range cluster.components() {
		for _, argument := range component.arguments {
			name, value, _ := strings.Cut(argument, "=")
			if strings.HasSuffix(name, "bind-address") && value != loopback {
				t.Errorf("%s: %s", component.name, argument)
			}
			if strings.HasPrefix(name, "--listen-") && !strings.HasPrefix(value, "https://"+loopback+":") {
				t.Errorf("%s: %s", component.name, argument)
			}
		}
	}
}

func TestOnlyAFullClusterHasANode(t *testing.T) {
	cluster := fullCluster("/folder")
	if _, err := cluster.component(kubeletComponent); err != nil {
		t.Error(err)
	}
	cluster.settings.APIOnly = true
	if _, err := cluster.component(kubeletComponent); err == nil || !strings.Contains(err.Error(), "it has: etcd kube-apiserver") {
		t.Errorf("got %v", err)
	}
}

func TestMissingPackagesAreNamed(t *testing.T) {
	missing := missingPackages(func(path string) bool { return !strings.HasPrefix(path, "/usr/sbin/") })
	if got := strings.Join(missing, " "); got != "runc conntrack iptables nftables iproute2 ethtool" {
		t.Errorf("got %q", got)
	}
}

func TestNamesAndFoldersThatCannotServeAreRefused(t *testing.T) {
	check := func(directory, name, expected string) {
		t.Helper()
		if _, err := newCluster(directory, name, nil); err == nil || !strings.Contains(err.Error(), expected) {
			t.Errorf("%q %q: got %v, want %q", directory, name, err, expected)
		}
	}
	check("/tmp", "Upper", "--name")
	check("/tmp", "../x", "--name")
	check("/tmp", "", "--name")
	check("", "default", "no folder")
	check("/"+strings.Repeat("x", 100), "default", "too long")
}

func TestAFolderBehindALinkHasOnePathBeforeAndAfterItIsMade(t *testing.T) {
	folder := t.TempDir()
	link := filepath.Join(folder, "link")
	if err := os.Symlink(folder, link); err != nil {
		t.Fatal(err)
	}
	before := realPath(filepath.Join(link, "one", "two"))
	if err := os.MkdirAll(filepath.Join(folder, "one", "two"), 0o755); err != nil {
		t.Fatal(err)
	}
	if after := realPath(filepath.Join(link, "one", "two")); after != before {
		t.Errorf("%s before, %s after", before, after)
	}
}

func TestFreePortsAreDistinctAndBeneathTheKernelsOwn(t *testing.T) {
	ports, err := freePorts(20)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int]bool{}
	for _, port := range ports {
		if port < freePortMin || port > freePortMax || seen[port] {
			t.Errorf("got %v", ports)
		}
		seen[port] = true
	}
}

func TestFailedChecksAreKeptOfALongAnswer(t *testing.T) {
	check := func(body, expected string) {
		t.Helper()
		if got := failedChecks(body); got != expected {
			t.Errorf("got %q, want %q", got, expected)
		}
	}
	check("[+]ping ok\n[-]etcd failed: reason withheld\n[-]rbac failed: reason withheld\nreadyz check failed\n", "not yet: etcd, rbac")
	check("no\n", "no")
}
