// Command posthorn-cluster runs a real Kubernetes for tests, on one Linux machine, without a
// container engine and without an image registry.
//
// It is one static binary that is many programs. By its first argument, or by the name it is started
// under, it is a Kubernetes component, etcd, CoreDNS, kubectl or Helm; these share most of their
// packages, so that they compile and link once. Any other first argument is a command of the harness
// (see the package harness), which starts this same binary once for each component.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"posthorn.dev/tests/cluster/harness"
)

func main() {
	if run, ok := components[filepath.Base(os.Args[0])]; ok {
		os.Exit(run())
	}
	if len(os.Args) > 1 {
		if run, ok := components[os.Args[1]]; ok {
			// The component reads os.Args as its own: its name first, then its arguments.
			os.Args = os.Args[1:]
			os.Exit(run())
		}
	}
	os.Exit(harness.Main(os.Args[1:], usageOfComponents()))
}

// usageOfComponents is the part of the help text that only this file can know.
func usageOfComponents() string {
	names := make([]string, 0, len(components))
	for name := range components {
		names = append(names, name)
	}
	sort.Strings(names)
	return fmt.Sprintf("Programs (first argument, or the name of a symbolic link to this binary):\n  %s\n",
		strings.Join(names, " "))
}
