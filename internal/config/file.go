package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
)

// Path returns the path of the configuration file: flag, if it is not empty; else
// what SECRATE_CONFIG says; else /etc/secrate/config.toml for root, and
// secrate/config.toml below XDG_CONFIG_HOME (~/.config) for others.
func Path(flag string) (string, error) {
	return systemPlaces().config(flag)
}

// StateDir returns the path of the directory for catalog, keys and journal: what
// SECRATE_STATE says; else /var/lib/secrate for root, and secrate below
// XDG_STATE_HOME (~/.local/state) for others.
func StateDir() (string, error) {
	return systemPlaces().state()
}

// places is what the paths are worked out from.
type places struct {
	root   bool
	home   func() (string, error)
	getenv func(string) string
}

func systemPlaces() places {
	return places{root: os.Geteuid() == 0, home: os.UserHomeDir, getenv: os.Getenv}
}

func (p places) config(flag string) (string, error) {
	if flag != "" {
		return filepath.Abs(flag)
	}
	if v := p.getenv("SECRATE_CONFIG"); v != "" {
		return filepath.Abs(v)
	}
	if p.root {
		return "/etc/secrate/config.toml", nil
	}
	dir, err := p.xdg("XDG_CONFIG_HOME", ".config")
	if err != nil {
		return "", fmt.Errorf("no place for the configuration, set SECRATE_CONFIG: %w", err)
	}
	return filepath.Join(dir, "secrate", "config.toml"), nil
}

func (p places) state() (string, error) {
	if v := p.getenv("SECRATE_STATE"); v != "" {
		return filepath.Abs(v)
	}
	if p.root {
		return "/var/lib/secrate", nil
	}
	dir, err := p.xdg("XDG_STATE_HOME", ".local/state")
	if err != nil {
		return "", fmt.Errorf("no place for the state, set SECRATE_STATE: %w", err)
	}
	return filepath.Join(dir, "secrate"), nil
}

// xdg returns what variable says, which only counts when it is absolute (XDG base
// directory specification), or below in the home directory.
func (p places) xdg(variable, below string) (string, error) {
	if v := p.getenv(variable); filepath.IsAbs(v) {
		return v, nil
	}
	home, err := p.home()
	if err != nil {
		return "", err
	}
	return filepath.Join(home, below), nil
}

// Load reads the configuration file at path. The error wraps [fs.ErrNotExist]
// when there is none, is a [*ModeError] or an [*OwnerError] when others may have
// written it, and else joins [*Error]s.
func Load(path string) (*Config, error) {
	text, err := ReadSecretFile(path)
	if err != nil {
		return nil, err
	}
	return Parse(path, text)
}

// Create writes c to a new file at path, and the directory if there is none. The
// error wraps [fs.ErrExist] when there is a file already: it is left alone.
func Create(path string, c *Config) error {
	for _, s := range c.Sources {
		if err := writable(s); err != nil {
			return err
		}
	}
	var b bytes.Buffer
	b.WriteString("# Configuration of secrate. An unknown key is an error.\n\n")
	enc := toml.NewEncoder(&b)
	enc.Indent = ""
	if err := enc.Encode(c.tables()); err != nil {
		return err
	}
	if err := reads(path, b.Bytes(), c); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return writeFile(path, b.Bytes(), true)
}

// AddSource appends s to the file at path and returns what the file says then. The
// rest of the text stays as it is. Whoever calls it makes sure that nobody else
// edits the file meanwhile.
func AddSource(path string, s Source) (*Config, error) {
	return edit(path, func(text []byte, c *Config, _ layout) ([]byte, *Config, error) {
		if old, err := c.Source(s.Name); err == nil {
			return nil, nil, fmt.Errorf("%s: there is a source named %s already: %w", path, old.Name, fs.ErrExist)
		}
		if err := s.Check(); err != nil {
			return nil, nil, err
		}
		if err := writable(s); err != nil {
			return nil, nil, err
		}
		var b bytes.Buffer
		b.Write(text)
		if len(text) > 0 {
			if text[len(text)-1] != '\n' {
				b.WriteByte('\n')
			}
			b.WriteByte('\n')
		}
		enc := toml.NewEncoder(&b)
		enc.Indent = ""
		if err := enc.Encode(Config{Sources: []Source{s}}.onlySources()); err != nil {
			return nil, nil, err
		}
		after := *c
		after.Sources = append(c.Sources[:len(c.Sources):len(c.Sources)], s)
		return b.Bytes(), &after, nil
	})
}

// RemoveSource takes the block of the source called name out of the file at path
// and returns what the file says then. Comments before and after the block stay.
// The error is an [*UnknownSourceError] when there is no such source.
func RemoveSource(path, name string) (*Config, error) {
	return edit(path, func(text []byte, c *Config, l layout) ([]byte, *Config, error) {
		if _, err := c.Source(name); err != nil {
			return nil, nil, err
		}
		after := *c
		after.Sources = nil
		n := -1
		for i, s := range c.Sources {
			if s.Name == name {
				n = i
			} else {
				after.Sources = append(after.Sources, s)
			}
		}
		start, end, ok := l.block(text, "source", n)
		if !ok {
			return nil, nil, &Error{File: path, Line: l.line("source", n, "name"), Key: "source", Msg: "is written as a list of inline tables; take it out with an editor"}
		}
		before, rest := text[:start], text[end:]
		// One of the blank lines around the block goes with it.
		if len(before) == 0 || bytes.HasSuffix(before, []byte("\n\n")) || bytes.HasSuffix(before, []byte("\n\r\n")) {
			switch {
			case bytes.HasPrefix(rest, []byte("\n")):
				rest = rest[1:]
			case bytes.HasPrefix(rest, []byte("\r\n")):
				rest = rest[2:]
			case len(rest) == 0:
				before = bytes.TrimSuffix(bytes.TrimSuffix(before, []byte("\n")), []byte("\r"))
			}
		}
		return append(before[:len(before):len(before)], rest...), &after, nil
	})
}

