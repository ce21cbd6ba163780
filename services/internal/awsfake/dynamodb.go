package awsfake

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// DynamoDB keeps tables of items in memory.
type DynamoDB struct {
	account Account

	mu       sync.Mutex
	tables   map[string]*dynamoTable
	creating int // descriptions a new table is still being made for
	leave    int // items of the next calls left unprocessed, in all
	stuck    bool
	throttle int
	denied   bool
	calls    int
}

type dynamoTable struct {
	definition map[string]any
	hash, sort string
	items      map[string]map[string]any
	pending    int
}

// NewDynamoDB returns a DynamoDB without tables.
func NewDynamoDB(a Account) *DynamoDB {
	return &DynamoDB{account: a, tables: map[string]*dynamoTable{}}
}

// Items returns a table's items, nil if there is no such table.
func (d *DynamoDB) Items(table string) []map[string]any {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := d.tables[table]
	if t == nil {
		return nil
	}
	all := []map[string]any{}
	for _, item := range t.items {
		all = append(all, item)
	}
	return all
}

// Creating makes new tables stay in creation for so many descriptions.
func (d *DynamoDB) Creating(n int) { d.mu.Lock(); d.creating = n; d.mu.Unlock() }

// LeaveUnprocessed makes batches leave n items in all, some of each.
func (d *DynamoDB) LeaveUnprocessed(n int) { d.mu.Lock(); d.leave = n; d.mu.Unlock() }

// Stick makes batches leave every item.
func (d *DynamoDB) Stick(stuck bool) { d.mu.Lock(); d.stuck = stuck; d.mu.Unlock() }

// Throttle makes the next n calls fail with
// ProvisionedThroughputExceededException.
func (d *DynamoDB) Throttle(n int) { d.mu.Lock(); d.throttle = n; d.mu.Unlock() }

// Deny makes every call fail for lack of rights.
func (d *DynamoDB) Deny(denied bool) { d.mu.Lock(); d.denied = denied; d.mu.Unlock() }

// Calls counts batches that were taken.
func (d *DynamoDB) Calls() int { d.mu.Lock(); defer d.mu.Unlock(); return d.calls }

func (d *DynamoDB) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer, err := d.answer(r)
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	status := http.StatusOK
	if err != nil {
		var f *failure
		if !errors.As(err, &f) {
			f = &failure{http.StatusInternalServerError, "InternalServerError", err.Error()}
		}
		namespace := "com.amazonaws.dynamodb.v20120810#"
		if strings.HasPrefix(f.code, "AccessDenied") || strings.HasPrefix(f.code, "Unrecognized") || strings.HasPrefix(f.code, "InvalidSignature") {
			namespace = "com.amazon.coral.service#"
		}
		status, answer = f.status, map[string]any{"__type": namespace + f.code, "message": f.message}
	}
	data, err := json.Marshal(answer)
	if err != nil {
		status, data = http.StatusInternalServerError, []byte("{}")
	}
	w.Header().Set("X-Amz-Crc32", strconv.FormatUint(uint64(crc32.ChecksumIEEE(data)), 10))
	w.WriteHeader(status)
	_, _ = w.Write(data)
}

func (d *DynamoDB) answer(r *http.Request) (any, error) {
	body, err := d.account.authenticate(r, "dynamodb")
	if err != nil {
		var f *failure
		if errors.As(err, &f) {
			// DynamoDB says 400 where others say 403.
			f.status = http.StatusBadRequest
		}
		return nil, err
	}
	operation, found := strings.CutPrefix(r.Header.Get("X-Amz-Target"), "DynamoDB_20120810.")
	if !found || r.Header.Get("Content-Type") != "application/x-amz-json-1.0" {
		return nil, &failure{http.StatusBadRequest, "UnknownOperationException", "no operation of DynamoDB_20120810"}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.denied {
		return nil, &failure{http.StatusBadRequest, "AccessDeniedException", "User is not authorized to perform: dynamodb:" + operation}
	}
	if d.throttle > 0 {
		d.throttle--
		return nil, &failure{http.StatusBadRequest, "ProvisionedThroughputExceededException", "The level of configured provisioned throughput for the table was exceeded."}
	}
	switch operation {
	case "DescribeTable":
		return d.describe(body)
	case "CreateTable":
		return d.create(body)
	case "BatchWriteItem":
		return d.batch(body)
	}
	return nil, &failure{http.StatusBadRequest, "UnknownOperationException", operation}
}

func invalid(format string, args ...any) error {
	return &failure{http.StatusBadRequest, "ValidationException", fmt.Sprintf(format, args...)}
}

func noTable(name string) error {
	return &failure{http.StatusBadRequest, "ResourceNotFoundException", "Requested resource not found: Table: " + name + " not found"}
}

func (d *DynamoDB) describe(body []byte) (any, error) {
	var q struct{ TableName string }
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, invalid("%v", err)
	}
	t := d.tables[q.TableName]
	if t == nil {
		return nil, noTable(q.TableName)
	}
	status := "ACTIVE"
	if t.pending > 0 {
		t.pending--
		status = "CREATING"
	}
	return map[string]any{"Table": t.describe(q.TableName, status)}, nil
}

