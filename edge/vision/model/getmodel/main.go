// Getmodel puts a detection model where transferlab finds it, and prints its path.
//
//	go run ./edge/vision/model/getmodel [--dir DIR] [NAME]
//
// Without --dir a model that is in one of the usual folders is left there; else it
// is fetched into the user's cache. With --dir it is made there.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/transferlab/transferlab/edge/vision/model"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "getmodel:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("getmodel", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprintln(stderr, "usage: getmodel [--dir DIR] [NAME]")
		flags.PrintDefaults()
		for _, s := range model.Known() {
			fmt.Fprintf(stderr, "%s: %s, %s\n", s.Name, s.License, s.Source)
		}
	}
	dir := flags.String("dir", "", "`folder` to make the file in (default: the user's cache, unless a usual folder has it)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	name := "nanodet"
	switch flags.NArg() {
	case 0:
	case 1:
		name = flags.Arg(0)
	default:
		return fmt.Errorf("one model at a time, not %q", flags.Args())
	}
	path, err := get(ctx, name, *dir, func(format string, args ...any) { fmt.Fprintf(stderr, format+"\n", args...) })
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(stdout, path)
	return err
}

func get(ctx context.Context, name, dir string, say func(string, ...any)) (string, error) {
	if dir == "" {
		path, err := model.Find(ctx, name, model.Dirs())
		if err == nil || !errors.Is(err, model.ErrNotFound) {
			return path, err
		}
		if dir, err = model.CacheDir(); err != nil {
			return "", err
		}
	}
	return model.Fetch(ctx, name, dir, say)
}
