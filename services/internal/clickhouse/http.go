package clickhouse

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

const (
	exceptionCodeHeader = "X-ClickHouse-Exception-Code"
	exceptionTagHeader  = "X-ClickHouse-Exception-Tag"
	exceptionMarker     = "__exception__"

	// maxErrorBody bounds what is read of an error; the server cuts its own
	// well below.
	maxErrorBody = 64 << 10
	copyBuffer   = 256 << 10
)

// newHTTPClient has no overall timeout, since a long insert or export is not a
// fault, but bounds on everything that should be quick.
func newHTTPClient(config *tls.Config) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			DialContext:         (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext,
			TLSClientConfig:     config,
			TLSHandshakeTimeout: 10 * time.Second,
			MaxIdleConnsPerHost: 8,
			// Below the server's keep-alive, so that a reused connection is alive.
			IdleConnTimeout:    8 * time.Second,
			DisableCompression: true,
			WriteBufferSize:    copyBuffer,
			ReadBufferSize:     copyBuffer,
		},
		// A redirect would take the password to wherever it points.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// HTTPQuery sends one query to the HTTP interface at httpURL and copies the
// answer to w as it comes, byte for byte. body, which may be nil, is what
// follows the query (the data of an INSERT). settings are server settings and
// parameters (param_x), the database among them.
//
// A query that fails after part of its answer was sent is an error as well; w
// then has that part and nothing of the error's text. Cancelling ctx also
// cancels a reading query on the server.
//
// Errors: *ServerError, or what the network said.
func HTTPQuery(ctx context.Context, httpURL, user, password, query string, settings map[string]string, body io.Reader, w io.Writer) error {
	target, err := url.Parse(httpURL)
	if err != nil {
		return errors.New("ClickHouse URL: malformed")
	}
	client := newHTTPClient(nil)
	defer client.CloseIdleConnections()
	d := DSN{Addr: target.Host, TLS: target.Scheme == "https", HTTPURL: target.Scheme + "://" + target.Host, User: user, password: password, client: client}
	return d.query(ctx, query, settings, body, w)
}

// Query is HTTPQuery on the DSN's server, as its user, in its database, with
// connections kept for the next one.
func (d DSN) Query(ctx context.Context, query string, settings map[string]string, body io.Reader, w io.Writer) error {
	all := map[string]string{"database": d.Database}
	maps.Copy(all, settings)
	return d.query(ctx, query, all, body, w)
}

func (d DSN) query(ctx context.Context, query string, settings map[string]string, body io.Reader, w io.Writer) error {
	values := url.Values{}
	for name, value := range settings {
		values.Set(name, value)
	}
	// Else some formats carry a late error inside an answer that looks whole.
	if !values.Has("http_write_exception_in_output_format") {
		values.Set("http_write_exception_in_output_format", "0")
	}
	if !values.Has("cancel_http_readonly_queries_on_client_close") {
		values.Set("cancel_http_readonly_queries_on_client_close", "1")
	}
	var payload io.Reader = strings.NewReader(query)
	if body != nil {
		values.Set("query", query)
		payload = body
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.HTTPURL+"/?"+values.Encode(), payload)
	if err != nil {
		return errors.New("ClickHouse URL: malformed")
	}
	d.authenticate(req)
	resp, err := d.client.Do(req)
	if err != nil {
		return d.networkError(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK || resp.Header.Get(exceptionCodeHeader) != "" {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
		return d.responseError(resp, text)
	}
	reader := &answerReader{src: resp.Body, tag: resp.Header.Get(exceptionTagHeader), buf: make([]byte, copyBuffer)}
	if _, err := io.Copy(w, reader); err != nil {
		return d.networkError(err)
	}
	return nil
}

func (d DSN) responseError(resp *http.Response, text []byte) error {
	code, _ := strconv.Atoi(resp.Header.Get(exceptionCodeHeader))
	if m := exceptionText.FindSubmatchIndex(text); m != nil {
		if code == 0 {
			code, _ = strconv.Atoi(string(text[m[2]:m[3]]))
		}
		text = text[m[0]:]
	}
	if code > 0 {
		return newServerError(code, string(text))
	}
	return fmt.Errorf("%s: the answer is %s: %s", d, resp.Status, lastLines(string(text), 3))
}

// exceptionText is how the server's error text begins.
var exceptionText = regexp.MustCompile(`Code: (\d+)\. `)

// answerReader passes an answer on and turns the block with which the server
// announces a late failure,
//
//	CR LF __exception__ CR LF <tag> CR LF <text> LF <length> <tag> CR LF __exception__ CR LF
//
// into an error. The tag is random and comes in a header, so that no data can
// pass for an exception; a server too old to send one is not looked at, since
// there the marker could be anyone's data.
type answerReader struct {
	src     io.Reader
	tag     string
	buf     []byte
	pending []byte // read, not yet passed on
	err     error  // how the source ended
}

func (r *answerReader) Read(p []byte) (int, error) {
	if r.tag == "" {
		return r.src.Read(p)
	}
	start := []byte("\r\n" + exceptionMarker + "\r\n" + r.tag + "\r\n")
	for {
		pass := len(r.pending)
		if i := bytes.Index(r.pending, start); i >= 0 {
			pass = i
			if i == 0 {
				return 0, r.exception(len(start))
			}
		} else if r.err == nil {
			pass -= overlap(r.pending, start)
		}
		if pass > 0 {
			n := copy(p, r.pending[:pass])
			r.pending = r.pending[n:]
			return n, nil
		}
		if r.err != nil {
			return 0, r.err
		}
		var n int
		n, r.err = r.src.Read(r.buf)
		r.pending = append(r.pending, r.buf[:n]...)
	}
}

// exception reads the rest of the block, whose text begins at offset.
func (r *answerReader) exception(offset int) error {
	rest, err := io.ReadAll(io.LimitReader(r.src, maxErrorBody))
	text := append(bytes.Clone(r.pending[offset:]), rest...)
	if end := bytes.LastIndex(text, []byte(" "+r.tag+"\r\n"+exceptionMarker)); end >= 0 {
		text = text[:end]
		if line := bytes.LastIndexByte(text, '\n'); line >= 0 {
			text = text[:line]
		}
	}
	m := exceptionText.FindSubmatchIndex(text)
	if m == nil {
		return errors.Join(errors.New("the query failed in the middle of its answer, without saying why"), err)
	}
	code, _ := strconv.Atoi(string(text[m[2]:m[3]]))
	r.err = newServerError(code, string(text[m[0]:]))
	r.pending = nil
	return r.err
}

// overlap is the length of the longest end of b that begins what.
func overlap(b, what []byte) int {
	for n := min(len(b), len(what)-1); n > 0; n-- {
		if bytes.Equal(b[len(b)-n:], what[:n]) {
			return n
		}
	}
	return 0
}
