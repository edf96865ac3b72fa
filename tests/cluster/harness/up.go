package harness

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// up makes the cluster serve: nothing to do where it does, started where there is none, mended where
// something of it ended, and made anew where that does not help.
func (c *Cluster) up(ctx context.Context, apiOnly bool) error {
	found, err := c.readSettings()
	if err != nil {
		c.progress.say("%v; clean up", err)
		found = false
	}
	if found && c.settings.APIOnly != apiOnly {
		return fmt.Errorf("cluster %s is %s and not %s: run down first, or take another --name",
			c.name, kindOfCluster(c.settings.APIOnly), kindOfCluster(apiOnly))
	}
	if !apiOnly {
		if err := requireRoot(); err != nil {
			return err
		}
	}
	if found {
		done, err := c.resume(ctx)
		if done || err != nil {
			return err
		}
	}
	// What an earlier run left, if anything.
	if err := c.remove(ctx); err != nil {
		return err
	}
	return c.create(ctx, apiOnly)
}

func kindOfCluster(apiOnly bool) string {
	if apiOnly {
		return "API-only"
	}
	return "full"
}

// resume makes an existing cluster serve again; done is false where it has to be made anew.
func (c *Cluster) resume(ctx context.Context) (done bool, err error) {
	bootID, err := readBootID()
	if err != nil {
		return false, err
	}
	if bootID != c.settings.BootID {
		c.progress.say("the machine was started anew since cluster %s was made: make it anew", c.name)
		return false, nil
	}
	missing := problemsOf(c.states(ctx))
	if len(missing) == 0 {
		c.noteOtherBuild()
		return true, nil
	}
	c.progress.say("cluster %s needs repair: %s", c.name, strings.Join(missing, "; "))
	if c.settings.Executable, err = os.Executable(); err != nil {
		return false, fmt.Errorf("find the path of this program: %w", err)
	}
	if err := c.bring(ctx); err != nil {
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		c.progress.say("the repair failed, so that the cluster is made anew: %v", err)
		return false, nil
	}
	return true, c.writeSettings()
}

// noteOtherBuild tells the user that the cluster runs on, though what starts it has changed.
func (c *Cluster) noteOtherBuild() {
	executable, err := os.Executable()
	if err == nil && executable != c.settings.Executable {
		c.progress.say("note: the cluster runs from another build, %s; down and up change that", c.settings.Executable)
	}
}

func problemsOf(states []componentState) []string {
	var problems []string
	for _, state := range states {
		if state.problem != nil {
			problems = append(problems, state.component.name+": "+state.problem.Error())
		}
	}
	return problems
}

// create makes a new cluster.
func (c *Cluster) create(ctx context.Context, apiOnly bool) error {
	if !apiOnly {
		if owner, exists := bridgeOwner(); exists && owner != c.root {
			return c.foreignBridge(owner)
		}
		if err := c.ensurePackages(ctx); err != nil {
			return err
		}
	}
	if err := c.decideSettings(apiOnly); err != nil {
		return err
	}
	// Before anything else is made, so that `down` knows of it whenever this run is interrupted.
	if err := c.writeSettings(); err != nil {
		return err
	}
	return c.bring(ctx)
}

// bring starts all that does not run and waits until everything serves. It may be repeated at any time.
func (c *Cluster) bring(ctx context.Context) error {
	if err := c.progress.step("issue certificates", c.ensureCertificates); err != nil {
		return err
	}
	if c.settings.APIOnly {
		if err := c.bringProcesses(ctx, c.components()); err != nil {
			return err
		}
		return c.waitUsable(ctx)
	}
	err := c.progress.step("set up the node's network", func() error { return c.ensureNetwork(ctx) })
	if err != nil {
		return err
	}
	if err := c.writeConfigurations(); err != nil {
		return err
	}
	// The others would end, or wait in ever longer intervals, without these three.
	base, rest := c.components()[:3], c.components()[3:]
	if err := c.bringProcesses(ctx, base); err != nil {
		return err
	}
	err = c.progress.step("import the pause image", func() error { return c.ensurePauseImage(ctx) })
	if err != nil {
		return err
	}
	client, err := newClient(c.kubeconfigPath())
	if err != nil {
		return err
	}
	if err := ensureDNSRole(ctx, client); err != nil {
		return err
	}
	if err := c.bringProcesses(ctx, rest); err != nil {
		return err
	}
	return c.waitUsable(ctx)
}

// bringProcesses starts them all before it waits for each, so that they get ready at the same time.
func (c *Cluster) bringProcesses(ctx context.Context, components []component) error {
	for _, component := range components {
		if err := c.start(component); err != nil {
			return err
		}
	}
	for _, component := range components {
		err := c.progress.step("wait for "+component.name, func() error { return c.waitServing(ctx, component) })
		if err != nil {
			return err
		}
	}
	return nil
}

