package s3loader

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/transferlab/transferlab/services/internal/objectstore"
)

const (
	// maxObjects is how many objects, over all buckets, a task may know.
	maxObjects = 1 << 24
	// maxPlanned is how far ahead the schedules are looked through for what
	// they will need; beyond, everything the section names counts as needed.
	maxPlanned = 4 << 20
	// keptKeys is how many keys are kept rather than made each time.
	keptKeys = 1 << 16
	// populateParallel is how many objects are made at a time.
	populateParallel = 16
	// populatePartBytes is the size of the parts in which large objects are
	// stored.
	populatePartBytes = 64 << 20
)

var errNotSent = errors.New("due, but not sent before the end")

// contentSeed fixes an object's content by its name, so that every agent makes
// the same.
func contentSeed(bucket, key string) uint64 { return objectstore.Seed(0, bucket, key) }

// needs are the objects that the task's schedules will touch.
type needs struct {
	get, put []bool // by bucket, then object
	total    uint64 // requests; 0: not known
}

func (j *job) prepare(ctx context.Context, store *objectstore.Store) error {
	s := j.section
	if len(s.Buckets)*s.Objects > maxObjects {
		return fmt.Errorf("s3.objects: %d in each of %d buckets, at most %d in all are allowed", s.Objects, len(s.Buckets), maxObjects)
	}
	for i := range min(s.Objects, keptKeys) {
		j.keys = append(j.keys, s.Key(i))
	}
	n := j.needs()
	j.total = n.total
	if s.Populate == "missing" {
		if err := j.populate(ctx, store, n); err != nil {
			return err
		}
	}
	return j.sum(ctx, n)
}

// needs looks through the schedules.
func (j *job) needs() *needs {
	s := j.section
	n := &needs{get: make([]bool, len(s.Buckets)*s.Objects), put: make([]bool, len(s.Buckets)*s.Objects)}
	looked, complete := 0, true
	for i := range j.task.Clients {
		q := j.schedule(j.task.Clients[i].Index)
		for {
			if looked++; looked > maxPlanned {
				complete = false
				break
			}
			r, ok := q.Next()
			if !ok {
				break
			}
			n.total++
			at := r.Bucket*s.Objects + r.Object
			if r.Put {
				n.put[at] = true
			} else {
				n.get[at] = true
			}
		}
	}
	if !complete {
		n.total = uint64(s.Requests) * uint64(len(j.task.Clients))
		for i := range n.get {
			n.get[i], n.put[i] = s.Operation != "put", s.Operation != "get"
		}
	}
	// A closed loop that ends by time makes fewer requests than its schedule has.
	if s.Duration > 0 && (s.Loop == "closed" || !complete) {
		n.total = 0
	}
	return n
}

func (j *job) each(needed []bool, do func(bucket, key string, o object) error) error {
	s := j.section
	for i, need := range needed {
		if !need {
			continue
		}
		o := object{bucket: i / s.Objects, index: i % s.Objects}
		if err := do(s.Buckets[o.bucket], j.key(o.index), o); err != nil {
			return err
		}
	}
	return nil
}

// populate makes the buckets, and the objects to be downloaded, that are not
// there. Several agents may do so at once: all store the same.
func (j *job) populate(ctx context.Context, store *objectstore.Store, n *needs) error {
	s := j.section
	for _, bucket := range s.Buckets {
		if err := store.EnsureBucket(ctx, bucket); err != nil {
			return explain(store, err)
		}
	}
	total := 0
	for _, need := range n.get {
		if need {
			total++
		}
	}
	var looked, made atomic.Int64
	began := time.Now()
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(populateParallel)
	watched := make(chan struct{})
	watching, unwatch := context.WithCancel(ctx)
	go func() {
		defer close(watched)
		tick := time.NewTicker(2 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-watching.Done():
				return
			case <-tick.C:
				j.log.Info("making objects that are missing", "looked_at", looked.Load(), "made", made.Load(), "of", total, "size", j.size)
			}
		}
	}()
	err := j.each(n.get, func(bucket, key string, _ object) error {
		if gctx.Err() != nil {
			return gctx.Err()
		}
		group.Go(func() error {
			defer looked.Add(1)
			missing, err := ensure(gctx, store, bucket, key, int64(s.Size))
			if missing && err == nil {
				made.Add(1)
			}
			return err
		})
		return nil
	})
	// The group's own error is the cause, the other one its consequence.
	if gerr := group.Wait(); gerr != nil {
		err = gerr
	}
	unwatch()
	<-watched
	if err != nil {
		return explain(store, err)
	}
	if made.Load() > 0 {
		j.log.Info("made objects that were missing", "objects", made.Load(), "size", j.size, "took", time.Since(began).Round(time.Millisecond))
	}
	return nil
}

// ensure stores an object unless it is there with the right size.
func ensure(ctx context.Context, store *objectstore.Store, bucket, key string, size int64) (missing bool, err error) {
	have, err := store.Head(ctx, bucket, key)
	switch {
	case err == nil && have.Size == size:
		return false, nil
	case err != nil && objectstore.Classify(err) != objectstore.StatusNoObject:
		return false, err
	}
	content := objectstore.NewContent(contentSeed(bucket, key), size)
	_, err = store.Put(ctx, bucket, key, content, size, objectstore.PutOptions{PartBytes: populatePartBytes})
	return true, err
}

// sum computes the checksums that the requests will be told: of every upload,
// and of downloads that are checked and whose content is known.
func (j *job) sum(ctx context.Context, n *needs) error {
	s := j.section
	needed := n.put
	if s.Verify == "checksum" && s.Populate == "missing" {
		needed = make([]bool, len(n.put))
		for i := range needed {
			needed[i] = n.put[i] || n.get[i]
		}
	}
	j.sums = map[object]uint64{}
	return j.each(needed, func(bucket, key string, o object) error {
		j.sums[o] = objectstore.Checksum(contentSeed(bucket, key), int64(s.Size))
		return ctx.Err()
	})
}

// explain says what an error of the store means for whoever set it up.
func explain(store *objectstore.Store, err error) error {
	at := store.BaseURL().Redacted()
	switch objectstore.Classify(err) {
	case objectstore.StatusDenied:
		return fmt.Errorf("the store at %s refuses the credentials (wrong or missing keys, or no permission): %w", at, err)
	case objectstore.StatusNoBucket:
		return fmt.Errorf("a bucket does not exist at %s and could not be made: %w", at, err)
	case objectstore.StatusRefused, objectstore.StatusDNS, objectstore.StatusTimeout, objectstore.StatusTLS:
		return fmt.Errorf("the store at %s cannot be reached: %w", at, err)
	}
	return fmt.Errorf("store at %s: %w", at, err)
}
