package harness

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// lockTimeMax is how long a command waits for another one on the same cluster.
const lockTimeMax = 10 * time.Minute

// withLock runs the function while no other command changes the cluster. The lock lies beside the
// cluster's folder, since `down` removes that.
func (c *Cluster) withLock(ctx context.Context, do func() error) error {
	path := c.root + ".lock"
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("lock the cluster %s: %w", c.name, err)
	}
	file, err := c.acquire(ctx, path)
	if err != nil {
		return fmt.Errorf("lock the cluster %s by %s: %w", c.name, path, err)
	}
	defer file.Close() // Lets go of the lock too.
	err = do()
	if _, statErr := os.Stat(c.root); errors.Is(statErr, fs.ErrNotExist) {
		// No cluster, so no lock either. Who waits for this file sees that it is gone and takes a new one.
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

func (c *Cluster) acquire(ctx context.Context, path string) (*os.File, error) {
	var held *os.File
	said := false
	err := poll(ctx, lockTimeMax, func() (bool, error) {
		file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return false, err
		}
		err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil && isFileAt(file, path) {
			held = file
			return true, nil
		}
		file.Close()
		if err != nil && err != syscall.EWOULDBLOCK {
			return false, err
		}
		if !said {
			said = true
			c.progress.say("wait for another command on cluster %s", c.name)
		}
		return false, nil
	})
	return held, err
}

// isFileAt tells whether the file is still the one of that name: its last holder may have removed it.
func isFileAt(file *os.File, path string) bool {
	held, err := file.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(path)
	return err == nil && os.SameFile(held, named)
}
