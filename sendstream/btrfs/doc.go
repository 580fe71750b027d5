// Package btrfs reads Btrfs send streams and applies them to a
// [filetree.Update].
//
// A send stream is a header and a linear list of commands that turn a parent
// snapshot, or nothing, into another snapshot:
//
//	+-------------------------+-------------+
//	| "btrfs-stream\0" (13B)  | version (4) |  once, and again after END
//	+-------------------------+-------------+
//	+-----------------+-------------+---------+--- ... ---+
//	| payload len (4) | command (2) | CRC (4) | payload   |  each command
//	+-----------------+-------------+---------+--- ... ---+
//	                                           \
//	      +----------+---------+-- ... --+----------+---------+-- ... --+
//	      | type (2) | len (2) | value   | type (2) | len (2) | value   |
//	      +----------+---------+-- ... --+----------+---------+-- ... --+
//
// All integers are little endian. From version 2 on the attribute DATA has no
// length: its value runs to the end of the payload. The CRC is CRC-32C with start
// value 0 and no final inversion, over header (CRC taken as zero) and payload.
//
// Commands come in units, one a snapshot:
//
//	file   := stream+
//	stream := header unit+ END
//	unit   := (SUBVOL | SNAPSHOT) command*
//
// A [Reader] yields commands. It checks every CRC before it looks at an attribute,
// believes no length it has not bounded, and hands out no path that could lead out
// of the tree. What it does not know is whether the commands fit the tree they
// are meant for: that is found out by [Unit.Apply] and the Update, which refuse
// what no file system could have done. Versions 1, 2 and 3 are read.
//
// # Applying
//
// [Units] splits a file into its units; [Unit.Apply] runs one. The sender creates
// every inode under a temporary name in the root and then moves it to its place,
// and paths are those of the moment, so paths are resolved one component after the
// other in the tree as it is then. No temporary name may be left at the end.
//
// Calls to the Update are saved where the order of commands does not matter:
// creation and the rename that follows are one Create, and the attributes of one
// node one SetAttr.
//
// A stream does not say everything. Holes of new files are what was not written.
// In version 1 a new hole in a file of the parent comes as writes of zeros, up to
// the next data and however long; so in a version 1 increment each aligned 4 KiB
// block of zeros, and an aligned rest of zeros at the end of a write, becomes a
// hole if the file is older than the unit. In a no-data stream of version 1 the
// sender cuts the length of an UPDATE_EXTENT to 32 bits, so that a new hole of 4
// GiB or more is only partly announced: ask for version 2 there. Flags of new
// inodes are never sent, and birth times only from version 2 on.
//
// # Excludes
//
// [Options].Excluded names paths that are not kept. What has such a path at the
// end of a unit is not in the tree, so later streams speak of nodes the tree
// does not have. Those are ghosts: they can be renamed, linked, written to and
// removed, to no effect. A ghost that ends up at a path that is kept is reported in
// [Result].Unknown, since nothing is known of it but that it is there.
//
// Within a unit only the last path counts: what moves below a ghost waits in the
// root under a name of its own and comes out again, or is removed at the end.
// Temporary names are never excluded. A directory that moves may change what is
// excluded below it without a word in the stream; see [Result].Moved.
//
// BUG(secrate): a stream names a hard-linked file by any one of its names. If that
// one is excluded and another is not, changes made through it are not seen.
package btrfs
