package btrfs

import (
	"fmt"

	"github.com/secrate/secrate/internal/filetree"
)

// A Type is the number of a command. The comments have the specification's names.
type Type uint16

// The commands, by the version of the protocol in which they came.
const (
	Subvol       Type = 1  // BTRFS_SEND_C_SUBVOL
	Snapshot     Type = 2  // BTRFS_SEND_C_SNAPSHOT
	MkFile       Type = 3  // BTRFS_SEND_C_MKFILE
	MkDir        Type = 4  // BTRFS_SEND_C_MKDIR
	MkNod        Type = 5  // BTRFS_SEND_C_MKNOD
	MkFifo       Type = 6  // BTRFS_SEND_C_MKFIFO
	MkSock       Type = 7  // BTRFS_SEND_C_MKSOCK
	Symlink      Type = 8  // BTRFS_SEND_C_SYMLINK
	Rename       Type = 9  // BTRFS_SEND_C_RENAME
	Link         Type = 10 // BTRFS_SEND_C_LINK
	Unlink       Type = 11 // BTRFS_SEND_C_UNLINK
	RmDir        Type = 12 // BTRFS_SEND_C_RMDIR
	SetXattr     Type = 13 // BTRFS_SEND_C_SET_XATTR
	RemoveXattr  Type = 14 // BTRFS_SEND_C_REMOVE_XATTR
	Write        Type = 15 // BTRFS_SEND_C_WRITE
	Clone        Type = 16 // BTRFS_SEND_C_CLONE
	Truncate     Type = 17 // BTRFS_SEND_C_TRUNCATE
	Chmod        Type = 18 // BTRFS_SEND_C_CHMOD
	Chown        Type = 19 // BTRFS_SEND_C_CHOWN
	Utimes       Type = 20 // BTRFS_SEND_C_UTIMES
	End          Type = 21 // BTRFS_SEND_C_END
	UpdateExtent Type = 22 // BTRFS_SEND_C_UPDATE_EXTENT

	Fallocate    Type = 23 // BTRFS_SEND_C_FALLOCATE, version 2
	FileAttr     Type = 24 // BTRFS_SEND_C_FILEATTR, version 2
	EncodedWrite Type = 25 // BTRFS_SEND_C_ENCODED_WRITE, version 2

	EnableVerity Type = 26 // BTRFS_SEND_C_ENABLE_VERITY, version 3
)

// String returns the name that btrfs receive --dump prints.
func (t Type) String() string {
	if t == 0 || int(t) >= len(shapes) {
		return fmt.Sprintf("command %d", uint16(t))
	}
	return shapes[t].name
}

// A Compression says how the data of an ENCODED_WRITE are encoded.
type Compression uint32

// The compressions. LZO is cut into segments by the sector size of the sender.
const (
	None   Compression = 0 // BTRFS_ENCODED_IO_COMPRESSION_NONE
	Zlib   Compression = 1 // BTRFS_ENCODED_IO_COMPRESSION_ZLIB
	Zstd   Compression = 2 // BTRFS_ENCODED_IO_COMPRESSION_ZSTD
	LZO4K  Compression = 3 // BTRFS_ENCODED_IO_COMPRESSION_LZO_4K
	LZO8K  Compression = 4 // BTRFS_ENCODED_IO_COMPRESSION_LZO_8K
	LZO16K Compression = 5 // BTRFS_ENCODED_IO_COMPRESSION_LZO_16K
	LZO32K Compression = 6 // BTRFS_ENCODED_IO_COMPRESSION_LZO_32K
	LZO64K Compression = 7 // BTRFS_ENCODED_IO_COMPRESSION_LZO_64K
)

// PunchHole is the one mode of FALLOCATE that is sent: FALLOC_FL_KEEP_SIZE and
// FALLOC_FL_PUNCH_HOLE.
const PunchHole = 3

