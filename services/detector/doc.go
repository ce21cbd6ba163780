// Package detector takes clips off the queue, looks at them, and stores what is
// seen: the workers of the workload `offload`.
//
// It consumes clips.waiting.v1.* (a queue that all detectors share) and
// detector.drain.v1.<name>; it writes the bucket of results in the store, its
// clips in CLIPSTATES, itself in DETECTORS, and one event of kind `detection`
// for every try at a clip:
//
//	intended     when the clip was taken
//	first_byte   until the clip's first byte was here
//	duration     until its job was acknowledged, rejected or given back
//	bytes        of the clip, as far as they came
//	status       of the result (ok, undecodable, model, corrupt, lost …), the
//	             store's word for what went wrong, `duplicate` for a clip that had
//	             its result already, `cancelled` for one that was handed back
//	attrs        clip, edge, try, fetch_ns, decode_ns, infer_ns, store_ns, model
//
// # Order
//
// The annotated frame is stored, then the result (only if there is none), then
// the clip's state says so (compare-and-set), then the job is acknowledged, then
// the state gets the time of that. Whoever is killed in between leaves what the
// next one completes: a clip with a result is not looked at again. So a clip has
// exactly one result whatever happens, and one that is acknowledged has it.
//
// # Failures
//
// What will never work has a result that says so, and its job becomes a dead
// letter, at once: a clip that is gone (lost), whose bytes are not those that
// were announced (corrupt, after a second look), that cannot be decoded
// (undecodable), or whose model cannot be used (model). A crash or a timeout of
// detection comes again, later and later, and has such a result on its last try.
// While the store or the bus is away nothing is given up: a fetch goes on where
// it was, and a job whose result cannot be stored stays in the queue.
//
// # Ending
//
// A detector that is told to end, or to drain, takes no more, hands back what it
// has only fetched, finishes what it looks at within the grace, hands back the
// rest, and leaves. Drained by message, or idle for longer than --idle-exit, its
// Run returns an error that wraps [node.ErrFinished], and its process ends with
// exit code 0.
package detector
