package camera

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/transferlab/transferlab/edge/motion"
	"github.com/transferlab/transferlab/schemas"
)

const (
	rtspUser     = "viewer"
	rtspPassword = "kept-s3cret"
)

// rtspServer is as much of a network camera as a client needs that wants RTP
// within its TCP connection. It serves one client at a time.
type rtspServer struct {
	t      *testing.T
	listen net.Listener
	rtp    *net.UDPConn
	sdp    string
}

func newRTSPServer(t *testing.T, video string) *rtspServer {
	t.Helper()
	rtp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = rtp.Close() })
	c := exec.CommandContext(t.Context(), "ffmpeg", "-loglevel", "error", "-re", "-stream_loop", "-1", "-i", video, "-c", "copy",
		"-bsf:v", "h264_mp4toannexb", "-f", "rtp", "rtp://"+rtp.LocalAddr().String()+"?pkt_size=1200")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	// The description ends with the line of the format's parameters.
	s := &rtspServer{t: t, rtp: rtp}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		line := lines.Text()
		if line == "SDP:" {
			continue
		}
		s.sdp += line + "\r\n"
		if strings.HasPrefix(line, "a=fmtp") {
			break
		}
	}
	s.sdp += "a=control:streamid=0\r\n"
	if s.listen, err = net.Listen("tcp4", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.listen.Close() })
	go func() {
		for {
			conn, err := s.listen.Accept()
			if err != nil {
				return
			}
			s.serve(conn)
		}
	}()
	return s
}

func (s *rtspServer) serve(conn net.Conn) {
	defer conn.Close()
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte(rtspUser+":"+rtspPassword))
	r := textproto.NewReader(bufio.NewReader(conn))
	for {
		line, err := r.ReadLine()
		if err != nil {
			return
		}
		header, err := r.ReadMIMEHeader()
		if err != nil {
			return
		}
		method, _, _ := strings.Cut(line, " ")
		status, extra, body := "200 OK", "", ""
		switch {
		case method == "OPTIONS":
			extra = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
		case header.Get("Authorization") != want:
			status, extra = "401 Unauthorized", "WWW-Authenticate: Basic realm=\"camera\"\r\n"
		case method == "DESCRIBE":
			extra, body = "Content-Type: application/sdp\r\n", s.sdp
		case method == "SETUP":
			extra = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n"
		}
		if _, err := fmt.Fprintf(conn, "RTSP/1.0 %s\r\nCSeq: %s\r\nContent-Length: %d\r\n%s\r\n%s", status, header.Get("Cseq"), len(body), extra, body); err != nil {
			return
		}
		if method == "PLAY" {
			break
		}
	}
	go func() { _, _ = io.Copy(io.Discard, conn) }()
	b := make([]byte, 4+2048)
	for {
		n, err := s.rtp.Read(b[4:])
		if err != nil {
			return
		}
		b[0], b[1], b[2], b[3] = '$', 0, byte(n>>8), byte(n)
		if _, err := conn.Write(b[:4+n]); err != nil {
			return
		}
	}
}

func TestRTSP(t *testing.T) {
	t.Parallel()
	server := newRTSPServer(t, footage(t, 30, 4, 25))
	o := options(t)
	o.Source.Kind = KindRTSP
	o.Source.URL = "rtsp://" + rtspUser + ":" + rtspPassword + "@" + server.listen.Addr().String() + "/stream"
	logged := newLog()
	o.Log = slog.New(slog.NewTextHandler(logged, nil))
	sink := newStore()
	stop := started(t, o, sink)
	c := sink.wait(t)

	// Every command line on this machine, as its other users see them.
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	ours := 0
	for _, path := range files {
		args, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		if strings.Contains(string(args), "ffconcat") || strings.Contains(string(args), "concat\x00-safe") {
			ours++
		}
		if strings.Contains(string(args), rtspPassword) {
			t.Errorf("the password is in a command line: %q", args)
		}
	}
	if ours == 0 {
		t.Error("the reader's command line was not found")
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(logged.String(), rtspPassword) {
		t.Errorf("the password is in the log:\n%s", logged)
	}
	if p := play(t, c); p.first != "I" || p.length < 1500*time.Millisecond {
		t.Errorf("%+v", p)
	}
}

// A camera that is not there: the log says so, without the password.
func TestRTSPWithoutServer(t *testing.T) {
	t.Parallel()
	listen, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listen.Addr().String()
	if err := listen.Close(); err != nil {
		t.Fatal(err)
	}
	o := options(t)
	o.Source.Kind, o.Source.URL = KindRTSP, "rtsp://"+rtspUser+":"+rtspPassword+"@"+address+"/stream"
	o.Motion.Kind, o.Clip.Length = motion.KindNone, schemas.Duration(time.Second)
	logged := newLog()
	o.Log = slog.New(slog.NewTextHandler(logged, nil))
	stop := started(t, o, newStore())
	logged.await(t, "Connection refused")
	logged.await(t, "started again")
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(logged.String(), rtspPassword) {
		t.Errorf("the password is in the log:\n%s", logged)
	}
}
