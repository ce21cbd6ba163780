package clickhouse_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/transferlab/transferlab/services/internal/clickhouse"
	"github.com/transferlab/transferlab/services/internal/clickhouse/chtest"
)

// ownerEnv makes this binary a process that owns an engine on the directory it
// names, and waits to be killed.
const ownerEnv = "CLICKHOUSE_TEST_OWNER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(ownerEnv); dir != "" && os.Args[1] != clickhouse.HostCommand {
		own(dir, os.Args[1])
	}
	chtest.Main(m)
}

func own(dir, library string) {
	server, err := clickhouse.Start(context.Background(), chtest.Options(dir, library))
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	fmt.Println(server.PID(), server.HTTPAddr())
	_ = server.Wait()
	os.Exit(0)
}
