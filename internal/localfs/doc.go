// Package localfs reads a local directory as a tree and restores a tree into one.
// It runs on Linux and knows nothing of histories.
//
// # Reading
//
//	Open ──► Tree ──► Dir ──► Entry…         names, as the file system lists them
//	          │        ├────► Stat           everything but names and content
//	          │        └────► File ──► Segments, ReadAt
//	          └── Walk: a directory, then what is in it
//
// All access is relative to an open directory. No symbolic link is followed in any
// component and no mount point or other subvolume is entered: they are reported as
// [ErrMount] and [ErrSubvolume]. Paths may be longer than PATH_MAX.
//
// A live tree changes while it is read. What a [Stat] says of one node belongs
// together, because it is read through one open handle; [File.Changed] tells
// whether the content belongs to it as well.
//
// # Restoring
//
// A [Target] makes nodes below one directory, in this order for each of them:
//
//	create (0600, 0700)      under a temporary name, if something may be in the way
//	flags that shape data    no copy-on-write, compression
//	data
//	user.* attributes        need write permission, so before the mode
//	owner                    clears set-id bits and capabilities
//	mode
//	other attributes         ACLs, capabilities
//	other flags, time
//	rename into place
//	project id               nothing gets by rename to where another is handed down
//	immutable, append-only   nothing can be done to the node afterwards
//
// Directories get their attributes last of all, by [Target.FinishDir], from the
// leaves to the root.
//
// A Target trusts neither the names it is given nor the directory it writes to.
// Names pass filetree.CheckName. A directory is only ever opened as one component
// below its parent, never through a link, and is known again by its device and
// inode number: if someone puts another in its place, the restore of what belongs
// there fails. File systems mounted below the target are part of it.
//
// What a target cannot hold (owners, when we are not root; attributes on a file
// system without them) does not fail a node but is counted, see [Target.Notes].
// Change and birth times can never be restored on Linux.
//
// A [Device] is a block device onto which the content of one file is restored. It is the
// one place that is reached through a link, if that was named.
//
// Both halves reach links and special files through /proc/self/fd, so /proc has to
// be mounted.
package localfs
