package main

import (
	"testing"
	"time"

	"github.com/secrate/secrate/internal/config"
)

// TestUploadLimit says which of the limits counts.
func TestUploadLimit(t *testing.T) {
	conf, err := config.Parse("f", []byte("[repository]\nurl = '/r'\n[daemon]\ntime_zone = 'Europe/Berlin'\n[upload]\nlimit = '9 B/s'\nlimits = ['08:00-18:00 2 B/s', 'sun 00:00-24:00 none']\n"))
	if err != nil {
		t.Fatal(err)
	}
	const never = -1
	limit := func(a *app, conf *config.Config, at string) int64 {
		when, err := time.Parse(time.RFC3339, at)
		if err != nil {
			t.Fatal(err)
		}
		always, by := a.uploadLimit(conf)
		if by == nil {
			return always
		}
		if always != 0 {
			return never
		}
		return by(when)
	}
	given, none := config.Rate(5), config.Rate(0)
	plain := &config.Config{Upload: config.Upload{Limit: 9}}
	for _, tt := range []struct {
		name string
		flag *config.Rate
		conf *config.Config
		at   string
		want int64
	}{
		{"in Berlin's day", nil, conf, "2026-06-01T06:30:00Z", 2},
		{"in Berlin's evening", nil, conf, "2026-06-01T16:30:00Z", 9},
		{"on its Sunday", nil, conf, "2026-06-06T22:30:00Z", 0},
		{"the flag", &given, conf, "2026-06-01T06:30:00Z", 5},
		{"the flag says none", &none, conf, "2026-06-01T06:30:00Z", 0},
		{"one limit", nil, plain, "2026-06-01T06:30:00Z", 9},
		{"nothing", nil, &config.Config{}, "2026-06-01T06:30:00Z", 0},
	} {
		if got := limit(&app{limitRate: tt.flag}, tt.conf, tt.at); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}
