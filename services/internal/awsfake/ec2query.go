package awsfake

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
)

// query is a request in ec2query: `Name=value`, lists as `Name.1`, `Name.2`.
type query map[string]string

// Bounds of one request.
const (
	maxParameters = 4096
	maxParameter  = 256 << 10
)

func parseQuery(body string) (query, error) {
	q := query{}
	for body != "" {
		var pair string
		pair, body, _ = strings.Cut(body, "&")
		if pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		name, err := url.QueryUnescape(name)
		if err != nil {
			return nil, fmt.Errorf("name: %w", err)
		}
		if value, err = url.QueryUnescape(value); err != nil {
			return nil, fmt.Errorf("value of %s: %w", name, err)
		}
		if _, twice := q[name]; twice {
			return nil, fmt.Errorf("parameter %s is given twice", name)
		}
		if name == "" || len(value) > maxParameter || len(q) == maxParameters {
			return nil, fmt.Errorf("parameter %q of %d bytes, %d parameters before it", name, len(value), len(q))
		}
		q[name] = value
	}
	return q, nil
}

func (q query) text(name string) string { return q[name] }

// has reports whether anything is below a name.
func (q query) has(name string) bool {
	if _, is := q[name]; is {
		return true
	}
	for k := range q {
		if strings.HasPrefix(k, name+".") {
			return true
		}
	}
	return false
}

// list returns Name.1, Name.2 and so on, up to the first that is missing.
func (q query) list(name string) []string {
	var all []string
	for n := 1; ; n++ {
		v, is := q[name+"."+strconv.Itoa(n)]
		if !is {
			return all
		}
		all = append(all, v)
	}
}

// number returns a decimal number, or the fallback if there is none.
func (q query) number(name string, fallback int) (int, error) {
	v, is := q[name]
	if !is {
		return fallback, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		return 0, fault("InvalidParameterValue", "Value (%s) for parameter %s is invalid", v, name)
	}
	return n, nil
}
