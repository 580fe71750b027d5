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
//
// # Applying
//
// [Unit.Apply] brings a unit into a [Tree], the newest state of a history. A stream
// speaks of objects by number, has their data before anything says what they are
// called, and names stand in blocks of directories: an increment brings the blocks
// that changed, and of a file that has lost its name nothing says so but that the
// name is missing in one. So what must be known of the snapshot before is kept
// beside the tree, in rows by key, and changes with it or not at all:
//
//	G                      GUID of the snapshot whose state this is
//	o object               type, generation, node; of extended attributes: whose
//	z object, block        names in a block of a directory, or the block of a table
//	s object               spill block
//	x object               which extended attributes are in a directory of their own
//	d object               value of such an attribute
//
//	    records ──► objects ──► nodes: attributes, content     at once
//	       │                      ▲
//	       └──► blocks, bonuses   │                            kept
//	              │     at END    │
//	              └──► names, attributes that waited           old names go first
//
// A file is its object number and generation (section 3.3): one of the same number
// that was created later is another node, also under the same name, of which no
// directory then says a word. A node is there as long as its object, with a name or
// without: a file that was unlinked while it is open has none, and may get one.
//
// What changed in a directory is the difference between the names that its touched
// blocks had and have; what moved from block to block is in both. All names that go
// go before any come, so that swapped names need no order. Directories are then
// checked to form a tree.
//
// An increment is applied to the state of the snapshot it starts from and to no
// other: [ErrState]. A full unit is applied to whatever there is, says all, and
// changes but what is different: objects it lacks end, what it leaves out of a file
// is a hole, and content is taken to be the same where size and times are. If
// nothing is kept, since the catalog was rebuilt, nodes are found by the object
// number and generation among their attributes, and names by their directories; what
// is kept is made anew by it. That it is of another dataset makes no difference.
//
// Names of more than 255 bytes and extended attributes that Linux could not have are
// left out, and [Result] says so.
package zfs
