package prober

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/agent"
	"github.com/transferlab/transferlab/services/internal/plan"
	"github.com/transferlab/transferlab/services/prober/stream"
)

// client is one of the trial's clients, as its paths need to know it.
type client struct {
	known   bool // some agent has it
	number  string
	site    string
	agent   string
	addr    netip.Addr
	ports   map[string]uint16
	clock   schemas.Clock
	clocked bool           // clock means something
	same    bool           // its agent goes by our clock
	labels  []schemas.Attr // of our own clients, sorted
}

// path is a line of probes of this task.
type path struct {
	plan.Path
	number string
	count  int    // probes, from the first on
	bytes  uint64 // payload of its packets
	addr   string // of a target that is a name, once it is known
}

// mesh is everything the schedule is about.
type mesh struct {
	clients []client
	paths   []path // of this task's clients
	// late is when the last probe to one of this task's clients from another
	// task is due after the start, of those that we answer and not the kernel; 0
	// if there is none.
	late  time.Duration
	total uint64
}

// newMesh joins the task with what the start says of the others. Clients that no
// agent has remain unknown: whether they are due is not their choice.
func newMesh(task *schemas.Task, section *schemas.Probe, start *agent.Start) *mesh {
	m := &mesh{}
	groups := []string{}
	at := func(i int) *client {
		for len(m.clients) <= i {
			m.clients = append(m.clients, client{number: strconv.Itoa(len(m.clients))})
			groups = append(groups, "")
		}
		return &m.clients[i]
	}
	machine := ""
	for _, p := range start.Peers {
		if p.Agent == task.Agent {
			machine = p.Endpoint.Machine
		}
	}
	for _, p := range start.Peers {
		addr, err := netip.ParseAddr(p.Endpoint.Address)
		if err != nil {
			addr = netip.Addr{}
		}
		for _, c := range p.Clients {
			if c.Index < 0 || c.Index >= schemas.MaxClients {
				continue
			}
			known := at(c.Index)
			*known = client{
				known: true, number: known.number, site: c.Site, agent: p.Agent, addr: addr, ports: p.Endpoint.Ports,
				clock: p.Clock, clocked: true, same: p.Agent == task.Agent || machine != "" && p.Endpoint.Machine == machine,
			}
			groups[c.Index] = c.Group
		}
	}
	own := map[int]bool{}
	for _, c := range task.Clients {
		if c.Index < 0 || c.Index >= schemas.MaxClients {
			continue
		}
		mine := at(c.Index)
		mine.known, mine.site, mine.agent, mine.same = true, c.Site, task.Agent, true
		for _, name := range slices.Sorted(maps.Keys(c.Labels)) {
			mine.labels = append(mine.labels, schemas.Attr{Key: name, Value: c.Labels[name]})
		}
		groups[c.Index], own[c.Index] = c.Group, true
	}
	for _, p := range plan.Paths(task.Seed, task.Trial, groups, section) {
		count := section.Probes(p.Phase)
		if own[p.From] {
			m.paths = append(m.paths, path{Path: p, number: strconv.Itoa(p.Index), count: count})
			m.total += uint64(count)
		} else if p.To >= 0 && own[p.To] && count > 0 && p.Protocol != schemas.ProtocolICMP {
			m.late = max(m.late, p.Phase+time.Duration(count-1)*time.Duration(section.Interval))
		}
	}
	return m
}

// endpoint is where a path's other end is, or why it is nowhere.
func (m *mesh) endpoint(p *path) (addr netip.AddrPort, absent string) {
	c := &m.clients[p.To]
	port, listens := c.ports[p.Protocol]
	switch {
	case !c.known || c.agent == "":
		return addr, "no agent has the client"
	case !c.addr.IsValid():
		return addr, "the agent has said no address"
	case p.Protocol != schemas.ProtocolICMP && (!listens || port == 0):
		return addr, "the agent does not listen for " + p.Protocol
	}
	if p.Protocol == schemas.ProtocolICMP {
		port = 0
	}
	return netip.AddrPortFrom(c.addr, port), ""
}

// target is what a stream probe needs; where the path is not known yet it has no
// address.
func (j *job) target(p *path) stream.Target {
	if p.To >= 0 {
		addr, _ := j.mesh.endpoint(p)
		return stream.Target{
			Protocol: p.Protocol, Addr: addr, Host: addr.Addr().WithZone("").String(), Path: "/", Mesh: true, Token: j.token,
		}
	}
	t := j.targets[p.Target]
	addr, err := netip.ParseAddr(t.Host)
	if err != nil && !looksUp(t.Protocol) {
		addr, _ = j.names.get(t.Host)
	}
	return stream.Target{Protocol: t.Protocol, Addr: netip.AddrPortFrom(addr, t.Port), Host: t.Host, Path: t.Path, Name: t.Name}
}

// appendAttrs appends what all events of a path have in common.
func (j *job) appendAttrs(attrs []schemas.Attr, p *path) []schemas.Attr {
	from := &j.mesh.clients[p.From]
	if p.To >= 0 {
		to := &j.mesh.clients[p.To]
		attrs = append(
			attrs, schemas.Attr{Key: "protocol", Value: p.Protocol}, schemas.Attr{Key: "dst_site", Value: to.site},
			schemas.Attr{Key: "dst", Value: to.agent}, schemas.Attr{Key: "client", Value: from.number},
			schemas.Attr{Key: "dst_client", Value: to.number}, schemas.Attr{Key: "path", Value: p.number},
		)
	} else {
		attrs = append(
			attrs, schemas.Attr{Key: "protocol", Value: p.Protocol}, schemas.Attr{Key: "dst_site", Value: j.targets[p.Target].Host},
			schemas.Attr{Key: "dst", Value: j.section.Targets[p.Target]}, schemas.Attr{Key: "client", Value: from.number},
			schemas.Attr{Key: "path", Value: p.number},
		)
	}
	return append(attrs, from.labels...)
}
