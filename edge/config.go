package edge

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/transferlab/transferlab/edge/camera"
	"github.com/transferlab/transferlab/edge/motion"
	"github.com/transferlab/transferlab/schemas"
)

// Environment variables that stand over the file: secrets need not be in it.
const (
	EnvToken        = "TRANSFERLAB_EDGE_TOKEN"
	EnvNATSPassword = "TRANSFERLAB_EDGE_NATS_PASSWORD"
	EnvSourceURL    = "TRANSFERLAB_EDGE_SOURCE_URL" // may hold a camera's password
)

// What happens when the spool is full.
const (
	FullRefuse = "refuse-new"
	FullDrop   = "drop-oldest-undelivered"
)

// Ways of clips' bytes.
const (
	PathDirect  = "direct"  // to the store, by addresses that the gateway has signed
	PathGateway = "gateway" // through the gateway
)

// Orders in which clips are worked on.
const (
	OrderOldest = "oldest"
	OrderNewest = "newest"
)

// Config of an edge: the file `edge.yaml`.
type Config struct {
	// Name is that of the edge's account at the gateway.
	Name    string `yaml:"name"`
	Gateway string `yaml:"gateway"` // http(s)://host[:port]
	// TokenFile holds the account's token; [EnvToken] stands over it.
	TokenFile string `yaml:"token_file"`
	// CAFile is a certificate authority (PEM) to trust beside the system's.
	CAFile string `yaml:"ca_file"`

	NATS      NATSConfig        `yaml:"nats"`
	Source    camera.Config     `yaml:"source"`
	Motion    motion.Config     `yaml:"motion"`
	Clip      camera.ClipConfig `yaml:"clip"`
	Spool     SpoolConfig       `yaml:"spool"`
	Policy    PolicyConfig      `yaml:"policy"`
	Detection schemas.Detection `yaml:"detection"` // named as in JSON
	Local     LocalConfig       `yaml:"local"`
	Uplink    UplinkConfig      `yaml:"uplink"`
	LogLevel  slog.Level        `yaml:"log_level"`

	// Token is never in the file itself.
	Token string `yaml:"-"`
}

// NATSConfig is the bus, which the policy overflow needs.
type NATSConfig struct {
	URL  string `yaml:"url"`
	User string `yaml:"user"`
	// PasswordFile holds the password; [EnvNATSPassword] stands over it.
	PasswordFile string `yaml:"password_file"`
	CredsFile    string `yaml:"creds_file"`
	CAFile       string `yaml:"ca_file"`

	Password string `yaml:"-"`
}

// SpoolConfig is where clips are until the lab has confirmed them.
type SpoolConfig struct {
	Dir      string           `yaml:"dir"`
	MaxBytes schemas.Size     `yaml:"max_bytes"`
	MaxAge   schemas.Duration `yaml:"max_age"` // 0 is for ever
	WhenFull string           `yaml:"when_full"`
}

// PolicyConfig decides where clips are looked at.
type PolicyConfig struct {
	Kind string `yaml:"kind"`
	// Behind is how many clips may wait here before overflow hands one over.
	Behind int `yaml:"behind"`
}

// LocalConfig is the detector here.
type LocalConfig struct {
	Enabled bool `yaml:"enabled"`
	Slots   int  `yaml:"slots"` // clips at a time
	Nice    int  `yaml:"nice"`
	Threads int  `yaml:"threads"` // 0 is all processors
	// Models are directories with models; empty takes the usual ones.
	Models []string `yaml:"models"`
	// Program is transferlab-vision; empty looks beside this program and in PATH.
	Program string `yaml:"program"`
}

// UplinkConfig is the way to the lab.
type UplinkConfig struct {
	Path        string `yaml:"path"`
	Connections int    `yaml:"connections"`
	Parallel    int    `yaml:"parallel"` // clips at a time
	Order       string `yaml:"order"`
	// StoreAddress is dialled instead of the host in signed addresses.
	StoreAddress string `yaml:"store_address"`
}

