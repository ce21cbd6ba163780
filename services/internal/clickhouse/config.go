package clickhouse

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"text/template"
)

// Names inside Options.Dir.
const (
	configName = "config.xml"
	usersName  = "users.xml"
	storeName  = "store"
	lockName   = "engine.lock"
	logDirName = "log"
	logName    = "engine.log"
)

// serverConfig are the engine's settings. The pools default to a server's
// sizes (hundreds of threads); these suit a laptop, where merges share few
// cores with the load generators that are being measured.
//
// The *_free_entries_in_pool_* values must not exceed the number of merge
// slots, or the engine refuses to start. Statistics for the query planner cost
// a tenth of all inserting and merging, and no report's plan depends on them.
var serverConfig = template.Must(template.New("config").Funcs(template.FuncMap{"x": xmlEscape}).Parse(`<?xml version="1.0"?>
<clickhouse>
    <logger>
        <log>{{x .LogFile}}</log>
        <size>10M</size>
        <count>2</count>
    </logger>
    <users_config>{{x .UsersFile}}</users_config>
    <user_directories><users_xml><path>{{x .UsersFile}}</path></users_xml></user_directories>
    <tmp_path>{{x .Store}}/tmp/</tmp_path>
    <user_files_path>{{x .Store}}/user_files/</user_files_path>
    <format_schema_path>{{x .Store}}/format_schemas/</format_schema_path>
    <default_profile>default</default_profile>
    <access_control_improvements>
        <select_from_system_db_requires_grant>true</select_from_system_db_requires_grant>
        <select_from_information_schema_requires_grant>true</select_from_information_schema_requires_grant>
        <table_engines_require_grant>true</table_engines_require_grant>
    </access_control_improvements>
    {{if .MemoryLimit}}<max_server_memory_usage>{{.MemoryLimit}}</max_server_memory_usage>
    {{else}}<max_server_memory_usage_to_ram_ratio>0.5</max_server_memory_usage_to_ram_ratio>
    {{end}}<mark_cache_size>268435456</mark_cache_size>
    <uncompressed_cache_size>0</uncompressed_cache_size>
    <max_connections>1024</max_connections>
    <max_concurrent_queries>128</max_concurrent_queries>
    <keep_alive_timeout>60</keep_alive_timeout>
    <max_thread_pool_size>1000</max_thread_pool_size>
    <background_pool_size>{{.MergeThreads}}</background_pool_size>
    <background_merges_mutations_concurrency_ratio>2</background_merges_mutations_concurrency_ratio>
    <background_move_pool_size>1</background_move_pool_size>
    <background_fetches_pool_size>1</background_fetches_pool_size>
    <background_common_pool_size>2</background_common_pool_size>
    <background_buffer_flush_schedule_pool_size>1</background_buffer_flush_schedule_pool_size>
    <background_schedule_pool_size>8</background_schedule_pool_size>
    <background_message_broker_schedule_pool_size>1</background_message_broker_schedule_pool_size>
    <background_distributed_schedule_pool_size>1</background_distributed_schedule_pool_size>
    <asynchronous_metrics_update_period_s>15</asynchronous_metrics_update_period_s>
    <async_insert_threads>1</async_insert_threads>
    <send_crash_reports><enabled>false</enabled></send_crash_reports>
    <merge_tree>
        <auto_statistics_types></auto_statistics_types>
        <number_of_free_entries_in_pool_to_lower_max_size_of_merge>1</number_of_free_entries_in_pool_to_lower_max_size_of_merge>
        <number_of_free_entries_in_pool_to_execute_mutation>1</number_of_free_entries_in_pool_to_execute_mutation>
        <number_of_free_entries_in_pool_to_execute_optimize_entire_partition>1</number_of_free_entries_in_pool_to_execute_optimize_entire_partition>
    </merge_tree>
</clickhouse>
`))

