// Package nets knows what surrounds a neural network: where its files are, whether they can
// be what they say, what it wants to be shown and what its answers mean. It is
// pure Go, so that all of this is the same everywhere; only the network itself is run by
// an engine, which aborts the process on files that this package has not
// refused.
package nets
