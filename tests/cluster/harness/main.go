// Package harness makes, mends and removes Kubernetes clusters for tests on one Linux machine.
//
// It knows two kinds. A full cluster has one node, which is the machine itself: pods, Services, names,
// volumes; it needs root. An API-only cluster is etcd, the API server and the controllers on free ports
// of loopback; it needs nothing, and several can be up at once.
//
// All that a cluster keeps lies in one folder. What it has to make elsewhere (interfaces, firewall
// rules, kernel settings, cgroups) it removes or puts back on `down`. It never ends a process that it
// did not start: processes carry a mark in their environment, and pids count only with their start time.
package harness

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// Exit codes of the commands.
const (
	exitDone   = 0
	exitFailed = 1 // The command failed; for status: something does not serve.
	exitUsage  = 2
)

const usage = `posthorn-cluster: a Kubernetes for tests, without a container engine or a registry.

Commands:
  up [--api-only]         make the cluster serve; prints the path of its kubeconfig
  down                    end it and remove all that it made
  status                  print each component with its process and health; exits 1 unless all serve
  kubeconfig              print the path of the kubeconfig
  load-image ARCHIVE...   give image archives to the cluster
  stop-component NAME     kill a component, as a failure would
  start-component NAME    start it again with the same arguments, and wait until it serves

Flags, after the command:
  --dir FOLDER   where clusters live (POSTHORN_CLUSTER_DIR, else posthorn/cluster in the cache folder)
  --name NAME    which of them (default "default")

`

// command is one word of the command line.
type command struct {
	run func(ctx context.Context, cluster *Cluster, arguments []string) error
	// argumentsMin and argumentsMax bound the number of arguments after the flags.
	argumentsMin, argumentsMax int
}

const imagesMax = 64 // Archives in one call of load-image.

// errReported ends a command with a failure of which everything has been printed.
var errReported = errors.New("reported")

// Main runs one command and returns the exit code.
func Main(arguments []string, componentUsage string) int {
	if len(arguments) == 0 || arguments[0] == "help" || arguments[0] == "--help" || arguments[0] == "-h" {
		fmt.Fprint(os.Stderr, usage, componentUsage)
		if len(arguments) == 0 {
			return exitUsage
		}
		return exitDone
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if arguments[0] == volumesComponent {
		return volumesMain(ctx, arguments[1:])
	}
	return commandMain(ctx, arguments[0], arguments[1:])
}

func commandMain(ctx context.Context, word string, arguments []string) int {
	flags := flag.NewFlagSet(word, flag.ContinueOnError)
	directory := flags.String("dir", defaultDirectory(), "folder in which clusters live")
	name := flags.String("name", "default", "name of the cluster")
	apiOnly := false
	if word == "up" {
		flags.BoolVar(&apiOnly, "api-only", false, "only etcd, the API server and the controllers")
	}
	known := commands(&apiOnly)
	wanted, ok := known[word]
	if !ok {
		fmt.Fprintf(os.Stderr, "posthorn-cluster: unknown command %q\n\n%s", word, usage)
		return exitUsage
	}
	if err := flags.Parse(arguments); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return exitDone
		}
		return exitUsage
	}
	if count := flags.NArg(); count < wanted.argumentsMin || count > wanted.argumentsMax {
		fmt.Fprintf(os.Stderr, "posthorn-cluster %s: got %d arguments, want %d to %d (flags come first)\n",
			word, count, wanted.argumentsMin, wanted.argumentsMax)
		return exitUsage
	}
	cluster, err := newCluster(*directory, *name, newProgress(os.Stderr))
	if err == nil {
		err = wanted.run(ctx, cluster, flags.Args())
	}
	if err != nil {
		if !errors.Is(err, errReported) {
			fmt.Fprintf(os.Stderr, "posthorn-cluster %s: %v\n", word, err)
		}
		return exitFailed
	}
	return exitDone
}

// commands binds each word to what it does; apiOnly is read when the command runs, after the flags.
func commands(apiOnly *bool) map[string]command {
	return map[string]command{
		"up": {run: func(ctx context.Context, c *Cluster, _ []string) error {
			if err := c.withLock(ctx, func() error { return c.up(ctx, *apiOnly) }); err != nil {
				return err
			}
			c.progress.say("cluster %s serves at %s", c.name, c.apiServerURL())
			fmt.Println(c.kubeconfigPath())
			return nil
		}},
		"down": {run: func(ctx context.Context, c *Cluster, _ []string) error {
			return c.withLock(ctx, func() error { return c.down(ctx) })
		}},
		"status": {run: func(ctx context.Context, c *Cluster, _ []string) error {
			return c.printStatus(ctx, os.Stdout)
		}},
		"kubeconfig": {run: func(_ context.Context, c *Cluster, _ []string) error {
			if err := c.mustExist(); err != nil {
				return err
			}
			fmt.Println(c.kubeconfigPath())
			return nil
		}},
		"load-image":      {run: loadImages, argumentsMin: 1, argumentsMax: imagesMax},
		"stop-component":  {run: stopComponent, argumentsMin: 1, argumentsMax: 1},
		"start-component": {run: startComponent, argumentsMin: 1, argumentsMax: 1},
	}
}