// DefaultConfig lacks what only the user knows: name, gateway and token.
func DefaultConfig() Config {
	return Config{
		Source: camera.DefaultConfig(), Motion: motion.DefaultConfig(), Clip: camera.DefaultClipConfig(),
		Spool:  SpoolConfig{Dir: "/var/lib/transferlab-edge", MaxBytes: 8 << 30, WhenFull: FullRefuse},
		Policy: PolicyConfig{Kind: schemas.PolicyAdaptive, Behind: 1},
		Local:  LocalConfig{Enabled: true, Slots: 1, Nice: 10},
		Uplink: UplinkConfig{Path: PathDirect, Connections: 4, Parallel: 2, Order: OrderOldest},
	}
}

// MaxConfigBytes bounds the file.
const MaxConfigBytes = 64 << 10

// Load reads a file, what the environment says above it and the secrets that it
// names. The configuration has been validated; the error has every fault.
func Load(path string, env func(string) string) (Config, error) {
	data, err := readLimited(path, MaxConfigBytes)
	if err != nil {
		return Config{}, fmt.Errorf("read the configuration: %w", err)
	}
	c, lines, err := parse(data)
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	var errs []error
	secret := func(field, variable, file string, value *string) {
		if *value = strings.TrimSpace(env(variable)); *value != "" || file == "" {
			return
		}
		// Beside the file, as a set of files that is copied as one.
		if !filepath.IsAbs(file) {
			file = filepath.Join(filepath.Dir(path), file)
		}
		data, err := readLimited(file, 16<<10)
		if err != nil {
			errs = append(errs, schemas.Fault{Line: lines[field], Path: field, Text: fmt.Sprintf("%q, want a readable file, or the variable %s: %v", file, variable, err)})
			return
		}
		*value = strings.TrimSpace(string(data))
	}
	secret("token_file", EnvToken, c.TokenFile, &c.Token)
	secret("nats.password_file", EnvNATSPassword, c.NATS.PasswordFile, &c.NATS.Password)
	if address := env(EnvSourceURL); address != "" {
		c.Source.URL = address
	}
	if err := errors.Join(append(errs, located(c.check(), lines))...); err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

func readLimited(path string, most int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > most {
		return nil, fmt.Errorf("%s has %d bytes, want a file of at most %d", path, info.Size(), most)
	}
	return os.ReadFile(path)
}

// Parse reads the text of a file over the defaults, strictly: a field that there
// is not is a fault. Secrets are not read and nothing is validated.
func Parse(data []byte) (Config, error) {
	c, _, err := parse(data)
	return c, err
}

func parse(data []byte) (Config, map[string]int, error) {
	c := DefaultConfig()
	if len(data) > MaxConfigBytes {
		return c, nil, schemas.Fault{Text: fmt.Sprintf("the file has %d bytes, at most %d are allowed", len(data), MaxConfigBytes)}
	}
	// The parser's time grows with the cube of the depth.
	const deepest = 32
	if n := bytes.Count(data, []byte("[")) + bytes.Count(data, []byte("{")); n > deepest {
		return c, nil, schemas.Fault{Text: fmt.Sprintf("%d opening brackets, want at most %d", n, deepest)}
	}
	for i, line := range bytes.Split(data, []byte("\n")) {
		if trimmed := bytes.TrimLeft(line, "-?:!& \t"); len(line)-len(trimmed) > deepest {
			return c, nil, schemas.Fault{Line: i + 1, Text: "nested or indented too deep"}
		}
	}
	file, err := parser.ParseBytes(data, 0)
	if err != nil {
		return c, nil, positioned(err)
	}
	if len(file.Docs) != 1 || file.Docs[0].Body == nil {
		return c, nil, schemas.Fault{Text: fmt.Sprintf("the file has %d documents, want one with fields", len(file.Docs))}
	}
	d := decoder{lines: map[string]int{}}
	ast.Walk(&d, file.Docs[0].Body)
	if len(d.faults) > 0 {
		return c, nil, errors.Join(d.faults...)
	}
	d.fields(file.Docs[0].Body, reflect.ValueOf(&c).Elem(), "")
	return c, d.lines, errors.Join(d.faults...)
}

func positioned(err error) schemas.Fault {
	var at yaml.Error
	if errors.As(err, &at) && at.GetToken() != nil {
		return schemas.Fault{Line: at.GetToken().Position.Line, Column: at.GetToken().Position.Column, Text: at.GetMessage()}
	}
	return schemas.Fault{Text: err.Error()}
}

// decoder fills a configuration field by field: the library's own decoder stops
// at the first fault, and does not always say where it is.
type decoder struct {
	lines  map[string]int
	faults []error
}

// Visit refuses what can make a small file large, or endless.
func (d *decoder) Visit(n ast.Node) ast.Visitor {
	switch n.(type) {
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode, *ast.MergeKeyNode:
		d.faults = append(d.faults, schemas.Fault{Line: n.GetToken().Position.Line, Text: "anchors, aliases, tags and merge keys are not part of this file: write the value out"})
		return nil
	}
	return d
}

func (d *decoder) fields(n ast.Node, v reflect.Value, path string) {
	line := n.GetToken().Position.Line
	var entries []*ast.MappingValueNode
	switch node := n.(type) {
	case *ast.MappingNode:
		entries = node.Values
	case *ast.MappingValueNode:
		entries = []*ast.MappingValueNode{node}
	case *ast.NullNode:
		return
	default:
		d.faults = append(d.faults, schemas.Fault{Line: line, Path: path, Text: "want fields below it, each on its line"})
		return
	}
	known := map[string]reflect.Value{}
	var names []string
	for f, value := range v.Fields() {
		name, _, _ := strings.Cut(cmp.Or(f.Tag.Get("yaml"), f.Tag.Get("json")), ",")
		if name != "-" {
			known[name] = value
			names = append(names, name)
		}
	}
	for _, e := range entries {
		key := e.Key.GetToken()
		at := strings.TrimPrefix(path+"."+key.Value, ".")
		field, found := known[key.Value]
		if _, isText := e.Key.(*ast.StringNode); !isText || !found {
			d.faults = append(d.faults, schemas.Fault{Line: key.Position.Line, Column: key.Position.Column, Path: at, Text: "there is no such field, want " + strings.Join(names, ", ")})
			continue
		}
		if _, twice := d.lines[at]; twice {
			d.faults = append(d.faults, schemas.Fault{Line: key.Position.Line, Path: at, Text: "it is there twice"})
		}
		d.lines[at] = key.Position.Line
		if field.Kind() == reflect.Struct {
			d.fields(e.Value, field, at)
		} else if err := yaml.NodeToValue(e.Value, field.Addr().Interface()); err != nil {
			fault := positioned(err)
			d.faults = append(d.faults, schemas.Fault{Line: key.Position.Line, Path: at, Text: fault.Text})
		}
	}
}

// located puts faults where their fields stand, or else where their section
// does.
func located(faults []schemas.Fault, lines map[string]int) error {
	for i := range faults {
		for path := faults[i].Path; path != "" && faults[i].Line == 0; path = path[:max(strings.LastIndexByte(path, '.'), 0)] {
			faults[i].Line = lines[path]
		}
	}
	slices.SortStableFunc(faults, func(a, b schemas.Fault) int { return cmp.Compare(a.Line, b.Line) })
	errs := make([]error, len(faults))
	for i, f := range faults {
		errs[i] = f
	}
	return errors.Join(errs...)
}

// Validate reports every fault.
func (c *Config) Validate() error { return located(c.check(), nil) }

func (c *Config) check() []schemas.Fault {
	var faults []schemas.Fault
	add := func(path, format string, args ...any) {
		faults = append(faults, schemas.Fault{Path: path, Text: fmt.Sprintf(format, args...)})
	}
	oneOf := func(path, value string, allowed ...string) {
		if !slices.Contains(allowed, value) {
			add(path, "%q, want %s", value, strings.Join(allowed, ", "))
		}
	}
	if !regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`).MatchString(c.Name) {
		add("name", "%q, want 1 to 63 lower-case letters, digits, hyphens and underscores, the first a letter or digit", c.Name)
	}
	if u, err := url.Parse(c.Gateway); err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || u.RawQuery != "" {
		add("gateway", "%q, want http://host[:port] or https://host[:port]", camera.Redact(c.Gateway))
	}
	if c.Token == "" {
		add("token_file", "no token, want a file with the token that `transferlab edge add NAME` has printed, or the variable %s", EnvToken)
	} else if strings.ContainsFunc(c.Token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		add("token_file", "a token with blanks or other characters that tokens do not have, want it alone in its file")
	}
	if c.NATS.URL != "" {
		for _, address := range strings.Split(c.NATS.URL, ",") {
			if u, err := url.Parse(strings.TrimSpace(address)); err != nil || !slices.Contains([]string{"nats", "tls", "ws", "wss"}, u.Scheme) || u.Host == "" || u.User != nil {
				add("nats.url", "%q, want nats://host:4222 or tls://host:4222 (several separated by commas), the user in nats.user", camera.Redact(address))
			}
		}
	}
	faults = append(faults, c.Source.Check("source")...)
	faults = append(faults, c.Motion.Check("motion")...)
	faults = append(faults, c.Clip.Check("clip")...)
	if c.Spool.Dir == "" {
		add("spool.dir", "%q, want a directory of this edge's own", c.Spool.Dir)
	}
	if c.Spool.MaxBytes < c.Clip.MaxBytes || c.Spool.MaxBytes < 1<<20 {
		add("spool.max_bytes", "%s, want at least 1MiB and room for one clip of clip.max_bytes (%s)", c.Spool.MaxBytes, c.Clip.MaxBytes)
	}
	if age := time.Duration(c.Spool.MaxAge); age < 0 || age > 0 && age < time.Minute {
		add("spool.max_age", "%s, want 0s (for ever) or at least 1m", age)
	}
	oneOf("spool.when_full", c.Spool.WhenFull, FullRefuse, FullDrop)
	oneOf("policy.kind", c.Policy.Kind, schemas.Policies()...)
	if c.Policy.Behind < 1 || c.Policy.Behind > 1000 {
		add("policy.behind", "%d, want 1 to 1000 clips", c.Policy.Behind)
	}
	if c.Policy.Kind == schemas.PolicyOverflow && c.NATS.URL == "" {
		add("nats.url", "none, want nats://host:4222: the policy overflow works by the bus")
	}
	if !c.Local.Enabled && slices.Contains(schemas.Policies(), c.Policy.Kind) && c.Policy.Kind != schemas.PolicyCloud {
		add("policy.kind", "%q, want cloud, or local.enabled true", c.Policy.Kind)
	}
	if err := c.Detection.Validate(); err != nil {
		// Each fault names its field.
		for _, line := range strings.Split(err.Error(), "\n") {
			path, text, _ := strings.Cut(line, ": ")
			add(path, "%s", text)
		}
	}
	if c.Local.Slots < 1 || c.Local.Slots > 64 {
		add("local.slots", "%d, want 1 to 64 clips at a time", c.Local.Slots)
	}
	if c.Local.Nice < 0 || c.Local.Nice > 19 {
		add("local.nice", "%d, want 0 to 19", c.Local.Nice)
	}
	if c.Local.Threads < 0 || c.Local.Threads > 256 {
		add("local.threads", "%d, want 0 (all processors) to 256", c.Local.Threads)
	}
	oneOf("uplink.path", c.Uplink.Path, PathDirect, PathGateway)
	oneOf("uplink.order", c.Uplink.Order, OrderOldest, OrderNewest)
	if c.Uplink.Connections < 1 || c.Uplink.Connections > 64 {
		add("uplink.connections", "%d, want 1 to 64", c.Uplink.Connections)
	}
	if c.Uplink.Parallel < 1 || c.Uplink.Parallel > 64 {
		add("uplink.parallel", "%d, want 1 to 64 clips at a time", c.Uplink.Parallel)
	}
	return faults
}
