package zpl

import (
	"maps"
	"slices"
	"testing"
)

// bigDirectories returns the dataset of e_grow@s3.
func bigDirectories(b *testing.B) *dataset {
	paths := recordings(b)["e_grow"]
	if len(paths) < 3 {
		b.Fatalf("no e_grow in %s", corpusDir())
	}
	return lastDataset(b, paths[:3])
}

// BenchmarkDirectory decodes 128 KiB of the leaves of a large directory.
func BenchmarkDirectory(b *testing.B) {
	d := bigDirectories(b)
	var leaves [][]byte
	for _, o := range d.objects {
		for _, i := range slices.Sorted(maps.Keys(o.zap)) {
			if i > 0 && len(leaves) < 8 && len(o.zap) > 8 {
				leaves = append(leaves, o.zap[i])
			}
		}
	}
	if len(leaves) != 8 || len(leaves[0]) != 16384 {
		b.Fatalf("%d leaves", len(leaves))
	}
	b.SetBytes(8 * 16384)
	b.ReportAllocs()
	entries := 0
	for b.Loop() {
		entries = 0
		for i, leaf := range leaves {
			block, err := DecodeBlock(leaf, uint64(i+1), d.order)
			if err != nil {
				b.Fatal(err)
			}
			for j := range block.Entries {
				if _, err := block.Entries[j].Dirent(); err != nil {
					b.Fatal(err)
				}
			}
			entries += len(block.Entries)
		}
	}
	b.ReportMetric(float64(entries), "entries/op")
}

// BenchmarkBonus decodes the attributes of 100,000 objects.
func BenchmarkBonus(b *testing.B) {
	d := bigDirectories(b)
	entries, err := d.entries(MasterNodeObject)
	if err != nil {
		b.Fatal(err)
	}
	master, err := DecodeMaster(entries)
	if err != nil {
		b.Fatal(err)
	}
	registry, err := d.registry(&master)
	if err != nil {
		b.Fatal(err)
	}
	var objects []*object
	for len(objects) < 100_000 {
		for _, o := range d.objects {
			if o.bonusType == TypeSA {
				objects = append(objects, o)
			}
		}
	}
	objects = objects[:100_000]
	size := 0
	for _, o := range objects {
		size += len(o.bonus)
	}
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		for _, o := range objects {
			if _, err := registry.Decode(o.bonusType, o.bonus, o.spill, d.order); err != nil {
				b.Fatal(err)
			}
		}
	}
}
