package zfs

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// plainFletcher4 is the definition.
func plainFletcher4(sum [4]uint64, p []byte, order binary.ByteOrder) [4]uint64 {
	for ; len(p) > 0; p = p[4:] {
		sum[0] += uint64(order.Uint32(p))
		sum[1] += sum[0]
		sum[2] += sum[1]
		sum[3] += sum[2]
	}
	return sum
}

func TestFletcher4(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	p := make([]byte, 4096)
	for i := range p {
		p[i] = byte(rnd.Uint32())
	}
	for _, big := range []bool{false, true} {
		var order binary.ByteOrder = binary.LittleEndian
		if big {
			order = binary.BigEndian
		}
		var got fletcher4
		var want [4]uint64
		for n := 0; n < 100; n++ {
			q := p[n*8:][:n*4]
			got.update(q, big)
			want = plainFletcher4(want, q, order)
			if got != want {
				t.Fatalf("big endian %v, after %d words: %x, want %x", big, n, got, want)
			}
		}
	}
}

func BenchmarkFletcher4(b *testing.B) {
	p := make([]byte, 128<<10)
	for i := range p {
		p[i] = byte(i * i)
	}
	for name, big := range map[string]bool{"little": false, "big": true} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(p)))
			var f fletcher4
			for b.Loop() {
				f.update(p, big)
			}
		})
	}
}
