package harness

import (
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
)

// pauseImage is the image of each pod's sandbox; `up` makes it.
const pauseImage = "posthorn.dev/cluster/pause:1"

// cniNetworkName begins the names of the files that the network plugins leave behind.
const cniNetworkName = "posthorn-pods"

// cniFolder is where Debian keeps the network plugins.
const cniFolder = "/usr/lib/cni"

const (
	podsMax = 110
	// evictionMemoryMin is low, since a machine that runs tests has other use for its memory.
	evictionMemoryMin = "50Mi"
	dnsTTLSeconds     = 5
)

func (c *Cluster) runtimeConfigPath() string { return c.path("config", "containerd.toml") }
func (c *Cluster) kubeletConfigPath() string { return c.path("config", "kubelet.json") }
func (c *Cluster) dnsConfigPath() string     { return c.path("config", "Corefile") }
func (c *Cluster) cniConfigFolder() string   { return c.path("config", "cni") }

// writeConfigurations writes the files that the components of a full cluster read.
func (c *Cluster) writeConfigurations() error {
	snapshotter, err := snapshotterFor(c.root)
	if err != nil {
		return err
	}
	if err := writeFile(c.runtimeConfigPath(), []byte(c.runtimeConfig(snapshotter))); err != nil {
		return err
	}
	if err := writeJSON(c.kubeletConfigPath(), c.kubeletConfig()); err != nil {
		return err
	}
	if err := writeJSON(c.path("config", "cni", "10-pods.conflist"), c.cniConfig()); err != nil {
		return err
	}
	return writeFile(c.dnsConfigPath(), []byte(c.dnsConfig()))
}

// snapshotterFor picks how images become root file systems. overlayfs cannot lie on itself, which is
// where a folder inside of a container is.
func snapshotterFor(folder string) (string, error) {
	const overlayFileSystem = 0x794c7630 // OVERLAYFS_SUPER_MAGIC of statfs(2)
	var found syscall.Statfs_t
	if err := syscall.Statfs(folder, &found); err != nil {
		return "", fmt.Errorf("find the file system of %s: %w", folder, err)
	}
	if found.Type == overlayFileSystem {
		return "native", nil
	}
	return "overlayfs", nil
}

// runtimeConfig keeps all that containerd makes beneath the cluster's folder, so that `down` finds it and
// the machine's own containerd is not touched.
func (c *Cluster) runtimeConfig(snapshotter string) string {
	var config strings.Builder
	line := func(format string, arguments ...any) { fmt.Fprintf(&config, format+"\n", arguments...) }
	line("version = 2")
	line("root = %s", tomlString(c.path("containerd", "root")))
	line("state = %s", tomlString(c.path("containerd", "state")))
	line("oom_score = 0")
	line("disabled_plugins = [%s, %s, %s, %s]", tomlString("io.containerd.snapshotter.v1.aufs"),
		tomlString("io.containerd.snapshotter.v1.btrfs"), tomlString("io.containerd.snapshotter.v1.devmapper"),
		tomlString("io.containerd.snapshotter.v1.zfs"))
	line("[grpc]\n  address = %s", tomlString(c.runtimeSocket()))
	line("[plugins.%s]\n  path = %s", tomlString("io.containerd.internal.v1.opt"), tomlString(c.path("containerd", "opt")))
	const criPlugin = `[plugins."io.containerd.grpc.v1.cri"`
	line("%s]", criPlugin)
	line("  sandbox_image = %s", tomlString(pauseImage))
	// The kernel refuses a score below that of this process where the machine itself is a container.
	line("  restrict_oom_score_adj = true")
	// Otherwise a profile stays loaded in the kernel after `down`.
	line("  disable_apparmor = true")
	line("  netns_mounts_under_state_dir = true")
	line("%s.cni]\n  bin_dir = %s\n  conf_dir = %s", criPlugin, tomlString(cniFolder), tomlString(c.cniConfigFolder()))
	line("%s.containerd]\n  snapshotter = %s", criPlugin, tomlString(snapshotter))
	line("%s.containerd.runtimes.runc]\n  runtime_type = %s", criPlugin, tomlString("io.containerd.runc.v2"))
	line("%s.containerd.runtimes.runc.options]\n  Root = %s", criPlugin, tomlString(c.path("containerd", "runc")))
	return config.String()
}

