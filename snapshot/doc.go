// Package snapshot is the home of the packages that take file-system snapshots and
// say what changed between two of them: [btrfs] and [zfs].
//
//	source ──Snapshot──► snapshot ──Send(base)──► send stream ──► sendstream
//	                        │
//	                        └─ read by path ──► data for a stream without data
//
// They have the same stages and few common words, so each has the API of its own
// file system and nothing here pretends otherwise: a Btrfs subvolume is a
// directory, has a UUID and is read by path; a ZFS dataset has a GUID, bookmarks and
// holds. What a pipeline needs of them it asks for in a small interface of its own.
//
// In all of them a snapshot is found again by its UUID or GUID, never by its name
// alone; a name is what a person sees. They take and destroy nothing but snapshots, and
// destroy only what is named, read-only and a snapshot.
//
// [btrfs]: https://pkg.go.dev/github.com/secrate/secrate/snapshot/btrfs
// [zfs]: https://pkg.go.dev/github.com/secrate/secrate/snapshot/zfs
package snapshot