func (t *dynamoTable) describe(name, status string) map[string]any {
	return map[string]any{
		"TableName": name, "TableStatus": status, "ItemCount": len(t.items),
		"KeySchema": t.definition["KeySchema"], "AttributeDefinitions": t.definition["AttributeDefinitions"],
	}
}

func (d *DynamoDB) create(body []byte) (any, error) {
	var q struct {
		TableName   string
		BillingMode string
		KeySchema   []struct{ AttributeName, KeyType string }
	}
	var definition map[string]any
	if err := errors.Join(json.Unmarshal(body, &q), json.Unmarshal(body, &definition)); err != nil {
		return nil, invalid("%v", err)
	}
	if d.tables[q.TableName] != nil {
		return nil, &failure{http.StatusBadRequest, "ResourceInUseException", "Table already exists: " + q.TableName}
	}
	if len(q.TableName) < 3 || len(q.KeySchema) == 0 {
		return nil, invalid("TableName, KeySchema")
	}
	if q.BillingMode != "PAY_PER_REQUEST" && definition["ProvisionedThroughput"] == nil {
		return nil, invalid("No provisioned throughput specified for the table")
	}
	t := &dynamoTable{definition: definition, items: map[string]map[string]any{}, pending: d.creating}
	for _, k := range q.KeySchema {
		if k.KeyType == "HASH" {
			t.hash = k.AttributeName
		} else {
			t.sort = k.AttributeName
		}
	}
	d.tables[q.TableName] = t
	return map[string]any{"TableDescription": t.describe(q.TableName, "CREATING")}, nil
}

// DynamoDB's bounds of one batch.
const (
	maxBatch      = 25
	maxBatchBytes = 16 << 20
)

func (d *DynamoDB) batch(body []byte) (any, error) {
	type write struct {
		PutRequest struct{ Item map[string]any }
	}
	var q struct{ RequestItems map[string][]write }
	if err := json.Unmarshal(body, &q); err != nil {
		return nil, invalid("%v", err)
	}
	unprocessed := map[string][]write{}
	for name, writes := range q.RequestItems {
		t := d.tables[name]
		if t == nil || t.pending > 0 {
			return nil, noTable(name)
		}
		if len(writes) == 0 || len(writes) > maxBatch || len(body) > maxBatchBytes {
			return nil, invalid("Too many items requested for the BatchWriteItem call: %d", len(writes))
		}
		var keys []string
		for _, one := range writes {
			key, err := t.key(one.PutRequest.Item)
			if err != nil {
				return nil, err
			}
			if slices.Contains(keys, key) {
				return nil, invalid("Provided list of item keys contains duplicates")
			}
			keys = append(keys, key)
		}
		// At least one item of a batch is taken, the last ones are left.
		left := min(d.leave, len(writes)-1)
		if d.stuck {
			left = len(writes)
		} else {
			d.leave -= left
		}
		taken := len(writes) - left
		for i, one := range writes[:taken] {
			t.items[keys[i]] = one.PutRequest.Item
		}
		if left > 0 {
			unprocessed[name] = writes[taken:]
		}
	}
	d.calls++
	return map[string]any{"UnprocessedItems": unprocessed}, nil
}

func (t *dynamoTable) key(item map[string]any) (string, error) {
	var parts []string
	for _, name := range []string{t.hash, t.sort} {
		if name == "" {
			continue
		}
		attribute, _ := item[name].(map[string]any)
		value, _ := attribute["S"].(string)
		if value == "" {
			return "", invalid("One or more parameter values were invalid: Missing the key %s in the item", name)
		}
		parts = append(parts, value)
	}
	for name, v := range item {
		attribute, _ := v.(map[string]any)
		if number, is := attribute["N"].(string); is {
			if _, err := strconv.ParseFloat(number, 64); err != nil {
				return "", invalid("%s: %q is no number", name, number)
			}
		}
	}
	return strings.Join(parts, "\x00"), nil
}

// Define makes a table with string keys; sort may be empty.
func (d *DynamoDB) Define(table, hash, sort string) {
	keys := []any{map[string]any{"AttributeName": hash, "KeyType": "HASH"}}
	attributes := []any{map[string]any{"AttributeName": hash, "AttributeType": "S"}}
	if sort != "" {
		keys = append(keys, map[string]any{"AttributeName": sort, "KeyType": "RANGE"})
		attributes = append(attributes, map[string]any{"AttributeName": sort, "AttributeType": "S"})
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.tables[table] = &dynamoTable{
		definition: map[string]any{"KeySchema": keys, "AttributeDefinitions": attributes}, hash: hash, sort: sort, items: map[string]map[string]any{},
	}
}
