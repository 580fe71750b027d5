// Package zpl decodes what is inside the objects of a ZFS file system: the
// attributes of files, directories, and the few tables needed to read them.
//
// A ZFS file system is a set of numbered objects. An object has a type, a bonus of
// up to 16 KiB, sometimes a spill block that goes on where the bonus ends, and data
// in blocks:
//
//	object 1, master node     ZAP    ROOT, VERSION, DELETE_QUEUE, SA_ATTRS, FUID …
//	  SA_ATTRS                ZAP    REGISTRY, LAYOUTS
//	    REGISTRY              ZAP    name → id, class and length of an attribute
//	    LAYOUTS               ZAP    number → ids of attributes, in order
//	  DELETE_QUEUE            ZAP    objects without a name that are still open
//	  FUID                    nvlist domains of owners that are no POSIX ids
//	  ROOT                    ZAP    name → object number and type: a directory
//	    file, link, device …         bonus and spill: attributes; data
//
// Package sendstream/zfs reads the records of a send stream, keeps the state of the
// objects and asks this package what the bytes say. Everything here is a function
// of the bytes passed in: no I/O, and no state but a [Registry].
//
// # Attributes
//
// Since ZPL version 5 a bonus (type 44) and a spill block are buffers of system
// attributes (SA): a header with the number of a layout, then the values that the
// layout lists. A [Registry] has the layouts of a dataset, and [Registry.Decode]
// gives the [Attr]. Older bonuses (type 17, the znode) have fixed offsets; a
// dataset can have both. Layouts may come later in a stream than what needs them,
// so decode when a stream is complete; [DecodeHead] knows enough meanwhile.
//
// # ZAPs
//
// A ZAP is a hash table from names to integers: one block (micro), or a header,
// leaves and perhaps a pointer table (fat). [DecodeBlock] decodes each block for
// itself, which is what an incremental stream needs: it brings single blocks.
//
// # Trust
//
// Bytes come from a stream that may be hostile. No length is believed before it is
// bounded by what is there, chains are followed once, and what is allocated is at
// most some times the input. Errors are *[FormatError].
//
// "Section" in comments is one of the specification of the format, which was checked
// against streams of zfs-fuse 0.7 and OpenZFS 2.1 and 2.3. No real stream at hand has
// ACLs that say more than the mode, or owners with a domain.
package zpl
