package bus_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/bustest"
	"github.com/transferlab/transferlab/schemas"
)

func TestContent(t *testing.T) {
	text := bytes.Repeat([]byte("events "), 1000)
	huge := binary.AppendUvarint(nil, schemas.MaxBatchBytes+1)
	for _, c := range []struct {
		name, encoding string
		data           []byte
		want           string // of the error
	}{
		{"as it is", "", text, ""},
		{"compressed", bus.EncodingS2, s2.Encode(nil, text), ""},
		{"by a Snappy library", bus.EncodingS2, s2.EncodeSnappy(nil, text), ""},
		{"not compressed", bus.EncodingS2, []byte{0xff, 0xff}, "s2: "},
		{"cut short", bus.EncodingS2, s2.Encode(nil, text)[:20], "s2: "},
		{"a bomb", bus.EncodingS2, append(huge, 0, 0, 0), "8388609 bytes, at most 8388608"},
		{"another way", "gzip", text, `"gzip", want s2 or none`},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := bus.EventBatch{Encoding: c.encoding, Data: c.data}
			got, err := b.Content(make([]byte, 10))
			if c.want == "" && (err != nil || !bytes.Equal(got, text)) {
				t.Errorf("%d bytes, %v, want the %d that were sent", len(got), err, len(text))
			}
			if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, want an error with %q in it", err, c.want)
			}
		})
	}
}

func FuzzContent(f *testing.F) {
	f.Add(s2.Encode(nil, []byte("events")))
	f.Add(binary.AppendUvarint(nil, 1<<40))
	f.Fuzz(func(t *testing.T, data []byte) {
		b := bus.EventBatch{Encoding: bus.EncodingS2, Data: data}
		if content, err := b.Content(nil); err == nil && len(content) > schemas.MaxBatchBytes {
			t.Fatalf("%d bytes", len(content))
		}
	})
}

// What a recorder sends is read back as it was, in order, from any position.
func TestEventsAreReadFromAPosition(t *testing.T) {
	s := bustest.Start(t)
	agent, collector := bustest.Join(t, s, bus.RoleAgent), bustest.Join(t, s, bus.RoleCollector)
	recorder := bus.NewRecorder(agent, bus.RecorderOptions{Service: "s3-loader", Producer: "agent/1", MaxRows: 10})
	e := schemas.Event{Intended: time.Now(), Workload: "s3", Service: "s3-loader", Kind: schemas.KindRequest, Status: schemas.StatusOK}
	for range 95 {
		if err := recorder.Record(&e); err != nil {
			t.Fatal(err)
		}
	}
	if err := recorder.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	reached := errors.New("reached")
	next := uint64(31)
	err := collector.ReadEvents(t.Context(), 4, func(b bus.EventBatch) error {
		data, err := b.Content(nil)
		if err != nil {
			return err
		}
		info, err := schemas.InspectBatch(data)
		if err != nil {
			return err
		}
		if info.FirstSeq != next || info.Producer != "agent/1" || b.Format != bus.FormatNative {
			t.Errorf("message %d holds %s from %d, want agent/1 from %d", b.Seq, info.Producer, info.FirstSeq, next)
		}
		if next = info.LastSeq + 1; next == 96 {
			return reached
		}
		return nil
	})
	if !errors.Is(err, reached) {
		t.Fatal(err)
	}
	at, err := collector.EventAt(t.Context(), 10)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := at.Content(nil); err != nil || len(data) == 0 {
		t.Errorf("message 10: %d bytes, %v", len(data), err)
	}
	if _, err := collector.EventAt(t.Context(), 11); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("message 11: %v, want not found", err)
	}
	if err := collector.PurgeEvents(t.Context(), 10); err != nil {
		t.Fatal(err)
	}
	state, err := collector.EventStream(t.Context())
	if err != nil || state.First != 10 || state.Last != 10 || state.Bytes == 0 || state.MaxBytes <= 0 || state.Created.IsZero() {
		t.Errorf("stream %+v, %v, want message 10 in it", state, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = collector.ReadEvents(ctx, 1, func(b bus.EventBatch) error {
		if b.Seq != 10 {
			t.Errorf("message %d, want 10", b.Seq)
		}
		cancel()
		return nil
	})
	if err != nil {
		t.Errorf("reading until the context ended: %v", err)
	}
}

func TestDeadLetters(t *testing.T) {
	s := bustest.Start(t)
	collector, operator := bustest.Join(t, s, bus.RoleCollector), bustest.Join(t, s, bus.RoleOperator)
	header := map[string][]string{bus.HeaderFormat: {bus.FormatNative}, bus.HeaderEncoding: {bus.EncodingS2}}
	for range 2 { // the second is a repetition
		if err := collector.Bury(t.Context(), bus.StreamEvents, 7, header, []byte("garbage"), "two\nlines"); err != nil {
			t.Fatal(err)
		}
	}
	var letters []bus.DeadLetter
	if err := operator.DeadLetters(t.Context(), func(l bus.DeadLetter) error {
		letters = append(letters, l)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(letters) != 1 {
		t.Fatalf("%d dead letters, want 1", len(letters))
	}
	l := letters[0]
	if l.Stream != bus.StreamEvents || l.From != 7 || l.Reason != "two lines" || l.Format != bus.FormatNative || l.Encoding != bus.EncodingS2 || string(l.Data) != "garbage" || l.Buried.IsZero() {
		t.Errorf("dead letter %+v", l)
	}
	stop := errors.New("enough")
	if err := operator.DeadLetters(t.Context(), func(bus.DeadLetter) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("%v, want the handler's error", err)
	}
}
