package gateway

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"golang.org/x/time/rate"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/gateway/api"
)

// Bounds of accounts.
const (
	maxEdges = 10_000
	// seenGrain is how exactly an account's last request is stored: each would
	// be a write to the bus otherwise.
	seenGrain = 10 * time.Minute
	// tokenPrefix lets a token that leaked into a text be found.
	tokenPrefix = "tle_"
	casTries    = 16
)

var (
	errRevoked   = errors.New("the account was revoked")
	edgeNameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)
)

// account is an edge that may send clips.
type account struct {
	name    string
	hash    [sha256.Size]byte
	gone    context.Context // ends when it may no more
	remove  context.CancelCauseFunc
	rate    *rate.Limiter
	uploads chan struct{} // a place for each clip that is being received
	waits   chan struct{}
	seen    atomic.Int64 // Unix nanoseconds
	stored  atomic.Int64 // of seen, what the bus has
}

// edges knows who may send clips: what the bucket says, as it says it.
type edges struct {
	cfg    ClipsConfig
	log    *slog.Logger
	bucket *bus.Bucket[schemas.EdgeAccount]

	mu       sync.RWMutex
	byHash   map[[sha256.Size]byte]*account
	byName   map[string]*account
	revision map[string]uint64 // of what was applied, by name
}

func newEdges(cfg ClipsConfig, log *slog.Logger) *edges {
	return &edges{cfg: cfg, log: log, byHash: map[[sha256.Size]byte]*account{}, byName: map[string]*account{}, revision: map[string]uint64{}}
}

// open reads the accounts there are.
func (e *edges) open(ctx context.Context, c *bus.Conn) (err error) {
	if e.bucket, err = bus.OpenBucket[schemas.EdgeAccount](ctx, c, bus.BucketEdges); err != nil {
		return err
	}
	all, err := e.bucket.List(ctx, ">")
	if err != nil {
		return err
	}
	for _, entry := range all {
		e.apply(entry)
	}
	return nil
}

// run follows the bucket and stores when accounts were seen.
func (e *edges) run(ctx context.Context) {
	var parts sync.WaitGroup
	defer parts.Wait()
	parts.Go(func() {
		watchAgain(ctx, e.log, func() error {
			return e.bucket.Watch(ctx, ">", func(entry bus.Entry[schemas.EdgeAccount]) error {
				e.apply(entry)
				return nil
			})
		})
	})
	tick := time.NewTicker(seenGrain / 10)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			e.storeSeen(ctx)
		}
	}
}

