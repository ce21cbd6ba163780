// Package uplink is the edge's client of the gateway's clip API.
//
// A clip's bytes go straight to the store, by URLs that the gateway signs, several
// parts at a time over connections that stay open; or, where the store cannot be
// reached, through the gateway in one request. A call goes on through every failure
// that another try may heal, by what is stored already, until its context ends.
//
// Where the kernel has it, connections use BBR: it keeps what it knows of the path
// over idle times, where CUBIC falls back to slow start after one round trip
// time-out, and a 10.5 MB clip would take eight round trips to get up to speed.
//
// No request has a fixed deadline: it is given up when for a while no byte was
// acknowledged by the other side, however slow that is otherwise.
//
// What passes is measured: the clock's offset and the round trip time by the stamps
// in the gateway's answers, the uplink's rate by the bytes that were acknowledged while
// there was something to send.
package uplink
