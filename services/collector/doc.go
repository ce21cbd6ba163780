// Package collector moves events from the bus to the database, each exactly
// once.
//
// It consumes the stream EVENTS as its only reader: batches of events, a block
// of ClickHouse's Native format or lines of JSONEachRow. What does not hold up
// goes to the stream DEAD with the reason and holds up nothing else. It
// publishes no messages of its own; its position is the document `events` of
// the bucket COLLECTOR.
//
// How exactly once comes about: before the collector inserts messages from..to
// it writes this intent, with a token made of the stream's identity and the
// range, into its position. After the database has confirmed, the position
// moves. Whatever happens between the two (the process, the database or the
// machine is killed, an answer is lost), the next start finds the open intent
// and inserts exactly these messages again under the same token, and the
// database ignores what it has already stored under it. (A database that was
// killed itself may have kept the events and not the token, or the other way
// round; a repetition therefore looks whether the events are there.) The
// position is written by compare-and-set: of two collectors the one that started
// last works and the other stands by until that one falls silent.
//
// Any language can produce events: publish to events.batch.v1.<service>, with a
// Nats-Msg-Id of its own for each batch, the header Transferlab-Format: JSONEachRow
// (or Native) and lines such as
//
//	{"ts":"2026-03-01T10:00:00.000000001Z","workload":"s3","service":"mine","kind":"request","status":"ok","duration_ns":1200000,"attrs":{"bucket":"b"},"producer":"mine/1","seq":1}
//
// The columns are those of schemas.EventColumns; ts, workload, service, kind,
// status, producer and seq must be there. seq starts at 1 for every producer and
// rises by one: the view `integrity` shows what is missing or there twice. With
// the header Transferlab-Encoding: s2 the batch is one block of S2 or Snappy.
//
// The database may be away for any time: the collector keeps at most
// Config.Lanes+1 inserts in memory and tries again; the stream fills and refuses
// producers in the end, who block and show it as lag. Nothing is dropped.
package collector
