package stream

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

// exchange sends one request and reads its answer to the end.
func (p *Prober) exchange(c net.Conn, t *Target, r *Result) error {
	p.request = appendRequest(p.request[:0], t)
	if _, err := c.Write(p.request); err != nil {
		return fmt.Errorf("send request: %w", err)
	}
	// The first look at the answer allows for its head only, and so does the
	// reader behind it: a server may send heads for ever.
	p.limited = io.LimitedReader{R: c, N: maxHead}
	p.buffers()
	p.reader.Reset(&p.limited)
	if _, err := p.reader.Peek(1); err != nil {
		return p.cut("read answer", err)
	}
	r.FirstByte = time.Since(r.Begin)
	return p.answer(p.reader, r)
}

// answer reads a response: its head within what the reader allows, and as much
// again of its body as the limit says.
func (p *Prober) answer(reader *bufio.Reader, r *Result) error {
	var response *http.Response
	for range maxInter {
		var err error
		if response, err = http.ReadResponse(reader, nil); err != nil {
			return p.cut("read answer", err)
		}
		if response.StatusCode >= 200 || response.StatusCode == http.StatusSwitchingProtocols {
			break
		}
	}
	r.HTTPStatus = response.StatusCode
	p.limited.N = maxBody
	for {
		n, err := response.Body.Read(p.scratch)
		r.Bytes += int64(n)
		if errors.Is(err, io.EOF) {
			break
		}
		if r.Bytes >= maxBody || (err != nil && p.limited.N <= 0) {
			return statusError{schemas.StatusTruncated, fmt.Errorf("body longer than %s: not read to its end", schemas.Size(maxBody))}
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return statusError{schemas.StatusTruncated, fmt.Errorf("body ended after %d bytes", r.Bytes)}
		}
		if err != nil {
			return fmt.Errorf("read body: %w", err)
		}
	}
	return judge(r.HTTPStatus)
}

// cut words the end of a connection in the middle of a head.
func (p *Prober) cut(doing string, err error) error {
	switch {
	case p.limited.N <= 0:
		return fmt.Errorf("head of the answer longer than %s", schemas.Size(maxHead))
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return statusError{schemas.StatusReset, fmt.Errorf("%s: connection closed", doing)}
	}
	return fmt.Errorf("%s: %w", doing, err)
}

func judge(status int) error {
	err := fmt.Errorf("answer %d %s", status, http.StatusText(status))
	switch {
	case status >= 500:
		return statusError{schemas.StatusServerError, err}
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return statusError{schemas.StatusDenied, err}
	case status == http.StatusTooManyRequests:
		return statusError{schemas.StatusThrottled, err}
	}
	// Any other answer says that the path and the server work.
	return nil
}

func appendRequest(b []byte, t *Target) []byte {
	host := t.Host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	usual := t.Protocol == schemas.ProtocolHTTP && t.Addr.Port() == 80 || t.Protocol == schemas.ProtocolHTTPS && t.Addr.Port() == 443
	b = append(append(b, "GET "...), t.Path...)
	b = append(append(b, " HTTP/1.1\r\nHost: "...), host...)
	if !usual {
		b = strconv.AppendUint(append(b, ':'), uint64(t.Addr.Port()), 10)
	}
	b = append(b, "\r\nUser-Agent: transferlab-prober\r\nAccept: */*\r\nConnection: close\r\n"...)
	if t.Token != "" {
		b = append(append(append(b, "Authorization: Bearer "...), t.Token...), "\r\n"...)
	}
	return append(b, "\r\n"...)
}