// mustExist reads the settings of a cluster that the command needs.
func (c *Cluster) mustExist() error {
	found, err := c.readSettings()
	if err == nil && !found {
		err = fmt.Errorf("there is no cluster %s in %s; make it with: up", c.name, c.root)
	}
	return err
}

func (c *Cluster) printStatus(ctx context.Context, out io.Writer) error {
	if err := c.mustExist(); err != nil {
		return err
	}
	failed := false
	fmt.Fprintf(out, "%-24s %8s  %s\n", "COMPONENT", "PID", "HEALTH")
	for _, state := range c.states(ctx) {
		pid, health := "-", "ok"
		if state.pid != 0 {
			pid = fmt.Sprint(state.pid)
		}
		if state.problem != nil {
			failed = true
			health = strings.ReplaceAll(state.problem.Error(), "\n", " ")
		}
		fmt.Fprintf(out, "%-24s %8s  %s\n", state.component.name, pid, health)
	}
	if failed {
		return errReported
	}
	return nil
}

func loadImages(ctx context.Context, c *Cluster, archives []string) error {
	if err := c.mustExist(); err != nil {
		return err
	}
	if c.settings.APIOnly {
		return fmt.Errorf("cluster %s is API-only: it runs no containers", c.name)
	}
	for _, archive := range archives {
		names, err := c.importImage(ctx, archive)
		if err != nil {
			return err
		}
		c.progress.say("loaded %s: %s", archive, strings.Join(names, " "))
	}
	return nil
}

func stopComponent(ctx context.Context, c *Cluster, arguments []string) error {
	return c.withLock(ctx, func() error {
		if err := c.mustExist(); err != nil {
			return err
		}
		wanted, err := c.component(arguments[0])
		if err != nil {
			return err
		}
		record, found, err := c.readRecord(wanted.name)
		if err != nil {
			return err
		}
		if !found || !record.isRunning() {
			c.progress.say("%s does not run", wanted.name)
			return nil
		}
		// By its own record: killing whatever has the pid now could hit a process that is not ours.
		if err := killAndWait([]processRecord{record}); err != nil {
			return fmt.Errorf("stop %s: %w", wanted.name, err)
		}
		c.progress.say("%s (pid %d) is stopped", wanted.name, record.PID)
		return nil
	})
}

func startComponent(ctx context.Context, c *Cluster, arguments []string) error {
	return c.withLock(ctx, func() error {
		if err := c.mustExist(); err != nil {
			return err
		}
		wanted, err := c.component(arguments[0])
		if err != nil {
			return err
		}
		record, found, err := c.readRecord(wanted.name)
		if err != nil {
			return err
		}
		if !found {
			return fmt.Errorf("%s was never started: run up", wanted.name)
		}
		if err := c.ensureProcess(wanted.name, record.Program, record.Arguments); err != nil {
			return err
		}
		return c.progress.step("wait for "+wanted.name, func() error { return c.waitReady(ctx, wanted) })
	})
}

// volumesMain is the component "volumes", which `up` starts.
func volumesMain(ctx context.Context, arguments []string) int {
	flags := flag.NewFlagSet(volumesComponent, flag.ContinueOnError)
	kubeconfig := flags.String("kubeconfig", "", "kubeconfig with all rights")
	folder := flags.String("folder", "", "folder of the volumes")
	if err := flags.Parse(arguments); err != nil {
		return exitUsage
	}
	if *kubeconfig == "" || *folder == "" {
		fmt.Fprintln(os.Stderr, "posthorn-cluster volumes: needs --kubeconfig and --folder")
		return exitUsage
	}
	client, err := newClient(*kubeconfig)
	if err != nil {
		fmt.Fprintf(os.Stderr, "posthorn-cluster volumes: %v\n", err)
		return exitFailed
	}
	keepVolumes(ctx, client, *folder, func(err error) { fmt.Fprintf(os.Stderr, "volumes: %v\n", err) })
	return exitDone
}
