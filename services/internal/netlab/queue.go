package netlab

// item is a stretch of segments that leaves at one moment.
type item struct {
	at  int64
	seq uint64 // order among those that leave at the same moment
	// what, where to
	slab     *slab
	dir      *direction
	held     *held // nil unless it waits for another to overtake it
	dst      int32
	from, to uint16
	twice    bool
}

func (a *item) before(b *item) bool {
	return a.at < b.at || a.at == b.at && a.seq < b.seq
}

// queue holds items, the first to leave in front: a heap with four children per
// parent, which has half the depth of a binary one.
type queue struct{ items []item }

func (q *queue) push(x item) {
	q.items = append(q.items, x)
	i := len(q.items) - 1
	for i > 0 {
		parent := (i - 1) / 4
		if !x.before(&q.items[parent]) {
			break
		}
		q.items[i] = q.items[parent]
		i = parent
	}
	q.items[i] = x
}

// pop takes the first; the queue must not be empty.
func (q *queue) pop() item {
	top := q.items[0]
	n := len(q.items) - 1
	x := q.items[n]
	q.items[n] = item{}
	q.items = q.items[:n]
	if n == 0 {
		return top
	}
	i := 0
	for {
		child := i*4 + 1
		if child >= n {
			break
		}
		for c := child + 1; c < min(child+4, n); c++ {
			if q.items[c].before(&q.items[child]) {
				child = c
			}
		}
		if !q.items[child].before(&x) {
			break
		}
		q.items[i] = q.items[child]
		i = child
	}
	q.items[i] = x
	return top
}

// slab is a packet in memory. It is given back when nothing refers to it.
type slab struct {
	buf  []byte // of one of slabSizes
	n    int    // used, device header included
	p    packet
	refs int
	kind int
}

// slabs keeps memory for packets. A packet takes a slab of the smallest size
// that holds it, so that a million acknowledgements under way do not take 64 KiB
// each.
type slabs struct {
	free  [len(slabSizes)][]*slab
	bytes int64 // in use
}

var slabSizes = [...]int{256, 2048, 16384, maxPacket}

// maxBuffered is how much memory packets under way may take.
const maxBuffered = 512 << 20

// get gives a slab for n bytes; nil when there is no memory left for it.
func (s *slabs) get(n int) *slab {
	kind := 0
	for slabSizes[kind] < n {
		kind++
	}
	if s.bytes+int64(slabSizes[kind]) > maxBuffered {
		return nil
	}
	s.bytes += int64(slabSizes[kind])
	if k := len(s.free[kind]); k > 0 {
		x := s.free[kind][k-1]
		s.free[kind] = s.free[kind][:k-1]
		x.n, x.refs = n, 0
		return x
	}
	return &slab{buf: make([]byte, slabSizes[kind]), n: n, kind: kind}
}

func (s *slabs) put(x *slab) {
	s.bytes -= int64(slabSizes[x.kind])
	s.free[x.kind] = append(s.free[x.kind], x)
}