// usersConfig are the engine's users. default is the engine's own local
// session: it has no password and cannot be removed. It may open the ports and
// nothing else, and the local session, which begins before the ports are open
// and lasts as long as the engine, is the only one the user may have, so that
// nobody can be default over the network. Its profile is its own, because every user
// inherits the one named default.
//
// lab owns the database, with engines and sources that stay inside it.
// readonly=2 lets reader change settings (clients need that), the constraints
// keep those it could hurt the lab with where they are. It could leave its
// profile, and the constraints with it, by setting another one: that is why the
// others state max_execution_time, which the constraints forbid. It has no
// source grants, so file(), url(), s3(), remote() and the like are refused.
var usersConfig = template.Must(template.New("users").Funcs(template.FuncMap{"x": xmlEscape}).Parse(`<?xml version="1.0"?>
<clickhouse>
    <profiles>
        <default>
            <async_insert>0</async_insert>
            <log_queries>0</log_queries>
            <query_profiler_real_time_period_ns>0</query_profiler_real_time_period_ns>
            <query_profiler_cpu_time_period_ns>0</query_profiler_cpu_time_period_ns>
            <memory_profiler_step>0</memory_profiler_step>
            <max_execution_time>0</max_execution_time>
            <compile_expressions>0</compile_expressions>
        </default>
        <engine>
            <max_execution_time>0</max_execution_time>
            <max_sessions_for_user>1</max_sessions_for_user>
            <constraints><max_sessions_for_user><const/></max_sessions_for_user></constraints>
        </engine>
        <reader>
            <readonly>2</readonly>
            <compile_expressions>0</compile_expressions>
            <allow_ddl>0</allow_ddl>
            <max_execution_time>{{.Reader.MaxSeconds}}</max_execution_time>
            <max_memory_usage>{{.Reader.MaxMemoryBytes}}</max_memory_usage>
            <max_result_rows>{{.Reader.MaxResultRows}}</max_result_rows>
            <max_result_bytes>{{.Reader.MaxResultBytes}}</max_result_bytes>
            <result_overflow_mode>throw</result_overflow_mode>
            <max_concurrent_queries_for_user>16</max_concurrent_queries_for_user>
            <constraints>
                <allow_ddl><const/></allow_ddl>
                <max_execution_time><min>1</min><max>{{.Reader.MaxSeconds}}</max></max_execution_time>
                <max_memory_usage><min>1</min><max>{{.Reader.MaxMemoryBytes}}</max></max_memory_usage>
                <max_result_rows><min>1</min><max>{{.Reader.MaxResultRows}}</max></max_result_rows>
                <max_result_bytes><min>1</min><max>{{.Reader.MaxResultBytes}}</max></max_result_bytes>
                <timeout_overflow_mode><const/></timeout_overflow_mode>
                <max_concurrent_queries_for_user><const/></max_concurrent_queries_for_user>
            </constraints>
        </reader>
    </profiles>
    <quotas><default/></quotas>
    <users>
        <default>
            <password></password>
            <networks><ip>127.0.0.1</ip></networks>
            <profile>engine</profile>
            <quota>default</quota>
            <grants><query>GRANT SYSTEM LISTEN ON *.*</query></grants>
        </default>
        <{{.LabUser}}>
            <password_sha256_hex>{{.LabHash}}</password_sha256_hex>
            <networks>{{.Networks}}</networks>
            <profile>default</profile>
            <quota>default</quota>
            <grants>
                <query>GRANT {{.LabRights}} ON {{.Database}}.*</query>
                {{- range .LabEngines}}
                <query>GRANT TABLE ENGINE ON {{.}}</query>
                {{- end}}
                <query>GRANT SELECT ON system.*</query>
                <query>GRANT SELECT ON information_schema.*</query>
                <query>GRANT SELECT ON INFORMATION_SCHEMA.*</query>
                <query>GRANT SHOW ON *.*</query>
                <query>GRANT CREATE TEMPORARY TABLE, KILL QUERY, SYSTEM DROP CACHE ON *.*</query>
            </grants>
        </{{.LabUser}}>
        <{{.ReaderUser}}>
            <password_sha256_hex>{{.ReaderHash}}</password_sha256_hex>
            <networks>{{.Networks}}</networks>
            <profile>reader</profile>
            <quota>default</quota>
            <grants>
                <query>GRANT SELECT, SHOW ON {{.Database}}.*</query>
                {{- range .ReaderTables}}
                <query>GRANT SELECT ON {{.}}</query>
                {{- end}}
            </grants>
        </{{.ReaderUser}}>
    </users>
</clickhouse>
`))

