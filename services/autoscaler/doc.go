// Package autoscaler keeps as many detectors as the queue of clips needs.
//
// Every half second it looks at how many clips wait and are in work, at what the
// detectors say of themselves and at the instances that its driver knows, has
// package scale decide, and starts instances or has workers drained. It consumes
// the state of the stream CLIPS and the bucket DETECTORS; it publishes
// detector.drain.v1.<worker> and one event of kind `scaling` for every decision
// that changed something, with the attributes
//
//	policy, reason          why
//	waiting, in_work        clips at that moment
//	oldest_wait_ns          how long the first of them has waited, if that is known
//	instances, workers      instances there or on their way; workers that can take clips
//	start, drain            how many it started, and drained
//
// wait_ns is how long looking took, duration_ns how long acting.
//
// It promises: never more instances than the cap, those included that boot and
// drain; no instance is ended whose worker has a clip in work or might get one, but
// for those whose worker never came; what cannot be seen changes nothing: while the
// queue, the workers or the instances are unknown, nothing is started or ended. A
// failed start is tried again with growing pauses. Killed and started anew it finds
// its instances again (containers, EC2) or has ended them (processes).
package autoscaler
