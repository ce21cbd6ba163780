package stream

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/transferlab/transferlab/schemas"
)

// rcodeError is an answer that is no success.
type rcodeError struct {
	code dnsmessage.RCode
	name string
}

func (e rcodeError) Error() string {
	text, known := map[dnsmessage.RCode]string{
		dnsmessage.RCodeFormatError: "FORMERR", dnsmessage.RCodeServerFailure: "SERVFAIL", dnsmessage.RCodeNameError: "NXDOMAIN",
		dnsmessage.RCodeNotImplemented: "NOTIMP", dnsmessage.RCodeRefused: "REFUSED",
	}[e.code]
	if !known {
		text = fmt.Sprintf("code %d", e.code)
	}
	return fmt.Sprintf("server answers %s for %s", text, e.name)
}

// dns asks a server for an A record over UDP, and over TCP if the answer is
// too long for that.
func (p *Prober) dns(ctx context.Context, t *Target, deadline time.Time, r *Result) error {
	id := uint16(rand.Uint32())
	query, err := appendQuery(p.request[:0], id, t.Name)
	if err != nil {
		return err
	}
	p.request = query
	p.buffers()
	answer, err := p.askUDP(ctx, t, deadline, id, r)
	if errors.Is(err, errTruncated) {
		answer, err = p.askTCP(ctx, t, deadline, id, r)
	}
	if err != nil {
		return err
	}
	r.Bytes = int64(answer.size)
	if answer.code != dnsmessage.RCodeSuccess {
		return rcodeError{answer.code, t.Name}
	}
	return nil
}

func (p *Prober) askUDP(ctx context.Context, t *Target, deadline time.Time, id uint16, r *Result) (dnsAnswer, error) {
	c, err := p.dialer(deadline).DialUDP(ctx, "udp", netip.AddrPort{}, t.Addr)
	if err != nil {
		return dnsAnswer{}, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	if err := c.SetDeadline(deadline); err != nil {
		return dnsAnswer{}, err
	}
	if _, err := c.Write(p.request); err != nil {
		return dnsAnswer{}, err
	}
	for {
		n, err := c.Read(p.scratch)
		if err != nil {
			return dnsAnswer{}, err
		}
		answer, err := parseAnswer(p.scratch[:n], id, t.Name)
		if errors.Is(err, errForeign) {
			continue // whoever sent it does not know what was asked
		}
		if r.FirstByte == 0 {
			r.FirstByte = time.Since(r.Begin)
		}
		return answer, err
	}
}

func (p *Prober) askTCP(ctx context.Context, t *Target, deadline time.Time, id uint16, r *Result) (dnsAnswer, error) {
	var answer dnsAnswer
	err := p.tcp(ctx, t, deadline, r, func(c net.Conn) error {
		framed := binary.BigEndian.AppendUint16(nil, uint16(len(p.request)))
		if _, err := c.Write(append(framed, p.request...)); err != nil {
			return fmt.Errorf("send query: %w", err)
		}
		if _, err := io.ReadFull(c, p.scratch[:2]); err != nil {
			return ended(err)
		}
		data := make([]byte, binary.BigEndian.Uint16(p.scratch))
		if _, err := io.ReadFull(c, data); err != nil {
			return ended(err)
		}
		var err error
		if answer, err = parseAnswer(data, id, t.Name); errors.Is(err, errTruncated) {
			err = statusError{schemas.StatusTruncated, err}
		}
		return err
	})
	return answer, err
}

func ended(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return statusError{schemas.StatusReset, errors.New("read answer: connection closed")}
	}
	return fmt.Errorf("read answer: %w", err)
}

func appendQuery(b []byte, id uint16, name string) ([]byte, error) {
	if !strings.HasSuffix(name, ".") {
		name += "."
	}
	n, err := dnsmessage.NewName(name)
	if err != nil {
		return nil, fmt.Errorf("ask for %q: %w", name, err)
	}
	builder := dnsmessage.NewBuilder(b, dnsmessage.Header{ID: id, RecursionDesired: true})
	err = errors.Join(
		builder.StartQuestions(),
		builder.Question(dnsmessage.Question{Name: n, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}),
	)
	if err != nil {
		return nil, fmt.Errorf("ask for %q: %w", name, err)
	}
	return builder.Finish()
}

// dnsAnswer is what a server said.
type dnsAnswer struct {
	code    dnsmessage.RCode
	records int // answers, of any type
	size    int // bytes
}

var (
	errForeign   = errors.New("not an answer to this query")
	errTruncated = errors.New("answer is truncated")
)

// parseAnswer reads a server's answer. Its bytes are anybody's: errForeign says
// that they belong to another query, errTruncated that there is more over TCP.
func parseAnswer(data []byte, id uint16, name string) (dnsAnswer, error) {
	var parser dnsmessage.Parser
	header, err := parser.Start(data)
	if err != nil || header.ID != id || !header.Response {
		return dnsAnswer{}, errForeign
	}
	answer := dnsAnswer{code: header.RCode, size: len(data)}
	corrupt := func(err error) (dnsAnswer, error) {
		return dnsAnswer{}, statusError{schemas.StatusCorrupt, fmt.Errorf("answer cannot be read: %w", err)}
	}
	question, err := parser.Question()
	switch {
	case errors.Is(err, dnsmessage.ErrSectionDone):
		// Servers that refuse may leave the question out.
		if header.RCode == dnsmessage.RCodeSuccess {
			return dnsAnswer{}, errForeign
		}
	case err != nil:
		return corrupt(err)
	case question.Type != dnsmessage.TypeA || !strings.EqualFold(strings.TrimSuffix(question.Name.String(), "."), strings.TrimSuffix(name, ".")):
		return dnsAnswer{}, errForeign
	}
	if header.Truncated {
		return dnsAnswer{}, errTruncated
	}
	if err := parser.SkipAllQuestions(); err != nil {
		return corrupt(err)
	}
	for {
		_, err := parser.AnswerHeader()
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return answer, nil
		}
		if err == nil {
			err = parser.SkipAnswer()
		}
		if err != nil {
			return corrupt(err)
		}
		answer.records++
	}
}
