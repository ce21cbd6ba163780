package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/internal/objectstore"
)

// dataCmd works on the objects of the lab's own store.
type dataCmd struct {
	Put dataPutCmd `cmd:"" help:"Make objects, or store a file."`
	Ls  dataLsCmd  `cmd:"" help:"List objects."`
	Rm  dataRmCmd  `cmd:"" help:"Remove an object, or everything under a prefix."`
}

// withStore calls f with the lab's store.
func (c *cli) withStore(ctx context.Context, f func(*objectstore.Store) error) error {
	var endpoint, region, access, secret string
	s, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	switch {
	case s.lab != nil:
		k := s.lab.store.Credentials()
		endpoint, region, access, secret = s.lab.store.Endpoint(), s.lab.store.Region(), k.AccessKey, k.SecretKey
	case c.Server != "":
		return usage("--server: the store is reached through its own endpoint, not through the API; use the AWS CLI or any S3 tool")
	default:
		env, err := readEnv(c.envPath())
		if err != nil {
			return err
		}
		endpoint, region, access, secret = env["AWS_ENDPOINT_URL"], env["AWS_REGION"], env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"]
	}
	st, err := objectstore.Open(ctx, objectstore.Target{Endpoint: endpoint, Region: region, PathStyle: true}, objectstore.Static(access, secret, ""))
	if err != nil {
		return err
	}
	return f(st)
}

// place is `bucket/key`.
func place(s string) (bucket, key string, err error) {
	bucket, key, _ = strings.Cut(strings.TrimPrefix(s, "s3://"), "/")
	if bucket == "" {
		return "", "", usage("%q, want BUCKET/KEY", s)
	}
	return bucket, key, nil
}

type dataPutCmd struct {
	Target string `arg:"" help:"BUCKET/KEY of a file, BUCKET/PREFIX of made objects."`
	File   string `help:"File to store; without it objects are made." type:"existingfile"`
	Size   string `help:"Size of made objects." default:"1MB"`
	Count  int    `help:"How many." default:"1"`
	Seed   uint64 `help:"Of their content." default:"1"`
}

func (d *dataPutCmd) Run(ctx context.Context, c *cli) error {
	bucket, key, err := place(d.Target)
	if err != nil {
		return err
	}
	size, err := schemas.ParseSize(d.Size)
	if err != nil {
		return usage("--size: %v", err)
	}
	if d.Count < 1 || d.Count > schemas.MaxS3Objects {
		return usage("--count: %d, want 1 to %d", d.Count, schemas.MaxS3Objects)
	}
	return c.withStore(ctx, func(st *objectstore.Store) error {
		if err := st.EnsureBucket(ctx, bucket); err != nil {
			return err
		}
		if d.File != "" {
			return d.putFile(ctx, st, bucket, key)
		}
		section := schemas.S3{Prefix: key, Size: size}
		if key != "" && !strings.HasSuffix(key, "/") {
			section.Prefix += "/"
		}
		meter := newMeter(ctx, "making objects", int64(size)*int64(d.Count))
		defer meter.end()
		for i := range d.Count {
			name := section.Key(i)
			content := objectstore.NewContent(objectstore.Seed(d.Seed, bucket, name), int64(size))
			if _, err := st.Put(ctx, bucket, name, meter.reader(content), int64(size), objectstore.PutOptions{}); err != nil {
				return err
			}
		}
		say("made %d objects of %s under %s/%s", d.Count, size, bucket, section.Prefix)
		return nil
	})
}

func (d *dataPutCmd) putFile(ctx context.Context, st *objectstore.Store, bucket, key string) error {
	if key == "" || strings.HasSuffix(key, "/") {
		return usage("%q, want BUCKET/KEY for a file", d.Target)
	}
	f, err := os.Open(d.File)
	if err != nil {
		return fmt.Errorf("open file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("size of file: %w", err)
	}
	meter := newMeter(ctx, "storing "+d.File, info.Size())
	defer meter.end()
	_, err = st.Put(ctx, bucket, key, meter.reader(f), info.Size(), objectstore.PutOptions{})
	return err
}

type dataLsCmd struct {
	Target string `arg:"" help:"BUCKET or BUCKET/PREFIX."`
	Max    int    `help:"At most so many." default:"1000"`
}

func (d *dataLsCmd) Run(ctx context.Context, c *cli) error {
	bucket, prefix, err := place(d.Target)
	if err != nil {
		return err
	}
	return c.withStore(ctx, func(st *objectstore.Store) error {
		objects, more, err := st.List(ctx, bucket, objectstore.ListOptions{Prefix: prefix, Max: d.Max})
		if err != nil {
			return err
		}
		if c.JSON {
			return show(os.Stdout, objects)
		}
		for _, o := range objects {
			fmt.Printf("%12d  %s  %s\n", o.Size, o.Modified.UTC().Format("2006-01-02 15:04:05"), o.Key)
		}
		if more {
			say("there are more: --max shows them")
		}
		return nil
	})
}

type dataRmCmd struct {
	Target    string `arg:"" help:"BUCKET/KEY, or BUCKET/PREFIX with --recursive."`
	Recursive bool   `help:"Remove everything under the prefix."`
}

func (d *dataRmCmd) Run(ctx context.Context, c *cli) error {
	bucket, key, err := place(d.Target)
	if err != nil {
		return err
	}
	if key == "" && !d.Recursive {
		return usage("%q names a whole bucket: --recursive empties it", d.Target)
	}
	return c.withStore(ctx, func(st *objectstore.Store) error {
		if !d.Recursive {
			return st.Delete(ctx, bucket, key)
		}
		n, err := st.DeletePrefix(ctx, bucket, key)
		if err != nil {
			return err
		}
		say("removed %d objects", n)
		return nil
	})
}

// meter shows bytes going by.
type meter struct {
	bars *mpb.Progress
	bar  *mpb.Bar
}

func newMeter(ctx context.Context, name string, total int64) *meter {
	if !isTerminal(os.Stderr) {
		say("%s: %s", name, humanize.Bytes(uint64(max(total, 0))))
		return &meter{}
	}
	bars := mpb.NewWithContext(ctx, mpb.WithOutput(os.Stderr), mpb.WithWidth(40))
	return &meter{bars: bars, bar: bars.AddBar(total,
		mpb.PrependDecorators(decor.Name(name+" "), decor.CountersKiloByte("% .1f / % .1f")),
		mpb.AppendDecorators(decor.AverageSpeed(decor.SizeB1000(0), "% .1f")))}
}

// reader passes r on as what it is where nothing is shown: it may be better
// than a plain reader.
func (m *meter) reader(r io.Reader) io.Reader {
	if m.bar == nil {
		return r
	}
	return m.bar.ProxyReader(r)
}

func (m *meter) end() {
	if m.bar == nil {
		return
	}
	if !m.bar.Completed() {
		m.bar.Abort(false)
	}
	m.bars.Wait()
}
