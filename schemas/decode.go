package schemas

import (
	"cmp"
	"encoding"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/invopop/jsonschema"
)

// MaxExperimentBytes is the largest experiment file, in bytes. The parser's
// time grows with the square of the number of fields: at this size it stays
// below a second.
const MaxExperimentBytes = 128 << 10

// Fault is one thing wrong with an experiment file.
type Fault struct {
	Line, Column int    // 0 when unknown
	Path         string // `s3.size`
	Text         string
}

func (f Fault) Error() string {
	var b strings.Builder
	if f.Line > 0 {
		fmt.Fprintf(&b, "line %d: ", f.Line)
	}
	if f.Path != "" {
		fmt.Fprintf(&b, "%s: ", f.Path)
	}
	b.WriteString(f.Text)
	return b.String()
}

type faultList []Fault

func (l *faultList) add(path, format string, args ...any) {
	*l = append(*l, Fault{Path: path, Text: fmt.Sprintf(format, args...)})
}

func (l faultList) err() error {
	errs := make([]error, len(l))
	for i, f := range l {
		errs[i] = f
	}
	return errors.Join(errs...)
}

// Matrix varies fields of the workload's section: every combination of one
// value from each axis is a cell. The axis `group` chooses which group takes
// part (by name); without it all do.
type Matrix []Axis

// Axis is one varied field with its values as they stand in the file.
type Axis struct {
	Name   string
	Values []ast.Node
}

// JSONSchema describes the matrix to editors.
func (Matrix) JSONSchema() *jsonschema.Schema {
	return &jsonschema.Schema{
		Type:                 "object",
		AdditionalProperties: &jsonschema.Schema{Type: "array", MinItems: ptr(uint64(1))},
		Description:          "Fields of the workload's section, each with a list of values; every combination is a cell. The axis group takes names of groups.",
	}
}

func ptr[T any](v T) *T { return &v }

// AxisGroup is the axis that chooses groups.
const AxisGroup = "group"

// ParseExperiment reads an experiment file strictly. Its error joins every
// [Fault] found, each with the line of the file and the cure.
func ParseExperiment(data []byte) (*Experiment, error) {
	if len(data) > MaxExperimentBytes {
		return nil, Fault{Text: fmt.Sprintf("the file has %d bytes, at most %d are allowed", len(data), MaxExperimentBytes)}
	}
	if line := tooDeep(data); line > 0 {
		return nil, Fault{Line: line, Column: 1, Text: fmt.Sprintf("nested more than %d deep: no experiment is", maxNesting)}
	}
	file, err := parser.ParseBytes(data, 0)
	if err != nil {
		return nil, syntaxFault(err)
	}
	if len(file.Docs) != 1 || file.Docs[0].Body == nil {
		return nil, Fault{Text: fmt.Sprintf("the file has %d documents, want one experiment", len(file.Docs))}
	}
	d := decoder{lines: map[string]ast.Node{}}
	var e Experiment
	d.value(file.Docs[0].Body, reflect.ValueOf(&e).Elem(), "")
	if len(d.faults) > 0 {
		return nil, d.located(d.faults)
	}
	e.SetDefaults()
	if faults := e.Check(); len(faults) > 0 {
		return nil, d.located(faults)
	}
	return &e, nil
}

func syntaxFault(err error) error {
	var syntax yaml.Error
	if errors.As(err, &syntax) && syntax.GetToken() != nil {
		p := syntax.GetToken().Position
		return Fault{Line: p.Line, Column: p.Column, Text: syntax.GetMessage()}
	}
	return Fault{Text: err.Error()}
}

// maxNesting is how deep a file may nest lists and fields within one line, or
// brackets over several. The parser's time grows with the cube of the depth.
const maxNesting = 64

// tooDeep returns the line where a file nests too deep, or 0. Brackets within
// texts count too: nobody writes so many.
func tooDeep(file []byte) (line int) {
	brackets, leading, line, begun := 0, 0, 1, false
	for _, c := range file {
		switch c {
		case '\n':
			line, leading, begun = line+1, 0, false
			continue
		case '[', '{':
			brackets++
		case ']', '}':
			brackets = max(brackets-1, 0)
		case '-', '?', ':', '!', '&':
			if !begun {
				leading++
			}
		case ' ', '\t':
		default:
			begun = true
		}
		if brackets > maxNesting || leading > maxNesting {
			return line
		}
	}
	return 0
}

