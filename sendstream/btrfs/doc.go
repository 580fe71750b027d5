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
// A stream names a hard-linked file by any one of its names, also by one that is
// excluded when another is not. So names outside are remembered, those that are
// excluded of nodes that are kept. They are in the tree of paths but not in the
// Update, and lead to the node: what is done by them is done to it. They come from
// links, and from what is removed because it is excluded by its final path; they
// move with the directories above them, which may be ghosts; at a path that is kept
// they become names like others; and when the last name that is kept goes, they lead
// to a ghost. [Result].Outside hands them on to the units that start from this one,
// with what is not known, so that this is said again until it is. A new node whose
// first name is excluded is created when it gets one that is not.
//
// Within a unit only the last path counts: what moves below a ghost waits in the
// root under a name of its own and comes out again, or is removed at the end; so
// does a node with names outside that loses its last other one. Temporary names are
// never excluded. Content that comes by a name that is excluded, for a node that has
// no other then, is not stored: the sender tells all names of a node before its
// content. When a directory moves, what is excluded below it now is removed at the
// end; what no longer is, the stream does not speak of: see [Result].Moved.
//
// What is cloned from a file that is excluded is not known, as that file's content
// is not stored.
package btrfs
