package harness

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// The addresses and names of the full cluster. They are fixed, since one machine holds one full cluster.
const (
	nodeName       = "node1"
	bridgeName     = "k8s0"
	nodeAddress    = "10.88.0.1"
	nodePrefixBits = 24
	podRange       = "10.244.0.0/24"
	serviceRange   = "10.96.0.0/16"
	// firstServiceAddress is the one that Kubernetes gives to the Service kubernetes.default.
	firstServiceAddress = "10.96.0.1"
	clusterDomain       = "cluster.local"
	// loopback is where everything listens that only this machine has to reach.
	loopback = "127.0.0.1"

	fullAPIServerPort   = 6443
	kubeletPort         = 10250
	proxyMetricsPort    = 10249
	proxyHealthPort     = 10256
	dnsPort             = 53
	serviceAccountIssue = "https://kubernetes.default.svc." + clusterDomain
)

// Free ports are taken beneath the range from which the kernel takes the ports of outgoing connections
// (32768 and up) and beneath the node ports (30000 and up), so that no connection can take the port of
// a component while that component is stopped.
const (
	freePortMin      = 20_000
	freePortMax      = 29_999
	freePortTriesMax = 1_000
)

// namePattern keeps the name fit for a folder, an interface alias and a log line.
var namePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

// socketPathMax is the longest path, in bytes, that the kernel takes for a Unix socket, without its
// closing zero.
const socketPathMax = 107

// Cluster is one cluster of this machine: its folder and what was decided when it was made.
type Cluster struct {
	name     string
	root     string // Everything that the cluster keeps lies beneath this folder.
	settings settings
	progress *progress
}

// settings are decided by the first `up` and kept until `down`.
type settings struct {
	APIOnly bool `json:"apiOnly"`
	// Executable is the binary that the components were started from.
	Executable string `json:"executable"`
	// BootID tells whether the machine was started anew since, in which case no process is left and
	// the data, written without fsync, is not to be trusted.
	BootID string       `json:"bootID"`
	Ports  ports        `json:"ports"`
	Host   hostSnapshot `json:"host"`
}

type ports struct {
	APIServer         int `json:"apiServer"`
	EtcdClient        int `json:"etcdClient"`
	EtcdPeer          int `json:"etcdPeer"`
	ControllerManager int `json:"controllerManager"`
	Scheduler         int `json:"scheduler"`
	KubeletHealth     int `json:"kubeletHealth"`
	DNSHealth         int `json:"dnsHealth"`
}

func newCluster(directory, name string, progress *progress) (*Cluster, error) {
	if !namePattern.MatchString(name) {
		return nil, fmt.Errorf("--name %q: want 1 to 32 lower-case letters, digits and dashes", name)
	}
	if directory == "" {
		return nil, errors.New("no folder for the cluster: set --dir, POSTHORN_CLUSTER_DIR, XDG_CACHE_HOME or HOME")
	}
	absolute, err := filepath.Abs(directory)
	if err != nil {
		return nil, fmt.Errorf("--dir %q: %w", directory, err)
	}
	// The kernel's list of mounts shows real paths, and `down` finds its mounts in there.
	cluster := &Cluster{name: name, root: filepath.Join(realPath(absolute), name), progress: progress}
	// The kubelet makes this one, the longest beneath the folder.
	if longest := cluster.path("kubelet", "pod-resources", "kubelet.sock.0000000000"); len(longest) > socketPathMax {
		return nil, fmt.Errorf("--dir %q is too long: the socket %s has %d bytes, the kernel takes %d",
			directory, longest, len(longest), socketPathMax)
	}
	return cluster, nil
}

// realPath resolves the symbolic links of a path of which the last parts need not exist yet: it must be
// the same before and after the folder is made.
func realPath(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	parent := filepath.Dir(path)
	if parent == path {
		return path
	}
	return filepath.Join(realPath(parent), filepath.Base(path))
}

