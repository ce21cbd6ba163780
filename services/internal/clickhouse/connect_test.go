package clickhouse_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/transferlab/transferlab/services/internal/clickhouse"
	"github.com/transferlab/transferlab/services/internal/clickhouse/chtest"
)

func TestParseDSN(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		dsn                             string
		native, tls                     bool
		addr, http, database, user, str string
	}{
		{"clickhouse://u:p@h:9000/d", true, false, "h:9000", "http://h:8123", "d", "u", "clickhouse://u@h:9000/d"},
		{"clickhouse://u:p@h", true, false, "h:9000", "http://h:8123", "transferlab", "u", "clickhouse://u@h:9000/transferlab"},
		{"clickhouse://h:1?secure=true", true, true, "h:1", "https://h:8443", "transferlab", "default", "clickhouse://default@h:1/transferlab"},
		{"clickhouse://u:p@h?secure=true&skip_verify=true", true, true, "h:9440", "https://h:8443", "transferlab", "u", "clickhouse://u@h:9440/transferlab"},
		{"clickhouse://u:p@h?http_url=https://x:1", true, false, "h:9000", "https://x:1", "transferlab", "u", "clickhouse://u@h:9000/transferlab"},
		{"http://u:p%40%2F@h/d", false, false, "h:8123", "http://h:8123", "d", "u", "http://u@h:8123/d"},
		{"https://u:p@h/d", false, true, "h:8443", "https://h:8443", "d", "u", "https://u@h:8443/d"},
		{"clickhouse://u:p@[::1]:9000/d", true, false, "[::1]:9000", "http://[::1]:8123", "d", "u", "clickhouse://u@[::1]:9000/d"},
	} {
		d, err := clickhouse.ParseDSN(c.dsn)
		if err != nil {
			t.Errorf("%s: %v", c.dsn, err)
			continue
		}
		if d.Native != c.native || d.TLS != c.tls || d.Addr != c.addr || d.HTTPURL != c.http || d.Database != c.database || d.User != c.user || d.String() != c.str {
			t.Errorf("%s: %+v", c.dsn, d)
		}
		if c.dsn == "http://u:p%40%2F@h/d" && d.Password() != "p@/" {
			t.Errorf("password is %q", d.Password())
		}
		if clickhouse.Redact(c.dsn) != c.str {
			t.Errorf("redacted: %s", clickhouse.Redact(c.dsn))
		}
	}
}

func TestBadDSNsAreRefusedWithoutBeingQuoted(t *testing.T) {
	t.Parallel()
	for _, dsn := range []string{
		"", "secret-word", "mysql://u:secret-word@h/d", "clickhouse://u:secret-word@/d", "clickhouse://u:secret-word@h:port/d",
		"clickhouse://u:secret-word@h/a/b", "clickhouse://u:secret-word@h:9000/d?dial_timeout=secret-word",
		"clickhouse://u:secret-word%zz@h/d", "clickhouse://u:secret-word@h/d?http_url=ftp://x", "http://u:secret-word@h/d?http_url=http://a:b@c",
		"clickhouse://u:secret-word@h\x7f/d",
	} {
		_, err := clickhouse.ParseDSN(dsn)
		if err == nil {
			t.Errorf("%q is accepted", dsn)
			continue
		}
		if strings.HasPrefix(dsn, "clickhouse://u:secret") && strings.Contains(err.Error(), "secret-word") {
			t.Errorf("the error quotes the password: %v", err)
		}
		if r := clickhouse.Redact(dsn); strings.Contains(r, "secret-word") {
			t.Errorf("redacted: %s", r)
		}
	}
}

func FuzzParseDSN(f *testing.F) {
	f.Add("clickhouse://u:", "@h:9000/d?secure=true")
	f.Add("http://u:", "@[::1]/d")
	f.Add("https://", "@h?compress=lz4&http_url=http://x:1")
	f.Fuzz(func(t *testing.T, before, after string) {
		const secret = "kL9xWq2vTz"
		if strings.Contains(before, secret) || strings.Contains(after, secret) {
			return
		}
		d, err := clickhouse.ParseDSN(before + secret + after)
		if err != nil {
			return
		}
		if d.Password() == secret {
			if text := fmt.Sprintf("%v %+v %#v %s", d, d, d, clickhouse.Redact(before+secret+after)); strings.Contains(text, secret) {
				t.Errorf("%q: printed as %s", before+secret+after, text)
			}
		}
	})
}

func TestOpenWaitsForAServerThatIsStarting(t *testing.T) {
	t.Parallel()
	server := chtest.Start(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		for refused := 0; ; refused++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if refused < 2 {
				_ = c.Close()
				continue
			}
			target, err := net.Dial("tcp", server.TCPAddr())
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(target, c); _ = target.Close() }()
			go func() { _, _ = io.Copy(c, target); _ = c.Close() }()
		}
	}()
	_ = open(t, "clickhouse://lab:"+chtest.LabPassword+"@"+l.Addr().String()+"/transferlab")
}

func TestOpenGivesUpInTime(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := clickhouse.Open(ctx, "clickhouse://lab:secret-word@127.0.0.1:1/transferlab")
	if err == nil || strings.Contains(err.Error(), "secret-word") || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("error is %v", err)
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("took %s", took)
	}
}

func TestOpenCreatesTheDatabase(t *testing.T) {
	t.Parallel()
	server := chtest.StartOwn(t, nil)
	run(t, open(t, server.LabDSN()), "DROP DATABASE transferlab SYNC")
	for _, dsn := range []string{server.LabDSN(), "http://lab:" + chtest.LabPassword + "@" + server.HTTPAddr() + "/transferlab"} {
		conn := open(t, dsn)
		run(t, conn, "CREATE TABLE t (n UInt8) ENGINE = Memory")
		run(t, conn, "DROP DATABASE transferlab SYNC")
	}
	// Where that is not allowed the error says so.
	_, err := clickhouse.Open(t.Context(), server.ReaderDSN())
	if !clickhouse.IsPermanent(err) || clickhouse.Code(err) != 497 {
		t.Errorf("error is %v", err)
	}
}
