package drive

import (
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/transferlab/transferlab/services/internal/awsfake"
)

// An answer that is lost starts nothing twice: the next Start asks again with the
// same token.
func TestLostAnswer(t *testing.T) {
	a := awsfake.DefaultAccount()
	fake := awsfake.NewEC2(a, awsfake.EC2Options{})
	fake.AddTemplate(testRegion, "detectors", awsfake.FakeImage, "c7g.large", "")
	var lose atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost && lose.Add(-1) >= 0 {
			fake.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		}
		fake.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	for name, value := range map[string]string{
		"AWS_ENDPOINT_URL": server.URL, "AWS_ACCESS_KEY_ID": a.AccessKey, "AWS_SECRET_ACCESS_KEY": a.SecretKey, "AWS_MAX_ATTEMPTS": "1",
		"AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull, "AWS_EC2_METADATA_DISABLED": "true",
	} {
		t.Setenv(name, value)
	}
	e := openEC2(t, "auto")
	lose.Store(1)
	if err := e.Start(t.Context(), 4); err != nil {
		t.Fatalf("one lost answer: %v", err)
	}
	if n := fake.Launched(); n != 4 {
		t.Errorf("%d were started, want 4", n)
	}
	// More losses than the SDK makes attempts.
	lose.Store(5)
	if err := e.Start(t.Context(), 3); err == nil {
		t.Fatal("no error although no answer came")
	}
	if err := e.Start(t.Context(), 5); err != nil {
		t.Fatal(err)
	}
	if n := fake.Launched(); n != 9 {
		t.Errorf("%d were started, want 4, 3 and, of 5, the 2 that lacked", n)
	}
	if all := list(t, e); len(all) != 9 {
		t.Errorf("lists %d", len(all))
	}
}

func TestInstancesOfOthers(t *testing.T) {
	fake := account(t, awsfake.EC2Options{})
	fake.AddTemplate(testRegion, "detectors", awsfake.FakeImage, "c7g.large", "")
	ours, theirs := openEC2(t, "ours"), openEC2(t, "theirs")
	if err := theirs.Start(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if all := list(t, ours); len(all) != 0 {
		t.Errorf("sees %v", all)
	}
	if err := ours.Stop(t.Context(), list(t, theirs)[0].ID); err != nil {
		t.Fatal(err)
	}
	i := fake.Instances()
	if len(i) != 1 || i[0].State != "running" {
		t.Fatalf("stopped another's: %+v", i)
	}
	if i[0].Tags[tagOwner] != "theirs" || i[0].Shutdown != "terminate" || i[0].Type != "c7g.large" {
		t.Errorf("instance %+v", i[0])
	}
}

// An instance that ended by itself is gone from the list, also when no list ever had it.
func TestInstanceThatEnds(t *testing.T) {
	fake := account(t, awsfake.EC2Options{Invisible: 1})
	fake.AddTemplate(testRegion, "detectors", awsfake.FakeImage, "c7g.large", "")
	e := openEC2(t, "auto")
	if err := e.Start(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	list(t, e)
	fake.SetState(fake.Instances()[0].ID, "terminated")
	if all := list(t, e); len(all) != 1 {
		t.Errorf("lists %v", all)
	}
	unheard := Instance{ID: "i-0aaaaaaaaaaaaaaaa", Started: time.Now()}
	e.launched[unheard.ID] = unheard
	if all := list(t, e); !has(all, unheard.ID) {
		t.Error("a new one is not listed")
	}
	e.now = func() time.Time { return time.Now().Add(unseenPatience + time.Second) }
	if all := list(t, e); has(all, unheard.ID) {
		t.Error("one that nobody has ever seen is listed for ever")
	}
}

func TestTemplateThatIsNotThere(t *testing.T) {
	account(t, awsfake.EC2Options{})
	e := openEC2(t, "auto")
	if err := e.Start(t.Context(), 1); err == nil || !strings.Contains(err.Error(), "InvalidLaunchTemplateName.NotFoundException") {
		t.Errorf("error %v", err)
	}
	if e.open != nil {
		t.Error("a request that was refused would be made again")
	}
}

func TestConfigsReportEveryFault(t *testing.T) {
	for _, c := range []struct {
		err   error
		flags []string
	}{
		{(&EC2Config{Owner: "A", Region: "mars", Version: "x"}).Validate(), []string{"--owner", "--region", "--launch-template", "--launch-template-version"}},
		{(&DockerConfig{Socket: "docker.sock", Grace: -1}).Validate(), []string{"--owner", "--docker-socket", "--image", "--stop-grace"}},
		{(&ProcessConfig{Grace: 2 * time.Hour}).Validate(), []string{"--owner", "--command", "--state", "--stop-grace"}},
	} {
		for _, flag := range c.flags {
			if c.err == nil || !strings.Contains(c.err.Error(), flag+":") {
				t.Errorf("%s is not among %v", flag, c.err)
			}
		}
	}
}
