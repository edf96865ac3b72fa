package harness

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// toolTimeMax bounds one call of a tool such as ip or ctr.
const toolTimeMax = 2 * time.Minute

// run calls a tool and returns what it wrote to standard output.
func run(ctx context.Context, program string, arguments ...string) (string, error) {
	return runWithInput(ctx, toolTimeMax, "", program, arguments...)
}

// runFor is run with a limit of its own, for the callers that do not read the output.
func runFor(ctx context.Context, limit time.Duration, program string, arguments ...string) error {
	_, err := runWithInput(ctx, limit, "", program, arguments...)
	return err
}

// runWithInput gives the tool its standard input. An error names the call and holds what the tool said.
func runWithInput(ctx context.Context, limit time.Duration, input, program string, arguments ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	command := exec.CommandContext(ctx, lookTool(program), arguments...)
	command.Env = append(os.Environ(), "LC_ALL=C") // Its messages are compared and shown.
	command.Stdin = strings.NewReader(input)
	var output, problems strings.Builder
	command.Stdout, command.Stderr = &output, &problems
	if err := command.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return output.String(), fmt.Errorf("%s %s: %w: %s", program, strings.Join(arguments, " "), err,
			strings.TrimSpace(problems.String()))
	}
	return output.String(), nil
}

// lookTool finds a tool along the path of the components, so that a user's path without the sbin
// folders does. What is not found there is left to the usual search, whose error names it.
func lookTool(program string) string {
	for _, folder := range strings.Split(componentPath, ":") {
		path := folder + "/" + program
		if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o111 != 0 {
			return path
		}
	}
	return program
}
