package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/schemas"
)

// index keeps the heads of all runs in memory, without their files, so that
// listing them and finding one by the beginning of its id cost nothing. The
// bucket decides; the index follows it.
type index struct {
	mu   sync.RWMutex
	runs map[uuid.UUID]schemas.Run
}

func newIndex() *index { return &index{runs: map[uuid.UUID]schemas.Run{}} }

func (x *index) put(r schemas.Run) {
	if r.ID == uuid.Nil {
		return
	}
	r.File = ""
	x.mu.Lock()
	defer x.mu.Unlock()
	x.runs[r.ID] = r
}

// add puts a run that the bucket may not have shown yet.
func (x *index) add(r schemas.Run) {
	x.mu.RLock()
	_, known := x.runs[r.ID]
	x.mu.RUnlock()
	if !known {
		x.put(r)
	}
}

func (x *index) remove(key string) {
	id, err := uuid.Parse(key)
	if err != nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.runs, id)
}

func (x *index) load(ctx context.Context, runs *bus.Bucket[schemas.Run]) error {
	all, err := runs.List(ctx, ">")
	if err != nil {
		return err
	}
	for _, e := range all {
		x.put(e.Value)
	}
	return nil
}

// follow keeps the index until ctx ends.
func (x *index) follow(ctx context.Context, runs *bus.Bucket[schemas.Run], log *slog.Logger) {
	for wait := 100 * time.Millisecond; ctx.Err() == nil; wait = min(2*wait, 10*time.Second) {
		err := runs.Watch(ctx, ">", func(e bus.Entry[schemas.Run]) error {
			if e.Deleted {
				x.remove(e.Key)
			} else {
				x.put(e.Value)
			}
			return nil
		})
		if err == nil || ctx.Err() != nil {
			return
		}
		log.Warn("follow runs; will try again", "in", wait, "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// newest returns all runs that match, newest first.
func (x *index) newest(match func(*schemas.Run) bool) []schemas.Run {
	x.mu.RLock()
	defer x.mu.RUnlock()
	found := []schemas.Run{}
	for _, r := range x.runs {
		if match == nil || match(&r) {
			found = append(found, r)
		}
	}
	slices.SortFunc(found, newerFirst)
	return found
}

// newerFirst orders by time of creation; ids of version 7 begin with it too.
func newerFirst(a, b schemas.Run) int {
	return cmp.Or(b.Created.Compare(a.Created), strings.Compare(b.ID.String(), a.ID.String()))
}

var runPrefix = regexp.MustCompile(`^[0-9a-f-]{4,36}$`)

// find resolves an id, the unique beginning of one, or `latest`.
func (x *index) find(reference string) (uuid.UUID, error) {
	if reference == "latest" {
		all := x.newest(nil)
		if len(all) == 0 {
			return uuid.Nil, problem(http.StatusNotFound, "there are no runs yet")
		}
		return all[0].ID, nil
	}
	prefix := strings.ToLower(reference)
	if !runPrefix.MatchString(prefix) {
		return uuid.Nil, problem(http.StatusUnprocessableEntity, "run %.64q, want an id, at least 4 characters of its beginning, or latest", reference)
	}
	if len(prefix) == 36 {
		id, err := uuid.Parse(prefix)
		if err != nil {
			return uuid.Nil, problem(http.StatusUnprocessableEntity, "run %q: %v", reference, err)
		}
		return id, nil
	}
	found := x.newest(func(r *schemas.Run) bool { return strings.HasPrefix(r.ID.String(), prefix) })
	switch len(found) {
	case 0:
		return uuid.Nil, problem(http.StatusNotFound, "no run begins with %s", prefix)
	case 1:
		return found[0].ID, nil
	}
	var ids []string
	for _, r := range found[:min(len(found), 5)] {
		ids = append(ids, r.ID.String())
	}
	return uuid.Nil, problem(http.StatusConflict, "%d runs begin with %s, such as %s: write more of the id", len(found), prefix, strings.Join(ids, ", "))
}

// run returns the whole document of the run that a reference names.
func (g *Gateway) run(ctx context.Context, reference string) (schemas.Run, error) {
	id, err := g.index.find(reference)
	if err != nil {
		return schemas.Run{}, err
	}
	e, err := g.runs.Get(ctx, id.String())
	if errors.Is(err, bus.ErrNotFound) {
		return e.Value, problem(http.StatusNotFound, "no run %s", id)
	}
	if err != nil {
		return e.Value, fmt.Errorf("read run %s: %w", id, err)
	}
	return e.Value, nil
}
