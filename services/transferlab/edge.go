package main

import (
	"context"
	"fmt"
	"os"
	"text/tabwriter"
	"time"
)

// edgeCmd is `transferlab edge`.
type edgeCmd struct {
	Add    edgeAddCmd    `cmd:"" help:"Make an account for an edge and print its token, which is shown this once."`
	List   edgeListCmd   `cmd:"" aliases:"ls" help:"List the accounts of edges."`
	Revoke edgeRevokeCmd `cmd:"" help:"End an edge's account, at once."`
}

type edgeAddCmd struct {
	Name string `arg:"" help:"Of the edge: lower-case letters, digits, hyphens and underscores, at most 63."`
}

func (a *edgeAddCmd) Run(ctx context.Context, c *cli) error {
	s, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	token, err := s.AddEdge(ctx, a.Name)
	if err != nil {
		return err
	}
	if c.JSON {
		return show(os.Stdout, token)
	}
	fmt.Println(token.Token)
	say("this is the token of edge %s; it is not shown again", token.Name)
	return nil
}

type edgeListCmd struct{}

func (edgeListCmd) Run(ctx context.Context, c *cli) error {
	s, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	edges, err := s.Edges(ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return show(os.Stdout, edges)
	}
	at := func(t time.Time) string {
		if t.IsZero() {
			return "-"
		}
		return t.UTC().Format("2006-01-02 15:04:05")
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tCREATED\tSEEN\tREVOKED")
	for _, e := range edges {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", e.Name, at(e.Created), at(e.Seen), at(e.Revoked))
	}
	return w.Flush()
}

type edgeRevokeCmd struct {
	Name string `arg:"" help:"Of the edge."`
}

func (r *edgeRevokeCmd) Run(ctx context.Context, c *cli) error {
	s, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.RevokeEdge(ctx, r.Name); err != nil {
		return err
	}
	say("edge %s may send no more clips", r.Name)
	return nil
}