// labRights are all rights on the database but those on dictionaries, whose
// sources can run programs and open connections, and backups, which write
// anywhere.
const labRights = "SHOW, SELECT, INSERT, ALTER, CREATE DATABASE, CREATE TABLE, CREATE VIEW, " +
	"DROP DATABASE, DROP TABLE, DROP VIEW, UNDROP TABLE, TRUNCATE, OPTIMIZE, CHECK, dictGet, " +
	"SYSTEM MERGES, SYSTEM TTL MERGES, SYSTEM SYNC REPLICA, SYSTEM VIEWS"

// labEngines are the table engines that keep their data inside the database.
// Buffer is not among them: it keeps rows in memory that were acknowledged.
var labEngines = []string{
	"MergeTree", "ReplacingMergeTree", "SummingMergeTree", "AggregatingMergeTree",
	"CollapsingMergeTree", "VersionedCollapsingMergeTree", "CoalescingMergeTree",
	"Memory", "Null", "Merge", "Set", "Join", "Log", "TinyLog", "StripeLog", "GenerateRandom",
}

// readerTables are the system tables that SQL clients ask for their object
// trees and completion, and the ones reports use. What they show is limited to
// what the user may see.
var readerTables = []string{
	"system.one", "system.numbers", "system.numbers_mt", "system.zeros",
	"system.databases", "system.tables", "system.columns", "system.parts", "system.parts_columns",
	"system.data_skipping_indices", "system.dictionaries",
	"system.functions", "system.formats", "system.table_functions", "system.table_engines",
	"system.data_type_families", "system.keywords", "system.completions",
	"system.settings", "system.build_options", "system.time_zones", "system.collations",
	"system.metrics", "system.events", "system.asynchronous_metrics",
	"information_schema.*", "INFORMATION_SCHEMA.*",
}

// ReaderLimits bound one query of the reader.
type ReaderLimits struct {
	MaxSeconds     int   // execution time in seconds
	MaxMemoryBytes int64 // working memory
	MaxResultRows  int64 // rows of the answer
	MaxResultBytes int64 // uncompressed bytes of the answer
}

// DefaultReaderLimits let a report over tens of millions of events through and
// stop what would take the machine away from a running experiment.
func DefaultReaderLimits() ReaderLimits {
	return ReaderLimits{
		MaxSeconds:     60,
		MaxMemoryBytes: 4 << 30,
		MaxResultRows:  50_000_000,
		MaxResultBytes: 16 << 30,
	}
}

// writeConfig writes the engine's two configuration files, readable by the
// owner only: the users file holds password hashes.
func writeConfig(opt Options) error {
	store := filepath.Join(opt.Dir, storeName)
	for _, dir := range []string{opt.Dir, filepath.Join(opt.Dir, logDirName), store, filepath.Join(store, "tmp"), filepath.Join(store, "user_files"), filepath.Join(store, "format_schemas")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	var server, users bytes.Buffer
	err := serverConfig.Execute(&server, map[string]any{
		"LogFile":      filepath.Join(opt.Dir, logDirName, logName),
		"UsersFile":    filepath.Join(opt.Dir, usersName),
		"Store":        store,
		"MemoryLimit":  opt.MemoryLimit,
		"MergeThreads": max(2, runtime.NumCPU()/2),
	})
	if err != nil {
		return err
	}
	networks := "<ip>127.0.0.1</ip><ip>::1</ip>"
	if !loopback(opt.Host) {
		networks = "<ip>::/0</ip>"
	}
	err = usersConfig.Execute(&users, map[string]any{
		"Networks": networks, "Database": Database, "LabUser": LabUser, "ReaderUser": ReaderUser,
		"LabHash": passwordHash(opt.Credentials.Lab), "ReaderHash": passwordHash(opt.Credentials.Reader),
		"LabRights": labRights, "LabEngines": labEngines,
		"Reader": opt.Reader, "ReaderTables": readerTables,
	})
	if err != nil {
		return err
	}
	for name, content := range map[string]*bytes.Buffer{configName: &server, usersName: &users} {
		if err := writeFileAtomic(filepath.Join(opt.Dir, name), content.Bytes(), 0o600); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return nil
}

func passwordHash(password string) string {
	sum := sha256.Sum256([]byte(password))
	return hex.EncodeToString(sum[:])
}

func xmlEscape(s string) (string, error) {
	var b bytes.Buffer
	err := xml.EscapeText(&b, []byte(s))
	return b.String(), err
}
