// Package bencoding reads bencoding (BEP 3) that comes from outside.
//
// The decoder that does the work, anacrolix/torrent/bencode, recurses as deep as
// its input does (a few megabytes of "l" end the process), allocates what a
// length says before it looks whether so much is there, and takes the last of two
// equal keys. So everything is checked first, without recursion or allocation.
package bencoding

import (
	"bytes"
	"fmt"
	"io"
	"strconv"

	"github.com/anacrolix/torrent/bencode"
)

const (
	// MaxDepth is how deep lists and dictionaries may be nested.
	MaxDepth = 32
	// MaxValues is how many values, keys not counted, there may be in all: each
	// costs the decoder some hundred bytes, however short it is.
	MaxValues = 100_000
)

// ErrTruncated says that the input ends before its value does.
var ErrTruncated = fmt.Errorf("truncated: %w", io.ErrUnexpectedEOF)

// Unmarshal checks data (see Check) and decodes it into v, as bencode.Unmarshal does.
func Unmarshal(data []byte, v any) error {
	if err := Check(data); err != nil {
		return err
	}
	return bencode.Unmarshal(data, v)
}

// level is a list or dictionary that has begun. The key is kept as offsets, so
// that the stack stays off the heap.
type level struct {
	dict             bool
	keyed            bool // a key came, its value did not yet
	first            bool // no key came yet
	keyStart, keyEnd int
}

// Check reports why data is not exactly one value in canonical form: keys sorted
// and different, integers of 64 bits, numbers without leading zeros, no bytes
// after the end, within the limits. The error wraps ErrTruncated when data is
// the beginning of a value.
func Check(data []byte) error {
	var stack [MaxDepth]level
	depth, values := 0, 0
	for at := 0; ; {
		if at == len(data) {
			return fmt.Errorf("at byte %d: %w", at, ErrTruncated)
		}
		var top *level
		if depth > 0 {
			top = &stack[depth-1]
		}
		c := data[at]
		if top != nil && top.dict && !top.keyed && c != 'e' {
			if c < '0' || c > '9' {
				return fmt.Errorf("at byte %d: %q, want a key", at, c)
			}
			start, end, err := text(data, at)
			if err != nil {
				return err
			}
			if !top.first && bytes.Compare(data[top.keyStart:top.keyEnd], data[start:end]) >= 0 {
				return fmt.Errorf("at byte %d: key %s after key %s: keys must be sorted and different", at,
					quote(data[start:end]), quote(data[top.keyStart:top.keyEnd]))
			}
			top.keyed, top.first, top.keyStart, top.keyEnd = true, false, start, end
			at = end
			continue
		}
		if c == 'e' {
			if top == nil {
				return fmt.Errorf("at byte %d: an end without a beginning", at)
			}
			if top.keyed {
				return fmt.Errorf("at byte %d: key %s has no value", at, quote(data[top.keyStart:top.keyEnd]))
			}
			depth--
			at++
		} else {
			if values++; values > MaxValues {
				return fmt.Errorf("at byte %d: more than %d values", at, MaxValues)
			}
			if top != nil {
				top.keyed = false
			}
			switch {
			case c == 'd' || c == 'l':
				if depth == MaxDepth {
					return fmt.Errorf("at byte %d: nested deeper than %d", at, MaxDepth)
				}
				stack[depth] = level{dict: c == 'd', first: true}
				depth++
				at++
			case c == 'i':
				end, err := integer(data, at)
				if err != nil {
					return err
				}
				at = end
			case c >= '0' && c <= '9':
				_, end, err := text(data, at)
				if err != nil {
					return err
				}
				at = end
			default:
				return fmt.Errorf("at byte %d: %q begins no value", at, c)
			}
		}
		if depth == 0 {
			if at < len(data) {
				return fmt.Errorf("at byte %d: %d bytes after the end", at, len(data)-at)
			}
			return nil
		}
	}
}

// digits is more than any number of 64 bits has, with its sign.
const digits = 20

// text returns where the string that begins at data[at] has its content.
func text(data []byte, at int) (start, end int, err error) {
	head := data[at:min(at+digits+1, len(data))]
	colon := bytes.IndexByte(head, ':')
	if colon < 0 {
		if len(head) <= digits && number(head) {
			return 0, 0, fmt.Errorf("at byte %d: in the length of a string: %w", len(data), ErrTruncated)
		}
		return 0, 0, fmt.Errorf("at byte %d: %s is no length of a string", at, quote(head))
	}
	head = head[:colon]
	if !number(head) || len(head) > 1 && head[0] == '0' {
		return 0, 0, fmt.Errorf("at byte %d: %s is no length of a string", at, quote(head))
	}
	n, err := strconv.ParseInt(string(head), 10, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("at byte %d: %s is no length of a string", at, quote(head))
	}
	start = at + colon + 1
	if n > int64(len(data)-start) {
		return 0, 0, fmt.Errorf("at byte %d: a string of %d bytes has %d: %w", at, n, len(data)-start, ErrTruncated)
	}
	return start, start + int(n), nil
}

// integer returns where the integer that begins at data[at] ends.
func integer(data []byte, at int) (end int, err error) {
	head := data[at+1 : min(at+1+digits+1, len(data))]
	e := bytes.IndexByte(head, 'e')
	if e < 0 {
		if len(head) <= digits && number(bytes.TrimPrefix(head, []byte("-"))) {
			return 0, fmt.Errorf("at byte %d: in an integer: %w", len(data), ErrTruncated)
		}
		return 0, fmt.Errorf("at byte %d: %s is no integer", at, quote(head))
	}
	head = head[:e]
	magnitude := bytes.TrimPrefix(head, []byte("-"))
	canonical := len(magnitude) > 0 && number(magnitude) && (magnitude[0] != '0' || len(head) == 1)
	if _, err := strconv.ParseInt(string(head), 10, 64); err != nil || !canonical {
		return 0, fmt.Errorf("at byte %d: %s is no integer", at, quote(head))
	}
	return at + 1 + e + 1, nil
}

func number(b []byte) bool {
	for _, c := range b {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

// quote keeps what a message repeats of the input short.
func quote(b []byte) string {
	const most = 40
	if len(b) > most {
		return strconv.Quote(string(b[:most])) + "…"
	}
	return strconv.Quote(string(b))
}
