package spool

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"sync"
	"syscall"
	"time"
)

var errPower = errors.New("the power is cut")

// memDisk is a file system in memory that knows what of it would survive a power
// cut, and that can be cut before any of its operations.
type memDisk struct {
	mu      sync.Mutex
	names   map[string]*memData
	durable map[string]*memData
	pending []change // of names, since they were made durable, in order
	ops     int
	cutAt   int   // the operation that fails, and all after it; 0 is never
	room    int64 // bytes that fit; 0 is any number
}

type memData struct{ data, synced []byte }

type change struct {
	from, to string
	data     *memData
}

func newMemDisk() *memDisk {
	return &memDisk{names: map[string]*memData{}, durable: map[string]*memData{}}
}

// step counts an operation and reports whether it still happens.
func (d *memDisk) step() error {
	d.ops++
	if d.cutAt > 0 && d.ops >= d.cutAt {
		return errPower
	}
	return nil
}

func (c *change) apply(names map[string]*memData) {
	if c.from != "" {
		delete(names, c.from)
	}
	if c.to != "" {
		names[c.to] = c.data
	}
}

func (d *memDisk) do(c change) {
	c.apply(d.names)
	d.pending = append(d.pending, c)
}

// Ways a machine stops.
const (
	killed = iota // the process alone: nothing is lost
	strict        // all that was not made durable is lost
	mixed         // some of it
)

// after is the disk that the next process finds.
func (d *memDisk) after(how int, rng *rand.Rand) *memDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := newMemDisk()
	names := maps.Clone(d.durable)
	switch how {
	case killed:
		names = d.names
	case mixed:
		for _, c := range d.pending[:rng.IntN(len(d.pending)+1)] {
			c.apply(names)
		}
	}
	for name, f := range names {
		var data []byte
		switch {
		case how == killed:
			data = slices.Clone(f.data)
		case how == strict || rng.IntN(3) == 0:
			data = slices.Clone(f.synced)
		case len(f.data) > len(f.synced):
			// A part of what was added, or zeros where it should be.
			data = slices.Clone(f.data[:len(f.synced)+rng.IntN(len(f.data)-len(f.synced)+1)])
			if rng.IntN(3) == 0 && len(data) > len(f.synced) {
				clear(data[len(f.synced)+rng.IntN(len(data)-len(f.synced)):])
			}
		default:
			data = slices.Clone(f.data)
		}
		kept := &memData{data: data, synced: slices.Clone(data)}
		n.names[name], n.durable[name] = kept, kept
	}
	return n
}

func (d *memDisk) open(name string, how mode) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step(); err != nil {
		return nil, err
	}
	f := d.names[name]
	if f == nil && how == there {
		return nil, fs.ErrNotExist
	}
	if f == nil {
		f = &memData{}
		d.do(change{to: name, data: f})
	} else if how == fresh {
		f.data = nil
	}
	return &memFile{d: d, f: f}, nil
}

func (d *memDisk) rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step(); err != nil {
		return err
	}
	f := d.names[from]
	if f == nil {
		return fs.ErrNotExist
	}
	d.do(change{from: from, to: to, data: f})
	return nil
}

func (d *memDisk) remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step(); err != nil {
		return err
	}
	if d.names[name] == nil {
		return fs.ErrNotExist
	}
	d.do(change{from: name})
	return nil
}

func (d *memDisk) each(dir string, visit func(name string, size int64, changed time.Time) error) error {
	type one struct {
		name string
		size int64
	}
	var found []one
	d.mu.Lock()
	for name, f := range d.names {
		if path.Dir(name) == dir {
			found = append(found, one{path.Base(name), int64(len(f.data))})
		}
	}
	d.mu.Unlock()
	slices.SortFunc(found, func(a, b one) int {
		if a.name < b.name {
			return -1
		}
		return 1
	})
	for _, f := range found {
		if err := visit(f.name, f.size, time.Unix(1e9, 0)); err != nil {
			return err
		}
	}
	return nil
}

func (d *memDisk) sync(dir string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.step(); err != nil {
		return err
	}
	var later []change
	for _, c := range d.pending {
		if name := c.from + c.to; c.from != "" && c.to != "" && path.Dir(c.to) == dir || path.Dir(name) == dir {
			c.apply(d.durable)
		} else {
			later = append(later, c)
		}
	}
	d.pending = later
	return nil
}

type memFile struct {
	d *memDisk
	f *memData
}

func (m *memFile) ReadAt(p []byte, off int64) (int, error) {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	if off >= int64(len(m.f.data)) {
		return 0, io.EOF
	}
	n := copy(p, m.f.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *memFile) WriteAt(p []byte, off int64) (int, error) {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	err := m.d.step()
	if err != nil {
		if m.d.ops > m.d.cutAt {
			return 0, err
		}
		p = p[:len(p)/2]
	}
	if m.d.room > 0 {
		var used int64
		for _, f := range m.d.names {
			used += int64(len(f.data))
		}
		if more := off + int64(len(p)) - int64(len(m.f.data)); more > 0 && used+more > m.d.room {
			p, err = p[:max(0, int64(len(p))-(used+more-m.d.room))], syscall.ENOSPC
		}
	}
	if grow := off + int64(len(p)) - int64(len(m.f.data)); grow > 0 && len(p) > 0 {
		m.f.data = append(m.f.data, make([]byte, grow)...)
	}
	return copy(m.f.data[min(off, int64(len(m.f.data))):], p), err
}

func (m *memFile) Truncate(size int64) error {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	if err := m.d.step(); err != nil {
		return err
	}
	m.f.data = m.f.data[:min(size, int64(len(m.f.data)))]
	return nil
}

func (m *memFile) Sync() error {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	if err := m.d.step(); err != nil {
		return err
	}
	m.f.synced = slices.Clone(m.f.data)
	return nil
}

func (m *memFile) size() (int64, error) {
	m.d.mu.Lock()
	defer m.d.mu.Unlock()
	return int64(len(m.f.data)), nil
}

func (m *memFile) Close() error           { return nil }
func (m *memFile) writeBack(int64, int64) {}
