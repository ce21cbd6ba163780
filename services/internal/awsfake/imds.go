package awsfake

import (
	"crypto/rand"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// IMDS returns the metadata service of one instance, version 2: every answer
// needs a token. An id that does not exist gives answers of 404.
func (e *EC2) IMDS(id string) http.Handler {
	var mu sync.Mutex
	tokens := map[string]time.Time{}
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /latest/api/token", func(w http.ResponseWriter, r *http.Request) {
		ttl, err := strconv.Atoi(r.Header.Get("X-Aws-Ec2-Metadata-Token-Ttl-Seconds"))
		if err != nil || ttl < 1 || ttl > 21600 || r.Header.Get("X-Forwarded-For") != "" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		token := rand.Text()
		mu.Lock()
		tokens[token] = time.Now().Add(time.Duration(ttl) * time.Second)
		mu.Unlock()
		w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", strconv.Itoa(ttl))
		_, _ = w.Write([]byte(token))
	})
	mux.HandleFunc("GET /latest/", func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		valid := time.Now().Before(tokens[r.Header.Get("X-Aws-Ec2-Metadata-Token")])
		mu.Unlock()
		if !valid {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		text, found := e.metadata(id, strings.TrimPrefix(r.URL.Path, "/latest/"))
		if !found {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "text/plain")
		_, _ = w.Write([]byte(text))
	})
	return mux
}

func (e *EC2) metadata(id, path string) (string, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, r := range e.regions {
		for _, i := range r.instances {
			if i.ID == id {
				return i.item(path)
			}
		}
	}
	return "", false
}

func (i *ec2Instance) item(path string) (string, bool) {
	switch path {
	case "meta-data/instance-id":
		return i.ID, true
	case "meta-data/instance-type":
		return i.Type, true
	case "meta-data/ami-launch-index":
		return strconv.Itoa(i.LaunchIndex), true
	case "meta-data/local-ipv4":
		return i.Private.String(), true
	case "meta-data/public-ipv4":
		return i.Public.String(), true
	case "meta-data/placement/region":
		return i.Region, true
	case "meta-data/placement/availability-zone":
		return i.Zone, true
	case "user-data":
		return i.UserData, i.UserData != ""
	case "dynamic/instance-identity/document":
		data, err := json.Marshal(map[string]any{
			"accountId": "123456789012", "architecture": "x86_64", "availabilityZone": i.Zone, "imageId": i.Image, "instanceId": i.ID,
			"instanceType": i.Type, "pendingTime": i.Launched.Format(time.RFC3339), "privateIp": i.Private.String(), "region": i.Region, "version": "2017-09-30",
		})
		return string(data), err == nil
	}
	return "", false
}
