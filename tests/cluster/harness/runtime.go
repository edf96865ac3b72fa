package harness

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// runtimeNamespace is the namespace of containerd in which the kubelet's images and containers are.
const runtimeNamespace = "k8s.io"

// ctr calls containerd's own client.
func (c *Cluster) ctr(ctx context.Context, arguments ...string) (string, error) {
	return run(ctx, "ctr", append([]string{"--address", c.runtimeSocket(), "--namespace", runtimeNamespace}, arguments...)...)
}

// tasksFolder holds one folder for each container, named by its id, for as long as it exists.
func (c *Cluster) tasksFolder() string {
	return c.path("containerd", "state", "io.containerd.runtime.v2.task", runtimeNamespace)
}

// containerIDs lists the containers of this cluster from containerd's state, which outlives it.
func (c *Cluster) containerIDs() (map[string]bool, error) {
	entries, err := os.ReadDir(c.tasksFolder())
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]bool{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the containers: %w", err)
	}
	ids := map[string]bool{}
	for _, entry := range entries {
		ids[entry.Name()] = true
	}
	return ids, nil
}

// removeContainers kills the processes in the cluster's containers and removes what their shims leave
// outside of the folder. The kubelet and containerd must have ended, or they would start new ones.
func (c *Cluster) removeContainers() error {
	ids, err := c.containerIDs()
	if err != nil {
		return err
	}
	if len(ids) == 0 {
		return nil
	}
	pids, err := findProcesses(func(pid string) bool {
		content, err := os.ReadFile(filepath.Join("/proc", pid, "cgroup"))
		return err == nil && ids[containerOfCgroup(string(content))]
	})
	if err != nil {
		return err
	}
	if err := killProcesses(pids); err != nil {
		return fmt.Errorf("end the containers: %w", err)
	}
	for id := range ids {
		if err := c.removeShimSocket(id); err != nil {
			return err
		}
	}
	return removePluginResults(ids)
}

// containerOfCgroup finds a container's id in the content of /proc/PID/cgroup: the kubelet names the
// cgroup of each container by it. A container may make cgroups beneath its own, so each part of the path counts.
func containerOfCgroup(content string) string {
	for _, line := range strings.Split(content, "\n") {
		parts := strings.Split(line, "/") // "4:memory:/kubepods/burstable/pod6f.../0a1b..."
		for index, part := range parts {
			if strings.HasPrefix(part, "pod") && index+1 < len(parts) && isContainerID(parts[index+1]) {
				return parts[index+1]
			}
		}
	}
	return ""
}

// isContainerID: containerd's ids are 32 random bytes in hexadecimal.
func isContainerID(text string) bool {
	const idCharacters = 64
	return len(text) == idCharacters && strings.Trim(text, "0123456789abcdef") == ""
}

// removeShimSocket removes the socket of a killed shim, which lies in a folder that cannot be chosen.
func (c *Cluster) removeShimSocket(id string) error {
	address, err := os.ReadFile(filepath.Join(c.tasksFolder(), id, "address"))
	if err != nil {
		return nil // Only the first container of a pod has a shim of its own.
	}
	path := strings.TrimPrefix(strings.TrimSpace(string(address)), "unix://")
	if !filepath.IsAbs(path) {
		return nil // An abstract socket goes with its process.
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the socket of container %s: %w", id, err)
	}
	return nil
}

// shimSockets is where containerd's shims listen, those of this cluster and those of the machine.
const shimSockets = "/run/containerd/s"

// shimStartTimeMax is longer than a shim takes from making its socket to listening on it.
const shimStartTimeMax = 10 * time.Second

// removeDeadSockets removes the sockets on which nobody listens: those of shims that were killed, and
// that containerd has forgotten since, are not named anywhere anymore.
func removeDeadSockets() error {
	entries, err := os.ReadDir(shimSockets)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list the sockets of shims: %w", err)
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil || info.Mode()&fs.ModeSocket == 0 || time.Since(info.ModTime()) < shimStartTimeMax {
			continue
		}
		path := filepath.Join(shimSockets, entry.Name())
		connection, err := net.DialTimeout("unix", path, requestTimeMax)
		if err == nil {
			connection.Close()
			continue
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the socket of a killed shim: %w", err)
		}
	}
	return nil
}

