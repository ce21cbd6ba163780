package transport

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

var (
	thisTorrent  = [20]byte{1, 2, 3}
	otherTorrent = [20]byte{3, 2, 1}
)

// secured agrees from both ends.
func secured(t testing.TB, there, here net.Conn, initiator, responder string) (net.Conn, net.Conn) {
	t.Helper()
	var wait sync.WaitGroup
	var secure [2]net.Conn
	var errs [2]error
	wait.Go(func() { secure[0], _, _, errs[0] = Secure(t.Context(), there, initiator, thisTorrent, true) })
	wait.Go(func() { secure[1], _, _, errs[1] = Secure(t.Context(), here, responder, thisTorrent, false) })
	wait.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	return secure[0], secure[1]
}

func connected(t testing.TB) (there, here net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if there, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if here, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = there.Close(), here.Close() })
	return there, here
}

func TestSecure(t *testing.T) {
	greeting := append([]byte(plainGreeting), bytes.Repeat([]byte{7}, 48)...)
	content := bytes.Repeat([]byte("content "), 100_000)
	for _, c := range []struct {
		initiator, responder string
		fails                bool
		redial               bool
		hidden               bool // the greeting is not seen on the wire
	}{
		{EncryptionOff, EncryptionOff, false, false, false},
		{EncryptionOff, EncryptionPrefer, false, false, false},
		{EncryptionOff, EncryptionRequire, true, false, false},
		{EncryptionPrefer, EncryptionOff, true, true, true},
		{EncryptionPrefer, EncryptionPrefer, false, false, true},
		{EncryptionPrefer, EncryptionRequire, false, false, true},
		{EncryptionRequire, EncryptionOff, true, false, true},
		{EncryptionRequire, EncryptionPrefer, false, false, true},
		{EncryptionRequire, EncryptionRequire, false, false, true},
	} {
		t.Run(c.initiator+" to "+c.responder, func(t *testing.T) {
			there, here := connected(t)
			there, wire := &tap{Conn: there}, &tap{Conn: here}
			type outcome struct {
				conn           net.Conn
				sent, received uint64
				err            error
			}
			// Each end greets and closes the connection when it is not greeted.
			end := func(conn net.Conn, policy string, initiator bool) outcome {
				var o outcome
				o.conn, o.sent, o.received, o.err = Secure(t.Context(), conn, policy, thisTorrent, initiator)
				if o.err != nil {
					_ = conn.Close()
					return o
				}
				if initiator {
					if _, o.err = o.conn.Write(greeting); o.err != nil {
						return o
					}
				}
				got := make([]byte, len(greeting))
				if _, o.err = io.ReadFull(o.conn, got); o.err == nil && !bytes.Equal(got, greeting) {
					o.err = errors.New("not a greeting")
				}
				if o.err == nil && !initiator {
					_, o.err = o.conn.Write(greeting)
				}
				if o.err != nil {
					_ = o.conn.Close()
				}
				return o
			}
			ends := make(chan outcome, 1)
			go func() { ends <- end(there, c.initiator, true) }()
			b := end(wire, c.responder, false)
			a := <-ends
			if c.fails {
				if a.err == nil || b.err == nil {
					t.Errorf("no error: %v, %v", a.err, b.err)
				}
				if errors.Is(a.err, ErrRedialPlain) != c.redial || errors.Is(b.err, ErrRedialPlain) {
					t.Errorf("redial: %v, %v", a.err, b.err)
				}
				return
			}
			if err := errors.Join(a.err, b.err); err != nil {
				t.Fatal(err)
			}
			if a.sent != b.received || a.received != b.sent || (a.sent == 0) == c.hidden {
				t.Errorf("the agreement took %d and %d bytes at one end, %d and %d at the other", a.sent, a.received, b.received, b.sent)
			}
			if got := wire.received() - int(b.received); got != len(greeting) {
				t.Errorf("%d bytes came after the agreement, want %d", got, len(greeting))
			}
			if wire.saw(greeting) == c.hidden {
				t.Errorf("greeting readable on the wire: %t", !c.hidden)
			}
			for _, way := range [][2]net.Conn{{a.conn, b.conn}, {b.conn, a.conn}} {
				sent := make(chan error, 1)
				go func() {
					_, err := way[0].Write(content)
					sent <- err
				}()
				got := make([]byte, len(content))
				if _, err := io.ReadFull(way[1], got); err != nil || !bytes.Equal(got, content) {
					t.Errorf("content differs or %v", err)
				}
				if err := <-sent; err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// tap keeps what is read.
type tap struct {
	net.Conn
	mu   sync.Mutex
	seen []byte
}

func (t *tap) Read(b []byte) (int, error) {
	n, err := t.Conn.Read(b)
	t.mu.Lock()
	t.seen = append(t.seen, b[:n]...)
	t.mu.Unlock()
	return n, err
}

func (t *tap) received() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.seen)
}

func (t *tap) saw(b []byte) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return bytes.Contains(t.seen, b)
}

func TestSecureOfAnotherTorrent(t *testing.T) {
	there, here := connected(t)
	failed := make(chan error, 1)
	go func() {
		_, _, _, err := Secure(t.Context(), here, EncryptionRequire, otherTorrent, false)
		_ = here.Close()
		failed <- err
	}()
	if _, _, _, err := Secure(t.Context(), there, EncryptionPrefer, thisTorrent, true); !errors.Is(err, ErrRedialPlain) {
		t.Errorf("initiator: %v", err)
	}
	if err := <-failed; err == nil {
		t.Error("the responder agreed")
	}
}

func TestSecureEndsWithItsContext(t *testing.T) {
	for _, initiator := range []bool{true, false} {
		there, _ := connected(t)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		_, _, _, err := Secure(ctx, there, EncryptionPrefer, thisTorrent, initiator)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrRedialPlain) {
			t.Errorf("initiator %t: %v", initiator, err)
		}
	}
	if _, _, _, err := Secure(t.Context(), nil, "maybe", thisTorrent, true); err == nil {
		t.Error("an unknown policy was taken")
	}
}

func TestSecuredWriteFailsForGood(t *testing.T) {
	there, here := connected(t)
	a, _ := secured(t, there, here, EncryptionRequire, EncryptionRequire)
	if err := a.SetWriteDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := a.Write([]byte("late")); err == nil {
			t.Error("written past the deadline")
		}
		if err := a.SetWriteDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
}

// replay is a connection on which somebody has sent some bytes and no more.
type replay struct {
	net.Conn
	r io.Reader
}

func (r *replay) Read(b []byte) (int, error)  { return r.r.Read(b) }
func (r *replay) Write(b []byte) (int, error) { return len(b), nil }
func (r *replay) SetDeadline(time.Time) error { return nil }
func (r *replay) RemoteAddr() net.Addr        { return &net.TCPAddr{} }

// FuzzSecure lets anybody's bytes be either side of an agreement.
func FuzzSecure(f *testing.F) {
	f.Add([]byte(plainGreeting), true)
	f.Add(append([]byte(plainGreeting), "and more"...), false)
	f.Add(make([]byte, 700), false)
	f.Add(bytes.Repeat([]byte{0xff}, 700), true)
	f.Fuzz(func(t *testing.T, b []byte, initiator bool) {
		for _, policy := range []string{EncryptionPrefer, EncryptionRequire} {
			c, _, received, err := Secure(t.Context(), &replay{r: bytes.NewReader(b)}, policy, thisTorrent, initiator)
			if received > uint64(len(b)) {
				t.Fatalf("%d bytes of %d", received, len(b))
			}
			if err != nil {
				continue
			}
			if !bytes.HasPrefix(b, []byte(plainGreeting)) || policy == EncryptionRequire {
				t.Fatal("an agreement with nobody")
			}
			if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, b) {
				t.Fatalf("%q, %v, want %q", got, err, b)
			}
		}
	})
}
