// Package scale decides how many workers there should be: a pure step from a
// state and an observation to a decision, without a clock, a network or a random
// number of its own. The autoscaler runs it against a real queue, the simulator
// against a made one: the same step.
//
// Policies
//
//	source              as published: launch (clips waiting − instances), at most the cap; workers
//	                    that found the queue empty at several long polls in a row end themselves
//	backlog-per-worker  as many as it takes for the wait of a clip that comes in now to be
//	                    acceptable, by the measured service time
//	predictive          as many as Erlang's C formula asks for at the estimated rate of arrivals,
//	                    and as the backlog will need by the time that an instance has booted
//	fixed               always the same number
package scale