// tables is what the encoder makes the whole file of, without the header of a table in
// which there is nothing: a struct with a list in it never looks empty to it.
func (c *Config) tables() any {
	t := struct {
		Repository Repository `toml:"repository"`
		Upload     *Upload    `toml:"upload,omitempty"`
		Prices     Prices     `toml:"prices,omitempty"`
		Daemon     Daemon     `toml:"daemon,omitempty"`
		Sources    []Source   `toml:"source,omitempty"`
	}{c.Repository, &c.Upload, c.Prices, c.Daemon, c.Sources}
	if reflect.ValueOf(c.Upload).IsZero() {
		t.Upload = nil
	}
	return t
}

// onlySources is what the encoder makes blocks of sources and nothing else of.
func (c Config) onlySources() any {
	return struct {
		Sources []Source `toml:"source"`
	}{c.Sources}
}

// writable returns an error if s cannot be said in TOML, which is UTF-8.
func writable(s Source) error {
	for _, v := range slices.Concat([]string{s.Path, s.Snapshots, s.Dataset, s.Before, s.After, s.Ping}, s.Adopt, s.Exclude, s.ExcludeFiles) {
		if !utf8.ValidString(v) {
			return fmt.Errorf("source %s: %q is not UTF-8 and cannot stand in the configuration", s.Name, v)
		}
	}
	return nil
}

// edit changes the file at path. The new text replaces the old one only if it
// reads as what change says that it should.
func edit(path string, change func(text []byte, c *Config, l layout) ([]byte, *Config, error)) (*Config, error) {
	// The file behind a link is written, not the link replaced.
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}
	text, err := ReadSecretFile(real)
	if err != nil {
		return nil, err
	}
	c, l, err := parse(path, text)
	if err != nil {
		return nil, err
	}
	text, want, err := change(text, c, l)
	if err != nil {
		return nil, err
	}
	if err := reads(path, text, want); err != nil {
		return nil, err
	}
	if err := writeFile(real, text, false); err != nil {
		return nil, err
	}
	return want, nil
}

// reads returns an error unless text says what want does.
func reads(path string, text []byte, want *Config) error {
	got, err := Parse(path, text)
	if err != nil {
		return fmt.Errorf("left unchanged, the new text would be wrong: %w", err)
	}
	if !equal(got, want) {
		return fmt.Errorf("%s: left unchanged, the new text would not say what it should; edit it by hand", path)
	}
	return nil
}

func equal(a, b *Config) bool {
	if a.Upload.Limit != b.Upload.Limit || a.Upload.Parallel != b.Upload.Parallel || !slices.Equal(a.Upload.Limits, b.Upload.Limits) ||
		a.Prices != b.Prices || a.Daemon != b.Daemon || a.Repository.URL != b.Repository.URL ||
		!sameList(a.Repository.Recipients, b.Repository.Recipients) || len(a.Sources) != len(b.Sources) {
		return false
	}
	for i, s := range a.Sources {
		t := b.Sources[i]
		if !sameList(s.Exclude, t.Exclude) || !sameList(s.Adopt, t.Adopt) || !sameList(s.ExcludeFiles, t.ExcludeFiles) {
			return false
		}
		s.Exclude, t.Exclude, s.Adopt, t.Adopt = nil, nil, nil, nil
		s.ExcludeFiles, t.ExcludeFiles = nil, nil
		if !reflect.DeepEqual(s, t) {
			return false
		}
	}
	return true
}

// sameList compares lists; an empty one may be nil.
func sameList(a, b []string) bool {
	return len(a) == 0 && len(b) == 0 || reflect.DeepEqual(a, b)
}

// writeFile makes text the content of path, mode 0600. After a crash there is the
// old file or the new one, and perhaps a temporary one that nothing reads.
func writeFile(path string, text []byte, create bool) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
		// Of no use any more: renamed, linked to its name, or failed.
		if rmErr := os.Remove(f.Name()); err == nil && rmErr != nil && !errors.Is(rmErr, fs.ErrNotExist) {
			err = rmErr
		}
	}()
	if _, err := f.Write(text); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if create {
		// Unlike a rename, a link does not replace what was made meanwhile.
		err := os.Link(f.Name(), path)
		if errors.Is(err, fs.ErrExist) {
			return &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist}
		}
		if err != nil {
			// A file system without links, such as a USB stick's.
			err = writeNew(path, text)
		}
		if err != nil {
			return err
		}
	} else if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// writeNew writes a new file in place. A crash leaves part of it behind.
func writeNew(path string, text []byte) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(path)
		}
	}()
	if _, err := f.Write(text); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return f.Close()
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
