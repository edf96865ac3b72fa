package harness

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// down ends the cluster and removes all that it made. Nothing to remove is no error.
func (c *Cluster) down(ctx context.Context) error {
	if _, err := os.Stat(c.root); errors.Is(err, fs.ErrNotExist) {
		c.progress.say("there is no cluster %s in %s", c.name, c.root)
		return nil
	}
	found, err := c.readSettings()
	if err != nil {
		// It can still be removed, but for what the settings alone know of the machine.
		c.progress.say("%v", err)
	}
	if found && !c.settings.APIOnly {
		if err := requireRoot(); err != nil {
			return err
		}
	}
	if err := c.remove(ctx); err != nil {
		return err
	}
	c.progress.say("cluster %s is gone", c.name)
	return nil
}

// remove ends what runs and removes what is left, whichever part of it there is. Each step finds by
// itself what there is to do, so that it also cleans up after a crash, and may be repeated.
func (c *Cluster) remove(ctx context.Context) error {
	if _, err := os.Stat(c.root); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := c.progress.step("end the components", c.endComponents); err != nil {
		return err
	}
	if err := c.removeContainers(); err != nil {
		return err
	}
	if err := c.unmountAll(); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		if err := c.removeFromHost(ctx); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(c.root); err != nil {
		return fmt.Errorf("remove the folder of cluster %s: %w", c.name, err)
	}
	c.settings = settings{}
	return nil
}

// endComponents kills each process with our mark: the kubelet and containerd end with the others, before
// the containers, which they would start again.
func (c *Cluster) endComponents() error {
	// A second look finds shims that containerd started in the meantime.
	for round := 0; round < 2; round++ {
		pids, err := c.owned()
		if err != nil {
			return err
		}
		if err := killProcesses(pids); err != nil {
			return fmt.Errorf("end the components of cluster %s: %w", c.name, err)
		}
	}
	return nil
}

// removeFromHost removes what a full cluster put outside of its folder; an API-only one puts nothing there.
func (c *Cluster) removeFromHost(ctx context.Context) error {
	made := c.settings.BootID != "" && !c.settings.APIOnly
	if owner, exists := bridgeOwner(); !made && (!exists || owner != c.root) {
		return nil
	}
	if err := removeCgroups(); err != nil {
		return err
	}
	if err := removeDeadSockets(); err != nil {
		return err
	}
	if err := c.restoreHost(); err != nil {
		return err
	}
	// It ends with the bridge, which says that there is something of ours even where the settings are lost.
	return c.progress.step("remove the node's network", func() error { return c.removeNetwork(ctx) })
}
