// Package clickhouse holds the database's schema: the table every event goes
// to and the views every report reads. Files NNNN_verb_noun.sql are applied in
// order, each once; a change is a new file. Views are created with OR REPLACE,
// so that a later file can widen one.
package clickhouse

import "embed"

// Migrations are the files, at the root.
//
//go:embed *.sql
var Migrations embed.FS