// decoder fills Go values from the syntax tree. It does what the library's own
// decoder does for the few types of an experiment, and keeps what that one
// gives up: all faults at once, each with its path, line and cure.
type decoder struct {
	faults faultList
	lines  map[string]ast.Node
}

func (d *decoder) located(faults []Fault) error {
	for i := range faults {
		f := &faults[i]
		if f.Line > 0 {
			continue
		}
		// A field that is not there is reported where its parent stands.
		for path := f.Path; ; {
			if n, found := d.lines[path]; found {
				f.Line, f.Column = position(n)
				break
			}
			cut := max(strings.LastIndexByte(path, '.'), strings.LastIndexByte(path, '['))
			if cut < 0 {
				break
			}
			path = path[:cut]
		}
	}
	slices.SortStableFunc(faults, func(a, b Fault) int { return cmp.Compare(a.Line, b.Line) })
	return faultList(faults).err()
}

func position(n ast.Node) (line, column int) {
	if t := n.GetToken(); t != nil && t.Position != nil {
		return t.Position.Line, t.Position.Column
	}
	return 0, 0
}

func (d *decoder) fail(n ast.Node, path, format string, args ...any) {
	line, column := position(n)
	d.faults = append(d.faults, Fault{Line: line, Column: column, Path: path, Text: fmt.Sprintf(format, args...)})
}

func (d *decoder) value(n ast.Node, v reflect.Value, path string) {
	switch node := n.(type) {
	case *ast.AnchorNode:
		n = node.Value
	case *ast.AliasNode, *ast.TagNode, *ast.MergeKeyNode:
		d.fail(n, path, "anchors' aliases, tags and merge keys are not part of an experiment file: write the value out")
		return
	}
	d.lines[path] = n
	if _, isNull := n.(*ast.NullNode); isNull {
		if v.Kind() != reflect.Pointer {
			d.fail(n, path, "no value: give one or leave the line out")
		}
		return
	}
	switch target := v.Addr().Interface().(type) {
	case *Matrix:
		d.matrix(n, target, path)
		return
	case *Size:
		if text, ok := d.scalar(n, path, "a size such as 1MB"); ok {
			s, err := ParseSize(text)
			if err != nil {
				d.fail(n, path, "%v", err)
			}
			*target = s
		}
		return
	case *Duration:
		if text, ok := d.scalar(n, path, "a time span such as 2s"); ok {
			s, err := ParseDuration(text)
			if err != nil {
				d.fail(n, path, "%v", err)
			}
			*target = s
		}
		return
	case encoding.TextUnmarshaler:
		if text, ok := d.scalar(n, path, "a text"); ok {
			if err := target.UnmarshalText([]byte(text)); err != nil {
				d.fail(n, path, "%v", err)
			}
		}
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(n, v.Elem(), path)
	case reflect.Struct:
		d.fields(n, v, path)
	case reflect.Map:
		d.mapping(n, v, path)
	case reflect.Slice:
		list, ok := n.(*ast.SequenceNode)
		if !ok {
			d.fail(n, path, "%s, want a list", describe(n))
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), len(list.Values), len(list.Values)))
		for i, item := range list.Values {
			d.value(item, v.Index(i), fmt.Sprintf("%s[%d]", path, i))
		}
	case reflect.String:
		if text, ok := d.scalar(n, path, "a text"); ok {
			v.SetString(text)
		}
	case reflect.Bool:
		b, ok := n.(*ast.BoolNode)
		if !ok {
			d.fail(n, path, "%s, want true or false", describe(n))
			return
		}
		v.SetBool(b.Value)
	case reflect.Int, reflect.Int64:
		if text, ok := d.number(n, path, "a whole number"); ok {
			i, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				d.fail(n, path, "%s, want a whole number", text)
			}
			v.SetInt(i)
		}
	case reflect.Uint64:
		if text, ok := d.number(n, path, "a whole number of 0 or more"); ok {
			i, err := strconv.ParseUint(text, 10, 64)
			if err != nil {
				d.fail(n, path, "%s, want a whole number of 0 or more", text)
			}
			v.SetUint(i)
		}
	case reflect.Float64:
		if text, ok := d.number(n, path, "a number"); ok {
			f, err := strconv.ParseFloat(text, 64)
			if err != nil {
				d.fail(n, path, "%s, want a number", text)
			}
			v.SetFloat(f)
		}
	}
}

