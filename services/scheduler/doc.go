// Package scheduler turns experiments into runs, and runs into trials that
// agents execute together.
//
// It answers scheduler.submit, .cancel, .resume, .schedule and .clock; it keeps
// runs in the bucket RUNS, hands tasks to agents through the stream TASKS and
// follows them in the bucket TRIALS. Everything it knows is in those buckets:
// after a kill it goes on where it was, with the same attempt if the agents are
// still at it, else with a new one. Runs are executed one after the other, so
// that they don't disturb each other. For every finished trial it records an
// event of kind `trial`.
package scheduler
