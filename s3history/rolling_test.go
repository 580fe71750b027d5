package s3history

import (
	"bytes"
	"testing"

	"github.com/secrate/secrate/internal/filetree"
	"github.com/secrate/secrate/internal/rolling"
)

// TestSignatureOf sees to it that a signature is of what a snapshot has, and of nothing that
// came after it was made.
func TestSignatureOf(t *testing.T) {
	f := newFixture(t)
	w := f.writer()
	source := must(w.Source("s"))
	data := noise(1, 200000)
	var n filetree.NodeID
	signed := func(u *Update) *rolling.Signature {
		s := rolling.NewSigner(4096, u.RollingSum)
		s.Write(0, data)
		return s.Signature()
	}
	has := func(u *Update) (bool, uint64) {
		t.Helper()
		sig, of, err := u.Signature(n, u.Before())
		if err != nil {
			t.Fatal(err)
		}
		return sig != nil, of.Seq()
	}
	commit := func(seq int64, do func(u *Update)) {
		t.Helper()
		if _, err := f.commit(w, seq, do); err != nil {
			t.Fatal(err)
		}
	}
	commit(1, func(u *Update) {
		n = must(u.Create(filetree.RootNode, "a", fileAttr))
		must(0, u.Write(n, 0, data))
		must(0, u.SetSignature(n, signed(u), true))
		if ok, _ := has(u); ok {
			t.Error("a signature of a state that can still change was given out")
		}
		if so := must(u.SignedNew()); so < 1000 || so > 1500 {
			t.Errorf("signatures of new files have %d bytes", so)
		}
	})
	for i, change := range []func(u *Update) error{
		func(u *Update) error { return u.Write(n, 5000, noise(2, 100)) },
		func(u *Update) error { return u.Truncate(n, 9000) },
		func(u *Update) error { return u.Truncate(n, 300000) }, // and what follows was no hole
		func(u *Update) error { return u.Hole(n, 0, 8192) },
		func(u *Update) error {
			return u.Put(n, Piece{Offset: 70000, Items: []Item{{Data: noise(3, 500)}}})
		},
		func(u *Update) error {
			return u.Overwrite(n, Piece{Offset: 80000, Items: []Item{{Data: noise(4, 500)}}})
		},
	} {
		commit(int64(2*i+2), func(u *Update) {
			must(0, u.Write(n, 0, noise(i+10, 200000)))
			must(0, u.SetSignature(n, signed(u), false))
			must(0, change(u))
			must(0, u.flushWrite())
		})
		commit(int64(2*i+3), func(u *Update) {
			if ok, seq := has(u); ok && i != 2 {
				t.Errorf("change %d: the signature of #%d is there, which it was not the last of", i, seq)
			}
			must(0, u.Truncate(n, 200000))
			must(0, u.Write(n, 0, data))
			must(0, u.SetSignature(n, signed(u), false))
		})
		u := must(w.Begin(t.Context(), source, SnapshotInfo{}))
		if ok, seq := has(u); !ok || seq != uint64(2*i+3) {
			t.Errorf("change %d: signed %v, of #%d", i, ok, seq)
		}
		u.Abort()
	}
	// What comes later leaves the signature of what was.
	commit(14, func(u *Update) { must(0, u.Write(n, 0, bytes.Repeat([]byte("later "), 1000))) })
	commit(15, func(u *Update) {
		if ok, seq := has(u); !ok || seq != 13 {
			t.Errorf("signed %v, of #%d", ok, seq)
		}
		must(0, f.cat.At(source.ID, 15).SetRolling(n, []byte("damaged")))
		must(0, u.Write(n, 0, []byte("x")))
	})
	commit(16, func(u *Update) {
		if ok, _ := has(u); ok {
			t.Error("a damaged signature was read")
		}
		must(0, u.Write(n, 0, []byte("y")))
	})
}