// defaultDirectory is where clusters live unless --dir says otherwise; empty where the environment names
// no place, so that a cluster never lands in whatever folder is current.
func defaultDirectory() string {
	if directory := os.Getenv("POSTHORN_CLUSTER_DIR"); directory != "" {
		return directory
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(cache, "posthorn", "cluster")
}

// path is a path beneath the cluster's folder.
func (c *Cluster) path(parts ...string) string {
	return filepath.Join(append([]string{c.root}, parts...)...)
}

func (c *Cluster) kubeconfigPath() string           { return c.path("kubeconfig") }
func (c *Cluster) runtimeSocket() string            { return c.path("run", "containerd.sock") }
func (c *Cluster) logPath(component string) string  { return c.path("logs", component+".log") }
func (c *Cluster) volumesFolder() string            { return c.path("volumes") }
func (c *Cluster) settingsPath() string             { return c.path("cluster.json") }
func (c *Cluster) recordPath(process string) string { return c.path("run", process+".json") }

// apiServerAddress is the address that the API server listens on and that its clients use.
func (c *Cluster) apiServerAddress() string {
	if c.settings.APIOnly {
		return loopback
	}
	return nodeAddress
}

func (c *Cluster) apiServerURL() string {
	return "https://" + net.JoinHostPort(c.apiServerAddress(), strconv.Itoa(c.settings.Ports.APIServer))
}

// readSettings fills in the settings; found is false when there is no cluster.
func (c *Cluster) readSettings() (found bool, err error) {
	content, err := os.ReadFile(c.settingsPath())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the settings of cluster %s: %w", c.name, err)
	}
	if err := json.Unmarshal(content, &c.settings); err != nil {
		return false, fmt.Errorf("read the settings of cluster %s in %s: %w", c.name, c.settingsPath(), err)
	}
	return true, nil
}

func (c *Cluster) writeSettings() error {
	return writeJSON(c.settingsPath(), c.settings)
}

// decideSettings makes the settings of a new cluster.
func (c *Cluster) decideSettings(apiOnly bool) error {
	executable, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the path of this program: %w", err)
	}
	bootID, err := readBootID()
	if err != nil {
		return err
	}
	free, err := freePorts(7)
	if err != nil {
		return err
	}
	c.settings = settings{APIOnly: apiOnly, Executable: executable, BootID: bootID, Ports: ports{
		APIServer: free[0], EtcdClient: free[1], EtcdPeer: free[2], ControllerManager: free[3],
		Scheduler: free[4], KubeletHealth: free[5], DNSHealth: free[6],
	}}
	if !apiOnly {
		// It has an address of its own, so that the usual port is free.
		c.settings.Ports.APIServer = fullAPIServerPort
		c.settings.Host = snapshotHost()
	}
	return nil
}

// freePorts finds distinct loopback ports that nobody listens on at this moment.
func freePorts(count int) ([]int, error) {
	found := make([]int, 0, count)
	seen := map[int]bool{}
	for try := 0; try < freePortTriesMax && len(found) < count; try++ {
		offset, err := rand.Int(rand.Reader, big.NewInt(freePortMax-freePortMin+1))
		if err != nil {
			return nil, fmt.Errorf("pick a free port: %w", err)
		}
		port := freePortMin + int(offset.Int64())
		if seen[port] {
			continue
		}
		seen[port] = true
		listener, err := net.Listen("tcp", net.JoinHostPort(loopback, strconv.Itoa(port)))
		if err != nil {
			continue // Taken; the next try takes another.
		}
		_ = listener.Close()
		found = append(found, port)
	}
	if len(found) < count {
		return nil, fmt.Errorf("pick free ports: found %d of %d in %d tries between %d and %d",
			len(found), count, freePortTriesMax, freePortMin, freePortMax)
	}
	return found, nil
}

func readBootID() (string, error) {
	content, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot id: %w", err)
	}
	return strings.TrimSpace(string(content)), nil
}

// writeJSON replaces the file in one step, so that an interrupted write leaves the old content.
func writeJSON(path string, value any) error {
	content, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return writeFile(path, append(content, '\n'))
}

// writeFile replaces the file in one step. Only the owner may read it, since many hold keys.
func writeFile(path string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	temporary := path + ".new"
	if err := os.WriteFile(temporary, content, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
