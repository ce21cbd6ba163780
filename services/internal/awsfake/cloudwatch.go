package awsfake

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/smithy-go/encoding/cbor"
)

// CloudWatch answers GetMetricData.
type CloudWatch struct {
	account Account

	mu       sync.Mutex
	series   map[string][]Point
	page     int // datapoints a page
	denied   bool
	throttle int // calls still to be throttled
	calls    int
}

// Point is one datapoint.
type Point struct {
	At    time.Time
	Value float64
}

// NewCloudWatch returns a CloudWatch without metrics that answers with at most
// page datapoints at a time.
func NewCloudWatch(a Account, page int) *CloudWatch {
	return &CloudWatch{account: a, page: page, series: map[string][]Point{}}
}

func seriesKey(namespace, metric, statistic string, dimensions map[string]string) string {
	parts := []string{namespace, metric, statistic}
	for _, name := range slices.Sorted(maps.Keys(dimensions)) {
		parts = append(parts, name+"="+dimensions[name])
	}
	return strings.Join(parts, "|")
}

// Put adds datapoints of one statistic of one metric.
func (c *CloudWatch) Put(namespace, metric, statistic string, dimensions map[string]string, points ...Point) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := seriesKey(namespace, metric, statistic, dimensions)
	c.series[key] = append(c.series[key], points...)
	slices.SortFunc(c.series[key], func(a, b Point) int { return a.At.Compare(b.At) })
}

// Deny makes every call fail for lack of rights.
func (c *CloudWatch) Deny(denied bool) { c.mu.Lock(); c.denied = denied; c.mu.Unlock() }

// Throttle makes the next n calls fail with Throttling.
func (c *CloudWatch) Throttle(n int) { c.mu.Lock(); c.throttle = n; c.mu.Unlock() }

// Calls counts the calls answered with data.
func (c *CloudWatch) Calls() int { c.mu.Lock(); defer c.mu.Unlock(); return c.calls }

func (c *CloudWatch) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer, err := c.answer(r)
	w.Header().Set("Smithy-Protocol", "rpc-v2-cbor")
	w.Header().Set("Content-Type", "application/cbor")
	if err != nil {
		var f *failure
		if !errors.As(err, &f) {
			f = &failure{http.StatusInternalServerError, "InternalServiceFault", err.Error()}
		}
		w.WriteHeader(f.status)
		answer = cbor.Map{"__type": cbor.String("com.amazonaws.cloudwatch#" + f.code), "message": cbor.String(f.message)}
	}
	_, _ = w.Write(cbor.Encode(answer))
}

// The service allows 500 queries a call.
const maxQueries = 500

