package fleet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Steps of a fleet's life in its journal.
const (
	stepImage     = "image" // item: as the file names it
	stepKey       = "key"
	stepGroup     = "group"
	stepWithin    = "rules-within"
	stepRun       = "run" // item: site
	stepAddresses = "addresses"
	stepBetween   = "rules-between"
	stepUp        = "up"
	stepDown      = "down"
	stepTerminate = "terminate"
	stepRevoke    = "revoke"
	stepNoGroup   = "delete-group"
	stepNoKey     = "delete-key"
	stepClosed    = "closed"
)

// Phases of a step.
const (
	phaseIntent = "intent" // about to be asked for
	phaseDone   = "done"   // answered
	phaseRefuse = "refused"
)

// entry is one line of a journal.
type entry struct {
	At      time.Time `json:"at"`
	Region  string    `json:"region,omitempty"`
	Step    string    `json:"step"`
	Item    string    `json:"item,omitempty"`
	Phase   string    `json:"phase"`
	IDs     []string  `json:"ids,omitempty"`
	Members []Member  `json:"members,omitempty"`
	Error   string    `json:"error,omitempty"`
	Summary *Summary  `json:"summary,omitempty"`
}

// Bounds of what is read back.
const (
	maxJournal = 64 << 20
	maxPlan    = 1 << 20
)

// journal is append-only; every entry is on disk before the next step.
type journal struct {
	mu      sync.Mutex
	f       *os.File
	entries []entry
}

// openJournal reads a journal and opens it for more. What a process that was
// killed wrote of a last line is cut off.
func openJournal(path string) (*journal, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	j := &journal{f: f}
	data, err := readLimited(path, maxJournal)
	if err == nil {
		var whole int
		j.entries, whole, err = parseJournal(data)
		if err == nil {
			err = f.Truncate(int64(whole))
		}
		if err == nil {
			_, err = f.Seek(int64(whole), 0)
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("journal %s: %w", path, err)
	}
	return j, nil
}

// parseJournal returns the entries and how many bytes of whole lines there are.
func parseJournal(data []byte) (entries []entry, whole int, err error) {
	for number := 1; ; number++ {
		end := bytes.IndexByte(data[whole:], '\n')
		if end < 0 {
			return entries, whole, nil
		}
		line := data[whole : whole+end]
		var e entry
		if err := json.Unmarshal(line, &e); err != nil {
			// A crash of the machine may leave blocks of zeros at the end.
			if len(bytes.Trim(data[whole:], "\x00\n")) == 0 {
				return entries, whole, nil
			}
			return nil, 0, fmt.Errorf("line %d: %w", number, err)
		}
		if e.Step == "" || e.Phase == "" {
			return nil, 0, fmt.Errorf("line %d: no step", number)
		}
		entries = append(entries, e)
		whole += end + 1
	}
}

// add writes an entry and returns once it is durable.
func (j *journal) add(e entry) error {
	e.At = time.Now().UTC()
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode journal: %w", err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, err := j.f.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	if err := j.f.Sync(); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	j.entries = append(j.entries, e)
	return nil
}

func (j *journal) close() { _ = j.f.Close() }

// all returns the entries so far.
func (j *journal) all() []entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.entries[:len(j.entries):len(j.entries)]
}

// done returns what came of a step, nil if nothing did.
func (j *journal) done(region, step, item string) *entry {
	var last *entry
	for _, e := range j.all() {
		if e.Region == region && e.Step == step && e.Item == item && e.Phase == phaseDone {
			last = &e
		}
	}
	return last
}

// unanswered returns when the last step of the region was announced that may
// have been taken although nothing says so, zero if there is none.
func unanswered(entries []entry, region string) time.Time {
	type key struct{ step, item string }
	open := map[key]time.Time{}
	for _, e := range entries {
		if e.Region != region || e.Step != stepKey && e.Step != stepGroup && e.Step != stepRun {
			continue
		}
		k := key{e.Step, e.Item}
		switch e.Phase {
		case phaseIntent:
			open[k] = e.At
		case phaseDone, phaseRefuse:
			delete(open, k)
		}
	}
	var latest time.Time
	for _, at := range open {
		if at.After(latest) {
			latest = at
		}
	}
	return latest
}

// created returns the ids that steps were answered with and when.
func created(entries []entry, region, step string) map[string]time.Time {
	ids := map[string]time.Time{}
	for _, e := range entries {
		if e.Region == region && e.Step == step && e.Phase == phaseDone {
			for _, id := range e.IDs {
				ids[id] = e.At
			}
		}
	}
	return ids
}

// readLimited reads a file of bounded size.
func readLimited(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("%d bytes, more than %d", info.Size(), limit)
	}
	return os.ReadFile(path)
}

// writeDurable replaces a file (mode 0600): afterwards it is there, whole, also
// after a loss of power.
func writeDurable(path string, data []byte) error {
	temporary := path + ".new"
	f, err := os.OpenFile(temporary, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
