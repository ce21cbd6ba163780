package collector

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"time"

	"github.com/google/uuid"

	"github.com/transferlab/transferlab/schemas"
)

// encodeJSON turns lines of JSON, one event each with the columns' names as
// keys, into a Native block. It is strict: an unknown or repeated key, a value
// of another type, a row without ts, producer or seq, and rows of two producers
// are errors that name the line. Numbers may be quoted, since not every language
// has 64-bit integers.
func encodeJSON(data []byte) ([]byte, error) {
	if len(data) > schemas.MaxBatchBytes {
		return nil, fmt.Errorf("batch of %d bytes, at most %d are allowed", len(data), schemas.MaxBatchBytes)
	}
	var block *schemas.Block
	var producer string
	var first uint64
	for number := 1; len(data) > 0; number++ {
		line, rest, _ := bytes.Cut(data, []byte{'\n'})
		data = rest
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		row, err := decodeRow(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		if block == nil {
			producer, first, block = row.producer, row.seq, schemas.NewBlock(row.producer)
		}
		if row.producer != producer {
			return nil, fmt.Errorf("line %d: producer %.64q after %.64q, want one in a batch", number, row.producer, producer)
		}
		if want := first + uint64(block.Rows()); row.seq != want {
			return nil, fmt.Errorf("line %d: seq %d after %d, want a rise by one", number, row.seq, want-1)
		}
		if block.Rows() == schemas.MaxBatchRows {
			return nil, fmt.Errorf("line %d: more than %d events in a batch", number, schemas.MaxBatchRows)
		}
		block.Append(&row.event, row.seq)
	}
	if block == nil {
		return nil, errors.New("no line holds an event")
	}
	return block.Encode()
}

// row is one line.
type row struct {
	event    schemas.Event
	producer string
	seq      uint64
}

func decodeRow(line []byte) (row, error) {
	var r row
	d := json.NewDecoder(bytes.NewReader(line))
	d.UseNumber()
	seen := map[string]bool{}
	err := object(d, func(key string, value json.Token) error {
		if seen[key] {
			return errors.New("given twice")
		}
		seen[key] = true
		return r.set(d, key, value)
	})
	if err != nil {
		return r, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return r, errors.New("something after the object")
	}
	var errs []error
	for _, column := range []string{"ts", "producer", "seq"} {
		if !seen[column] {
			errs = append(errs, fmt.Errorf("%s: missing", column))
		}
	}
	if seen["ts"] {
		errs = append(errs, r.event.Validate())
	}
	return r, errors.Join(errs...)
}

// object reads an object and calls field for each of its members; a value that
// is an object or an array comes as its opening delimiter.
func object(d *json.Decoder, field func(key string, value json.Token) error) error {
	opening, err := d.Token()
	if err != nil {
		return err
	}
	if opening != json.Delim('{') {
		return errors.New("want an object")
	}
	return members(d, field)
}

func members(d *json.Decoder, field func(key string, value json.Token) error) error {
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return err
		}
		key, _ := token.(string)
		value, err := d.Token()
		if err != nil {
			return fmt.Errorf("%.64s: %w", key, err)
		}
		if err := field(key, value); err != nil {
			return fmt.Errorf("%.64s: %w", key, err)
		}
	}
	_, err := d.Token()
	return err
}

func (r *row) set(d *json.Decoder, key string, value json.Token) (err error) {
	e := &r.event
	switch key {
	case "ts":
		e.Intended, err = timestamp(value)
	case "run":
		e.Run, err = identity(value)
	case "trial":
		e.Trial, err = integer[uint32](value, math.MaxUint32)
	case "attempt":
		e.Attempt, err = integer[uint16](value, math.MaxUint16)
	case "workload":
		e.Workload, err = text(value)
	case "service":
		e.Service, err = text(value)
	case "site":
		e.Site, err = text(value)
	case "agent":
		e.Agent, err = text(value)
	case "kind":
		e.Kind, err = text(value)
	case "wait_ns":
		e.Wait, err = integer[time.Duration](value, math.MaxInt64)
	case "first_byte_ns":
		e.FirstByte, err = integer[time.Duration](value, math.MaxInt64)
	case "duration_ns":
		e.Duration, err = integer[time.Duration](value, math.MaxInt64)
	case "bytes":
		e.Bytes, err = integer[uint64](value, math.MaxUint64)
	case "status":
		e.Status, err = text(value)
	case "error":
		e.Error, err = text(value)
	case "attrs":
		e.Attrs, err = attributes(d, value)
	case "producer":
		r.producer, err = text(value)
	case "seq":
		r.seq, err = integer[uint64](value, math.MaxUint64)
	default:
		err = errors.New("no such column")
	}
	return err
}

func text(value json.Token) (string, error) {
	s, ok := value.(string)
	if !ok {
		return "", fmt.Errorf("%.64s, want a string", describe(value))
	}
	return s, nil
}

func integer[T ~uint64 | ~uint32 | ~uint16 | ~int64](value json.Token, limit uint64) (T, error) {
	var digits string
	switch v := value.(type) {
	case json.Number:
		digits = v.String()
	case string:
		digits = v
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || n > limit {
		return 0, fmt.Errorf("%.64s, want a whole number from 0 to %d", describe(value), limit)
	}
	return T(n), nil
}

func timestamp(value json.Token) (time.Time, error) {
	s, _ := value.(string)
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02 15:04:05.999999999"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf(`%.64s, want "2006-01-02T15:04:05.999999999Z" or "2006-01-02 15:04:05.999999999" (UTC)`, describe(value))
}

func identity(value json.Token) (uuid.UUID, error) {
	s, _ := value.(string)
	id, err := uuid.Parse(s)
	if err != nil || len(s) != 36 {
		return uuid.Nil, fmt.Errorf(`%.64s, want a UUID such as "01890f3e-7c00-7000-8000-000000000000"`, describe(value))
	}
	return id, nil
}

func attributes(d *json.Decoder, value json.Token) ([]schemas.Attr, error) {
	if value != json.Delim('{') {
		return nil, fmt.Errorf("%.64s, want an object of strings", describe(value))
	}
	var attrs []schemas.Attr
	seen := map[string]bool{}
	err := members(d, func(key string, value json.Token) error {
		if seen[key] {
			return errors.New("given twice")
		}
		seen[key] = true
		s, err := text(value)
		attrs = append(attrs, schemas.Attr{Key: key, Value: s})
		return err
	})
	return attrs, err
}

func describe(value json.Token) string {
	switch v := value.(type) {
	case nil:
		return "null"
	case json.Delim:
		return v.String() + "…"
	case string:
		return strconv.Quote(v)
	}
	return fmt.Sprint(value)
}
