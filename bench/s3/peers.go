package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/feature/s3/transfermanager"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/minio/minio-go/v7"
	miniocredentials "github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/transferlab/transferlab/bench/internal/lab"
)

// peerVariable holds a peerSpec when this program runs as a peer.
const peerVariable = "TRANSFERLAB_BENCH_PEER"

// peerSpec is what a peer's process does. Keys come by the AWS_* variables.
type peerSpec struct {
	Client      string
	Endpoint    string
	Region      string
	Keys        []string
	Size        int64
	Concurrency int
}

// fetch downloads one object and returns its length.
type fetch func(ctx context.Context, key string, buffer []byte) (int64, error)

// library is a client that is a Go library, used as its users would who want it
// fast.
type library struct {
	name, module, what string
	open               func(p *peerSpec) (fetch, error)
}

func libraries() []library {
	return []library{
		{ceiling, "", "bare net/http, signed, buffer of 1 MiB", openBare},
		{"sdk", "github.com/aws/aws-sdk-go-v2/service/s3", "GetObject, buffer of 1 MiB, checksums when required", openSDK},
		{"transfermanager", "github.com/aws/aws-sdk-go-v2/feature/s3/transfermanager", "DownloadObject to a writer that drops", openManager},
		{"minio-go", "github.com/minio/minio-go/v7", "GetObject, buffer of 1 MiB", openMinio},
	}
}

// moduleVersion is the version of a module this program was built with.
func moduleVersion(path string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok || path == "" {
		return ""
	}
	for _, m := range info.Deps {
		if m.Path == path {
			return m.Version + ", "
		}
	}
	return ""
}

// peers are the libraries, each in a process of its own.
func peers(l *lab.Lab) []client {
	var out []client
	for _, lib := range libraries() {
		out = append(out, client{name: lib.name, what: moduleVersion(lib.module) + lib.what, run: func(ctx context.Context, c cell) (measured, error) {
			p := peerSpec{Client: lib.name, Endpoint: l.Env["AWS_ENDPOINT_URL"], Region: l.Env["AWS_REGION"], Size: c.size, Concurrency: c.concurrency}
			for i := range c.objects {
				p.Keys = append(p.Keys, c.key(i))
			}
			spec, err := json.Marshal(p)
			if err != nil {
				return measured{}, fmt.Errorf("encode: %w", err)
			}
			self, err := os.Executable()
			if err != nil {
				return measured{}, fmt.Errorf("find this program: %w", err)
			}
			var out, complaints bytes.Buffer
			cmd := exec.CommandContext(ctx, self)
			// The keys of thousands of objects do not fit into the environment.
			cmd.Stdin = bytes.NewReader(spec)
			cmd.Env = append(awsEnv(l), peerVariable+"=stdin")
			cmd.Stdout, cmd.Stderr = &out, &complaints
			if err := cmd.Run(); err != nil {
				return measured{}, fmt.Errorf("%w: %s", err, complaints.String())
			}
			var m measured
			if err := json.Unmarshal(out.Bytes(), &m); err != nil {
				return measured{}, fmt.Errorf("read the peer's account: %w", err)
			}
			return m, nil
		}})
	}
	return out
}

// awsEnv is the environment in which any S3 client finds the lab's store.
func awsEnv(l *lab.Lab) []string {
	// The store speaks plain HTTP, and rclone refuses to start with a bundle of
	// authorities beside a transport of its own.
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "AWS_CA_BUNDLE=") })
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_REGION"} {
		env = append(env, name+"="+l.Env[name])
	}
	return append(env, "AWS_DEFAULT_REGION="+l.Env["AWS_REGION"])
}

// runPeer is the peer's process: it downloads the objects and prints what it
// took, without its own start.
func runPeer(ctx context.Context, _ string, out io.Writer) error {
	var p peerSpec
	if err := json.NewDecoder(os.Stdin).Decode(&p); err != nil {
		return fmt.Errorf("read the task: %w", err)
	}
	var get fetch
	for _, lib := range libraries() {
		if lib.name == p.Client {
			var err error
			if get, err = lib.open(&p); err != nil {
				return err
			}
		}
	}
	if get == nil {
		return fmt.Errorf("no client is called %q", p.Client)
	}
	var next, total atomic.Int64
	var workers sync.WaitGroup
	failures := make(chan error, p.Concurrency)
	cpu, begin := ownProcessorTime(), time.Now()
	for range min(p.Concurrency, len(p.Keys)) {
		workers.Go(func() {
			buffer := make([]byte, 1<<20)
			for i := next.Add(1) - 1; i < int64(len(p.Keys)); i = next.Add(1) - 1 {
				n, err := get(ctx, p.Keys[i], buffer)
				total.Add(n)
				if err != nil {
					failures <- fmt.Errorf("get %s: %w", p.Keys[i], err)
					return
				}
			}
		})
	}
	workers.Wait()
	m := measured{Bytes: total.Load(), Requests: int64(len(p.Keys)), Elapsed: time.Since(begin), CPU: ownProcessorTime() - cpu}
	close(failures)
	for err := range failures {
		return err
	}
	return json.NewEncoder(out).Encode(m)
}

func ownProcessorTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func keys() (access, secret string) {
	return os.Getenv("AWS_ACCESS_KEY_ID"), os.Getenv("AWS_SECRET_ACCESS_KEY")
}

func transport(concurrency int) *http.Transport {
	return &http.Transport{MaxIdleConnsPerHost: concurrency, DisableCompression: true}
}

// drain reads with a large buffer: io.Discard would read 8 KiB at a time.
func drain(r io.ReadCloser, buffer []byte) (int64, error) {
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, buffer)
	return n, errors.Join(err, r.Close())
}

const emptyPayload = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func openBare(p *peerSpec) (fetch, error) {
	access, secret := keys()
	given := aws.Credentials{AccessKeyID: access, SecretAccessKey: secret}
	signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	c := &http.Client{Transport: transport(p.Concurrency)}
	return func(ctx context.Context, key string, buffer []byte) (int64, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.Endpoint+"/"+bucket+"/"+key, nil)
		if err != nil {
			return 0, err
		}
		req.Header.Set("X-Amz-Content-Sha256", emptyPayload)
		if err := signer.SignHTTP(ctx, given, req, emptyPayload, "s3", p.Region, time.Now()); err != nil {
			return 0, err
		}
		resp, err := c.Do(req)
		if err != nil {
			return 0, err
		}
		if resp.StatusCode != http.StatusOK {
			_ = resp.Body.Close()
			return 0, errors.New(resp.Status)
		}
		return drain(resp.Body, buffer)
	}, nil
}

func sdk(p *peerSpec) *s3.Client {
	access, secret := keys()
	return s3.New(s3.Options{
		Region: p.Region, BaseEndpoint: aws.String(p.Endpoint), UsePathStyle: true,
		Credentials:                credentials.NewStaticCredentialsProvider(access, secret, ""),
		ResponseChecksumValidation: aws.ResponseChecksumValidationWhenRequired,
		HTTPClient:                 awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) { t.MaxIdleConnsPerHost = p.Concurrency }),
	})
}

func openSDK(p *peerSpec) (fetch, error) {
	c := sdk(p)
	return func(ctx context.Context, key string, buffer []byte) (int64, error) {
		out, err := c.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String(bucket), Key: &key})
		if err != nil {
			return 0, err
		}
		return drain(out.Body, buffer)
	}, nil
}

// dropped counts what is written to it.
type dropped struct{ n atomic.Int64 }

func (d *dropped) WriteAt(p []byte, _ int64) (int, error) {
	d.n.Add(int64(len(p)))
	return len(p), nil
}

func openManager(p *peerSpec) (fetch, error) {
	m := transfermanager.New(sdk(p), func(o *transfermanager.Options) {
		// One object at a time is left to the manager to split.
		if len(p.Keys) == 1 {
			o.Concurrency = p.Concurrency
		}
	})
	return func(ctx context.Context, key string, _ []byte) (int64, error) {
		var d dropped
		_, err := m.DownloadObject(ctx, &transfermanager.DownloadObjectInput{Bucket: aws.String(bucket), Key: &key, WriterAt: &d})
		return d.n.Load(), err
	}, nil
}

func openMinio(p *peerSpec) (fetch, error) {
	u, err := url.Parse(p.Endpoint)
	if err != nil {
		return nil, err
	}
	access, secret := keys()
	c, err := minio.New(u.Host, &minio.Options{
		Creds: miniocredentials.NewStaticV4(access, secret, ""), Secure: strings.HasPrefix(p.Endpoint, "https"), Region: p.Region,
		BucketLookup: minio.BucketLookupPath, Transport: transport(p.Concurrency),
	})
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, key string, buffer []byte) (int64, error) {
		o, err := c.GetObject(ctx, bucket, key, minio.GetObjectOptions{})
		if err != nil {
			return 0, err
		}
		return drain(o, buffer)
	}, nil
}
