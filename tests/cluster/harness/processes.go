package harness

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ownerVariable marks, in the environment of each process that the harness starts, the folder of its
// cluster. It finds processes whose record was lost, and the shims that containerd starts on its own.
// Containers do not inherit it.
const ownerVariable = "POSTHORN_CLUSTER_OWNER"

// componentPath is the search path of the components. The kubelet, kube-proxy and containerd call tools
// from the sbin folders, which a user's path often lacks.
const componentPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

const (
	// killTimeMax is how long the kernel may take to end a killed process.
	killTimeMax = 10 * time.Second
	// processPollInterval is how often a process that should end is looked at.
	processPollInterval = 20 * time.Millisecond
	// logTailBytesMax bounds what is read back of the log of a component that failed.
	logTailBytesMax = 4096
	logTailLinesMax = 12
)

// processRecord is the pid file of a component. A pid alone may be given to another process; together
// with the start time and the boot it names one process forever.
type processRecord struct {
	PID        int      `json:"pid"`
	StartTicks uint64   `json:"startTicks"` // Clock ticks from the boot to the start of the process.
	BootID     string   `json:"bootID"`
	Program    string   `json:"program"`
	Arguments  []string `json:"arguments"`
}

// processStat is the part of /proc/PID/stat that tells one process from another.
type processStat struct {
	state      byte
	startTicks uint64
}

// parseProcessStat reads the content of /proc/PID/stat. The second field, the name, is in parentheses
// and may itself hold spaces and parentheses, so fields are counted from the last closing one.
func parseProcessStat(content string) (processStat, error) {
	const startTimeField = 22 // Counted from 1, as in proc(5).
	end := strings.LastIndexByte(content, ')')
	if end < 0 {
		return processStat{}, fmt.Errorf("no process name in %q", content)
	}
	fields := strings.Fields(content[end+1:]) // The first of these is field 3, the state.
	if len(fields) <= startTimeField-3 || len(fields[0]) != 1 {
		return processStat{}, fmt.Errorf("too few fields in %q", content)
	}
	ticks, err := strconv.ParseUint(fields[startTimeField-3], 10, 64)
	if err != nil {
		return processStat{}, fmt.Errorf("start time in %q: %w", content, err)
	}
	return processStat{state: fields[0][0], startTicks: ticks}, nil
}

func readProcessStat(pid int) (processStat, error) {
	content, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return processStat{}, err
	}
	return parseProcessStat(string(content))
}

// isSameProcess decides whether the process that has the record's pid now is the one of the record, and
// still runs. A zombie has ended: it only waits for its parent.
func isSameProcess(record processRecord, now processStat, bootID string) bool {
	return record.BootID == bootID && record.StartTicks == now.startTicks && now.state != 'Z' && now.state != 'X'
}

func (r processRecord) isRunning() bool {
	bootID, err := readBootID()
	if err != nil {
		return false
	}
	stat, err := readProcessStat(r.PID)
	return err == nil && isSameProcess(r, stat, bootID)
}

// readRecord returns found = false where the component was never started, or was stopped.
func (c *Cluster) readRecord(name string) (record processRecord, found bool, err error) {
	content, err := os.ReadFile(c.recordPath(name))
	if errors.Is(err, fs.ErrNotExist) {
		return record, false, nil
	}
	if err != nil {
		return record, false, fmt.Errorf("read the record of %s: %w", name, err)
	}
	if err := json.Unmarshal(content, &record); err != nil {
		return record, false, fmt.Errorf("read the record of %s in %s: %w", name, c.recordPath(name), err)
	}
	return record, true, nil
}

// ensureProcess starts the program, unless the process of its record still runs.
func (c *Cluster) ensureProcess(name, program string, arguments []string) error {
	record, found, err := c.readRecord(name)
	if err != nil {
		return err
	}
	if found && record.isRunning() {
		return nil
	}
	return c.startProcess(name, program, arguments)
}

