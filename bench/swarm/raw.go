package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/transferlab/transferlab/bench/internal/lab"
)

// copyTCP is a plain copy of the same bytes over one connection to one receiver,
// into memory that is there before, as the leechers' is: from before the
// connection is made until all has been read.
func copyTCP(ctx context.Context, c cell, round int) (measured, error) {
	const block = 256 << 10
	data := content(int64(c.size), round)
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		return measured{}, fmt.Errorf("listen: %w", err)
	}
	defer l.Close()
	sent := make(chan error, 1)
	go func() {
		sent <- func() error {
			conn, err := l.Accept()
			if err != nil {
				return fmt.Errorf("accept: %w", err)
			}
			defer conn.Close()
			for rest := data; len(rest) > 0; {
				n, err := conn.Write(rest[:min(block, len(rest))])
				if err != nil {
					return fmt.Errorf("send: %w", err)
				}
				rest = rest[n:]
			}
			return nil
		}()
	}()
	have := bytes.Repeat([]byte{1}, len(data))
	before, err := lab.ProcessorTime(os.Getpid())
	if err != nil {
		return measured{}, err
	}
	begin := time.Now()
	err = receive(ctx, l.Addr().String(), have)
	elapsed := time.Since(begin)
	if err != nil {
		return measured{}, err
	}
	after, err := lab.ProcessorTime(os.Getpid())
	if err != nil {
		return measured{}, err
	}
	if err := <-sent; err != nil {
		return measured{}, err
	}
	if !bytes.Equal(have, data) {
		return measured{}, errors.New("what was copied is not what was sent")
	}
	return measured{
		Leechers: []leecher{{Elapsed: elapsed.Nanoseconds(), Received: int64(len(data)), Checked: true}},
		CPU:      (after - before).Nanoseconds(), size: int64(len(data)),
	}, nil
}

func receive(ctx context.Context, addr string, into []byte) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", addr, err)
	}
	defer conn.Close()
	if _, err := io.ReadFull(conn, into); err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	return nil
}
