package tracker

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"
)

// Refusals go to peers as they are.
var (
	errUnknownTorrent = errors.New("unknown torrent")
	errTooManyPeers   = errors.New("too many peers")
	errTooManySwarms  = errors.New("too many torrents")
)

// event is what a peer says of itself, in the numbers of BEP 15.
type event uint32

const (
	eventNone event = iota
	eventCompleted
	eventStarted
	eventStopped
)

// announcement is what an announce says, by either protocol.
type announcement struct {
	infoHash, peerID [20]byte
	addr             netip.AddrPort
	left             int64
	event            event
	want             int
	// oneFamily asks for peers with addresses of addr's kind only.
	oneFamily bool
}

// counts is how many there are of a torrent.
type counts struct{ seeders, leechers, completed int }

// registry is who is in which swarm. All costs of an announcement are constant
// or follow from the number of peers that are asked for.
type registry struct {
	life        time.Duration // of a peer since its last word
	maxTorrents int
	maxPeers    int
	allowed     func([20]byte) bool

	mu      sync.Mutex
	swarms  map[[20]byte]*swarm
	peers   int
	oldest  *member // by the time of the last word
	newest  *member
	changed chan struct{} // closed at the next change; nil as long as nobody waits
}

type swarm struct {
	byID   map[identity]*member
	byAddr map[netip.AddrPort]*member
	// pools are the members by family of address and by role. Their order says nothing.
	pools     [2][2][]*member
	completed int
}

// A peer with an IPv4 and an IPv6 address announces both with one id (BEP 7), and
// is two members.
type identity struct {
	id     [20]byte
	family int
}

// Indexes of pools.
const (
	ipv4 = iota
	ipv6
)

const (
	leeching = iota
	seeding
)

type member struct {
	swarm        *swarm
	id           identity
	addr         netip.AddrPort
	role         int
	completed    bool // its completed event was counted
	index        int  // in its pool
	seen         time.Time
	older, newer *member
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return ipv4
	}
	return ipv6
}

func (s *swarm) counts() counts {
	return counts{
		seeders:   len(s.pools[ipv4][seeding]) + len(s.pools[ipv6][seeding]),
		leechers:  len(s.pools[ipv4][leeching]) + len(s.pools[ipv6][leeching]),
		completed: s.completed,
	}
}

// announce enters what a peer says and returns others, which it appends to peers.
func (r *registry) announce(a announcement, peers []netip.AddrPort) ([]netip.AddrPort, counts, error) {
	if r.allowed != nil && !r.allowed(a.infoHash) {
		return peers, counts{}, errUnknownTorrent
	}
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expire(now)
	s, err := r.swarm(a.infoHash)
	if err != nil {
		return peers, counts{}, err
	}
	id := identity{a.peerID, familyOf(a.addr.Addr())}
	m := s.byID[id]
	if a.event == eventStopped {
		if m != nil {
			r.remove(m)
			r.notify()
		}
		return peers, s.counts(), nil
	}
	if m == nil && r.peers >= r.maxPeers {
		return peers, counts{}, errTooManyPeers
	}
	// Whoever had the address before is gone: it was started anew with another id.
	if other := s.byAddr[a.addr]; other != nil && other != m {
		r.remove(other)
	}
	if m == nil {
		m = &member{swarm: s, id: id}
		s.byID[id] = m
		r.peers++
	} else {
		s.leavePool(m)
		delete(s.byAddr, m.addr)
		r.unlink(m)
	}
	m.addr, m.seen, m.role = a.addr, now, leeching
	if a.left == 0 {
		m.role = seeding
	}
	if a.event == eventCompleted && !m.completed {
		m.completed = true
		s.completed++
	}
	s.byAddr[m.addr] = m
	s.enterPool(m)
	r.link(m)
	r.notify()
	return s.sample(m, a.want, a.oneFamily, peers), s.counts(), nil
}

// swarm returns a torrent's swarm, a new one if there is none.
func (r *registry) swarm(infoHash [20]byte) (*swarm, error) {
	if s := r.swarms[infoHash]; s != nil {
		return s, nil
	}
	if len(r.swarms) >= r.maxTorrents {
		for hash, s := range r.swarms {
			if len(s.byID) == 0 {
				delete(r.swarms, hash)
			}
		}
		if len(r.swarms) >= r.maxTorrents {
			return nil, errTooManySwarms
		}
	}
	s := &swarm{byID: map[identity]*member{}, byAddr: map[netip.AddrPort]*member{}}
	r.swarms[infoHash] = s
	return s, nil
}

