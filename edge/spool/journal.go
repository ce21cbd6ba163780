package spool

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

const (
	journalName = "journal"
	journalNext = "journal.next"
	// maxLine bounds a line; longer ones are not ours.
	maxLine = 512 << 10
	sumLen  = 8
)

// castagnoli is the checksum that processors have an instruction for.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// line is one of the journal: a clip's record, or the tally.
type line struct {
	Tally *Tally `json:"tally,omitempty"`
	// Next is above every Seq given so far.
	Next   uint64  `json:"next,omitempty"`
	Record *Record `json:"record,omitempty"`
}

// head is what of a line is kept in memory.
type head struct {
	Tally  *Tally `json:"tally"`
	Next   uint64 `json:"next"`
	Record *struct {
		Clip struct {
			ID   string `json:"id"`
			Size int64  `json:"size_bytes"`
		} `json:"clip"`
		Seq    uint64 `json:"seq"`
		State  State  `json:"state"`
		Stamps struct {
			Spooled time.Time `json:"spooled"`
		} `json:"stamps"`
		Decision struct {
			Where string `json:"where"`
		} `json:"decision"`
	} `json:"record"`
}

func (h *head) valid() bool {
	if h.Record == nil {
		return h.Tally != nil || h.Next > 0
	}
	r := h.Record
	return schemas.ClipID(r.Clip.ID) == nil && r.State.code() >= 0 && r.Clip.Size >= 0 && r.Clip.Size <= schemas.MaxClipBytes
}

func encodeLine(l line) ([]byte, error) {
	data, err := json.Marshal(l)
	if err != nil {
		return nil, fmt.Errorf("encode a line of the journal: %w", err)
	}
	if len(data)+sumLen+2 > maxLine {
		return nil, fmt.Errorf("a line of the journal has %d bytes, at most %d fit", len(data), maxLine-sumLen-2)
	}
	out := make([]byte, 0, len(data)+sumLen+2)
	out = hex.AppendEncode(out, sum(data))
	out = append(out, ' ')
	out = append(out, data...)
	return append(out, '\n'), nil
}

func sum(data []byte) []byte {
	c := crc32.Checksum(data, castagnoli)
	return []byte{byte(c >> 24), byte(c >> 16), byte(c >> 8), byte(c)}
}

var errLine = errors.New("not a line of the journal")

// payload checks a line, with its newline, and gives what is in it.
func payload(l []byte) ([]byte, error) {
	if len(l) < sumLen+2 || l[sumLen] != ' ' || l[len(l)-1] != '\n' {
		return nil, errLine
	}
	data := l[sumLen+1 : len(l)-1]
	var want [4]byte
	if _, err := hex.Decode(want[:], l[:sumLen]); err != nil || string(want[:]) != string(sum(data)) {
		return nil, errLine
	}
	return data, nil
}

// scan reads a journal from the start and calls visit for each good line.
// It gives where the last good line ends, where everything ends, and how many lines
// are bad, a torn last one aside. Memory is bounded by maxLine.
func scan(r io.Reader, visit func(h *head, off int64, n int) error) (good, end int64, corrupt int, err error) {
	in := bufio.NewReaderSize(r, 64<<10)
	var l []byte
	for {
		l = l[:0]
		n, ended := 0, false
		for {
			part, err := in.ReadSlice('\n')
			n += len(part)
			if len(l)+len(part) <= maxLine {
				l = append(l, part...)
			}
			if errors.Is(err, bufio.ErrBufferFull) {
				continue
			}
			if errors.Is(err, io.EOF) {
				ended = true
			} else if err != nil {
				return good, end, corrupt, fmt.Errorf("read the journal: %w", err)
			}
			break
		}
		off := end
		end += int64(n)
		if ended {
			return good, end, corrupt, nil
		}
		var h head
		if data, err := payload(l); n != len(l) || err != nil || json.Unmarshal(data, &h) != nil || !h.valid() {
			corrupt++
			continue
		}
		if err := visit(&h, off, n); err != nil {
			return good, end, corrupt, err
		}
		good = end
	}
}

// journal is the open file; the spool's lock guards all but syncing.
type journal struct {
	disk disk
	f    file
	end  int64
	room *ballast

	// written counts what was appended by this process, in all its files.
	written uint64

	syncing sync.Mutex // held while syncing and while the file is replaced; taken before the spool's lock
	synced  uint64
}

// append adds a line, which is not durable yet, and says where it is.
func (j *journal) append(l []byte) (off int64, err error) {
	// A line that was written in part, before, is overwritten.
	_, err = j.f.WriteAt(l, j.end)
	if err != nil && noRoom(err) && j.room.give() {
		_, err = j.f.WriteAt(l, j.end)
	}
	if err != nil {
		// Rests of a longer line behind a later, shorter one are a bad line: harmless.
		_ = j.f.Truncate(j.end)
		return 0, fmt.Errorf("write the journal: %w", err)
	}
	off = j.end
	j.end += int64(len(l))
	j.written += uint64(len(l))
	return off, nil
}

func (j *journal) read(off int64, n int) (*Record, error) {
	buf := make([]byte, n)
	if _, err := j.f.ReadAt(buf, off); err != nil {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	data, err := payload(buf)
	if err != nil {
		return nil, fmt.Errorf("read the journal at %d: %w", off, err)
	}
	var l line
	if err := json.Unmarshal(data, &l); err != nil {
		return nil, fmt.Errorf("read the journal at %d: %w", off, err)
	}
	if l.Record == nil {
		return nil, fmt.Errorf("read the journal at %d: %w", off, errLine)
	}
	return l.Record, nil
}

// ballast is a file whose room is given up for the journal when the disk is full: without
// it, no step could be noted that frees any.
type ballast struct {
	disk disk
	size int64
	have bool
}

const (
	ballastName  = "ballast"
	ballastBytes = 1 << 20
)

// take makes the ballast if it is not there; that it does not fit is no error.
func (b *ballast) take() {
	if b.have {
		return
	}
	f, err := b.disk.open(ballastName, kept)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	n, err := f.size()
	if err != nil {
		return
	}
	block := make([]byte, 64<<10)
	for ; n < b.size; n += int64(len(block)) {
		if _, err := f.WriteAt(block, n); err != nil {
			_ = f.Truncate(0)
			return
		}
	}
	b.have = true
}

func (b *ballast) give() bool {
	if !b.have {
		return false
	}
	f, err := b.disk.open(ballastName, fresh)
	if err != nil {
		return false
	}
	b.have = false
	return f.Close() == nil
}
