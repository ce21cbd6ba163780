// Package drive starts and ends the instances that workers run on: child
// processes, containers of a Docker engine, EC2 instances.
//
// A driver knows its own instances by a mark that outlives it and whoever started
// them (a variable of the environment, a label, a tag): one that comes after a
// crash finds what is there. List names an instance from the moment that Start has
// returned until it is gone, also where the cloud itself is slower to know. Stop
// returns once the instance has ended or is sure to end, and nil for one that is
// gone already. None of them waits for clips: who calls Stop has drained the worker.
package drive

import (
	"crypto/rand"
	"regexp"
	"strings"
	"time"
)

// EnvWorker is the variable that gives a worker its name.
const EnvWorker = "TRANSFERLAB_DETECTOR"

// Instance is something that runs one worker.
type Instance struct {
	ID      string
	Worker  string    // what the worker calls itself
	Started time.Time // when it was asked for
}

// MaxStart is how many instances one call may start.
const MaxStart = 256

// ownerName matches what may mark instances as ours.
func ownerName(s string) bool { return regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,30}$`).MatchString(s) }

// workerName makes a name for a worker.
func workerName(owner string) string { return owner + "-" + strings.ToLower(rand.Text()[:10]) }
