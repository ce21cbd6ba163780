package edgerunner

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"
)

// echo answers every connection with what it gets.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	return l.Addr().String()
}

func relayed(t *testing.T, r *relay) (net.Conn, string) {
	t.Helper()
	ctx, end := context.WithCancel(t.Context())
	address, err := r.to(ctx, echo(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(); r.wait() })
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, address
}

func TestRelayDelaysAndLimits(t *testing.T) {
	const rtt, rate, size = 60 * time.Millisecond, 2_000_000, 1_000_000
	c, _ := relayed(t, newRelay(rate, rtt, slog.New(slog.DiscardHandler)))
	trip := func(data []byte) time.Duration {
		t.Helper()
		begun := time.Now()
		go func() { _, _ = c.Write(data) }()
		got := make([]byte, len(data))
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("other bytes came back: %v", err)
		}
		return time.Since(begun)
	}
	trip([]byte("first")) // with the handshake
	if d := trip([]byte("x")); d < rtt || d > rtt+2*time.Second {
		t.Errorf("a round trip took %s, want %s and little more", d, rtt)
	}
	want := time.Second*size/rate - time.Second*relayChunk/rate
	if d := trip(make([]byte, size)); d < want {
		t.Errorf("%d bytes at %d a second took %s, want at least %s", size, rate, d, want)
	}
}

func TestRelayCuts(t *testing.T) {
	r := newRelay(0, 0, slog.New(slog.DiscardHandler))
	c, address := relayed(t, r)
	buf := make([]byte, 1)
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, buf); err != nil {
		t.Fatal(err)
	}
	r.cut(true)
	if _, err := c.Read(buf); err == nil {
		t.Error("a cut connection goes on")
	}
	refused, err := net.Dial("tcp", address)
	if err == nil {
		if _, err = refused.Read(buf); err == nil {
			t.Error("a connection was let through during an outage")
		}
		_ = refused.Close()
	}
	r.cut(false)
	again, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, err := again.Write([]byte("y")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(again, buf); err != nil || buf[0] != 'y' {
		t.Errorf("after the outage: %q, %v", buf, err)
	}
}
