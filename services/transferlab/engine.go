package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/transferlab/transferlab/services/internal/clickhouse"
)

// ensureEngine returns the database engine's library, fetching it at the first
// use with progress.
func ensureEngine(ctx context.Context, say func(string, ...any)) (string, error) {
	var bar *mpb.Bar
	var bars *mpb.Progress
	told := int64(-1)
	library, err := clickhouse.EnsureLibrary(ctx, clickhouse.FetchOptions{
		Progress: func(done, total int64) {
			switch {
			case total <= 0:
			case isTerminal(os.Stderr):
				if bar == nil {
					bars = mpb.NewWithContext(ctx, mpb.WithOutput(os.Stderr), mpb.WithWidth(48))
					bar = bars.AddBar(total,
						mpb.PrependDecorators(decor.Name("fetching the database engine (once) "), decor.CountersKiloByte("% .0f / % .0f")),
						mpb.AppendDecorators(decor.AverageSpeed(decor.SizeB1000(0), "% .0f")))
				}
				bar.SetCurrent(done)
			default:
				if tenth := 10 * done / total; tenth != told {
					told = tenth
					say("fetching the database engine (once): %d of %d MB", done/1e6, total/1e6)
				}
			}
		},
	})
	if bar != nil {
		if err != nil {
			bar.Abort(false)
		}
		bars.Wait()
	}
	if err != nil {
		return "", fmt.Errorf("get the database engine: %w", err)
	}
	return library, nil
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// setupCmd fetches what the embedded lab needs.
type setupCmd struct {
	Check bool `help:"Only say whether everything is there (exit code 1 if not)."`
}

func (c *setupCmd) Run(ctx context.Context) error {
	if c.Check {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		// Ends a fetch before it begins.
		_, err := clickhouse.EnsureLibrary(ctx, clickhouse.FetchOptions{Progress: func(int64, int64) { cancel() }})
		if err != nil {
			return errors.New("the database engine is not there: transferlab setup fetches it")
		}
		return nil
	}
	path, err := ensureEngine(ctx, say)
	if err != nil {
		return err
	}
	say("database engine: %s", path)
	return nil
}

// say tells the user what is being done, beside the output proper.
func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
