package schemas

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/invopop/jsonschema"
)

// Size is a number of bytes. In a file it is a number with a unit: decimal
// (kB, MB, GB, TB: powers of 1000) or binary (KiB, MiB, GiB, TiB: powers of
// 1024).
type Size int64

const maxSize = 5 << 40 // S3's largest object

func sizeUnits() []struct {
	name   string
	factor float64
} {
	return []struct {
		name   string
		factor float64
	}{
		{"KiB", 1 << 10},
		{"MiB", 1 << 20},
		{"GiB", 1 << 30},
		{"TiB", 1 << 40},
		{"kB", 1e3},
		{"KB", 1e3},
		{"MB", 1e6},
		{"GB", 1e9},
		{"TB", 1e12},
		{"B", 1},
	}
}

// ParseSize reads `1MB`, `64 KiB`, `1.5GB` or a bare number of bytes.
func ParseSize(s string) (Size, error) {
	number, factor := strings.TrimSpace(s), 1.0
	for _, u := range sizeUnits() {
		if rest, found := strings.CutSuffix(number, u.name); found {
			number, factor = strings.TrimSpace(rest), u.factor
			break
		}
	}
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || math.IsNaN(v) || v < 0 || v*factor > maxSize || v*factor != math.Trunc(v*factor) {
		return 0, fmt.Errorf("%q, want a whole number of bytes up to 5TiB such as 512B, 10kB, 1MB, 1GB (powers of 1000) or 64KiB, 1MiB, 1GiB (powers of 1024)", s)
	}
	return Size(v * factor), nil
}

// String is the shortest exact form, decimal units first.
func (s Size) String() string {
	for _, unit := range []struct {
		factor int64
		name   string
	}{
		{1e12, "TB"},
		{1e9, "GB"},
		{1 << 30, "GiB"},
		{1e6, "MB"},
		{1 << 20, "MiB"},
		{1e3, "kB"},
		{1 << 10, "KiB"},
	} {
		if int64(s) >= unit.factor && int64(s)%unit.factor == 0 {
			return fmt.Sprintf("%d%s", int64(s)/unit.factor, unit.name)
		}
	}
	return fmt.Sprintf("%dB", int64(s))
}

// UnmarshalYAML reads a size.
func (s *Size) UnmarshalYAML(data []byte) (err error) {
	*s, err = ParseSize(unquote(data))
	return err
}

// JSONSchema describes a size to editors.
func (Size) JSONSchema() *jsonschema.Schema {
	return &jsonschema.Schema{OneOf: []*jsonschema.Schema{
		{Type: "string", Pattern: `^\s*[0-9]+(\.[0-9]+)?\s*(B|kB|KB|MB|GB|TB|KiB|MiB|GiB|TiB)?\s*$`},
		{Type: "integer", Minimum: "0"},
	}, Description: "A number of bytes: 1MB is 10^6, 1MiB is 2^20."}
}

// Duration is a time span; in a file it is a number with a unit: 250ms, 2s,
// 1m30s.
type Duration time.Duration

// ParseDuration reads a duration of 0 or more.
func ParseDuration(s string) (Duration, error) {
	d, err := time.ParseDuration(strings.TrimSpace(s))
	if err != nil || d < 0 || d > 366*24*time.Hour {
		return 0, fmt.Errorf("%q, want a time span with its unit, up to a year, such as 250ms, 2s, 1m30s", s)
	}
	return Duration(d), nil
}

func (d Duration) String() string { return time.Duration(d).String() }

// UnmarshalYAML reads a duration.
func (d *Duration) UnmarshalYAML(data []byte) (err error) {
	*d, err = ParseDuration(unquote(data))
	return err
}

// JSONSchema describes a duration to editors.
func (Duration) JSONSchema() *jsonschema.Schema {
	return &jsonschema.Schema{
		Type: "string", Pattern: `^\s*(0|([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+)\s*$`,
		Description: "A time span with its unit: 250ms, 2s, 1m30s.",
	}
}

func unquote(data []byte) string {
	s := strings.TrimSpace(string(data))
	if len(s) >= 2 && (s[0] == '"' || s[0] == '\'') && s[len(s)-1] == s[0] {
		return s[1 : len(s)-1]
	}
	return s
}
