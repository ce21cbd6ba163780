// Package prober measures paths: from agents to each other and to named targets,
// every probe an event: the workload `probe`.
//
// It consumes tasks (see package agent) and publishes one event of kind `probe`
// for every probe that has come due, with the attributes
//
//	protocol, dst_site, dst, client, path     always; dst is an agent, or a target as the experiment has it
//	dst_client                                of the mesh
//	the group's labels                        instance_type, …
//	addr                                      of a target that is a name: the address it has
//	ttl, stamps                               of answered packets; stamps says whose times they are: kernel, tx (only
//	                                          the time of sending is the kernel's), rx, user
//	duplicates                                further answers, if any came
//	reordered=1                               if a later probe of the path was answered before
//	forward_ns, backward_ns                   one-way delays (udp), corrected by offset_ns ± offset_bound_ns
//	oneway=withheld                           if one of these is not known to 10 %
//	reflected_ns                              time in the reflector (udp); not part of the round trip
//	http_status                               if not 200
//	dns_ns, connect_ns, tls_ns, tcp_rtt_ns    phases of connections; tcp_rtt_ns is the kernel's view of the first
//
// An event's intended start is the schedule's, wait_ns what the probe was sent
// late, duration_ns the round trip or the time until the whole answer was there;
// of a probe without an answer it is the time waited. first_byte_ns is of http, https
// and dns. Bytes are the payload that came back.
//
// Addresses of targets are looked up before the start. Those that are unknown then are
// looked up again every five seconds, and until they are known each probe of
// theirs is recorded as failed by the name. HTTP is the exception: looking up is part of
// what a request's user waits for, so each request does it and says how long it took.
//
// From the end of its preparation a job answers the probes of others: STAMP (RFC
// 8762), TCP, TLS, HTTP and HTTPS, those of them that the mesh uses, at ports of
// its own and the agent's address (at all of the machine's, if that address is a
// router's). With the trial's key STAMP is authenticated and HTTP, off the
// loopback interface, wants a token. After its own last probe a job waits until
// those that others send it can have come.
//
// What it promises: which probes are due, and when, is the plan's; every probe
// due has exactly one event, also when the task is cancelled, when a name is
// unknown, the peer absent or the kernel forbids; nothing outlives the job; what
// others send is bounded in time, size and number.
package prober
