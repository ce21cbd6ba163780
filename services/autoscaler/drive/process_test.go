package drive

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/transferlab/transferlab/services/internal/lockfile"
)

// helperArgument makes this binary another program.
const helperArgument = "as-helper"

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == helperArgument {
		os.Exit(help(os.Args[2:]))
	}
	os.Exit(m.Run())
}

// help is a worker, good or bad, or an autoscaler that is about to die.
func help(args []string) int {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	switch args[0] {
	case "wait":
		<-end
		return 0
	case "stubborn":
		fmt.Println("deaf")
		for {
			<-end
		}
	case "parent":
		p, err := OpenProcess(context.Background(), ProcessConfig{Owner: "auto", Command: helper("family"), State: args[1], Grace: time.Second, Output: os.Stdout})
		if err == nil {
			err = p.Start(context.Background(), 2)
		}
		if err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println("started")
		select {}
	case "family":
		// A worker with a child of its own, which nothing ties to it.
		child := exec.Command("/bin/sleep", "1000")
		child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := child.Start(); err != nil {
			return 1
		}
		fmt.Println("pids", os.Getpid(), child.Process.Pid)
		<-end
		return 0
	}
	return 2
}

func TestStubbornProcessIsKilled(t *testing.T) {
	out, in := io.Pipe()
	p, err := OpenProcess(t.Context(), ProcessConfig{Owner: "auto", Command: helper("stubborn"), State: t.TempDir(), Grace: 50 * time.Millisecond, Output: in})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "deaf\n" {
		t.Fatal(line, err)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	if err := p.Stop(t.Context(), list(t, p)[0].ID); err != nil {
		t.Fatal(err)
	}
	if all := list(t, p); len(all) != 0 {
		t.Errorf("left: %v", all)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := p.Start(t.Context(), 1); err == nil {
		t.Error("starts after it was closed")
	}
}

func TestTwoDriversOnOneDirectory(t *testing.T) {
	state := t.TempDir()
	openProcess(t, state, helper("wait"))
	_, err := OpenProcess(t.Context(), ProcessConfig{Owner: "auto", Command: helper("wait"), State: state})
	if !errors.Is(err, lockfile.ErrHeld) {
		t.Errorf("error %v", err)
	}
}

func TestProgramThatIsNotThere(t *testing.T) {
	p := openProcess(t, t.TempDir(), []string{filepath.Join(t.TempDir(), "none")})
	if err := p.Start(t.Context(), 1); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
	if all := list(t, p); len(all) != 0 {
		t.Errorf("lists %v", all)
	}
}

// A driver that is killed leaves nothing that the next one does not end, not even
// what its workers had started.
func TestNoOrphans(t *testing.T) {
	if runtime.GOOS != "linux" {
		return // there the documentation says what is left
	}
	state := t.TempDir()
	command := helper("parent", state)
	parent := exec.Command(command[0], command[1:]...)
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	var pids []int
	for lines := bufio.NewScanner(out); len(pids) < 4 && lines.Scan(); {
		var worker, child int
		if n, _ := fmt.Sscanf(lines.Text(), "pids %d %d", &worker, &child); n == 2 {
			pids = append(pids, worker, child)
		}
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait()
	if len(pids) != 4 {
		t.Fatalf("the workers did not come up: %v", pids)
	}
	openProcess(t, state, helper("wait"))
	for _, pid := range pids {
		if runs(pid) {
			t.Errorf("process %d is left", pid)
		}
	}
}

// runs reports whether a process is there and no zombie.
func runs(pid int) bool {
	if unix.Kill(pid, 0) != nil {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}
