package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/bus/embedded"
	"github.com/transferlab/transferlab/bus/node"
	"github.com/transferlab/transferlab/schemas"
	"github.com/transferlab/transferlab/services/prober"
	"net/http"
	_ "net/http/pprof"
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	child := flag.String("agent", "", "")
	url := flag.String("url", "", "")
	pp := flag.String("pprof", "", "")
	mode := flag.String("mode", "pairs", "")
	protos := flag.String("protocols", "icmp", "")
	interval := flag.Duration("interval", time.Millisecond, "")
	clients := flag.Int("clients", 10, "")
	count := flag.Int("count", 10000, "")
	flag.Parse()
	ctx := context.Background()
	if *child != "" {
		if *pp != "" {
			go http.ListenAndServe(*pp, nil)
		}
		var o bus.Options
		must(json.NewDecoder(os.Stdin).Decode(&o))
		o.Log = slog.Default()
		c, err := bus.Connect(ctx, o)
		must(err)
		s := prober.Service()
		n, err := node.New(s, "1.0.0", c, prometheus.NewRegistry(), slog.Default())
		must(err)
		cfg := prober.DefaultConfig()
		cfg.Name, cfg.Site = *child, *child
		must(prober.New(cfg, n).Run(ctx))
		return
	}
	_ = url
	dir, err := os.MkdirTemp("", "zz")
	must(err)
	defer os.RemoveAll(dir)
	srv, err := embedded.Start(ctx, embedded.Options{Dir: dir})
	must(err)
	op, err := bus.Connect(ctx, srv.Options(bus.RoleOperator, "op", slog.Default()))
	must(err)
	must(op.Provision(ctx, bus.DefaultLimits()))
	reg, err := op.Register("scheduler", "1.0.0", "clock", nil)
	must(err)
	must(bus.Respond(ctx, reg, "clock", bus.SubjectClock, func(context.Context, schemas.ClockQuery) (schemas.ClockAnswer, error) {
		return schemas.ClockAnswer{Now: time.Now()}, nil
	}))
	names := []string{"a", "b"}
	if *mode == "self" {
		names = []string{"a"}
	}
	procs := map[string]*exec.Cmd{}
	for i, name := range names {
		args := []string{"-agent", name}
		if i == 0 && *pp != "" {
			args = append(args, "-pprof", *pp)
		}
		cmd := exec.Command(os.Args[0], args...)
		o := srv.Options(bus.RoleAgent, name, nil)
		data, err := json.Marshal(map[string]any{"URL": o.URL, "User": o.User, "Password": o.Password, "Name": o.Name})
		must(err)
		cmd.Stdin = strings.NewReader(string(data))
		cmd.Stderr = os.Stderr
		must(cmd.Start())
		procs[name] = cmd
		defer cmd.Process.Kill()
	}
	sec := schemas.Probe{Mesh: "pairs", Pairs: [][]string{{"a", "b"}}, Protocols: strings.Split(*protos, ","), Interval: schemas.Duration(*interval), Count: *count}
	if *mode == "self" {
		sec.Mesh, sec.Self, sec.Pairs = "full", true, nil
	}
	sec.SetDefaults()
	data, err := json.Marshal(sec)
	must(err)
	run := uuid.Must(uuid.NewV7())
	var tasks []*schemas.Task
	idx := 0
	for i, name := range names {
		tk := &schemas.Task{Run: run, Attempt: 1, Workload: "probe", Agent: name, Section: data, Seed: 1, Timeout: 10 * time.Minute}
		n := 1
		if i == 0 {
			n = *clients
		}
		for range n {
			tk.Clients = append(tk.Clients, schemas.Client{Index: idx, Group: name, Site: name})
			idx++
		}
		tasks = append(tasks, tk)
	}
	states, err := bus.OpenBucket[schemas.TaskState](ctx, op, bus.BucketTrials)
	must(err)
	starts, err := bus.OpenBucket[schemas.Start](ctx, op, bus.BucketTrials)
	must(err)
	for _, tk := range tasks {
		must(op.Publish(ctx, bus.SubjectTasks(tk.Agent), tk.Key(), tk))
	}
	ready := map[string]schemas.Peer{}
	ended := map[string]bool{}
	wctx, stop := context.WithCancel(ctx)
	var begin time.Time
	var before string
	cpu := func(name string) (float64, string) {
		pid := procs[name].Process.Pid
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		f := strings.Fields(string(b)[strings.LastIndex(string(b), ")")+2:])
		var u, s float64
		fmt.Sscan(f[11], &u)
		fmt.Sscan(f[12], &s)
		st, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		rss := ""
		for _, l := range strings.Split(string(st), "\n") {
			if strings.HasPrefix(l, "VmHWM") || strings.HasPrefix(l, "VmRSS") || strings.HasPrefix(l, "RssAnon") || strings.HasPrefix(l, "RssFile") {
				rss += strings.Join(strings.Fields(l), " ") + "; "
			}
		}
		return (u + s) / 100, rss
	}
	var cpu0 float64
	_ = states.Watch(wctx, "task.>", func(e bus.Entry[schemas.TaskState]) error {
		s := e.Value
		if s.Phase == schemas.TaskReady {
			for _, tk := range tasks {
				if tk.Agent == s.Agent {
					ready[s.Agent] = schemas.Peer{Agent: s.Agent, Endpoint: s.Endpoint, Clock: s.Clock, Clients: tk.Clients}
				}
			}
			if len(ready) == len(tasks) {
				cpu0, before = cpu("a")
				begin = time.Now().Add(300 * time.Millisecond)
				st := schemas.Start{At: begin, Key: []byte("secretsecret")}
				for _, p := range ready {
					st.Peers = append(st.Peers, p)
				}
				_, err := starts.Put(wctx, schemas.StartKey(run, 0, 1), st)
				must(err)
			}
		}
		if s.Ended() {
			ended[s.Agent] = true
			if s.Agent == "a" {
				c, rss := cpu("a")
				el := time.Since(begin)
				fmt.Printf("%s result %+v err %q\n before %s\n after %s\n cpu %.2fs in %s = %.3f cores\n", s.Agent, s.Result, s.Error, before, rss, c-cpu0, el, (c-cpu0)/el.Seconds())
			}
			if len(ended) == len(tasks) {
				stop()
			}
		}
		return nil
	})
}
