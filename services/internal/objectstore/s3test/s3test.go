// Package s3test starts real S3 servers for tests.
package s3test

import (
	"context"
	"testing"
	"time"

	"github.com/transferlab/transferlab/services/internal/objectstore"
	"github.com/transferlab/transferlab/services/internal/objectstore/embedded"
)

// Start runs a server on an empty directory until the test ends.
func Start(t testing.TB, options ...func(*embedded.Options)) *embedded.Server {
	t.Helper()
	credentials := embedded.GenerateCredentials()
	opts := embedded.Options{Dir: t.TempDir(), AccessKey: credentials.AccessKey, SecretKey: credentials.SecretKey}
	for _, option := range options {
		option(&opts)
	}
	s, err := embedded.Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Faults().Clear()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Errorf("close S3 server: %v", err)
		}
	})
	return s
}

// Target is how s is reached.
func Target(s *embedded.Server) objectstore.Target {
	return objectstore.Target{Endpoint: s.Endpoint(), Region: s.Region(), PathStyle: true}
}

// Open returns a client for s, with the given buckets made.
func Open(t testing.TB, s *embedded.Server, buckets ...string) *objectstore.Store {
	t.Helper()
	c := s.Credentials()
	st, err := objectstore.Open(t.Context(), Target(s), objectstore.Static(c.AccessKey, c.SecretKey, ""))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range buckets {
		if err := st.EnsureBucket(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	return st
}
