package main

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/secrate/secrate/internal/status"
)

// A metric is one that a daemon has for Prometheus. docs/metrics.md lists them.
type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

func newMetric(name, help string, kind prometheus.ValueType, labels ...string) metric {
	return metric{prometheus.NewDesc("secrate_"+name, help, labels, nil), kind}
}

// The metrics. Times are in seconds since 1970.
var (
	metricInfo         = newMetric("info", "1; the version is a label.", prometheus.GaugeValue, "version")
	metricStarted      = newMetric("start_time_seconds", "When the daemon was started.", prometheus.GaugeValue)
	metricProblems     = newMetric("problems", "What is wrong and is of no source: secrate status names it.", prometheus.GaugeValue)
	metricFailing      = newMetric("source_failing", "Whether the last attempt failed: 1 or 0.", prometheus.GaugeValue, "source")
	metricFailingSince = newMetric("source_failing_since_seconds", "Since when it fails, of one that does.", prometheus.GaugeValue, "source")
	metricSuccess      = newMetric("source_last_success_seconds", "When all of it was kept the last time.", prometheus.GaugeValue, "source")
	metricSeq          = newMetric("source_snapshot_number", "The number of the newest snapshot in the history.", prometheus.GaugeValue, "source")
	metricNext         = newMetric("source_next_run_seconds", "When its schedule comes next.", prometheus.GaugeValue, "source")
	metricPending      = newMetric("source_pending_snapshots", "Local snapshots that wait for an upload.", prometheus.GaugeValue, "source")
	metricOldest       = newMetric("source_oldest_unsaved_seconds", "When the oldest change was made that is not stored: a snapshot that waits, or a file that is watched.", prometheus.GaugeValue, "source")
	metricUnread       = newMetric("source_unread_files", "Files that could not be read, or not whole, the last time.", prometheus.GaugeValue, "source")
	metricRuns         = newMetric("source_runs_total", "Attempts to keep it, since the daemon was started.", prometheus.CounterValue, "source")
	metricFailures     = newMetric("source_failures_total", "Those that failed.", prometheus.CounterValue, "source")
	metricSnapshots    = newMetric("source_snapshots_total", "Snapshots that were added to the history.", prometheus.CounterValue, "source")
	metricFiles        = newMetric("source_changed_files_total", "Files that had changed in them.", prometheus.CounterValue, "source")
	metricUploaded     = newMetric("source_uploaded_bytes_total", "Bytes uploaded for them.", prometheus.CounterValue, "source")
	metricWatched      = newMetric("source_watched_directories", "Directories that are watched.", prometheus.GaugeValue, "source")
	metricUnwatched    = newMetric("source_unwatched_directories", "Directories that should be watched and are not.", prometheus.GaugeValue, "source")
	metricChanges      = newMetric("source_waiting_changes", "Names that have changed and are not stored yet.", prometheus.GaugeValue, "source")
	metricHook         = newMetric("source_hook_failed", "Whether the command before or after the last snapshot failed: 1 or 0.", prometheus.GaugeValue, "source", "hook")
	metricVerified     = newMetric("verify_last_success_seconds", "When verifying found all well.", prometheus.GaugeValue)
	metricVerifyFails  = newMetric("verify_failing", "Whether it failed, or found damage, the last time: 1 or 0.", prometheus.GaugeValue)

	metrics = []metric{metricInfo, metricStarted, metricProblems, metricFailing, metricFailingSince, metricSuccess, metricSeq, metricNext, metricPending, metricOldest,
		metricUnread, metricRuns, metricFailures, metricSnapshots, metricFiles, metricUploaded, metricWatched, metricUnwatched, metricChanges, metricHook,
		metricVerified, metricVerifyFails}
)

// Describe implements prometheus.Collector.
func (r *running) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range metrics {
		ch <- m.desc
	}
}

// Collect implements prometheus.Collector. It asks neither the destination nor a file system.
func (r *running) Collect(ch chan<- prometheus.Metric) {
	set := func(m metric, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(m.desc, m.kind, v, labels...)
	}
	setTime := func(m metric, t time.Time, labels ...string) {
		if !t.IsZero() {
			set(m, float64(t.UnixNano())/1e9, labels...)
		}
	}
	o := r.object()
	set(metricInfo, 1, o.Version)
	setTime(metricStarted, r.began)
	set(metricProblems, float64(len(o.Problems)))
	results, err := status.Results(r.current().stateDir)
	if err != nil {
		r.a.log.Warn("results not read", "error", err)
	}
	st := r.d.Status()
	for i := range st.Sources {
		s := &st.Sources[i]
		since, failure := s.Failure()
		set(metricFailing, one(failure != nil), s.Name)
		setTime(metricFailingSince, since, s.Name)
		if ok := results[s.Name].Success; ok != nil {
			setTime(metricSuccess, ok.Time, s.Name)
			set(metricSeq, float64(ok.Seq), s.Name)
		}
		for hook, h := range results[s.Name].Hooks {
			set(metricHook, one(h.Error != ""), s.Name, hook)
		}
		setTime(metricNext, s.Next, s.Name)
		oldest := s.Outcome.Oldest
		if s.Volume {
			set(metricPending, float64(s.Outcome.Pending), s.Name)
		}
		if w := s.Watch; w != nil {
			set(metricWatched, float64(w.Dirs), s.Name)
			set(metricUnwatched, float64(w.Unwatched), s.Name)
			set(metricChanges, float64(w.Waiting), s.Name)
			oldest = w.Oldest
		}
		setTime(metricOldest, oldest, s.Name)
		set(metricUnread, float64(s.Outcome.Unread), s.Name)
		set(metricRuns, float64(s.Total.Runs), s.Name)
		set(metricFailures, float64(s.Total.Failures), s.Name)
		set(metricSnapshots, float64(s.Total.Snapshots), s.Name)
		set(metricFiles, float64(s.Total.Files), s.Name)
		set(metricUploaded, float64(s.Total.Uploaded), s.Name)
	}
	if st.Verifies {
		set(metricVerifyFails, one(st.Verify.Fails > 0))
		if st.Verify.Fails == 0 {
			setTime(metricVerified, st.Verify.Last.Began)
		}
	}
}

func one(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// metricsHandler answers at the address of the configuration.
func (r *running) metricsHandler() http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(r, collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		bad := r.unwell()
		if len(bad) > 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, strings.Join(bad, "\n"))
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux
}

// unwell names what fails. Why is not said: anybody who can reach the address is told.
func (r *running) unwell() []string {
	st := r.d.Status()
	var bad []string
	if !st.Alive() {
		bad = append(bad, "the daemon is stuck")
	}
	for i := range st.Sources {
		if since, err := st.Sources[i].Failure(); err != nil {
			bad = append(bad, fmt.Sprintf("%s fails since %s", st.Sources[i].Name, localTime(since)))
		}
	}
	if st.Verify.Fails > 0 {
		bad = append(bad, "verifying fails")
	}
	return bad
}