// tomlString quotes a value. JSON's escapes are a subset of those of TOML's basic strings.
func tomlString(value string) string {
	quoted, err := json.Marshal(value)
	if err != nil {
		panic(err) // A string can always be encoded.
	}
	return string(quoted)
}

// kubeletConfig is written as JSON, which the kubelet reads as the YAML that it is.
func (c *Cluster) kubeletConfig() map[string]any {
	return map[string]any{
		"apiVersion":         "kubelet.config.k8s.io/v1beta1",
		"kind":               "KubeletConfiguration",
		"address":            nodeAddress,
		"port":               kubeletPort,
		"healthzBindAddress": loopback,
		"healthzPort":        c.settings.Ports.KubeletHealth,
		"tlsCertFile":        c.certificatePath("kubelet-server"),
		"tlsPrivateKeyFile":  c.keyPath("kubelet-server"),
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": true},
			"x509":      map[string]any{"clientCAFile": c.certificatePath(clusterAuthority)},
		},
		"authorization":            map[string]any{"mode": "Webhook"},
		"containerRuntimeEndpoint": "unix://" + c.runtimeSocket(),
		"cgroupDriver":             "cgroupfs",
		"clusterDomain":            clusterDomain,
		"clusterDNS":               []string{nodeAddress},
		// Pods must not see the search domains and name servers of the machine: a test would then depend on them.
		"resolvConf":             "",
		"podLogsDir":             c.path("pod-logs"),
		"volumePluginDir":        c.path("kubelet", "volume-plugins"),
		"maxPods":                podsMax,
		"failCgroupV1":           false, // Since 1.35 the kubelet refuses such machines unless told otherwise.
		"failSwapOn":             false,
		"serializeImagePulls":    false,
		"enforceNodeAllocatable": []string{},
		// The kubelet otherwise measures the root device, which it does not find on every machine.
		"localStorageCapacityIsolation": false,
		// Images cannot be pulled again, and the disk belongs to others too: nothing is removed when it fills.
		"imageGCHighThresholdPercent": 100,
		"imageGCLowThresholdPercent":  99,
		"evictionHard": map[string]string{
			"memory.available": evictionMemoryMin, "nodefs.available": "0%", "nodefs.inodesFree": "0%",
			"imagefs.available": "0%", "imagefs.inodesFree": "0%",
		},
	}
}

// cniConfig connects each pod by a pair of interfaces and a route. A bridge would let the pods of the
// node speak past the machine's routing, and an answer through a Service would then come from an
// address that was not asked, unless the kernel has br_netfilter.
func (c *Cluster) cniConfig() map[string]any {
	return map[string]any{
		"cniVersion": "0.4.0",
		"name":       cniNetworkName,
		"plugins": []any{map[string]any{
			"type": "ptp",
			"ipam": map[string]any{
				"type":    "host-local",
				"dataDir": c.path("cni"),
				"ranges":  []any{[]any{map[string]any{"subnet": podRange}}},
				"routes":  []any{map[string]any{"dst": "0.0.0.0/0"}},
			},
		}},
	}
}

// dnsConfig answers for the cluster and says of every other name that it does not exist. Nothing is
// forwarded: a test must not depend on, nor reach, the world outside.
func (c *Cluster) dnsConfig() string {
	const format = `%[1]s in-addr.arpa {
    bind %[2]s
    errors
    kubernetes %[1]s in-addr.arpa {
        kubeconfig "%[3]s"
        pods insecure
        ttl %[4]d
    }
    loadbalance
}
. {
    bind %[2]s
    errors
    template ANY ANY {
        rcode NXDOMAIN
    }
    health %[5]s
}
`
	return fmt.Sprintf(format, clusterDomain, nodeAddress, c.componentKubeconfig(dnsComponent), dnsTTLSeconds,
		hostPort(loopback, c.settings.Ports.DNSHealth))
}
