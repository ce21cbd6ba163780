package packet

import "time"

const (
	// maxSessions bounds what a reflector remembers, about 8 MB.
	maxSessions = 1 << 16
	// sessionIdle is after how long without a packet a session has ended: what
	// RFC 5357 has for its servers.
	sessionIdle = 900 * time.Second
)

// sessionKey tells sessions apart: who asks, whom, and the identifier of RFC 8972.
type sessionKey struct {
	from, to [16]byte
	port     uint16
	ssid     uint16
}

type session struct {
	key        sessionKey
	seq        uint32
	used       int64 // ns
	prev, next int32 // in the order of use
}

// sessions counts a reflector's answers by session. The one used longest ago
// makes room for a new one.
type sessions struct {
	byKey   map[sessionKey]int32
	all     []session
	newest  int32
	oldest  int32
	limit   int
	evicted uint64
}

func newSessions(limit int) *sessions {
	return &sessions{byKey: map[sessionKey]int32{}, newest: -1, oldest: -1, limit: limit}
}

// count returns the number of the session's next answer.
func (s *sessions) count(k sessionKey, now int64) uint32 {
	i, ok := s.byKey[k]
	switch {
	case ok:
		s.unlink(i)
		if now-s.all[i].used > int64(sessionIdle) {
			s.all[i].seq = 0
		}
	case len(s.all) < s.limit:
		i = int32(len(s.all))
		s.all = append(s.all, session{key: k})
		s.byKey[k] = i
	default:
		i = s.oldest
		s.unlink(i)
		if now-s.all[i].used <= int64(sessionIdle) {
			s.evicted++
		}
		delete(s.byKey, s.all[i].key)
		s.all[i] = session{key: k}
		s.byKey[k] = i
	}
	s.link(i)
	s.all[i].used = now
	seq := s.all[i].seq
	s.all[i].seq++
	return seq
}

func (s *sessions) link(i int32) {
	s.all[i].prev, s.all[i].next = s.newest, -1
	if s.newest >= 0 {
		s.all[s.newest].next = i
	} else {
		s.oldest = i
	}
	s.newest = i
}

func (s *sessions) unlink(i int32) {
	prev, next := s.all[i].prev, s.all[i].next
	if prev >= 0 {
		s.all[prev].next = next
	} else {
		s.oldest = next
	}
	if next >= 0 {
		s.all[next].prev = prev
	} else {
		s.newest = prev
	}
}
