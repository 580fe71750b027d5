package store

import (
	"context"
	"errors"
)

// An Answer is what is known about an ability.
type Answer string

// The answers. The zero Answer has not been asked for.
const (
	Yes     Answer = "yes"
	No      Answer = "no"
	Unknown Answer = "unknown" // the question was refused, or the reply made no sense
)

// Capabilities are what a destination was found to do. Nothing depends on any of
// them for correctness: they say how well a destination guards what it was given.
type Capabilities struct {
	// Put, Get and List say what the credentials may do. A writer that cannot
	// Get cannot have the past read through it.
	Put  Answer `json:"put"`
	Get  Answer `json:"get"`
	List Answer `json:"list"`
	// ConditionalPut: of many who put one key at once, exactly one succeeds.
	ConditionalPut Answer `json:"conditional_put"`
	// Range: a part of an object can be read without the rest.
	Range Answer `json:"range"`
	// ObjectLock is "none", "enabled" without a default retention, or the default
	// retention, such as "compliance 30d"; "unknown" if that is not said.
	ObjectLock string `json:"object_lock"`
	// Versioning is "enabled", "suspended", "off" or "unknown".
	Versioning string `json:"versioning"`
	// Detail says why an answer is what it is, where that is not plain.
	Detail []string `json:"detail,omitempty"`
}

// A Prober finds out what a destination can do. Probing stores one object of a
// few dozen bytes whose key starts with prefix and a slash and ends in the
// SHA-256 of its content. It stays there, since nothing is ever deleted.
type Prober interface {
	Probe(ctx context.Context, prefix string) (Capabilities, error)
}

var errNoProbe = errors.New("this kind of destination cannot be probed")

// Probe finds out what s, or the store that it wraps, can do. See [Prober] for
// what that leaves behind.
func Probe(ctx context.Context, s Store, prefix string) (Capabilities, error) {
	for inner := s; ; {
		if p, ok := inner.(Prober); ok {
			return p.Probe(ctx, prefix)
		}
		w, ok := inner.(interface{ Unwrap() Store })
		if !ok {
			return Capabilities{}, &Error{Op: "probe", At: s.String(), Err: errNoProbe}
		}
		inner = w.Unwrap()
	}
}