func (c *CloudWatch) answer(r *http.Request) (cbor.Value, error) {
	body, err := c.account.authenticate(r, "monitoring")
	if err != nil {
		return nil, err
	}
	if r.Method != http.MethodPost || r.Header.Get("Smithy-Protocol") != "rpc-v2-cbor" || r.Header.Get("Content-Type") != "application/cbor" {
		return nil, &failure{http.StatusBadRequest, "UnknownOperationException", "not the protocol rpc-v2-cbor"}
	}
	if r.URL.Path != "/service/GraniteServiceVersion20100801/operation/GetMetricData" {
		return nil, &failure{http.StatusNotFound, "UnknownOperationException", r.URL.Path}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.denied {
		return nil, &failure{http.StatusForbidden, "AccessDenied", "User: arn:aws:iam::1:user/x is not authorized to perform: cloudwatch:GetMetricData"}
	}
	if c.throttle > 0 {
		c.throttle--
		return nil, &failure{http.StatusBadRequest, "Throttling", "Rate exceeded"}
	}
	c.calls++
	decoded, err := cbor.Decode(body)
	if err != nil {
		return nil, &failure{http.StatusBadRequest, "SerializationException", err.Error()}
	}
	q, err := readQuery(decoded)
	if err != nil {
		return nil, err
	}
	return c.pageOf(q), nil
}

type metricQuery struct {
	id, key string
	period  time.Duration
}

type dataQuery struct {
	start, end time.Time
	descending bool
	skip       int // datapoints of earlier pages
	queries    []metricQuery
}

func readQuery(v cbor.Value) (*dataQuery, error) {
	bad := func(format string, args ...any) error {
		return &failure{http.StatusBadRequest, "InvalidParameterValue", fmt.Sprintf(format, args...)}
	}
	m, ok := v.(cbor.Map)
	if !ok {
		return nil, bad("the request is not a map")
	}
	q := &dataQuery{descending: text(m["ScanBy"]) != "TimestampAscending"}
	var err error
	if q.start, err = cbor.AsTime(m["StartTime"]); err != nil {
		return nil, bad("StartTime: %v", err)
	}
	if q.end, err = cbor.AsTime(m["EndTime"]); err != nil {
		return nil, bad("EndTime: %v", err)
	}
	if !q.start.Before(q.end) {
		return nil, bad("The parameter StartTime must be less than the parameter EndTime.")
	}
	if token := text(m["NextToken"]); token != "" {
		if q.skip, err = strconv.Atoi(token); err != nil {
			return nil, bad("NextToken: %s", token)
		}
	}
	list, _ := m["MetricDataQueries"].(cbor.List)
	if len(list) == 0 || len(list) > maxQueries {
		return nil, bad("MetricDataQueries: %d, want 1 to %d", len(list), maxQueries)
	}
	seen := map[string]bool{}
	for _, item := range list {
		entry, _ := item.(cbor.Map)
		stat, _ := entry["MetricStat"].(cbor.Map)
		metric, _ := stat["Metric"].(cbor.Map)
		dimensions := map[string]string{}
		pairs, _ := metric["Dimensions"].(cbor.List)
		for _, p := range pairs {
			pair, _ := p.(cbor.Map)
			dimensions[text(pair["Name"])] = text(pair["Value"])
		}
		period, err := cbor.AsInt32(stat["Period"])
		if err != nil || period < 60 {
			return nil, bad("Period: %v", err)
		}
		id := text(entry["Id"])
		if id == "" || seen[id] || id[0] < 'a' || id[0] > 'z' {
			return nil, bad("Id: %q", id)
		}
		seen[id] = true
		q.queries = append(q.queries, metricQuery{
			id: id, period: time.Duration(period) * time.Second,
			key: seriesKey(text(metric["Namespace"]), text(metric["MetricName"]), text(stat["Stat"]), dimensions),
		})
	}
	return q, nil
}

func text(v cbor.Value) string {
	s, _ := v.(cbor.String)
	return string(s)
}

// pageOf answers with the next datapoints. A series may go on on the next page,
// under the same id.
func (c *CloudWatch) pageOf(q *dataQuery) cbor.Value {
	results := cbor.List{}
	at, left, more := 0, c.page, false
	for _, one := range q.queries {
		var times, values cbor.List
		status := "Complete"
		points := slices.Clone(c.series[one.key])
		if q.descending {
			slices.Reverse(points)
		}
		for _, p := range points {
			if p.At.Before(q.start) || !p.At.Before(q.end) {
				continue
			}
			if at++; at <= q.skip {
				continue
			}
			if left == 0 {
				more, status = true, "PartialData"
				break
			}
			left--
			times = append(times, &cbor.Tag{ID: 1, Value: cbor.Float64(float64(p.At.UnixNano()) / 1e9)})
			values = append(values, cbor.Float64(p.Value))
		}
		if more && len(times) == 0 {
			break
		}
		results = append(results, cbor.Map{
			"Id": cbor.String(one.id), "Label": cbor.String(one.key), "StatusCode": cbor.String(status),
			"Timestamps": orEmpty(times), "Values": orEmpty(values),
		})
		if more {
			break
		}
	}
	answer := cbor.Map{"MetricDataResults": results, "Messages": cbor.List{}}
	if more {
		answer["NextToken"] = cbor.String(strconv.Itoa(min(q.skip+c.page, math.MaxInt32)))
	}
	return answer
}

func orEmpty(l cbor.List) cbor.List {
	if l == nil {
		return cbor.List{}
	}
	return l
}