// startProcess starts the program in a session of its own, so that it outlives this process and the
// terminal, with its output appended to its log.
func (c *Cluster) startProcess(name, program string, arguments []string) error {
	if err := os.MkdirAll(filepath.Dir(c.logPath(name)), 0o755); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	log, err := os.OpenFile(c.logPath(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("start %s: open its log: %w", name, err)
	}
	defer log.Close()
	command := exec.Command(program, arguments...)
	command.Stdout, command.Stderr = log, log
	command.Dir = "/" // A working folder beneath the cluster's would keep `down` from removing it.
	command.Env = c.componentEnvironment()
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := command.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	// Read before the child can be reaped, so that the pid is still its own.
	stat, statErr := readProcessStat(command.Process.Pid)
	// Reaped here should it end while this process still runs; its exit is seen through /proc.
	go func() { _ = command.Wait() }()
	if statErr != nil {
		return fmt.Errorf("start %s: read its start time: %w", name, statErr)
	}
	bootID, err := readBootID()
	if err != nil {
		return err
	}
	return writeJSON(c.recordPath(name), processRecord{
		PID: command.Process.Pid, StartTicks: stat.startTicks, BootID: bootID,
		Program: program, Arguments: arguments,
	})
}

// componentEnvironment is small on purpose: a proxy in the user's environment, say, would keep the API
// server from its own webhooks.
func (c *Cluster) componentEnvironment() []string {
	return []string{"PATH=" + componentPath, "HOME=" + c.root, ownerVariable + "=" + c.root}
}

// owned lists the running processes that carry this cluster's mark.
func (c *Cluster) owned() ([]int, error) {
	mark := []byte(ownerVariable + "=" + c.root)
	return findProcesses(func(pid string) bool {
		environment, err := os.ReadFile(filepath.Join("/proc", pid, "environ"))
		if err != nil {
			return false // Ended since, or another user's, which is not ours then.
		}
		for _, variable := range bytes.Split(environment, []byte{0}) {
			if bytes.Equal(variable, mark) {
				return true
			}
		}
		return false
	})
}

// findProcesses lists the processes, but for this one, that the predicate accepts.
func findProcesses(accept func(pid string) bool) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list the processes: %w", err)
	}
	var found []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err == nil && pid != os.Getpid() && accept(entry.Name()) {
			found = append(found, pid)
		}
	}
	return found, nil
}

// killProcesses ends them all without time to end in order, and returns when none is left. It suits both
// uses: `stop-component` plays a failure, and `down` removes what an orderly end would save. Each process
// is held by pid and start time.
func killProcesses(pids []int) error {
	return killAndWait(identify(pids))
}

func killAndWait(records []processRecord) error {
	for _, record := range records {
		if record.isRunning() {
			// One that ended in between is what is wanted; one that cannot be killed shows in the wait.
			_ = syscall.Kill(record.PID, syscall.SIGKILL)
		}
	}
	if left := waitForEnd(records, killTimeMax); len(left) > 0 {
		return fmt.Errorf("processes did not end within %s of being killed: %v", killTimeMax, left)
	}
	return nil
}

// identify pins each pid to the process that has it now.
func identify(pids []int) []processRecord {
	bootID, err := readBootID()
	if err != nil {
		return nil
	}
	var records []processRecord
	for _, pid := range pids {
		if stat, err := readProcessStat(pid); err == nil {
			records = append(records, processRecord{PID: pid, StartTicks: stat.startTicks, BootID: bootID})
		}
	}
	return records
}

// waitForEnd returns the pids that still run after the limit.
func waitForEnd(records []processRecord, limit time.Duration) []int {
	deadline := time.Now().Add(limit)
	for {
		var left []int
		for _, record := range records {
			if record.isRunning() {
				left = append(left, record.PID)
			}
		}
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
		time.Sleep(processPollInterval)
	}
}

// logTail is the end of a component's log, for the error that says it failed.
func (c *Cluster) logTail(name string) string {
	file, err := os.Open(c.logPath(name))
	if err != nil {
		return "(no log: " + err.Error() + ")"
	}
	defer file.Close()
	if info, err := file.Stat(); err == nil && info.Size() > logTailBytesMax {
		if _, err := file.Seek(-logTailBytesMax, io.SeekEnd); err != nil {
			return "(log not readable: " + err.Error() + ")"
		}
	}
	content, err := io.ReadAll(io.LimitReader(file, logTailBytesMax))
	if err != nil {
		return "(log not readable: " + err.Error() + ")"
	}
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	if len(lines) > logTailLinesMax {
		lines = lines[len(lines)-logTailLinesMax:]
	}
	return strings.Join(lines, "\n")
}
