package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"
	"unicode/utf8"

	"github.com/secrate/secrate/internal/progress"
	"github.com/secrate/secrate/internal/when"
	"github.com/secrate/secrate/s3history"
)

// A snapshotObject is what --json says of a snapshot.
type snapshotObject struct {
	Source        string `json:"source"`
	Seq           uint64 `json:"seq"`
	Time          string `json:"time"`
	Origin        string `json:"origin"`
	UploadedBytes int64  `json:"uploaded_bytes"`
	Objects       int    `json:"objects"`
	FilesChanged  uint64 `json:"files_changed"`
	Partial       bool   `json:"partial,omitempty"`
	Writer        string `json:"writer,omitempty"` // where several are asked
}

func objectOf(s s3history.Snapshot) snapshotObject {
	return snapshotObject{Source: s.Source, Seq: s.Seq, Time: when.FormatTime(s.Info.Time.Time()), Origin: s.Info.Origin,
		UploadedBytes: s.Uploaded, Objects: s.Objects, FilesChanged: s.Files, Partial: s.Partial}
}

// writeJSON writes one object a line.
func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// partial marks a snapshot that is not all there.
func partial(s s3history.Snapshot) string {
	if s.Partial {
		return " (partial)"
	}
	return ""
}

// uploaded says what a snapshot cost.
func uploaded(s s3history.Snapshot) string {
	return fmt.Sprintf("%s changed, %s uploaded in %s", count(s.Files, "file"), progress.Size(s.Uploaded), count(s.Objects, "object"))
}

// localTime is a time for people.
func localTime(t time.Time) string { return when.FormatLocal(t, time.Local) }

// A namer writes names: on a terminal so that they do no harm there, elsewhere byte
// for byte.
type namer bool

func namerFor(w io.Writer) namer { return namer(progress.IsTerminal(w)) }

func (n namer) name(s string) string {
	if n {
		return progress.Printable(s)
	}
	return s
}

// jsonName returns a name for a JSON object, and its bytes in base64 where it is no
// text.
func jsonName(s string) (text, bytes string) {
	if !utf8.ValidString(s) {
		bytes = base64.StdEncoding.EncodeToString([]byte(s))
	}
	return s, bytes
}

// hostname is the name of this machine, or what comes nearest to it.
func hostname() string {
	if name, err := os.Hostname(); err == nil && name != "" {
		return name
	}
	return "unnamed"
}
