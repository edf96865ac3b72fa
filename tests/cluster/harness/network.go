package harness

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"
)

// natTable is our nftables table; kube-proxy has its own beside it.
const natTable = "posthorn-cluster"

// forwardComment marks our rules in the machine's FORWARD chain.
const forwardComment = "posthorn-cluster"

// interfaceGoneTimeMax is how long the kernel may take to remove the interfaces of removed namespaces.
const interfaceGoneTimeMax = 10 * time.Second

// natRules let pods reach what lies beyond this cluster under the machine's own address. The CNI plugin
// could do that with rules for each pod, which would stay behind when a run is interrupted; one table is
// removed at once.
const natRules = `table ip ` + natTable + ` {
  chain postrouting {
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr ` + podRange + ` ip daddr != { ` + podRange + `, ` + serviceRange + `, ` + nodeAddress + ` } masquerade
  }
}
`

// ensureNetwork makes the bridge that holds the node's address, and the rules of the pods' traffic.
func (c *Cluster) ensureNetwork(ctx context.Context) error {
	if err := c.ensureBridge(ctx); err != nil {
		return err
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return fmt.Errorf("let the kernel forward packets: %w", err)
	}
	// "add" and "delete" before the rules replace a table that an interrupted run left.
	replace := fmt.Sprintf("add table ip %[1]s\ndelete table ip %[1]s\n", natTable) + natRules
	if _, err := runWithInput(ctx, toolTimeMax, replace, "nft", "-f", "-"); err != nil {
		return err
	}
	return ensureForwarding(ctx)
}

// ensureBridge makes the bridge, a kind of interface that each kernel has, unlike "dummy".
func (c *Cluster) ensureBridge(ctx context.Context) error {
	owner, exists := bridgeOwner()
	if exists && owner != c.root {
		return c.foreignBridge(owner)
	}
	if !exists {
		if _, err := run(ctx, "ip", "link", "add", bridgeName, "type", "bridge"); err != nil {
			return err
		}
		if _, err := run(ctx, "ip", "link", "set", bridgeName, "alias", c.root); err != nil {
			return err
		}
	}
	address := fmt.Sprintf("%s/%d", nodeAddress, nodePrefixBits)
	if _, err := run(ctx, "ip", "address", "replace", address, "dev", bridgeName); err != nil {
		return err
	}
	_, err := run(ctx, "ip", "link", "set", bridgeName, "up")
	return err
}

func (c *Cluster) foreignBridge(owner string) error {
	if owner == "" {
		return fmt.Errorf("the interface %s exists and is of no cluster of this program", bridgeName)
	}
	return fmt.Errorf("another full cluster, in %s, is up; a machine holds one: "+
		"end it with down --dir and --name, or use --api-only here", owner)
}

// bridgeOwner reads whose the bridge is: its alias is the folder of its cluster.
func bridgeOwner() (owner string, exists bool) {
	alias, err := os.ReadFile("/sys/class/net/" + bridgeName + "/ifalias")
	if err != nil {
		return "", false
	}
	return strings.TrimSpace(string(alias)), true
}

// forwardRules let the pods' packets through on a machine whose firewall, Docker's for one, drops what
// it does not know.
func forwardRules() [][]string {
	comment := []string{"-m", "comment", "--comment", forwardComment, "-j", "ACCEPT"}
	return [][]string{
		append([]string{"FORWARD", "-s", podRange}, comment...),
		append([]string{"FORWARD", "-d", podRange}, comment...),
	}
}

func ensureForwarding(ctx context.Context) error {
	for _, rule := range forwardRules() {
		if _, err := run(ctx, "iptables", append([]string{"-w", "-C"}, rule...)...); err == nil {
			continue
		}
		if _, err := run(ctx, "iptables", append([]string{"-w", "-I"}, rule...)...); err != nil {
			return err
		}
	}
	return nil
}