// A Command is one step of a unit. Which fields have a meaning depends on Type, as
// the comments say; the others are zero. The byte slices point into the Reader's
// buffer and are valid until its next command.
//
// Paths are relative to the root of the subvolume and have passed the checks of
// [Reader]. An empty Path is the root itself.
type Command struct {
	Type    Type
	Version uint32 // of the protocol
	Offset  int64  // of the command's first byte in the input

	Path   []byte // all but END; of SUBVOL and SNAPSHOT a single name
	PathTo []byte // RENAME: where Path goes
	Link   []byte // LINK: the file that gets the name Path; SYMLINK: the target

	UUID          [16]byte // SUBVOL, SNAPSHOT: what is sent
	CTransID      uint64   // SUBVOL, SNAPSHOT
	CloneUUID     [16]byte // SNAPSHOT: the parent; CLONE: where the source is
	CloneCTransID uint64   // SNAPSHOT, CLONE

	Ino   uint64 // MK*, SYMLINK: of the inode in the sent snapshot
	Mode  uint32 // MKNOD, MKFIFO, MKSOCK: with type bits; CHMOD: without
	Major uint32 // MKNOD
	Minor uint32 // MKNOD
	UID   uint32 // CHOWN
	GID   uint32 // CHOWN

	Mtime filetree.Time // UTIMES
	Ctime filetree.Time // UTIMES
	Atime filetree.Time // UTIMES
	Otime filetree.Time // UTIMES: birth, if HasOtime

	HasOtime bool

	XattrName []byte // SET_XATTR, REMOVE_XATTR
	XattrData []byte // SET_XATTR

	// Range is the part of Path that changes: WRITE, ENCODED_WRITE, CLONE,
	// UPDATE_EXTENT, FALLOCATE. Its end does not pass the largest int64.
	Range filetree.Range
	Data  []byte // WRITE; ENCODED_WRITE: encoded
	Size  int64  // TRUNCATE

	ClonePath   []byte // CLONE: the source
	CloneOffset int64  // CLONE: in the source

	FallocateMode uint32 // FALLOCATE: PunchHole
	FileAttr      uint64 // FILEATTR: on-disk inode flags

	Compression     Compression // ENCODED_WRITE
	UnencodedLen    int         // ENCODED_WRITE: of the whole extent
	UnencodedOffset int         // ENCODED_WRITE: of Range in the extent

	VerityAlgorithm uint8  // ENABLE_VERITY
	VerityBlockSize uint32 // ENABLE_VERITY: in bytes
	VeritySalt      []byte // ENABLE_VERITY
	VeritySig       []byte // ENABLE_VERITY
}

// An attribute is the type of one value in a payload.
type attribute uint16

const (
	aUUID             attribute = 1  // BTRFS_SEND_A_UUID
	aCTransID         attribute = 2  // BTRFS_SEND_A_CTRANSID
	aIno              attribute = 3  // BTRFS_SEND_A_INO
	aSize             attribute = 4  // BTRFS_SEND_A_SIZE
	aMode             attribute = 5  // BTRFS_SEND_A_MODE
	aUID              attribute = 6  // BTRFS_SEND_A_UID
	aGID              attribute = 7  // BTRFS_SEND_A_GID
	aRdev             attribute = 8  // BTRFS_SEND_A_RDEV
	aCtime            attribute = 9  // BTRFS_SEND_A_CTIME
	aMtime            attribute = 10 // BTRFS_SEND_A_MTIME
	aAtime            attribute = 11 // BTRFS_SEND_A_ATIME
	aOtime            attribute = 12 // BTRFS_SEND_A_OTIME
	aXattrName        attribute = 13 // BTRFS_SEND_A_XATTR_NAME
	aXattrData        attribute = 14 // BTRFS_SEND_A_XATTR_DATA
	aPath             attribute = 15 // BTRFS_SEND_A_PATH
	aPathTo           attribute = 16 // BTRFS_SEND_A_PATH_TO
	aPathLink         attribute = 17 // BTRFS_SEND_A_PATH_LINK
	aFileOffset       attribute = 18 // BTRFS_SEND_A_FILE_OFFSET
	aData             attribute = 19 // BTRFS_SEND_A_DATA
	aCloneUUID        attribute = 20 // BTRFS_SEND_A_CLONE_UUID
	aCloneCTransID    attribute = 21 // BTRFS_SEND_A_CLONE_CTRANSID
	aClonePath        attribute = 22 // BTRFS_SEND_A_CLONE_PATH
	aCloneOffset      attribute = 23 // BTRFS_SEND_A_CLONE_OFFSET
	aCloneLen         attribute = 24 // BTRFS_SEND_A_CLONE_LEN
	aFallocateMode    attribute = 25 // BTRFS_SEND_A_FALLOCATE_MODE
	aFileAttr         attribute = 26 // BTRFS_SEND_A_FILEATTR
	aUnencodedFileLen attribute = 27 // BTRFS_SEND_A_UNENCODED_FILE_LEN
	aUnencodedLen     attribute = 28 // BTRFS_SEND_A_UNENCODED_LEN
	aUnencodedOffset  attribute = 29 // BTRFS_SEND_A_UNENCODED_OFFSET
	aCompression      attribute = 30 // BTRFS_SEND_A_COMPRESSION
	aEncryption       attribute = 31 // BTRFS_SEND_A_ENCRYPTION
	aVerityAlgorithm  attribute = 32 // BTRFS_SEND_A_VERITY_ALGORITHM
	aVerityBlockSize  attribute = 33 // BTRFS_SEND_A_VERITY_BLOCK_SIZE
	aVeritySalt       attribute = 34 // BTRFS_SEND_A_VERITY_SALT_DATA
	aVeritySig        attribute = 35 // BTRFS_SEND_A_VERITY_SIG_DATA

	numAttributes = 36
)

// anySize stands for values without a fixed length.
const anySize = -1

