package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// installTimeMax bounds one run of apt-get.
const installTimeMax = 10 * time.Minute

// requirement is a Debian package and a file that tells whether it, or the like of it, is installed.
type requirement struct {
	packageName string
	file        string
}

// requirements are what the full cluster needs of the machine.
var requirements = []requirement{
	{"containerd", "/usr/bin/containerd"},
	{"runc", "/usr/sbin/runc"},
	{"containernetworking-plugins", cniFolder + "/ptp"},
	{"conntrack", "/usr/sbin/conntrack"},
	{"iptables", "/usr/sbin/iptables"},
	{"nftables", "/usr/sbin/nft"},
	{"iproute2", "/usr/sbin/ip"},
	{"socat", "/usr/bin/socat"},
	{"ethtool", "/usr/sbin/ethtool"},
}

// missingPackages decides which packages are not installed, by the files that exist.
func missingPackages(exists func(path string) bool) []string {
	var missing []string
	for _, requirement := range requirements {
		if !exists(requirement.file) {
			missing = append(missing, requirement.packageName)
		}
	}
	return missing
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// ensurePackages installs what is missing.
func (c *Cluster) ensurePackages(ctx context.Context) error {
	missing := missingPackages(fileExists)
	if len(missing) == 0 {
		return nil
	}
	names := strings.Join(missing, " ")
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("the cluster needs these Debian packages, or the same for this system in Debian's places: %s", names)
	}
	install := append([]string{"apt-get", "install", "--yes", "--no-install-recommends"}, missing...)
	return c.progress.step("install Debian packages: "+names, func() error {
		if err := runFor(ctx, installTimeMax, "apt-get", "update"); err != nil {
			return err
		}
		return runFor(ctx, installTimeMax, "env", append([]string{"DEBIAN_FRONTEND=noninteractive"}, install...)...)
	})
}

// requireRoot says what the full cluster needs before anything was changed.
func requireRoot() error {
	if os.Geteuid() == 0 {
		return nil
	}
	message := "the full cluster makes interfaces, mounts and containers: run it as root, or use --api-only"
	if missing := missingPackages(fileExists); len(missing) > 0 {
		message += "; it also needs the Debian packages " + strings.Join(missing, " ")
	}
	return errors.New(message)
}
