package zfs

import (
	"fmt"
	"math"
	"strings"

	"github.com/secrate/secrate/sendstream/zfs/nvlist"
)

// A Type is the type of a record. The comments have the specification's names.
type Type uint32

// The types, of section 1.3.
const (
	Begin         Type = 0  // DRR_BEGIN
	Object        Type = 1  // DRR_OBJECT
	FreeObjects   Type = 2  // DRR_FREEOBJECTS
	Write         Type = 3  // DRR_WRITE
	Free          Type = 4  // DRR_FREE
	End           Type = 5  // DRR_END
	WriteByRef    Type = 6  // DRR_WRITE_BYREF
	Spill         Type = 7  // DRR_SPILL
	WriteEmbedded Type = 8  // DRR_WRITE_EMBEDDED
	ObjectRange   Type = 9  // DRR_OBJECT_RANGE
	Redact        Type = 10 // DRR_REDACT

	numTypes = 11
)

var typeNames = [numTypes]string{"BEGIN", "OBJECT", "FREEOBJECTS", "WRITE", "FREE", "END",
	"WRITE_BYREF", "SPILL", "WRITE_EMBEDDED", "OBJECT_RANGE", "REDACT"}

// String returns the name that zstream dump prints.
func (t Type) String() string {
	if t >= numTypes {
		return fmt.Sprintf("record type %d", uint32(t))
	}
	return typeNames[t]
}

// A Compression says how a payload is encoded.
type Compression uint8

// The compressions, of section 3.8.
const (
	Plain Compression = 0  // ZIO_COMPRESS_INHERIT, which in a record means none
	Off   Compression = 2  // ZIO_COMPRESS_OFF
	LZJB  Compression = 3  // ZIO_COMPRESS_LZJB
	Empty Compression = 4  // ZIO_COMPRESS_EMPTY
	Gzip1 Compression = 5  // ZIO_COMPRESS_GZIP_1
	Gzip9 Compression = 13 // ZIO_COMPRESS_GZIP_9; those between are the levels between
	ZLE   Compression = 14 // ZIO_COMPRESS_ZLE
	LZ4   Compression = 15 // ZIO_COMPRESS_LZ4
	Zstd  Compression = 16 // ZIO_COMPRESS_ZSTD
)

// String returns the name of c as the property compression has it.
func (c Compression) String() string {
	switch c {
	case Plain, Off:
		return "off"
	case LZJB:
		return "lzjb"
	case Empty:
		return "empty"
	case ZLE:
		return "zle"
	case LZ4:
		return "lz4"
	case Zstd:
		return "zstd"
	}
	if Gzip1 <= c && c <= Gzip9 {
		return fmt.Sprintf("gzip-%d", c-Gzip1+1)
	}
	return fmt.Sprintf("compression %d", uint8(c))
}

// valid reports whether data can be encoded so: "on" is a wish, not a way.
func (c Compression) valid() bool { return c <= Zstd && c != 1 }

// Features say what a stream may contain.
type Features uint64

// The features, of section 1.4.
const (
	FeatureDedup               Features = 1 << 0  // DMU_BACKUP_FEATURE_DEDUP
	FeatureDedupProps          Features = 1 << 1  // DMU_BACKUP_FEATURE_DEDUPPROPS
	FeatureSASpill             Features = 1 << 2  // DMU_BACKUP_FEATURE_SA_SPILL
	FeatureEmbedData           Features = 1 << 16 // DMU_BACKUP_FEATURE_EMBED_DATA
	FeatureLZ4                 Features = 1 << 17 // DMU_BACKUP_FEATURE_LZ4
	FeatureLargeBlocks         Features = 1 << 19 // DMU_BACKUP_FEATURE_LARGE_BLOCKS
	FeatureResuming            Features = 1 << 20 // DMU_BACKUP_FEATURE_RESUMING
	FeatureRedacted            Features = 1 << 21 // DMU_BACKUP_FEATURE_REDACTED
	FeatureCompressed          Features = 1 << 22 // DMU_BACKUP_FEATURE_COMPRESSED
	FeatureLargeDnode          Features = 1 << 23 // DMU_BACKUP_FEATURE_LARGE_DNODE
	FeatureRaw                 Features = 1 << 24 // DMU_BACKUP_FEATURE_RAW
	FeatureZstd                Features = 1 << 25 // DMU_BACKUP_FEATURE_ZSTD
	FeatureHolds               Features = 1 << 26 // DMU_BACKUP_FEATURE_HOLDS
	FeatureSwitchToLargeBlocks Features = 1 << 27 // DMU_BACKUP_FEATURE_SWITCH_TO_LARGE_BLOCKS
	FeatureLongName            Features = 1 << 28 // DMU_BACKUP_FEATURE_LONGNAME
	FeatureLargeMicroZAP       Features = 1 << 29 // DMU_BACKUP_FEATURE_LARGE_MICROZAP

	knownFeatures Features = (1<<30 - 1) &^ (1<<18 | 0xfff8) // all others are reserved
)

// Has reports whether f has all of want.
func (f Features) Has(want Features) bool { return f&want == want }

// Flags are the flags of a stream.
type Flags uint32

