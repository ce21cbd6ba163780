// Package provisioner makes what experiments declare beside agents that are
// there anyway: emulated networks on its own machine (sites and links) and fleets
// of cloud instances. It consumes want.* of the bucket PLACES and AGENTS; it
// publishes place.* and, as events, the checks of every emulated network (kind
// gate) and what its links did (kind link).
//
// It promises that a place exists for as long as it is wanted and not longer: an
// emulated network vanishes with this process however that ends, and a fleet is
// written to a journal before anything of it exists, so that the next start goes
// on with it or takes it down.
package provisioner