// usableCheck is something that a test relies on besides serving components.
type usableCheck struct {
	what string
	ask  func(ctx context.Context, client kubernetes.Interface) error
}

func (c *Cluster) usableChecks() []usableCheck {
	// The controllers are all set up once this one has acted. Before that, a stop of the API server ends them.
	checks := []usableCheck{{"the default account", checkAccount}}
	if c.settings.APIOnly {
		return checks
	}
	return append(checks,
		usableCheck{"the volumes", checkStorage},
		usableCheck{"the node to be ready", checkNode},
		usableCheck{"the kubelet to know its pods", checkKubelet},
		usableCheck{"the cluster's names to resolve", checkDNS})
}

func (c *Cluster) waitUsable(ctx context.Context) error {
	client, err := newClient(c.kubeconfigPath())
	if err != nil {
		return err
	}
	for _, check := range c.usableChecks() {
		err := c.progress.step("wait for "+check.what, func() error { return c.waitCheck(ctx, client, check) })
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) waitCheck(ctx context.Context, client kubernetes.Interface, check usableCheck) error {
	var problem error
	err := poll(ctx, readyTimeMax, func() (bool, error) {
		if problem = check.ask(ctx, client); problem == nil {
			return true, nil
		}
		return false, c.reviveComponents()
	})
	if errors.Is(err, errPollLimit) {
		return fmt.Errorf("waited %s for %s: %w", readyTimeMax, check.what, problem)
	}
	return err
}

// reviveComponents starts those that have ended since they served.
func (c *Cluster) reviveComponents() error {
	for _, component := range c.components() {
		if err := c.start(component); err != nil {
			return err
		}
	}
	return nil
}

func checkNode(ctx context.Context, client kubernetes.Interface) error {
	node, err := client.CoreV1().Nodes().Get(ctx, nodeName, meta.GetOptions{})
	if err != nil {
		return err
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == core.NodeReady && condition.Status == core.ConditionTrue {
			return checkTaints(node)
		}
		if condition.Type == core.NodeReady {
			return fmt.Errorf("node %s: %s", nodeName, condition.Message)
		}
	}
	return fmt.Errorf("node %s has not said yet whether it is ready", nodeName)
}

// checkTaints: a node that has become ready still refuses pods until a controller has seen that.
func checkTaints(node *core.Node) error {
	for _, taint := range node.Spec.Taints {
		return fmt.Errorf("node %s has the taint %s", nodeName, taint.Key)
	}
	return nil
}

// checkKubelet asks the kubelet, through the API server, for its pods. After a restart it serves before it
// knows them, and refuses `exec` and `logs` until then; the node is called ready all the while.
func checkKubelet(ctx context.Context, client kubernetes.Interface) error {
	onNode := meta.ListOptions{FieldSelector: "spec.nodeName=" + nodeName}
	wanted, err := client.CoreV1().Pods(meta.NamespaceAll).List(ctx, onNode)
	if err != nil {
		return err
	}
	var known core.PodList
	err = client.CoreV1().RESTClient().Get().Resource("nodes").Name(nodeName).SubResource("proxy").Suffix("pods").Do(ctx).Into(&known)
	if err != nil {
		return fmt.Errorf("ask the kubelet for its pods: %w", err)
	}
	ids := map[types.UID]bool{}
	for _, pod := range known.Items {
		ids[pod.UID] = true
	}
	for _, pod := range wanted.Items {
		if !ids[pod.UID] && pod.DeletionTimestamp == nil && pod.Status.Phase == core.PodRunning {
			return fmt.Errorf("the kubelet does not know the pod %s/%s yet", pod.Namespace, pod.Name)
		}
	}
	return nil
}

func checkDNS(ctx context.Context, _ kubernetes.Interface) error {
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, hostPort(nodeAddress, dnsPort))
	}}
	ctx, cancel := context.WithTimeout(ctx, requestTimeMax)
	defer cancel()
	name := "kubernetes.default.svc." + clusterDomain + "."
	addresses, err := resolver.LookupHost(ctx, name)
	if err != nil {
		return err
	}
	if len(addresses) != 1 || addresses[0] != firstServiceAddress {
		return fmt.Errorf("%s resolves to %v rather than to %s", name, addresses, firstServiceAddress)
	}
	return nil
}

// checkStorage: the component "volumes" makes the class last.
func checkStorage(ctx context.Context, client kubernetes.Interface) error {
	_, err := client.StorageV1().StorageClasses().Get(ctx, storageClassName, meta.GetOptions{})
	return err
}

// checkAccount: without it the first pod of a test would be refused.
func checkAccount(ctx context.Context, client kubernetes.Interface) error {
	_, err := client.CoreV1().ServiceAccounts("default").Get(ctx, "default", meta.GetOptions{})
	return err
}
