package drive

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// engine answers as a Docker engine does, at a unix socket.
type engine struct {
	socket  string
	version string

	mu         sync.Mutex
	containers []*fakeContainer
	made       int
	broken     string // the call that fails, once
	paths      []string
}

type fakeContainer struct {
	id, name, state string
	created         time.Time
	spec            struct {
		Image      string
		Env, Cmd   []string
		Labels     map[string]string
		HostConfig struct {
			Init        bool
			NetworkMode string
			SecurityOpt []string
		}
	}
}

func startEngine(t *testing.T) *engine {
	t.Helper()
	e := &engine{socket: filepath.Join(t.TempDir(), "docker.sock"), version: "1.51"}
	l, err := net.Listen("unix", e.socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: e}}
	s.Start()
	t.Cleanup(s.Close)
	return e
}

func (e *engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.paths = append(e.paths, r.Method+" "+r.URL.Path)
	if r.URL.Path == "/_ping" {
		w.Header().Set("Api-Version", e.version)
		_, _ = w.Write([]byte("OK"))
		return
	}
	path, ok := strings.CutPrefix(r.URL.Path, "/v1.45/containers/")
	if !ok {
		fail(w, http.StatusNotFound, "page not found")
		return
	}
	id, action, _ := strings.Cut(path, "/")
	call := r.Method + " " + action
	if action == "" && r.Method == http.MethodPost || path == "json" {
		call = path
	}
	if e.broken == call {
		e.broken = ""
		fail(w, http.StatusInternalServerError, "no space left on device")
		return
	}
	switch call {
	case "create":
		c := &fakeContainer{name: r.URL.Query().Get("name"), state: "created", created: time.Now()}
		if err := json.NewDecoder(r.Body).Decode(&c.spec); err != nil || r.Header.Get("Content-Type") != "application/json" {
			fail(w, http.StatusBadRequest, "invalid body")
			return
		}
		if c.spec.Image == "missing" {
			fail(w, http.StatusNotFound, "No such image: missing:latest")
			return
		}
		e.made++
		c.id = fmt.Sprintf("%064x", e.made)
		e.containers = append(e.containers, c)
		w.WriteHeader(http.StatusCreated)
		_ = json.NewEncoder(w).Encode(map[string]any{"Id": c.id, "Warnings": []string{}})
	case "json":
		e.list(w, r)
	case "POST start", "POST stop":
		c := e.find(id)
		if c == nil {
			fail(w, http.StatusNotFound, "No such container: "+id)
			return
		}
		next := map[string]string{"start": "running", "stop": "exited"}[action]
		if c.state == next {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		c.state = next
		w.WriteHeader(http.StatusNoContent)
	case "DELETE ":
		if e.find(id) == nil {
			fail(w, http.StatusNotFound, "No such container: "+id)
			return
		}
		e.containers = slices.DeleteFunc(e.containers, func(c *fakeContainer) bool { return c.id == id })
		w.WriteHeader(http.StatusNoContent)
	default:
		fail(w, http.StatusNotFound, "page not found")
	}
}

func (e *engine) find(id string) *fakeContainer {
	for _, c := range e.containers {
		if c.id == id {
			return c
		}
	}
	return nil
}

func (e *engine) list(w http.ResponseWriter, r *http.Request) {
	var filters map[string][]string
	if err := json.Unmarshal([]byte(r.URL.Query().Get("filters")), &filters); err != nil {
		fail(w, http.StatusBadRequest, "invalid filter")
		return
	}
	all := []map[string]any{}
	for _, c := range e.containers {
		key, value, _ := strings.Cut(filters["label"][0], "=")
		if c.spec.Labels[key] != value || r.URL.Query().Get("all") != "true" && c.state != "running" {
			continue
		}
		all = append(all, map[string]any{"Id": c.id, "Names": []string{"/" + c.name}, "Created": c.created.Unix(), "State": c.state, "Labels": c.spec.Labels})
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(all)
}

func fail(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"message": message})
}

func TestContainersAreMarkedAndNamed(t *testing.T) {
	e := startEngine(t)
	d := openDocker(t, e, "auto")
	if err := d.Start(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	c, i := e.containers[0], list(t, d)[0]
	if c.state != "running" || c.name != "transferlab-"+i.Worker || !slices.Contains(c.spec.Env, EnvWorker+"="+i.Worker) ||
		!slices.Contains(c.spec.Env, "TRANSFERLAB_SITE=cloud") || !slices.Equal(c.spec.Cmd, []string{"service", "detector"}) || !c.spec.HostConfig.Init {
		t.Errorf("container %+v of %+v", c, i)
	}
	if !slices.Contains(e.paths, "POST /v1.45/containers/create") {
		t.Errorf("calls %v", e.paths)
	}
}

// Another owner's containers are neither listed nor stopped.
func TestContainersOfOthers(t *testing.T) {
	e := startEngine(t)
	ours, theirs := openDocker(t, e, "ours"), openDocker(t, e, "theirs")
	if err := theirs.Start(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if all := list(t, ours); len(all) != 0 {
		t.Errorf("sees %v", all)
	}
	if err := ours.Stop(t.Context(), list(t, theirs)[0].ID); err != nil {
		t.Fatal(err)
	}
	if all := list(t, theirs); len(all) != 1 {
		t.Error("stopped another's")
	}
}

func TestContainerThatEndedIsRemoved(t *testing.T) {
	e := startEngine(t)
	d := openDocker(t, e, "auto")
	if err := d.Start(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	e.mu.Lock()
	e.containers[0].state = "exited"
	e.mu.Unlock()
	if all := list(t, d); len(all) != 1 {
		t.Errorf("lists %v", all)
	}
	if len(e.containers) != 1 {
		t.Errorf("%d containers are left, want 1", len(e.containers))
	}
}

// What was created and could not be started is not left behind.
func TestContainerThatDoesNotStart(t *testing.T) {
	e := startEngine(t)
	d := openDocker(t, e, "auto")
	e.broken = "POST start"
	if err := d.Start(t.Context(), 1); err == nil || !strings.Contains(err.Error(), "no space left on device (HTTP 500)") {
		t.Errorf("error %v", err)
	}
	if len(e.containers) != 0 {
		t.Error("it is left behind")
	}
	d.c.Image = "missing"
	if err := d.Start(t.Context(), 1); err == nil || !strings.Contains(err.Error(), "No such image") {
		t.Errorf("error %v", err)
	}
}

func TestEngineThatIsNone(t *testing.T) {
	e := startEngine(t)
	e.version = "2.0<script>"
	if _, err := OpenDocker(t.Context(), DockerConfig{Owner: "auto", Socket: e.socket, Image: "x"}); err == nil || !strings.Contains(err.Error(), "API version") {
		t.Errorf("error %v", err)
	}
	if _, err := OpenDocker(t.Context(), DockerConfig{Owner: "auto", Socket: e.socket + ".none", Image: "x"}); err == nil || !strings.Contains(err.Error(), "reach the Docker engine") {
		t.Errorf("error %v", err)
	}
}

func FuzzEngineMessage(f *testing.F) {
	f.Add([]byte(`{"message":"No such image"}`))
	f.Add([]byte("<html>"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if m := engineMessage(data); m == "" || len(m) > 1000 {
			t.Errorf("message of %d bytes", len(m))
		}
	})
}