// watchAgain keeps a watch going until ctx ends.
func watchAgain(ctx context.Context, log *slog.Logger, watch func() error) {
	for wait := 100 * time.Millisecond; ctx.Err() == nil; wait = min(2*wait, 5*time.Second) {
		if err := watch(); err != nil {
			log.Warn("a watch ended; will begin again", "in", wait, "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// apply makes what is in the bucket true. A token that no longer counts ends
// what is under way with it.
func (e *edges) apply(entry bus.Entry[schemas.EdgeAccount]) {
	e.mu.Lock()
	defer e.mu.Unlock()
	// The watch comes a moment after what this gateway has done itself.
	if entry.Revision < e.revision[entry.Key] {
		return
	}
	e.revision[entry.Key] = entry.Revision
	old := e.byName[entry.Key]
	var hash [sha256.Size]byte
	raw, err := hex.DecodeString(entry.Value.Hash)
	valid := err == nil && copy(hash[:], raw) == len(hash) && !entry.Deleted && entry.Value.Revoked.IsZero()
	if old != nil && valid && old.hash == hash {
		old.stored.Store(unixNano(entry.Value.Seen))
		return
	}
	if old != nil {
		delete(e.byHash, old.hash)
		delete(e.byName, entry.Key)
		old.remove(errRevoked)
	}
	if !valid {
		return
	}
	gone, remove := context.WithCancelCause(context.Background())
	a := &account{
		name: entry.Key, hash: hash, gone: gone, remove: remove,
		rate:    rate.NewLimiter(rate.Limit(e.cfg.EdgeRate), int(2*e.cfg.EdgeRate)+1),
		uploads: make(chan struct{}, e.cfg.EdgeUploads), waits: make(chan struct{}, e.cfg.EdgeWaits),
	}
	a.stored.Store(unixNano(entry.Value.Seen))
	e.byHash[hash], e.byName[entry.Key] = a, a
}

func unixNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// find is the account that a token opens, or nil. What is looked up is the
// token's hash: how long that takes says nothing about any token.
func (e *edges) find(token string) *account {
	hash := sha256.Sum256([]byte(token))
	e.mu.RLock()
	a := e.byHash[hash]
	e.mu.RUnlock()
	if a == nil || subtle.ConstantTimeCompare(hash[:], a.hash[:]) != 1 {
		return nil
	}
	a.seen.Store(time.Now().UnixNano())
	return a
}

func (e *edges) storeSeen(ctx context.Context) {
	e.mu.RLock()
	var due []*account
	for _, a := range e.byName {
		if time.Duration(a.seen.Load()-a.stored.Load()) >= seenGrain && a.seen.Load() > 0 {
			due = append(due, a)
		}
	}
	e.mu.RUnlock()
	for _, a := range due {
		entry, err := e.bucket.Get(ctx, a.name)
		if err == nil && entry.Value.Revoked.IsZero() {
			entry.Value.Seen = time.Unix(0, a.seen.Load()).UTC()
			_, err = e.bucket.Update(ctx, a.name, entry.Value, entry.Revision)
		}
		if err != nil && !errors.Is(err, bus.ErrConflict) && ctx.Err() == nil {
			e.log.Warn("store when an edge was seen", "edge", a.name, "error", err)
		}
	}
}

// add makes an account, anew if one of the name was revoked.
func (e *edges) add(ctx context.Context, name string) (api.EdgeToken, error) {
	if !edgeNameForm.MatchString(name) {
		return api.EdgeToken{}, problem(http.StatusUnprocessableEntity, "name: %s, want lower-case letters, digits, hyphens and underscores, at most 63", short(name))
	}
	token := tokenPrefix + strings.ToLower(rand.Text())
	hash := sha256.Sum256([]byte(token))
	v := schemas.EdgeAccount{Name: name, Hash: hex.EncodeToString(hash[:]), Created: time.Now().UTC()}
	old, err := e.bucket.Get(ctx, name)
	var revision uint64
	switch {
	case errors.Is(err, bus.ErrNotFound):
		e.mu.RLock()
		full := len(e.byName) >= maxEdges
		e.mu.RUnlock()
		if full {
			return api.EdgeToken{}, problem(http.StatusConflict, "%d edges have accounts, which is the most there can be: revoke some", maxEdges)
		}
		revision, err = e.bucket.Create(ctx, name, v)
	case err == nil && old.Value.Revoked.IsZero():
		err = bus.ErrConflict
	case err == nil:
		revision, err = e.bucket.Update(ctx, name, v, old.Revision)
	}
	if errors.Is(err, bus.ErrConflict) {
		return api.EdgeToken{}, problem(http.StatusConflict, "edge %s has an account: revoke it to make a new token", name)
	}
	if err != nil {
		return api.EdgeToken{}, err
	}
	e.apply(bus.Entry[schemas.EdgeAccount]{Key: name, Value: v, Revision: revision})
	e.log.Info("edge added", "edge", name)
	return api.EdgeToken{Name: name, Token: token, Created: v.Created}, nil
}

// revoke ends an account, and what is under way with its token.
func (e *edges) revoke(ctx context.Context, name string) error {
	for range casTries {
		entry, err := e.bucket.Get(ctx, name)
		if errors.Is(err, bus.ErrNotFound) {
			return problem(http.StatusNotFound, "no edge %s", short(name))
		}
		if err != nil {
			return err
		}
		if entry.Value.Revoked.IsZero() {
			entry.Value.Revoked = time.Now().UTC()
			entry.Revision, err = e.bucket.Update(ctx, name, entry.Value, entry.Revision)
			if errors.Is(err, bus.ErrConflict) {
				continue
			}
			if err != nil {
				return err
			}
			e.log.Info("edge revoked", "edge", name)
		}
		e.apply(entry)
		return nil
	}
	return fmt.Errorf("revoke edge %s: %w", name, bus.ErrConflict)
}

func (e *edges) list(ctx context.Context) ([]api.Edge, error) {
	entries, err := e.bucket.List(ctx, ">")
	if err != nil {
		return nil, err
	}
	all := make([]api.Edge, len(entries))
	for i, entry := range entries {
		v := entry.Value
		all[i] = api.Edge{Name: v.Name, Created: v.Created, Revoked: v.Revoked, Seen: v.Seen}
	}
	slices.SortFunc(all, func(a, b api.Edge) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// short shows a text from outside without repeating all of it.
func short(s string) string {
	const most = 64
	if len(s) > most {
		return fmt.Sprintf("%q… (%d bytes)", s[:most], len(s))
	}
	return fmt.Sprintf("%q", s)
}

func (g *Gateway) registerEdges() {
	huma.Register(g.api, operation("list-edges", http.MethodGet, "/v1/edges", "edges", "Accounts of edges"),
		func(ctx context.Context, _ *struct{}) (*struct{ Body []api.Edge }, error) {
			all, err := g.edges.list(ctx)
			if err != nil {
				return nil, g.explain(ctx, err)
			}
			return &struct{ Body []api.Edge }{all}, nil
		})
	add := operation("add-edge", http.MethodPost, "/v1/edges", "edges", "Make an account for an edge; its token is shown this once")
	add.DefaultStatus = http.StatusCreated
	huma.Register(g.api, add, func(ctx context.Context, in *struct{ Body api.EdgeName }) (*struct{ Body api.EdgeToken }, error) {
		token, err := g.edges.add(ctx, in.Body.Name)
		if err != nil {
			return nil, g.explain(ctx, err)
		}
		return &struct{ Body api.EdgeToken }{token}, nil
	})
	revoke := operation("revoke-edge", http.MethodDelete, "/v1/edges/{name}", "edges", "Revoke the token of an edge, at once")
	revoke.DefaultStatus = http.StatusNoContent
	huma.Register(g.api, revoke, func(ctx context.Context, in *struct {
		Name string `path:"name" maxLength:"63" pattern:"^[a-z0-9][a-z0-9_-]*$" doc:"Of the edge."`
	},
	) (*struct{}, error) {
		return nil, g.explain(ctx, g.edges.revoke(ctx, in.Name))
	})
}
