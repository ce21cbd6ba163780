package report

import (
	"fmt"
	"strconv"
)

// duration prints nanoseconds with three significant digits and the unit that
// keeps the number between 1 and 1000: 834 ns, 71.3 µs, 4.56 ms, 1.23 s.
func duration(ns float64) string {
	number, unit := durationIn(ns, ns)
	return number + " " + unit
}

// durationIn prints nanoseconds in the unit that another number of them calls for.
func durationIn(ns, like float64) (number, unit string) {
	for _, u := range []struct {
		factor float64
		name   string
	}{
		{1, "ns"},
		{1e3, "µs"},
		{1e6, "ms"},
	} {
		if abs(like/u.factor) < 999.5 {
			return digits(ns / u.factor), u.name
		}
	}
	return digits(ns / 1e9), "s"
}

// humanBytes prints a number of bytes in powers of 1000.
func humanBytes(n float64) string {
	for _, unit := range []string{"B", "kB", "MB", "GB", "TB"} {
		if abs(n) < 999.5 {
			return digits(n) + " " + unit
		}
		n /= 1000
	}
	return digits(n) + " PB"
}

func digits(v float64) string {
	switch a := abs(v); {
	case a == 0 || a >= 99.95:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 9.995:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case a >= 0.01:
		return strconv.FormatFloat(v, 'f', 2, 64)
	}
	return strconv.FormatFloat(v, 'g', 2, 64)
}

func abs(v float64) float64 {
	if v < 0 {
		return -v
	}
	return v
}

func percent(ratio float64) string { return fmt.Sprintf("%.2f %%", 100*ratio) }

// inUnit prints a value of a threshold or comparison in its unit.
func inUnit(v float64, unit string) string {
	switch unit {
	case "ns":
		return duration(v)
	case "bytes/s":
		return humanBytes(v) + "/s"
	case "ratio":
		return percent(v)
	case "number":
		return fmt.Sprintf("%.4f", v)
	case "requests/s":
		return digits(v) + "/s"
	}
	return digits(v)
}
