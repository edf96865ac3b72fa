package harness

import (
	"fmt"
	"io"
	"time"
)

// progress writes what goes on to the user, who may wait for a minute, on standard error: standard
// output is for results that scripts read.
type progress struct {
	out   io.Writer
	start time.Time
}

func newProgress(out io.Writer) *progress {
	return &progress{out: out, start: time.Now()}
}

func (p *progress) say(format string, arguments ...any) {
	fmt.Fprintf(p.out, "[%6.1fs] %s\n", time.Since(p.start).Seconds(), fmt.Sprintf(format, arguments...))
}

// step says what begins now and, should it take long enough to be noticed, when it is done.
func (p *progress) step(what string, do func() error) error {
	began := time.Now()
	p.say("%s", what)
	if err := do(); err != nil {
		return err
	}
	if took := time.Since(began); took >= noticeableTime {
		p.say("%s: done in %.1fs", what, took.Seconds())
	}
	return nil
}

// noticeableTime is from when on a step is worth a second line.
const noticeableTime = 500 * time.Millisecond
