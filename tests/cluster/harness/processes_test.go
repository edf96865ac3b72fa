package harness

import (
	"os"
	"strings"
	"testing"
	"time"
)

func TestTheStartTimeIsFoundWhateverTheNameOfTheProcess(t *testing.T) {
	rest := " S 1 2 2 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 9 0 4242 1000 10"
	check := func(name string) {
		t.Helper()
		got, err := parseProcessStat("17 (" + name + ")" + rest)
		if err != nil || got.state != 'S' || got.startTicks != 4242 {
			t.Errorf("%q: got %+v, %v", name, got, err)
		}
	}
	check("etcd")
	check("a b c")
	check(") Z 1 (")
	check("")
}

func TestAnUnreadableStatIsAnError(t *testing.T) {
	for _, content := range []string{"", "17 etcd S", "17 (etcd)", "17 (etcd) S 1 2", "17 (etcd) S" + strings.Repeat(" x", 30)} {
		if got, err := parseProcessStat(content); err == nil {
			t.Errorf("%q: got %+v", content, got)
		}
	}
}

func TestAReusedPidIsAnotherProcess(t *testing.T) {
	record := processRecord{PID: 17, StartTicks: 100, BootID: "boot"}
	check := func(now processStat, bootID string, expected bool) {
		t.Helper()
		if got := isSameProcess(record, now, bootID); got != expected {
			t.Errorf("%+v at %s: got %v", now, bootID, got)
		}
	}
	check(processStat{state: 'S', startTicks: 100}, "boot", true)
	check(processStat{state: 'R', startTicks: 100}, "boot", true)
	check(processStat{state: 'S', startTicks: 101}, "boot", false)
	check(processStat{state: 'S', startTicks: 100}, "another boot", false)
	check(processStat{state: 'Z', startTicks: 100}, "boot", false)
}

func TestAStartedProcessIsOwnedUntilItIsKilled(t *testing.T) {
	cluster := &Cluster{name: "test", root: t.TempDir(), progress: newProgress(os.Stderr)}
	if err := cluster.startProcess("sleeper", "/bin/sleep", []string{"600"}); err != nil {
		t.Fatal(err)
	}
	record, found, err := cluster.readRecord("sleeper")
	if err != nil || !found || !record.isRunning() {
		t.Fatalf("got %+v, %v, %v", record, found, err)
	}
	var owned []int
	// Until the child has called exec, it has the environment of this process.
	err = poll(t.Context(), time.Minute, func() (bool, error) {
		var err error
		owned, err = cluster.owned()
		return len(owned) == 1 && owned[0] == record.PID, err
	})
	if err != nil {
		t.Errorf("owned: %v, want %d: %v", owned, record.PID, err)
	}
	if err := killProcesses([]int{record.PID}); err != nil {
		t.Error(err)
	}
	if record.isRunning() {
		t.Error("it runs after it was killed")
	}
}

func TestAnUnknownComponentHasNoRecord(t *testing.T) {
	cluster := &Cluster{name: "test", root: t.TempDir()}
	if _, found, err := cluster.readRecord("etcd"); found || err != nil {
		t.Errorf("got %v, %v", found, err)
	}
}