func (d *decoder) scalar(n ast.Node, path, want string) (string, bool) {
	switch node := n.(type) {
	case *ast.StringNode:
		return node.Value, true
	case *ast.LiteralNode:
		return node.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		return n.GetToken().Value, true
	}
	d.fail(n, path, "%s, want %s", describe(n), want)
	return "", false
}

func (d *decoder) number(n ast.Node, path, want string) (string, bool) {
	switch n.(type) {
	case *ast.IntegerNode, *ast.FloatNode:
		return strings.ReplaceAll(n.GetToken().Value, "_", ""), true
	}
	d.fail(n, path, "%s, want %s", describe(n), want)
	return "", false
}

func describe(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a block of fields"
	case *ast.SequenceNode:
		return "a list"
	}
	text := strings.TrimSpace(n.String())
	if len(text) > 60 {
		text = text[:60] + "…"
	}
	return text
}

func (d *decoder) entries(n ast.Node, path string) []*ast.MappingValueNode {
	var entries []*ast.MappingValueNode
	switch node := n.(type) {
	case *ast.MappingNode:
		entries = node.Values
	case *ast.MappingValueNode:
		entries = []*ast.MappingValueNode{node}
	default:
		d.fail(n, path, "%s, want fields with values", describe(n))
	}
	return entries
}

func keyOf(e *ast.MappingValueNode) string {
	if s, ok := e.Key.(*ast.StringNode); ok {
		return s.Value
	}
	return strings.TrimSpace(e.Key.String())
}

func under(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func (d *decoder) fields(n ast.Node, v reflect.Value, path string) {
	known := yamlFields(v.Type())
	given := map[string]bool{}
	for _, e := range d.entries(n, path) {
		key := keyOf(e)
		i, found := known[key]
		if !found {
			d.fail(e.Key, under(path, key), "unknown field; %s", suggest(key, slices.Sorted(maps.Keys(known))))
			continue
		}
		given[key] = true
		d.value(e.Value, v.Field(i), under(path, key))
	}
	for key, i := range known {
		if required(v.Type().Field(i)) && !given[key] {
			d.fail(n, under(path, key), "missing: the field is required")
		}
	}
}

func required(f reflect.StructField) bool {
	return slices.Contains(strings.Split(f.Tag.Get("jsonschema"), ","), "required")
}

func yamlFields(t reflect.Type) map[string]int {
	fields := map[string]int{}
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
		if name != "" && name != "-" {
			fields[name] = i
		}
	}
	return fields
}

func (d *decoder) mapping(n ast.Node, v reflect.Value, path string) {
	v.Set(reflect.MakeMap(v.Type()))
	for _, e := range d.entries(n, path) {
		key := keyOf(e)
		value := reflect.New(v.Type().Elem()).Elem()
		before := len(d.faults)
		d.value(e.Value, value, under(path, key))
		if len(d.faults) == before {
			v.SetMapIndex(reflect.ValueOf(key), value)
		}
	}
}

func (d *decoder) matrix(n ast.Node, m *Matrix, path string) {
	for _, e := range d.entries(n, path) {
		key := keyOf(e)
		at := under(path, key)
		d.lines[at] = e.Key
		list, ok := e.Value.(*ast.SequenceNode)
		if !ok || len(list.Values) == 0 {
			d.fail(e.Value, at, "%s, want a list of values", describe(e.Value))
			continue
		}
		*m = append(*m, Axis{Name: key, Values: list.Values})
		for i, item := range list.Values {
			d.lines[fmt.Sprintf("%s[%d]", at, i)] = item
		}
	}
}

func suggest(key string, known []string) string {
	best, distance := "", 1+len(key)/2
	for _, k := range known {
		if n := editDistance(key, k); n < distance {
			best, distance = k, n
		}
	}
	if best != "" {
		return fmt.Sprintf("did you mean %q? Known here: %s", best, strings.Join(known, ", "))
	}
	return "known here: " + strings.Join(known, ", ")
}

// editDistance is Levenshtein's (1966), on bytes.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}

// Cell is one combination of values of the matrix.
type Cell struct {
	// Values are the axes' values as text, in the order of the file.
	Values []Attr
	// Section is a copy of the workload's section with the values set.
	Section any
	// Groups that take part.
	Groups []Group
}