// sample appends at most want members other than the asker, each with the same
// chance. Seeders are not told of seeders: they have nothing for each other.
// Addresses of the asker's own family come first, since it may have no others.
func (s *swarm) sample(asker *member, want int, oneFamily bool, peers []netip.AddrPort) []netip.AddrPort {
	for _, family := range [...]int{asker.id.family, 1 - asker.id.family} {
		if oneFamily && family != asker.id.family {
			break
		}
		pools := &s.pools[family]
		seeders, leechers := pools[seeding], pools[leeching]
		if asker.role == seeding {
			seeders = nil
		}
		// Each draw swaps a member to the front of what is left of its pool, so that
		// no member is drawn twice and the cost is that of the draws.
		for want > 0 && len(seeders)+len(leechers) > 0 {
			pool, offset := &leechers, len(pools[leeching])-len(leechers)
			i := rand.IntN(len(seeders) + len(leechers))
			if i >= len(leechers) {
				pool, offset = &seeders, len(pools[seeding])-len(seeders)
				i -= len(leechers)
			}
			left := *pool
			left[0], left[i] = left[i], left[0]
			left[0].index, left[i].index = offset, offset+i
			if drawn := left[0]; drawn.id.id != asker.id.id {
				peers = append(peers, drawn.addr)
				want--
			}
			*pool = left[1:]
		}
	}
	return peers
}

func (s *swarm) enterPool(m *member) {
	pool := &s.pools[m.id.family][m.role]
	m.index = len(*pool)
	*pool = append(*pool, m)
}

func (s *swarm) leavePool(m *member) {
	pool := &s.pools[m.id.family][m.role]
	last := len(*pool) - 1
	(*pool)[m.index] = (*pool)[last]
	(*pool)[m.index].index = m.index
	(*pool)[last] = nil
	*pool = (*pool)[:last]
}

func (r *registry) remove(m *member) {
	m.swarm.leavePool(m)
	delete(m.swarm.byID, m.id)
	delete(m.swarm.byAddr, m.addr)
	r.unlink(m)
	r.peers--
}

func (r *registry) link(m *member) {
	m.older, m.newer = r.newest, nil
	if r.newest != nil {
		r.newest.newer = m
	} else {
		r.oldest = m
	}
	r.newest = m
}

func (r *registry) unlink(m *member) {
	if m.older != nil {
		m.older.newer = m.newer
	} else {
		r.oldest = m.newer
	}
	if m.newer != nil {
		m.newer.older = m.older
	} else {
		r.newest = m.older
	}
}

// expire removes who has not said anything for too long.
func (r *registry) expire(now time.Time) {
	before := r.peers
	for r.oldest != nil && now.Sub(r.oldest.seen) >= r.life {
		r.remove(r.oldest)
	}
	if r.peers != before {
		r.notify()
	}
}

// notify wakes those who wait for a change.
func (r *registry) notify() {
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
}

// look returns a torrent's counts, a channel that is closed at the next change,
// and after how long one comes by itself because a peer has been silent (0: never).
func (r *registry) look(infoHash [20]byte, wait bool) (c counts, changed <-chan struct{}, after time.Duration) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expire(now)
	if s := r.swarms[infoHash]; s != nil {
		c = s.counts()
	}
	if !wait {
		return c, nil, 0
	}
	if r.changed == nil {
		r.changed = make(chan struct{})
	}
	if r.oldest != nil {
		after = max(r.oldest.seen.Add(r.life).Sub(now), time.Millisecond)
	}
	return c, r.changed, after
}

// await returns as soon as a torrent's counts are as wanted.
func (r *registry) await(ctx context.Context, infoHash [20]byte, until func(seeders, leechers, completed int) bool) error {
	for {
		c, changed, after := r.look(infoHash, true)
		if until(c.seeders, c.leechers, c.completed) {
			return nil
		}
		var expiry <-chan time.Time
		if after > 0 {
			expiry = time.After(after)
		}
		select {
		case <-changed:
		case <-expiry:
		case <-ctx.Done():
			return fmt.Errorf("wait for a swarm, which has %d seeders, %d leechers and %d that completed: %w",
				c.seeders, c.leechers, c.completed, context.Cause(ctx))
		}
	}
}
