package decide

import (
	"testing"
	"time"

	"github.com/transferlab/transferlab/schemas"
)

const s = time.Second

func lab(waiting, inWork, slots int, service time.Duration) *schemas.OffloadState {
	return &schemas.OffloadState{Waiting: waiting, InWork: inWork, Slots: slots, Service: service}
}

func TestPolicies(t *testing.T) {
	for _, c := range []struct {
		name, policy string
		in           Situation
		want         string
	}{
		{"source, free", schemas.PolicySource, Situation{Slots: 1}, schemas.WhereEdge},
		{"source, busy", schemas.PolicySource, Situation{Slots: 1, Busy: 1}, schemas.WhereCloud},
		{"source, one of two slots", schemas.PolicySource, Situation{Slots: 2, Busy: 1}, schemas.WhereEdge},
		{"overflow without a queue", schemas.PolicyOverflow, Situation{Slots: 1, Busy: 1}, schemas.WhereCloud},
		{"local, busy", schemas.PolicyLocal, Situation{Slots: 1, Busy: 9}, schemas.WhereEdge},
		{"local without a detector", schemas.PolicyLocal, Situation{}, schemas.WhereCloud},
		{"cloud, free", schemas.PolicyCloud, Situation{Slots: 1}, schemas.WhereCloud},
		{"adaptive, offline", schemas.PolicyAdaptive, Situation{Slots: 1, Busy: 5, Service: s}, schemas.WhereEdge},
		{"adaptive, nothing known, free", schemas.PolicyAdaptive, Situation{Slots: 1, Online: true}, schemas.WhereEdge},
		{"adaptive, nothing known, busy", schemas.PolicyAdaptive, Situation{Slots: 1, Busy: 1, Online: true, Lab: lab(0, 0, 1, 0)}, schemas.WhereCloud},
		{"adaptive, nothing known, both busy", schemas.PolicyAdaptive, Situation{Slots: 1, Busy: 1, Sent: 2, Online: true, Lab: lab(0, 0, 1, 0)}, schemas.WhereEdge},
		{"adaptive, no detector", schemas.PolicyAdaptive, Situation{Slots: 1, Busy: 3, Online: true, Lab: lab(0, 0, 0, 0), Service: s}, schemas.WhereEdge},
		{"adaptive, fast lab", schemas.PolicyAdaptive, Situation{Slots: 1, Online: true, Lab: lab(0, 0, 1, s), Upload: s, Service: 4 * s}, schemas.WhereCloud},
		{"adaptive, slow way", schemas.PolicyAdaptive, Situation{Slots: 1, Online: true, Lab: lab(0, 0, 1, s), Upload: 9 * s, Service: 4 * s}, schemas.WhereEdge},
		{"adaptive, long queue", schemas.PolicyAdaptive, Situation{Slots: 1, Online: true, Lab: lab(6, 1, 1, s), Upload: s, Service: 4 * s}, schemas.WhereEdge},
		{"adaptive, both alike", schemas.PolicyAdaptive, Situation{Slots: 1, Online: true, Lab: lab(0, 0, 1, s), Upload: s, Service: 2 * s}, schemas.WhereEdge},
	} {
		if got := By(c.policy, c.in); got.Where != c.want || got.Reason == "" {
			t.Errorf("%s: %+v, want %s", c.name, got, c.want)
		}
	}
}

func TestPredictions(t *testing.T) {
	for _, c := range []struct {
		name        string
		in          Situation
		edge, cloud time.Duration
	}{
		{"nothing known", Situation{Slots: 1}, 0, 0},
		{"free", Situation{Slots: 1, Service: 4 * s, RTT: s, Upload: 2 * s, Lab: lab(0, 0, 1, s)}, 5 * s, 3 * s},
		{"one in work for 1 s", Situation{Slots: 1, Busy: 1, Spent: s, Service: 4 * s}, 7 * s, 0},
		{"in work longer than usual", Situation{Slots: 1, Busy: 1, Spent: 9 * s, Service: 4 * s}, 4 * s, 0},
		{"two slots, three before", Situation{Slots: 2, Busy: 3, Service: 4 * s}, 8 * s, 0},
		{"two slots, four before", Situation{Slots: 2, Busy: 4, Service: 4 * s}, 12 * s, 0},
		{"the queue goes on during the upload", Situation{Slots: 1, Upload: 3 * s, Lab: lab(4, 1, 1, s)}, 0, 3*s + 2*s + s},
		{"those on their way count", Situation{Slots: 1, Upload: 3 * s, Lab: lab(4, 1, 1, s), Sent: 2}, 0, 3*s + 4*s + s},
		{"the edge's time for a lab that has none yet", Situation{Slots: 1, Service: 2 * s, Upload: s, Lab: lab(0, 0, 1, 0)}, 2 * s, 3 * s},
	} {
		if got := By(schemas.PolicyAdaptive, c.in); got.Edge != c.edge || got.Cloud != c.cloud {
			t.Errorf("%s: edge %s, cloud %s; want %s and %s", c.name, got.Edge, got.Cloud, c.edge, c.cloud)
		}
	}
}