// attributes has the name and the length of every attribute, by number.
var attributes = [numAttributes]struct {
	name string
	size int
}{
	aUUID:             {"UUID", 16},
	aCTransID:         {"CTRANSID", 8},
	aIno:              {"INO", 8},
	aSize:             {"SIZE", 8},
	aMode:             {"MODE", 8},
	aUID:              {"UID", 8},
	aGID:              {"GID", 8},
	aRdev:             {"RDEV", 8},
	aCtime:            {"CTIME", 12},
	aMtime:            {"MTIME", 12},
	aAtime:            {"ATIME", 12},
	aOtime:            {"OTIME", 12},
	aXattrName:        {"XATTR_NAME", anySize},
	aXattrData:        {"XATTR_DATA", anySize},
	aPath:             {"PATH", anySize},
	aPathTo:           {"PATH_TO", anySize},
	aPathLink:         {"PATH_LINK", anySize},
	aFileOffset:       {"FILE_OFFSET", 8},
	aData:             {"DATA", anySize},
	aCloneUUID:        {"CLONE_UUID", 16},
	aCloneCTransID:    {"CLONE_CTRANSID", 8},
	aClonePath:        {"CLONE_PATH", anySize},
	aCloneOffset:      {"CLONE_OFFSET", 8},
	aCloneLen:         {"CLONE_LEN", 8},
	aFallocateMode:    {"FALLOCATE_MODE", 4},
	aFileAttr:         {"FILEATTR", 8},
	aUnencodedFileLen: {"UNENCODED_FILE_LEN", 8},
	aUnencodedLen:     {"UNENCODED_LEN", 8},
	aUnencodedOffset:  {"UNENCODED_OFFSET", 8},
	aCompression:      {"COMPRESSION", 4},
	aEncryption:       {"ENCRYPTION", 4},
	aVerityAlgorithm:  {"VERITY_ALGORITHM", 1},
	aVerityBlockSize:  {"VERITY_BLOCK_SIZE", 4},
	aVeritySalt:       {"VERITY_SALT_DATA", anySize},
	aVeritySig:        {"VERITY_SIG_DATA", anySize},
}

// An attributeSet has bit n for attribute n.
type attributeSet uint64

func setOf(as ...attribute) attributeSet {
	var s attributeSet
	for _, a := range as {
		s |= 1 << a
	}
	return s
}

func (s attributeSet) has(a attribute) bool { return s>>a&1 != 0 }

// A shape says what a command looks like.
type shape struct {
	name    string
	version uint32       // the first that has it
	needs   attributeSet // the attributes it cannot do without
	root    bool         // PATH may be empty
}

// shapes has the shape of every command, by number.
var shapes = [...]shape{
	Subvol:      {"subvol", 1, setOf(aPath, aUUID, aCTransID), false},
	Snapshot:    {"snapshot", 1, setOf(aPath, aUUID, aCTransID, aCloneUUID, aCloneCTransID), false},
	MkFile:      {"mkfile", 1, setOf(aPath, aIno), false},
	MkDir:       {"mkdir", 1, setOf(aPath, aIno), false},
	MkNod:       {"mknod", 1, setOf(aPath, aIno, aRdev, aMode), false},
	MkFifo:      {"mkfifo", 1, setOf(aPath, aIno, aRdev, aMode), false},
	MkSock:      {"mksock", 1, setOf(aPath, aIno, aRdev, aMode), false},
	Symlink:     {"symlink", 1, setOf(aPath, aIno, aPathLink), false},
	Rename:      {"rename", 1, setOf(aPath, aPathTo), false},
	Link:        {"link", 1, setOf(aPath, aPathLink), false},
	Unlink:      {"unlink", 1, setOf(aPath), false},
	RmDir:       {"rmdir", 1, setOf(aPath), false},
	SetXattr:    {"set_xattr", 1, setOf(aPath, aXattrName, aXattrData), true},
	RemoveXattr: {"remove_xattr", 1, setOf(aPath, aXattrName), true},
	Write:       {"write", 1, setOf(aPath, aFileOffset, aData), false},
	Clone: {"clone", 1, setOf(aFileOffset, aCloneLen, aPath, aCloneUUID, aCloneCTransID,
		aClonePath, aCloneOffset), false},
	Truncate:     {"truncate", 1, setOf(aPath, aSize), false},
	Chmod:        {"chmod", 1, setOf(aPath, aMode), true},
	Chown:        {"chown", 1, setOf(aPath, aUID, aGID), true},
	Utimes:       {"utimes", 1, setOf(aPath, aAtime, aMtime, aCtime), true},
	End:          {"end", 1, 0, false},
	UpdateExtent: {"update_extent", 1, setOf(aPath, aFileOffset, aSize), false},
	Fallocate:    {"fallocate", 2, setOf(aPath, aFallocateMode, aFileOffset, aSize), false},
	FileAttr:     {"fileattr", 2, setOf(aPath, aFileAttr), true},
	EncodedWrite: {"encoded_write", 2, setOf(aPath, aFileOffset, aUnencodedFileLen, aUnencodedLen,
		aUnencodedOffset, aData), false},
	EnableVerity: {"enable_verity", 3, setOf(aPath, aVerityAlgorithm, aVerityBlockSize,
		aVeritySalt, aVeritySig), false},
}
