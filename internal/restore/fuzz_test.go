package restore

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/s3history"
)

// FuzzRestore restores histories made of rows that nobody checked. Each four bytes are
// one row, of few nodes and names, so that they meet.
func FuzzRestore(f *testing.F) {
	f.Add([]byte{
		0, 2, 1, 0, // node 2: a directory
		1, 1, 2, 0, // in the root
		1, 2, 2, 1, // in itself
		1, 2, 1, 2, // the root in it
		0, 3, 0, 9, // node 3: a file
		1, 2, 3, 3,
		1, 1, 3, 4, // a link to it
		2, 3, 0, 9, // its content
		1, 2, 7, 6, // no such node
		1, 1, 3, 255, // a name that cannot be
	})
	f.Add([]byte{0, 2, 0, 200, 1, 1, 2, 0, 2, 2, 0, 100, 2, 2, 90, 110, 3, 2, 0, 50, 0, 5, 2, 0, 1, 1, 5, 5, 1, 2, 5, 6})
	fx := newFixture(f, 0)
	var part catalog.Part
	fx.commit(func(u *s3history.Update) {
		n := fx.add(u, filetree.RootNode, "f", noise(1, 300))
		parts, err := u.View().Parts(n, 0, 300)
		must(f, err)
		part = parts[0]
	})
	f.Fuzz(func(t *testing.T, rows []byte) {
		fx.t = t
		must(t, fx.cat.Begin())
		defer fx.cat.Rollback()
		v := fx.cat.At(fx.source.ID, 1)
		for len(rows) >= 4 && len(rows) < 4096 {
			op, n, b, c := rows[0]%5, filetree.NodeID(rows[1]%16), rows[2], int64(rows[3])
			rows = rows[4:]
			p := part
			p.Offset, p.Length = uint32(b), c
			switch op {
			case 0:
				a := &filetree.Attr{Kind: filetree.Kind(b%8 + 1), Mode: uint32(c), Size: c, Major: 1, Minor: 3, Target: "/etc/passwd"}
				if a.Kind == filetree.CharDev || a.Kind == filetree.BlkDev {
					a.Kind = filetree.Dir
				}
				if b > 250 {
					a.Size = 1 << (c % 24)
				}
				must(t, v.AddNode(n, a))
			case 1:
				name := fmt.Sprintf("n%d", c%16)
				switch c {
				case 255:
					name = ".."
				case 254:
					name = "../x"
				case 253:
					name = ""
				}
				must(t, v.AddEntry(n, name, filetree.NodeID(b%16)))
			case 2:
				must(t, v.AddParts(n, int64(b), []catalog.Part{p}))
			case 3:
				q := p
				q.Pack, q.Patch = 0, &catalog.Patch{Base: []catalog.Part{part}, Pack: part.Pack, Offset: uint32(b), Length: uint32(c), ResultLength: 300}
				must(t, v.AddParts(n, int64(b), []catalog.Part{q}))
			case 4:
				p.Pack, p.Blob = catalog.PackID(b%3), uint32(c%3)
				must(t, v.AddParts(n, int64(b), []catalog.Part{p}))
			}
		}
		setWindow(t, 1+len(rows)%3)
		dir := t.TempDir()
		o := fx.options()
		o.To = filepath.Join(dir, "to")
		res, err := Run(t.Context(), o)
		if err != nil {
			return
		}
		files, dirs, other := int64(0), int64(0), int64(0)
		for path := range see(t, o.To) {
			switch st, err := os.Lstat(filepath.Join(o.To, path)); {
			case err != nil:
				t.Fatal(err)
			case st.IsDir():
				dirs++
			case st.Mode().IsRegular():
				files++
			default:
				other++
			}
		}
		if dirs < res.Dirs || dirs > res.Dirs+res.Failures || files+other != res.Files+res.Links+res.HardLinks+res.Special {
			t.Errorf("%d files, %d directories, %d others are there: %+v", files, dirs, other, res)
		}
		beside, err := os.ReadDir(dir)
		must(t, err)
		if len(beside) != 1 {
			t.Errorf("beside the target: %v", beside)
		}
	})
}
