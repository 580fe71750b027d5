package main

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/secrate/secrate/internal/btrfsvolume"
	"github.com/secrate/secrate/internal/config"
)

func (s *site) openVolume(src *config.Source) (*btrfsvolume.Volume, error) {
	if src.Mode != config.Btrfs {
		return nil, notYet(src.Mode)
	}
	v, err := btrfsvolume.Open(s.me.ID, src.Name, src.Path, src.Snapshots)
	if err != nil {
		return nil, hinted(err, "is it mounted? secrate source list shows the paths")
	}
	return v, nil
}

// notYet refuses what other versions will do.
func notYet(m config.Mode) error {
	what := map[config.Mode]string{config.ZFS: "ZFS datasets", config.Files: "ordinary directories"}[m]
	return hinted(fmt.Errorf("%s cannot be kept by this version of secrate yet", what), "%s", notYetHint)
}

const notYetHint = "Btrfs subvolumes can, and with --mode stream whatever secrate ingest is given as a send stream of Btrfs or ZFS"

// zfsMagic is the type that statfs(2) gives for ZFS.
const zfsMagic = 0x2fc12fc1

func isZFS(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && uint32(st.Type) == zfsMagic
}