// removeNetwork removes all that the cluster put into the machine's network. The pods must be gone.
func (c *Cluster) removeNetwork(ctx context.Context) error {
	owner, exists := bridgeOwner()
	if !exists || owner != c.root {
		return nil // Nothing was made, or what is there is another cluster's.
	}
	if err := removePodInterfaces(ctx); err != nil {
		return err
	}
	if err := removeTables(ctx); err != nil {
		return err
	}
	for _, rule := range forwardRules() {
		if _, err := run(ctx, "iptables", append([]string{"-w", "-C"}, rule...)...); err != nil {
			continue // Not there.
		}
		if _, err := run(ctx, "iptables", append([]string{"-w", "-D"}, rule...)...); err != nil {
			return err
		}
	}
	if err := removeKubeletChains(ctx); err != nil {
		return err
	}
	// Last: as long as the bridge stands, the rest is known to be ours.
	_, err := run(ctx, "ip", "link", "delete", bridgeName)
	return err
}

// removePodInterfaces waits for the kernel to remove the pods' interfaces with their namespaces, and
// removes those that stay, such as of a pod that was being set up. The machine's end of each holds the
// pods' gateway address.
func removePodInterfaces(ctx context.Context) error {
	list := func() ([]string, error) {
		output, err := run(ctx, "ip", "-o", "-4", "address", "show")
		return podInterfaces(output), err
	}
	var left []string
	err := poll(ctx, interfaceGoneTimeMax, func() (bool, error) {
		var err error
		left, err = list()
		return len(left) == 0, err
	})
	if err != nil && err != errPollLimit {
		return err
	}
	for _, name := range left {
		if _, err := run(ctx, "ip", "link", "delete", name); err != nil {
			return err
		}
	}
	return nil
}

// podInterfaces finds, in the output of `ip -o -4 address show`, the interfaces that lead to pods.
func podInterfaces(output string) []string {
	gateway := podGateway + "/32"
	var names []string
	for _, line := range strings.Split(output, "\n") {
		fields := strings.Fields(line) // "7: veth0a1b2c3d    inet 10.244.0.1/32 scope global veth0a1b2c3d"
		if len(fields) > 3 && fields[3] == gateway {
			names = append(names, fields[1])
		}
	}
	return names
}

// podGateway is the address that the plugin gives to the machine's end of each pod's interfaces.
const podGateway = "10.244.0.1"

// removeTables removes our table and those of kube-proxy.
func removeTables(ctx context.Context) error {
	output, err := run(ctx, "nft", "list", "tables")
	if err != nil {
		return err
	}
	for _, table := range []string{"ip " + natTable, "ip kube-proxy", "ip6 kube-proxy"} {
		if !hasLine(output, "table "+table) {
			continue
		}
		if _, err := run(ctx, "nft", append([]string{"delete", "table"}, strings.Fields(table)...)...); err != nil {
			return err
		}
	}
	return nil
}

func hasLine(text, wanted string) bool {
	for _, line := range strings.Split(text, "\n") {
		if strings.TrimSpace(line) == wanted {
			return true
		}
	}
	return false
}

// removeKubeletChains removes the chains that each kubelet makes for others to see that it is there.
func removeKubeletChains(ctx context.Context) error {
	for _, family := range []string{"iptables", "ip6tables"} {
		rules, err := run(ctx, family+"-save")
		if err != nil {
			if family == "ip6tables" {
				continue // A kernel without IPv6 has none of them.
			}
			return err
		}
		kept, changed := withoutKubeletChains(rules)
		if !changed {
			continue
		}
		if _, err := runWithInput(ctx, toolTimeMax, kept, family+"-restore", "-w"); err != nil {
			return err
		}
	}
	return nil
}

// withoutKubeletChains drops the kubelet's chains, and the rules in them and to them, from the output of
// iptables-save.
func withoutKubeletChains(rules string) (kept string, changed bool) {
	var lines []string
	for _, line := range strings.Split(rules, "\n") {
		if mentionsKubeletChain(line) {
			changed = true
			continue
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n"), changed
}

// kubeletChains are the chains of the kubelet; kube-proxy has none in iptables in the mode that is used here.
var kubeletChains = []string{"KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY", "KUBE-FIREWALL"}

func mentionsKubeletChain(line string) bool {
	for _, field := range strings.Fields(line) {
		for _, chain := range kubeletChains {
			if field == chain || field == ":"+chain {
				return true
			}
		}
	}
	return false
}
