package embedded

import (
	"context"
	"slices"
	"strings"

	"github.com/rclone/gofakes3"
)

const maxListKeys = 1000

// keys returns the bucket's keys in order. The result is never changed afterwards.
func (bu *bucket) keys() []string {
	bu.mu.RLock()
	if !bu.stale {
		defer bu.mu.RUnlock()
		return bu.sorted
	}
	bu.mu.RUnlock()
	bu.mu.Lock()
	defer bu.mu.Unlock()
	if bu.stale {
		sorted := make([]string, 0, len(bu.objects))
		for k := range bu.objects {
			sorted = append(sorted, k)
		}
		slices.Sort(sorted)
		bu.sorted, bu.stale = sorted, false
	}
	return bu.sorted
}

// after is the smallest string that is greater than every string with the given prefix; ok is false if there is none.
func after(prefix string) (s string, ok bool) {
	b := []byte(prefix)
	for len(b) > 0 {
		if b[len(b)-1] != 0xff {
			b[len(b)-1]++
			return string(b), true
		}
		b = b[:len(b)-1]
	}
	return "", false
}

// ListBucket pages through a bucket. It matches prefixes itself because gofakes3's Prefix.Match drops leading delimiters
// from keys, which would list "/a" as "a".
func (b *backend) ListBucket(_ context.Context, name string, prefix *gofakes3.Prefix, page gofakes3.ListBucketPage) (*gofakes3.ObjectList, error) {
	bu, err := b.bucket(name)
	if err != nil {
		return nil, err
	}
	var pre, delim string
	if prefix != nil {
		pre, delim = prefix.Prefix, prefix.Delimiter
	}
	limit := int(page.MaxKeys)
	if limit <= 0 || limit > maxListKeys {
		limit = maxListKeys
	}
	out := gofakes3.NewObjectList()
	keys := bu.keys()
	i, _ := slices.BinarySearch(keys, pre)
	if page.HasMarker && page.Marker >= pre {
		var found bool
		i, found = slices.BinarySearch(keys, page.Marker)
		if found {
			i++
		}
		// A marker that is a common prefix stands for everything below it.
		if delim != "" && strings.HasSuffix(page.Marker, delim) && strings.HasPrefix(page.Marker, pre) &&
			strings.Contains(page.Marker[len(pre):], delim) {
			i = skip(keys, i, page.Marker)
		}
	}
	last := ""
	for n := 0; i < len(keys) && strings.HasPrefix(keys[i], pre); n++ {
		if n == limit {
			out.IsTruncated, out.NextMarker = true, last
			break
		}
		key := keys[i]
		if delim != "" {
			if at := strings.Index(key[len(pre):], delim); at >= 0 {
				last = key[:len(pre)+at+len(delim)]
				out.AddPrefix(last)
				i = skip(keys, i, last)
				continue
			}
		}
		i++
		last = key
		bu.mu.RLock()
		o := bu.objects[key]
		bu.mu.RUnlock()
		if o == nil { // deleted since keys was taken
			n--
			continue
		}
		out.Add(&gofakes3.Content{
			Key: key, Size: o.size, ETag: `"` + o.etag() + `"`,
			LastModified: gofakes3.NewContentTime(o.modified()), StorageClass: gofakes3.StorageStandard,
		})
	}
	return out, nil
}

// skip is the index of the first key from i on that does not start with prefix.
func skip(keys []string, i int, prefix string) int {
	end, ok := after(prefix)
	if !ok {
		return len(keys)
	}
	n, _ := slices.BinarySearch(keys[i:], end)
	return i + n
}