// The flags, of section 1.4.
const (
	FlagClone       Flags = 1 << 0 // DRR_FLAG_CLONE: the base is in another dataset
	FlagCIData      Flags = 1 << 1 // DRR_FLAG_CI_DATA: names may differ in case alone
	FlagFreeRecords Flags = 1 << 2 // DRR_FLAG_FREERECORDS: a full stream, too, has all its FREEs
	FlagSpillBlock  Flags = 1 << 3 // DRR_FLAG_SPILL_BLOCK: HasSpill and Unmodified mean something
)

// An ObjectSet is the kind of a dataset.
type ObjectSet uint32

// The object sets that streams are made of.
const (
	NoObjectSet ObjectSet = 0 // DMU_OST_NONE, in packages
	FileSystem  ObjectSet = 2 // DMU_OST_ZFS
	Volume      ObjectSet = 3 // DMU_OST_ZVOL
)

func (s ObjectSet) String() string {
	switch s {
	case FileSystem:
		return "file system"
	case Volume:
		return "volume"
	}
	return fmt.Sprintf("object set of type %d", uint32(s))
}

// A Header is what BEGIN says of the substream or package that it begins.
type Header struct {
	Package   bool // BEGIN of a package; else of a substream
	BigEndian bool // the byte order of headers and of most metadata in payloads
	Features  Features
	Flags     Flags
	ObjectSet ObjectSet
	Creation  uint64      // of the snapshot, in seconds since 1970
	ToGUID    uint64      // of the snapshot
	FromGUID  uint64      // of the snapshot that is the base, or of its bookmark; 0 in a full stream
	Name      string      // as sent: pool/dataset@snapshot
	List      nvlist.List // the payload, section 1.5; may be nil
}

// Dataset returns what Name has before the @.
func (h *Header) Dataset() string {
	name, _, _ := strings.Cut(h.Name, "@")
	return name
}

// Snapshot returns what Name has behind the @.
func (h *Header) Snapshot() string {
	_, name, _ := strings.Cut(h.Name, "@")
	return name
}

// Head reports whether the live dataset was sent and no snapshot. ToGUID is then
// the dataset's and no base for a later stream.
func (h *Header) Head() bool { return h.Snapshot() == "--head--" }

// Resume says where a resumed stream begins: what belongs to objects below object,
// and to bytes of object below offset, is not in it.
func (h *Header) Resume() (object, offset uint64, ok bool) {
	object, _ = h.List.Uint64("resume_object")
	offset, _ = h.List.Uint64("resume_offset")
	return object, offset, h.Features.Has(FeatureResuming)
}

// maxBlock is how long a block can be that a stream may carry.
func (h *Header) maxBlock() uint32 {
	if h.Features.Has(FeatureLargeBlocks) {
		return maxBlock
	}
	return maxSmallBlock
}

// A Record is one step of a stream. Which fields have a meaning depends on Type, as
// the comments say; the others are zero. Payload points into the Reader's buffer
// and is valid until its next record.
//
// Fields have passed the checks of [Reader]. Ranges are in bytes. No range ends
// behind math.MaxUint64; one that ends there is meant to reach to the end of the
// object.
type Record struct {
	Type   Type
	Offset int64 // of the record's first byte in the input

	Header *Header // BEGIN

	// Object is a number, in FREEOBJECTS and OBJECT_RANGE the first of Count. BEGIN
	// and END have none. FREEOBJECTS may speak of 0, which is no file's.
	Object uint64
	Count  uint64

	ObjectType uint32 // OBJECT, WRITE
	BonusType  uint32 // OBJECT
	BlockSize  uint32 // OBJECT
	Slots      uint8  // OBJECT: the numbers that the object takes up, 1 to 32
	HasSpill   bool   // OBJECT, if FlagSpillBlock: there is a spill block
	Unmodified bool   // SPILL, if FlagSpillBlock: the base has the same one

	// Start and Length are a range of Object: WRITE, FREE, WRITE_BYREF, REDACT,
	// WRITE_EMBEDDED. Nothing bounds Start by the size of a file, see EmbeddedSpill.
	// SPILL has its Length.
	Start  uint64
	Length uint64

	// Payload is BEGIN's nvlist, OBJECT's bonus buffer, and the encoded data of
	// WRITE, SPILL and WRITE_EMBEDDED, without padding that the header tells of.
	Payload     []byte
	Compression Compression // WRITE, WRITE_EMBEDDED; SPILL of a raw stream
	LogicalSize uint32      // WRITE, SPILL, WRITE_EMBEDDED: of Payload when decoded

	RefGUID   uint64 // WRITE_BYREF: the snapshot that has the data
	RefObject uint64 // WRITE_BYREF
	RefStart  uint64 // WRITE_BYREF
}

// End returns the offset of the first byte behind the range of r, or
// math.MaxUint64 for one that reaches to the end of the object.
func (r *Record) End() uint64 { return r.Start + r.Length }

// EmbeddedSpill reports whether r, a WRITE_EMBEDDED, is where senders of OpenZFS
// 2.3 and 2.4 put a spill block that is small enough to be embedded: at the block
// number -2. Section 1.7 says when to believe it. Whatever lies at 2^63 or behind
// is no part of a file.
func (r *Record) EmbeddedSpill() bool {
	return r.Type == WriteEmbedded && r.Start > math.MaxInt64 && r.Start+2*r.Length == 0
}
