// Package watch tells what has changed below a directory, and never leaves a change out
// without a word.
//
//	kernel ──► instance ──► session ──► tracker ──► Batch
//	 queue      reads fast   a path for  what is       what is due,
//	            and keeps    each event  not yet       until Done
//	            8 MiB                    durable
//
// It watches by inotify(7), each directory by itself. What it hands out are hints: names
// to compare with the history. A hint too many costs a comparison, so all it has to see
// to is that none is missing. Two rules do:
//
//   - A directory is watched before it is listed, by the descriptor by which it is
//     listed. When all below a directory that is new in its place is watched, the
//     directory is among the Trees. So nothing has to be known of the time before.
//   - An event on the name of a directory is only a reason to look at the name. What is
//     found is right at that time, and if it changes there is another event. So it does
//     not matter in which order renames, walks and events come. A directory that has come
//     to a name is among the Trees even if it was known there: whoever deals with a
//     batch may have looked while it was away.
//
// A directory has one watch however it moves, and its path is worked out through its
// parents when an event comes. A directory that was moved is new in its place: it is
// walked and is among the Trees, since what waited under its old name must be looked at
// under the new one, and other names may be excluded.
//
// # When events are lost
//
// The kernel drops events when its queue is full, and so does the instance. Then
// everything is walked again, which makes all places right, and the Changes are All. When
// the root was unmounted, renamed or replaced, the session ends; when a root is there
// again, all begins anew. [State] says which of these happened last.
//
// What cannot be watched, for the limit on watches or for want of permission, is named
// in [State] with the command that would help, and is tried again from time to time.
// Below it nothing is watched.
//
// # What no event tells
//
// These are found by scheduled scans alone:
//
//   - what is written by way of a shared mapping (mmap), until the mapping and all
//     descriptors that the file was opened with for writing are closed: only then the
//     kernel tells (IN_CLOSE_WRITE). The time of modification changes earlier, when a
//     page is written to first, and again only after the page was written back: what
//     is told by a close may have times and size that are known already;
//   - changes of a file under one of its other names (hard links). The name that was
//     used is told, if it is watched; the others are the caller's business. A name that
//     was made, written to and removed before the batch leads to none of them;
//   - flags, as of chattr(1);
//   - changes of other machines on a network file system, of a FUSE server, and in the
//     layers of an overlay ([State].Blind), and what is written to the block device;
//   - the times of a directory in which only excluded names come and go: these are told
//     by nothing, on purpose;
//   - what appears when something that was mounted below the root is unmounted, until it
//     is looked for, with what could not be watched.
//
// Opening and reading is never told. That a file was closed which had been opened for
// writing is, even if nothing was written.
//
// Names come from the kernel and lead nowhere by themselves: directories are opened
// below the root, without following links or entering other file systems. If a name was
// replaced by a link, it is the link that is told. What happens in a directory that was
// moved out of the root until that is known is told under its old name, where it is
// compared with what is there: nothing.
package watch
