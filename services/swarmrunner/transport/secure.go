package transport

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/anacrolix/torrent/mse"
)

// Policies of encryption.
const (
	EncryptionOff     = "off"
	EncryptionPrefer  = "prefer"
	EncryptionRequire = "require"
)

// ErrRedialPlain says that the other side of an outgoing connection did not
// agree on encryption, which is preferred but not required: a new connection
// without it may do.
var ErrRedialPlain = errors.New("no encryption there: redial without")

const (
	// agreementLimit bounds an agreement where the context allows more.
	agreementLimit = 10 * time.Second
	// readAhead is how much is read at a time during an agreement, which has at
	// most 1.2 kB in each direction.
	readAhead = 2048
	// plainGreeting is how a connection without encryption begins.
	plainGreeting = "\x13BitTorrent protocol"
)

// Secure agrees on encryption (message stream encryption, keyed by the torrent's
// info hash) over a new connection and returns what to go on with, and the bytes
// that the agreement itself took.
//
// With off, nothing happens. With prefer, the initiator offers RC4 and, after the
// agreement, plain text, and gets [ErrRedialPlain] where there is no agreement;
// the responder takes RC4 if offered, then plain text, and lets connections
// pass that begin without any agreement. With require there is RC4 or an error.
//
// An agreement ends with ctx, and after 10 s. The deadlines of c are lost. After
// an error c is for the caller to close. The returned connection has NetConn()
// and is for one reader; when a Write to it failed, so do all that follow.
func Secure(ctx context.Context, c net.Conn, policy string, infoHash [20]byte, initiator bool) (conn net.Conn, sent, received uint64, err error) {
	switch policy {
	case EncryptionOff:
		return c, 0, 0, nil
	case EncryptionPrefer, EncryptionRequire:
	default:
		return nil, 0, 0, fmt.Errorf("encryption %q is none of off, prefer, require", policy)
	}
	limited, cancel := context.WithTimeout(ctx, agreementLimit)
	defer cancel()
	// The library's own way to heed a context leaves a read behind that takes
	// bytes from whoever reads next.
	stop := context.AfterFunc(limited, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	a := &agreement{conn: c, r: bufio.NewReaderSize(c, readAhead), counting: true}
	conn, err = a.agree(policy, infoHash, initiator)
	a.counting = false
	if !stop() {
		err = errors.Join(context.Cause(limited), err)
	} else if err == nil {
		if err = c.SetDeadline(time.Time{}); err == nil {
			return conn, a.sent, a.received, nil
		}
	}
	err = fmt.Errorf("agree on encryption with %s: %w", c.RemoteAddr(), err)
	if initiator && policy == EncryptionPrefer && ctx.Err() == nil {
		err = fmt.Errorf("%w (%w)", ErrRedialPlain, err)
	}
	return nil, a.sent, a.received, err
}

// agreement is a connection while it is agreed on, and below encryption after
// that: what was read ahead is in r.
type agreement struct {
	conn           net.Conn
	r              *bufio.Reader
	counting       bool
	sent, received uint64
}

func (a *agreement) Read(b []byte) (int, error) {
	n, err := a.r.Read(b)
	if a.counting {
		a.received += uint64(n)
	}
	return n, err
}

func (a *agreement) Write(b []byte) (int, error) {
	n, err := a.conn.Write(b)
	if a.counting {
		a.sent += uint64(n)
	}
	return n, err
}

func (a *agreement) agree(policy string, infoHash [20]byte, initiator bool) (net.Conn, error) {
	if initiator {
		offer := mse.CryptoMethodRC4
		if policy == EncryptionPrefer {
			offer = mse.AllSupportedCrypto
		}
		rw, _, err := mse.InitiateHandshakeContext(context.Background(), a, infoHash[:], nil, offer)
		if err != nil {
			return nil, err
		}
		return &securedConn{Conn: a.conn, rw: rw}, nil
	}
	// A public key may begin with any byte, but hardly with these twenty.
	greeting, err := a.r.Peek(len(plainGreeting))
	if err != nil {
		return nil, err
	}
	if string(greeting) == plainGreeting {
		if policy == EncryptionRequire {
			return nil, errors.New("the other side uses none, which is required")
		}
		return &securedConn{Conn: a.conn, rw: a}, nil
	}
	rw, _, err := mse.ReceiveHandshake(context.Background(), a,
		func(try func([]byte) bool) { try(infoHash[:]) },
		func(offered mse.CryptoMethod) mse.CryptoMethod {
			if offered&mse.CryptoMethodRC4 == 0 && policy == EncryptionPrefer {
				return offered & mse.CryptoMethodPlaintext
			}
			return offered & mse.CryptoMethodRC4
		})
	if err != nil {
		return nil, err
	}
	return &securedConn{Conn: a.conn, rw: rw}, nil
}

// securedConn reads and writes through what was agreed on.
type securedConn struct {
	net.Conn
	rw io.ReadWriter

	writing sync.Mutex
	broken  error
}

// NetConn is the connection below.
func (s *securedConn) NetConn() net.Conn { return s.Conn }

func (s *securedConn) Read(b []byte) (int, error) { return s.rw.Read(b) }

// Write encrypts. The key stream is past what could not be written, so that
// nothing can follow that.
func (s *securedConn) Write(b []byte) (int, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.broken != nil {
		return 0, s.broken
	}
	n, err := s.rw.Write(b)
	if err != nil {
		s.broken = err
	}
	return n, err
}
