// Package spool keeps clips on the edge's disk from the trigger until the lab
// has confirmed them, through power cuts at any moment.
//
// A directory holds
//
//	lock       held by the one process that works here
//	journal    what happened to each clip, one line for each step
//	ballast    room that is given up when the disk is full, so that the journal can go on
//	clips/     <id>.<trigger in ns>.<mp4, ts, h264 or mkv>, with .part while recorded, .copy while copied
//	results/   <id>.json, of clips that were looked at here
//
// # A clip's way
//
//	recording → spooled → decided → [detected →] [uploading →] stored → confirmed → reported
//	                └──────────┴──────────┴──────────┴──────────┴──→ expired ───────────┘
//
// A line of the journal is all that is known of a clip after a step, with a
// checksum before it: the last good line of a clip is its state, so that any line
// can be torn, lost or destroyed and the clip falls back by a step that is
// harmless to do again. What every step after the loss of a clip's last line
// means is the same as a repetition, and the lab takes repetitions of a clip by its
// id. A clip whose lines are all destroyed is known by the name of its file.
//
// # What is made durable, and what need not be
//
//	spooled     bytes, their name and the line, in this order, before Commit returns
//	confirmed   the line, before the bytes are deleted; one fsync for all that are confirmed together
//	expired     the line, before the bytes are deleted
//	all others  left to the system: a process that is killed loses nothing, a
//	            power cut loses the last seconds, and the step is taken again: it is
//	            decided anew, looked at again, the lab asked which parts it has, told again
//
// So a clip costs four fsyncs (bytes, directory, twice the journal): flash wears
// by what is written, and the journal's whole share is some 5 kB a clip. Lines that are
// outdated are left out when the journal is written anew, beside the old one which is
// replaced at once by a rename.
//
// # Bounds
//
// MaxBytes, MaxClips and MaxAge bound the spool. When it is full, [PolicyRefuse]
// (the default, because it alone keeps the promise that what was spooled is
// delivered) refuses new recordings and counts them; [PolicyDrop] gives up the oldest
// clips that the lab does not have, and keeps each as `expired` until that has been
// reported, so that every clip that ever was is accounted for. Memory is some 100
// bytes for each record, whatever else there is to say of it: that is read
// from the journal when it is asked for.
package spool