// Cells expands the matrix, last axis fastest. An experiment without a matrix
// has one cell without values.
func (e *Experiment) Cells() ([]Cell, error) {
	cells, faults := e.cells()
	if len(faults) > 0 {
		return nil, faults.err()
	}
	return cells, nil
}

// enoughFaults of a matrix are reported: the rest is much the same.
const enoughFaults = 20

func (e *Experiment) checkMatrix() faultList {
	if e.Section() == nil {
		return nil
	}
	_, faults := e.cells()
	return faults
}

func (e *Experiment) cells() ([]Cell, faultList) {
	total := 1
	for _, a := range e.Matrix {
		total *= len(a.Values)
		if total > MaxTrials {
			return nil, tooManyTrials("matrix")
		}
	}
	cells := []Cell{{Section: e.Section(), Groups: e.Groups}}
	var faults faultList
	for _, axis := range e.Matrix {
		var next []Cell
		for _, c := range cells {
			for i, n := range axis.Values {
				varied, fault := e.vary(c, axis, i, n)
				if fault != nil {
					if !slices.Contains(faults, *fault) {
						faults = append(faults, *fault)
					}
					if len(faults) >= enoughFaults {
						return nil, faults
					}
					continue
				}
				next = append(next, varied)
			}
		}
		cells = next
	}
	if len(faults) > 0 {
		return nil, faults
	}
	trials := 0
	for _, c := range cells {
		if trials += e.RepeatsOf(c.Values); trials > MaxTrials {
			return nil, tooManyTrials("trials.repeat")
		}
	}
	for i, r := range e.Trials.Repeats {
		if !slices.ContainsFunc(cells, func(c Cell) bool { return r.matches(c.Values) }) {
			faults.add(fmt.Sprintf("trials.repeats[%d].where", i), "%v is no cell of the matrix", r.Where)
		}
	}
	for _, c := range cells {
		s, ok := c.Section.(section)
		if !ok {
			continue
		}
		found, at := faultList{}, e.Workload
		if len(c.Values) > 0 {
			at = "matrix"
			found = s.check(at)
		}
		for _, f := range append(found, s.checkGroups(at, c.Groups)...) {
			if !slices.Contains(faults, f) {
				faults = append(faults, f)
			}
		}
		if len(faults) >= enoughFaults {
			return nil, faults
		}
	}
	return cells, faults
}

func tooManyTrials(at string) faultList {
	return faultList{{Path: at, Text: fmt.Sprintf("more than %d trials", MaxTrials)}}
}

func (e *Experiment) vary(c Cell, axis Axis, i int, n ast.Node) (Cell, *Fault) {
	path := fmt.Sprintf("matrix.%s[%d]", axis.Name, i)
	if axis.Name == AxisGroup {
		name := strings.TrimSpace(n.String())
		at := slices.IndexFunc(e.Groups, func(g Group) bool { return g.Name == name })
		if at < 0 {
			var names []string
			for _, g := range e.Groups {
				names = append(names, g.Name)
			}
			return c, &Fault{Path: path, Text: fmt.Sprintf("no group called %q, want %s", name, oneOf(names))}
		}
		return Cell{
			Values: append(slices.Clone(c.Values), Attr{axis.Name, name}), Section: c.Section, Groups: e.Groups[at : at+1],
		}, nil
	}
	section := reflect.ValueOf(c.Section).Elem()
	known := yamlFields(section.Type())
	field, found := known[axis.Name]
	if !found || section.Type().Field(field).Type.Kind() == reflect.Struct {
		names := append(slices.Sorted(maps.Keys(known)), AxisGroup)
		return c, &Fault{Path: "matrix." + axis.Name, Text: "not a field that can vary; " + suggest(axis.Name, names)}
	}
	copied := reflect.New(section.Type())
	copied.Elem().Set(section)
	d := decoder{lines: map[string]ast.Node{}}
	d.value(n, copied.Elem().Field(field), path)
	if len(d.faults) > 0 {
		return c, &d.faults[0]
	}
	if s, ok := copied.Interface().(interface{ SetDefaults() }); ok {
		s.SetDefaults()
	}
	text := strings.TrimSpace(n.String())
	if s, ok := copied.Elem().Field(field).Interface().(fmt.Stringer); ok {
		text = s.String()
	}
	return Cell{Values: append(slices.Clone(c.Values), Attr{axis.Name, text}), Section: copied.Interface(), Groups: c.Groups}, nil
}
