package vision

import (
	"bufio"
	"encoding/binary"
	"fmt"
)

// headBytes is how far into an MP4 file its index is looked for.
const headBytes = 64 << 10

// indexFirst reports whether an MP4 file can be decoded as it comes: its index, the box
// moov, stands before the pictures. Nothing is taken off r. A file that is not clear about it
// within headBytes counts as one whose index is at the end.
func indexFirst(r *bufio.Reader) (bool, error) {
	at := 0
	for {
		head, _ := r.Peek(at + 16)
		if len(head) < at+8 {
			if at == 0 && len(head) == 0 {
				return false, fmt.Errorf("%w: no bytes", ErrUndecodable)
			}
			return false, nil
		}
		head = head[at:]
		size := uint64(binary.BigEndian.Uint32(head))
		least := uint64(8)
		switch kind := string(head[4:8]); kind {
		case "moov":
			return true, nil
		case "mdat", "moof":
			return false, nil
		}
		if size == 1 {
			if len(head) < 16 {
				return false, nil
			}
			size, least = binary.BigEndian.Uint64(head[8:]), 16
		}
		if size < least || size > headBytes || at+int(size) > headBytes-16 {
			return false, nil
		}
		at += int(size)
	}
}
