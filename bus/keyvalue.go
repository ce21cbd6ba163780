package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// Errors of buckets.
var (
	ErrNotFound = errors.New("no such key")
	ErrConflict = errors.New("changed by another in the meantime")
)

// Bucket is a key-value bucket of JSON documents of type T.
type Bucket[T any] struct {
	kv   jetstream.KeyValue
	name string
}

// Entry is a document with the revision that compare-and-set needs. A deleted
// key comes from a watch with Deleted set.
type Entry[T any] struct {
	Key      string
	Value    T
	Revision uint64
	Deleted  bool
}

// OpenBucket opens a bucket of topics.go.
func OpenBucket[T any](ctx context.Context, c *Conn, name string) (*Bucket[T], error) {
	kv, err := c.js.KeyValue(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", name, err)
	}
	return &Bucket[T]{kv: kv, name: name}, nil
}

// Get returns a document, or an error that wraps [ErrNotFound].
func (b *Bucket[T]) Get(ctx context.Context, key string) (Entry[T], error) {
	e, err := b.kv.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) || errors.Is(err, jetstream.ErrKeyDeleted) {
		return Entry[T]{Key: key}, fmt.Errorf("%s/%s: %w", b.name, key, ErrNotFound)
	}
	if err != nil {
		return Entry[T]{Key: key}, fmt.Errorf("read %s/%s: %w", b.name, key, err)
	}
	return b.decode(e)
}

func (b *Bucket[T]) decode(e jetstream.KeyValueEntry) (Entry[T], error) {
	entry := Entry[T]{Key: e.Key(), Revision: e.Revision()}
	if e.Operation() != jetstream.KeyValuePut {
		entry.Deleted = true
		return entry, nil
	}
	if err := json.Unmarshal(e.Value(), &entry.Value); err != nil {
		return entry, fmt.Errorf("decode %s/%s: %w", b.name, e.Key(), err)
	}
	return entry, nil
}

// Create stores a document that must not be there yet ([ErrConflict]).
func (b *Bucket[T]) Create(ctx context.Context, key string, v T) (uint64, error) {
	return b.write(key, v, func(data []byte) (uint64, error) { return b.kv.Create(ctx, key, data) })
}

// Update replaces a document that still has the given revision ([ErrConflict]).
func (b *Bucket[T]) Update(ctx context.Context, key string, v T, revision uint64) (uint64, error) {
	return b.write(key, v, func(data []byte) (uint64, error) { return b.kv.Update(ctx, key, data, revision) })
}

// Put stores a document whatever was there.
func (b *Bucket[T]) Put(ctx context.Context, key string, v T) (uint64, error) {
	return b.write(key, v, func(data []byte) (uint64, error) { return b.kv.Put(ctx, key, data) })
}

func (b *Bucket[T]) write(key string, v T, store func([]byte) (uint64, error)) (uint64, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return 0, fmt.Errorf("encode %s/%s: %w", b.name, key, err)
	}
	revision, err := store(data)
	if errors.Is(err, jetstream.ErrKeyExists) || wrongRevision(err) {
		return 0, fmt.Errorf("write %s/%s: %w", b.name, key, ErrConflict)
	}
	if err != nil {
		return 0, fmt.Errorf("write %s/%s: %w", b.name, key, err)
	}
	return revision, nil
}

func wrongRevision(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence
}

// Delete removes a key; one that is not there is not an error.
func (b *Bucket[T]) Delete(ctx context.Context, key string) error {
	if err := b.kv.Delete(ctx, key); err != nil {
		return fmt.Errorf("delete %s/%s: %w", b.name, key, err)
	}
	return nil
}

// List returns the documents whose keys match (`>` is all), in key order of
// the bucket's history.
func (b *Bucket[T]) List(ctx context.Context, keys string) ([]Entry[T], error) {
	w, err := b.kv.Watch(ctx, keys, jetstream.IgnoreDeletes())
	if err != nil {
		return nil, fmt.Errorf("list %s/%s: %w", b.name, keys, err)
	}
	defer func() { _ = w.Stop() }()
	var all []Entry[T]
	for {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("list %s/%s: %w", b.name, keys, ctx.Err())
		case e, open := <-w.Updates():
			if !open || e == nil {
				return all, nil
			}
			entry, err := b.decode(e)
			if err != nil {
				return nil, err
			}
			all = append(all, entry)
		}
	}
}

// Watch calls handle for every matching document as it stands, then for every
// change, until ctx ends (nil) or handle fails (its error).
func (b *Bucket[T]) Watch(ctx context.Context, keys string, handle func(Entry[T]) error) error {
	w, err := b.kv.Watch(ctx, keys)
	if err != nil {
		return fmt.Errorf("watch %s/%s: %w", b.name, keys, err)
	}
	defer func() { _ = w.Stop() }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, open := <-w.Updates():
			if !open {
				if ctx.Err() != nil {
					return nil
				}
				return fmt.Errorf("watch %s/%s: the watch ended", b.name, keys)
			}
			if e == nil {
				continue
			}
			entry, err := b.decode(e)
			if err != nil {
				return err
			}
			if err := handle(entry); err != nil {
				return err
			}
		}
	}
}
