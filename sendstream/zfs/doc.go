// Package zfs reads ZFS send streams: their records and what these carry.
//
// A send stream is a sequence of replay records. A record is a 312-byte header in
// the byte order of the host that sent it, then a payload whose length follows
// from fields of the header:
//
//	+----------+-----------------+--------------+----------+--- ... ---+
//	| type (4) | payload len (4) | by type (272)| sum (32) | payload   |
//	+----------+-----------------+--------------+----------+--- ... ---+
//
// The length at offset 4 is BEGIN's alone. BEGIN has no sum: the snapshot's name
// fills its place. A sum is the Fletcher-4 of all before it, from BEGIN on; END
// says again what the sum was in front of it. Senders before 2014 leave all but
// END's zero.
//
// Records between BEGIN and END make one snapshot. Several come in a package:
//
//	input     := stream+
//	stream    := substream | package
//	substream := BEGIN record* END
//	package   := BEGIN END substream* END
//
// A [Reader] yields records. It checks every sum, believes no length it has not
// bounded, and hands out a record only when the next header's sum has proven its
// payload. It reads all that is framed as a stream, be it of use or not. [Units]
// splits an input into substreams and refuses those whose files cannot be had:
// raw, redacted and deduplicated ones. A [Decoder] gives the plain bytes of a
// payload.
//
// What objects, bonus buffers and blocks mean is package zpl's.
package zfs
