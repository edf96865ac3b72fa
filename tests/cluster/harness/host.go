package harness

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// hostSnapshot is what the cluster changes on the machine outside of its folder, as it was before.
type hostSnapshot struct {
	// Sysctls maps a file beneath /proc/sys to its content.
	Sysctls map[string]string `json:"sysctls,omitempty"`
	// AbsentPaths are the fixed folders of the components that did not exist; `down` removes them where nobody else uses them.
	AbsentPaths []string `json:"absentPaths,omitempty"`
}

// changedSysctls are the kernel settings that the kubelet and `up` change. That a machine restarts 10
// seconds after a kernel fault, which the kubelet asks for, is not what a developer wants to keep.
var changedSysctls = []string{
	"net/ipv4/ip_forward", "vm/overcommit_memory", "vm/panic_on_oom",
	"kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
}

// devicePlugins is where the kubelet listens for device plugins, wherever its own folder is.
const devicePlugins = "/var/lib/kubelet/device-plugins"

// containerLogs is where the kubelet puts links to the logs of containers.
const containerLogs = "/var/log/containers"

// fixedPaths are the folders that components make in places that cannot be chosen: besides those of the
// kubelet, the results of network plugins and the sockets of shims.
var fixedPaths = []string{filepath.Dir(devicePlugins), containerLogs, "/var/lib/cni", "/run/containerd"}

func snapshotHost() hostSnapshot {
	snapshot := hostSnapshot{Sysctls: map[string]string{}}
	for _, name := range changedSysctls {
		// A setting that this kernel lacks is changed by nobody.
		if content, err := os.ReadFile(filepath.Join("/proc/sys", name)); err == nil {
			snapshot.Sysctls[name] = strings.TrimSpace(string(content))
		}
	}
	for _, path := range fixedPaths {
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			snapshot.AbsentPaths = append(snapshot.AbsentPaths, path)
		}
	}
	return snapshot
}

// restoreHost puts back what the snapshot holds. It runs after the processes have ended and the mounts are gone.
func (c *Cluster) restoreHost() error {
	for name, before := range c.settings.Host.Sysctls {
		path := filepath.Join("/proc/sys", name)
		now, err := os.ReadFile(path)
		if err != nil || strings.TrimSpace(string(now)) == before {
			continue
		}
		if err := os.WriteFile(path, []byte(before), 0o644); err != nil {
			return fmt.Errorf("restore the kernel setting %s: %w", name, err)
		}
	}
	if err := removeDeadLinks(containerLogs, c.root); err != nil {
		return err
	}
	for _, path := range c.settings.Host.AbsentPaths {
		if path == filepath.Dir(devicePlugins) {
			if err := os.RemoveAll(devicePlugins); err != nil {
				return fmt.Errorf("remove the kubelet's folder of device plugins: %w", err)
			}
		}
		if err := removeEmptyFolders(path); err != nil {
			return fmt.Errorf("remove %s, which did not exist before the cluster: %w", path, err)
		}
	}
	return nil
}

// removeEmptyFolders removes the folder and those in it that are empty or hold only such ones. What
// somebody else has put there meanwhile stays.
func removeEmptyFolders(root string) error {
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
		return err
	}
	for index := len(folders) - 1; index >= 0; index-- { // Children come after their parents.
		err := syscall.Rmdir(folders[index])
		if err != nil && err != syscall.ENOTEMPTY && err != syscall.ENOENT && err != syscall.EBUSY {
			return fmt.Errorf("remove %s: %w", folders[index], err)
		}
	}
	return nil
}

// removeDeadLinks removes the links in the folder that point into the cluster's.
func removeDeadLinks(folder, root string) error {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove the links to logs: %w", err)
	}
	for _, entry := range entries {
		path := filepath.Join(folder, entry.Name())
		target, err := os.Readlink(path)
		if err != nil || !strings.HasPrefix(target, root+"/") {
			continue
		}
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("remove the links to logs: %w", err)
		}
	}
	return nil
}