// removePluginResults removes what the CNI library remembers of the pods.
func removePluginResults(ids map[string]bool) error {
	const folder = "/var/lib/cni/results"
	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove the results of the network plugins: %w", err)
	}
	for _, entry := range entries {
		for id := range ids { // Named NETWORK-ID-INTERFACE.
			if !strings.Contains(entry.Name(), id) {
				continue
			}
			if err := os.Remove(filepath.Join(folder, entry.Name())); err != nil {
				return fmt.Errorf("remove the results of the network plugins: %w", err)
			}
		}
	}
	return nil
}

// unmountAll unmounts everything beneath the cluster's folder, innermost first.
func (c *Cluster) unmountAll() error {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("list the mounts: %w", err)
	}
	defer file.Close()
	var table strings.Builder
	if _, err := bufio.NewReader(file).WriteTo(&table); err != nil {
		return fmt.Errorf("list the mounts: %w", err)
	}
	for _, path := range mountsBeneath(table.String(), c.root) {
		// Detached, so that a process which still looks at it, of no cluster, does not hold up the rest.
		if err := syscall.Unmount(path, syscall.MNT_DETACH); err != nil && err != syscall.EINVAL {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	return nil
}

// mountsBeneath finds, in the content of /proc/self/mountinfo, the mounts beneath the folder, in the
// order in which they can be unmounted: the last that was mounted first.
func mountsBeneath(table, folder string) []string {
	const mountPointField = 4
	var paths []string
	for _, line := range strings.Split(table, "\n") {
		fields := strings.Fields(line)
		if len(fields) <= mountPointField {
			continue
		}
		if path := unescapeMount(fields[mountPointField]); strings.HasPrefix(path, folder+"/") {
			paths = append(paths, path)
		}
	}
	// The kernel lists parents before children; a stable sort keeps mounts over each other in order.
	for left, right := 0, len(paths)-1; left < right; left, right = left+1, right-1 {
		paths[left], paths[right] = paths[right], paths[left]
	}
	sort.SliceStable(paths, func(one, two int) bool {
		return strings.Count(paths[one], "/") > strings.Count(paths[two], "/")
	})
	return paths
}

// unescapeMount undoes the escapes, such as \040 for a blank, that the kernel writes in mountinfo.
func unescapeMount(path string) string {
	const escapeBytes = 4
	var plain strings.Builder
	for index := 0; index < len(path); index++ {
		if path[index] == '\\' && index+escapeBytes <= len(path) {
			if code, err := strconv.ParseUint(path[index+1:index+escapeBytes], 8, 8); err == nil {
				plain.WriteByte(byte(code))
				index += escapeBytes - 1
				continue
			}
		}
		plain.WriteByte(path[index])
	}
	return plain.String()
}

// cgroupRoot is the cgroup beneath which the kubelet makes those of the pods.
const cgroupRoot = "kubepods"

// cgroupEmptyTimeMax is how long the kernel may take to let go of the killed processes of a cgroup.
const cgroupEmptyTimeMax = 5 * time.Second

// removeCgroups removes the kubelet's cgroups, in each hierarchy of version 1 or in the one of version 2.
// Only empty cgroups can be removed, so that those of another kubelet, which cannot run here beside ours
// but may have run before, cost nothing.
func removeCgroups() error {
	roots, err := filepath.Glob("/sys/fs/cgroup/*/" + cgroupRoot)
	if err != nil {
		return fmt.Errorf("list the cgroups: %w", err)
	}
	for _, root := range append(roots, "/sys/fs/cgroup/"+cgroupRoot) {
		if err := removeCgroupTree(root); err != nil {
			return err
		}
	}
	return nil
}

func removeCgroupTree(root string) error {
	var folders []string
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && entry.IsDir() {
			folders = append(folders, path)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("list the cgroups beneath %s: %w", root, err)
	}
	for index := len(folders) - 1; index >= 0; index-- { // Children come after their parents.
		err := poll(context.Background(), cgroupEmptyTimeMax, func() (bool, error) {
			switch err := syscall.Rmdir(folders[index]); err {
			case nil, syscall.ENOENT:
				return true, nil
			case syscall.EBUSY:
				return false, nil
			default:
				return false, err
			}
		})
		if err != nil {
			return fmt.Errorf("remove the cgroup %s: %w", folders[index], err)
		}
	}
	return nil
}
