// Package edgerunner executes the offload workload: it plays edges. Each client
// of a trial is an edge as it runs on a Raspberry Pi (package edge: spool,
// decision, local detector, uplink); only its camera is replaced by clips with
// known labels that are recorded at planned instants.
//
// It consumes the tasks of its agent; it talks to the gateway's clip interface
// as an edge does, by HTTP, with the token of an account; it publishes one event
// of kind `clip` for every planned clip, also for those that never got a result.
// Detection in the lab is done by whatever detectors consume the queue.
package edgerunner
