package autoscaler

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/transferlab/transferlab/bus"
	"github.com/transferlab/transferlab/services/autoscaler/scale"
)

// manifest is what the two have in common, and their own.
type manifest struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string
	Metadata   struct{ Name, Namespace string }
	Spec       struct {
		ScaleTargetRef struct {
			APIVersion string `yaml:"apiVersion"`
			Kind, Name string
		} `yaml:"scaleTargetRef"`
		MinReplicaCount int `yaml:"minReplicaCount"`
		MaxReplicaCount int `yaml:"maxReplicaCount"`
		PollingInterval int `yaml:"pollingInterval"`
		CooldownPeriod  int `yaml:"cooldownPeriod"`
		Advanced        any
		Triggers        []struct {
			Type     string
			Metadata map[string]string
		}
		MinReplicas int `yaml:"minReplicas"`
		MaxReplicas int `yaml:"maxReplicas"`
		Metrics     []struct {
			Type     string
			External struct {
				Metric struct {
					Name     string
					Selector struct {
						MatchLabels map[string]string `yaml:"matchLabels"`
					}
				}
				Target struct {
					Type         string
					AverageValue string `yaml:"averageValue"`
				}
			}
		}
		Behavior any
	}
}

func readManifest(t *testing.T, name string) (m manifest, text string) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "..", "compose", "kubernetes", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.UnmarshalWithOptions(data, &m, yaml.Strict()); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return m, string(data)
}

// The manifests name the stream and the consumer that the bus has, and the cap that
// the autoscaler has.
func TestManifests(t *testing.T) {
	k, _ := readManifest(t, "keda-scaledobject.yaml")
	if k.APIVersion != "keda.sh/v1alpha1" || k.Kind != "ScaledObject" || len(k.Spec.Triggers) != 1 {
		t.Fatalf("%+v", k)
	}
	trigger := k.Spec.Triggers[0]
	if trigger.Type != "nats-jetstream" || trigger.Metadata["stream"] != bus.StreamClips || trigger.Metadata["consumer"] != bus.ConsumerDetectors {
		t.Errorf("trigger %+v", trigger)
	}
	for _, required := range []string{"natsServerMonitoringEndpoint", "account", "lagThreshold"} {
		if trigger.Metadata[required] == "" {
			t.Errorf("trigger without %s", required)
		}
	}
	h, text := readManifest(t, "hpa.yaml")
	if h.APIVersion != "autoscaling/v2" || h.Kind != "HorizontalPodAutoscaler" || len(h.Spec.Metrics) != 1 {
		t.Fatalf("%+v", h)
	}
	metric := h.Spec.Metrics[0]
	labels := metric.External.Metric.Selector.MatchLabels
	if metric.Type != "External" || metric.External.Target.Type != "AverageValue" || metric.External.Target.AverageValue == "" ||
		labels["stream_name"] != bus.StreamClips || labels["consumer_name"] != bus.ConsumerDetectors {
		t.Errorf("metric %+v", metric)
	}
	if strings.Count(text, `stream_name="`+bus.StreamClips+`",consumer_name="`+bus.ConsumerDetectors+`"`) != 3 {
		t.Error("the adapter's rule names another stream or consumer")
	}
	most := scale.DefaultPolicy().Cap
	if k.Spec.MaxReplicaCount != most || h.Spec.MaxReplicas != most || k.Spec.MinReplicaCount != 0 || h.Spec.MinReplicas != 1 {
		t.Errorf("KEDA %d to %d, HPA %d to %d, want the cap %d", k.Spec.MinReplicaCount, k.Spec.MaxReplicaCount, h.Spec.MinReplicas, h.Spec.MaxReplicas, most)
	}
	if k.Spec.ScaleTargetRef.Name != h.Spec.ScaleTargetRef.Name || k.Metadata != h.Metadata {
		t.Error("the two scale different Deployments")
	}
}
