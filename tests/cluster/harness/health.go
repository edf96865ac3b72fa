package harness

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

const (
	// requestTimeMax is how long one question to a component may take.
	requestTimeMax = 5 * time.Second
	// readyTimeMax is how long a component may take to serve. It takes seconds on an idle machine; the
	// limit is for one that compiles at the same time.
	readyTimeMax = 3 * time.Minute
	// readyPollInterval is how often a component that starts is asked.
	readyPollInterval = 100 * time.Millisecond
	// startsMax is how often one command starts a component that ends again.
	startsMax = 3
	// healthBodyBytesMax bounds what is read of an answer that says what is wrong.
	healthBodyBytesMax = 8192

	clientRequestsPerSecond = 100
	clientRequestsBurst     = 200
)

// healthCheck returns nil when the component serves, and otherwise says what is missing.
type healthCheck func(ctx context.Context) error

// alwaysHealthy is for a component of which nothing is known but that its process runs.
func alwaysHealthy(context.Context) error { return nil }

func socketHealth(path string) healthCheck {
	return func(ctx context.Context) error {
		connection, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err != nil {
			return err
		}
		return connection.Close()
	}
}

func httpHealth(url string) healthCheck {
	return func(ctx context.Context) error {
		return askHealth(ctx, url, &http.Transport{DisableKeepAlives: true})
	}
}

// httpsHealth asks with a client certificate. The files are read when it is asked: they need not exist
// when the component is described.
func (c *Cluster) httpsHealth(url, authorityName, clientName string) healthCheck {
	return func(ctx context.Context) error {
		authority, err := os.ReadFile(c.certificatePath(authorityName))
		if err != nil {
			return err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(authority) {
			return fmt.Errorf("no certificate in %s", c.certificatePath(authorityName))
		}
		client, err := tls.LoadX509KeyPair(c.certificatePath(clientName), c.keyPath(clientName))
		if err != nil {
			return err
		}
		return askHealth(ctx, url, &http.Transport{
			DisableKeepAlives: true,
			TLSClientConfig: &tls.Config{
				RootCAs: pool, Certificates: []tls.Certificate{client}, MinVersion: tls.VersionTLS12,
			},
		})
	}
}

// askHealth never uses a proxy of the environment: the transports it is given name none.
func askHealth(ctx context.Context, url string, transport *http.Transport) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := (&http.Client{Transport: transport, Timeout: requestTimeMax}).Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusOK {
		return nil
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, healthBodyBytesMax))
	if err != nil {
		return fmt.Errorf("%s answered %s and then failed: %w", url, response.Status, err)
	}
	return fmt.Errorf("%s answered %s: %s", url, response.Status, failedChecks(string(body)))
}

// failedChecks keeps of a component's long answer the lines of the checks that failed, if it has such.
func failedChecks(body string) string {
	var failed []string
	for _, line := range strings.Split(body, "\n") {
		if name, ok := strings.CutPrefix(line, "[-]"); ok {
			name, _, _ = strings.Cut(name, " failed")
			failed = append(failed, name)
		}
	}
	if len(failed) == 0 {
		return strings.TrimSpace(body)
	}
	return "not yet: " + strings.Join(failed, ", ")
}

// componentState is one line of `status`.
type componentState struct {
	component component
	pid       int // Zero when no process runs.
	problem   error
}

var errNotRunning = errors.New("not running")

// states asks all components at once.
func (c *Cluster) states(ctx context.Context) []componentState {
	list := c.components()
	states := make([]componentState, len(list))
	var group sync.WaitGroup
	for index, component := range list {
		group.Add(1)
		go func() {
			defer group.Done()
			pid, problem := c.state(ctx, component)
			states[index] = componentState{component: component, pid: pid, problem: problem}
		}()
	}
	group.Wait()
	return states
}

func (c *Cluster) state(ctx context.Context, component component) (int, error) {
	record, found, err := c.readRecord(component.name)
	if err != nil {
		return 0, err
	}
	if !found || !record.isRunning() {
		return 0, errNotRunning
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeMax)
	defer cancel()
	return record.PID, component.isHealthy(ctx)
}

// waitReady returns when the component serves; a component that ended fails at once, with its last words.
func (c *Cluster) waitReady(ctx context.Context, component component) error {
	var problem error
	err := poll(ctx, readyTimeMax, func() (bool, error) {
		_, problem = c.state(ctx, component)
		if errors.Is(problem, errNotRunning) {
			return false, fmt.Errorf("%s: %w; the end of %s:\n%s",
				component.name, problem, c.logPath(component.name), c.logTail(component.name))
		}
		return problem == nil, nil
	})
	if errors.Is(err, errPollLimit) {
		return fmt.Errorf("%s does not serve after %s: %w; the end of %s:\n%s",
			component.name, readyTimeMax, problem, c.logPath(component.name), c.logTail(component.name))
	}
	return err
}

// waitServing is waitReady for a component that may end while it starts: because what it relies on was
// not there yet, or because it was being killed when this command looked at it.
func (c *Cluster) waitServing(ctx context.Context, component component) error {
	for attempt := 1; ; attempt++ {
		err := c.waitReady(ctx, component)
		if !errors.Is(err, errNotRunning) || attempt == startsMax {
			return err
		}
		c.progress.say("%s ended; start it again", component.name)
		if err := c.start(component); err != nil {
			return err
		}
	}
}

var errPollLimit = errors.New("the time limit is over")

// poll asks until the answer is yes, asking fails, the limit is over or the context ends.
func poll(ctx context.Context, limit time.Duration, ask func() (bool, error)) error {
	deadline := time.Now().Add(limit)
	for {
		yes, err := ask()
		if yes || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return errPollLimit
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(readyPollInterval):
		}
	}
}
