// Command benchdata makes the trees that scripts/bench.sh and scripts/demo.sh work
// with, and changes them. The same arguments give the same bytes.
//
//	benchdata small DIR N             N small text files, a hundred in a directory
//	benchdata tiny DIR N              the same, of some 350 bytes each
//	benchdata flat DIR N              N text files of some 30 bytes, all in one directory
//	benchdata edit DIR N [ROUND]      adds a line to N of the text files, spread over the tree
//	benchdata insert DIR N [ROUND]    inserts a line into N files, rewritten in place
//	benchdata save DIR N [ROUND]      inserts a line into N files, written anew and renamed over
//	benchdata rename DIR N [ROUND]    renames N files
//	benchdata image FILE MIB          an image of incompressible and compressible stretches
//	benchdata byte FILE               changes one byte of it
//	benchdata scatter FILE N          N writes of 64 random bytes, spread over it
//	benchdata dump FILE MIB           one file of rows of text, as a dump of a database
//	benchdata lines FILE N            writes it again with N lines more, the first at the front
//	benchdata count URL FILE          stands before the S3 server at URL, prints its own
//	                                  address, and notes each request in FILE
//
// Another ROUND means other files and other bytes.
package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) < 3 {
		log.Fatal("benchdata: see its source for how it is called")
	}
	what, path := os.Args[1], os.Args[2]
	if what == "count" {
		if len(os.Args) != 4 {
			log.Fatal("benchdata: count URL FILE")
		}
		log.Fatal("benchdata: ", count(path, os.Args[3]))
	}
	var numbers [2]int // N and ROUND
	for i, arg := range os.Args[3:min(len(os.Args), 5)] {
		var err error
		if numbers[i], err = strconv.Atoi(arg); err != nil {
			log.Fatal("benchdata: ", err)
		}
	}
	n, round := numbers[0], numbers[1]
	r := rand.New(rand.NewPCG(uint64(len(what)+1000*round), uint64(n)))
	var err error
	switch what {
	case "small":
		err = files(r, path, n, 6500)
	case "tiny":
		err = files(r, path, n, 250)
	case "flat":
		err = flat(path, n)
	case "edit":
		err = each(path, n, round, func(name string, b []byte) error { return os.WriteFile(name, append(b, text(r, 60)...), 0o644) })
	case "image":
		err = image(r, path, n)
	case "dump":
		err = dump(r, path, n)
	case "lines":
		err = lines(path, n)
	case "byte":
		err = scatter(r, path, 1, 1)
	case "scatter":
		err = scatter(r, path, n, 64)
	case "insert":
		err = each(path, n, round, func(name string, b []byte) error { return os.WriteFile(name, inserted(r, b), 0o644) })
	case "save":
		err = each(path, n, round, func(name string, b []byte) error {
			if err := os.WriteFile(name+"~", inserted(r, b), 0o644); err != nil {
				return err
			}
			return os.Rename(name+"~", name)
		})
	case "rename":
		err = each(path, n, round, func(name string, _ []byte) error { return os.Rename(name, name+".moved") })
	default:
		err = fmt.Errorf("unknown: %s", what)
	}
	if err != nil {
		log.Fatal("benchdata: ", err)
	}
}

// words are what text is made of: Zipf's law holds for it, as for prose.
var words = func() []string {
	r := rand.New(rand.NewPCG(1, 2))
	w := make([]string, 20000)
	for i := range w {
		b := make([]byte, 2+r.IntN(10))
		for j := range b {
			b[j] = "etaoinshrdlucmfwypvbgkjqxz"[min(r.IntN(26), r.IntN(26))]
		}
		w[i] = string(b)
	}
	return w
}()

func text(r *rand.Rand, n int) []byte {
	z := rand.NewZipf(r, 1.1, 4, uint64(len(words)-1))
	var b bytes.Buffer
	for b.Len() < n {
		b.WriteString(words[z.Uint64()])
		if r.IntN(12) == 0 {
			b.WriteByte('\n')
		} else {
			b.WriteByte(' ')
		}
	}
	b.WriteByte('\n')
	return b.Bytes()
}

// files makes n files of text, a hundred in a directory, of size bytes more than the
// fewest on average.
func files(r *rand.Rand, dir string, n, size int) error {
	// One long text, of which every file is a piece and a line of its own: making text
	// is slow, and the files should differ.
	pool := text(r, 64<<20)
	for i := range n {
		d := filepath.Join(dir, fmt.Sprintf("d%03d", i/10000), fmt.Sprintf("e%02d", i/100%100))
		if i%100 == 0 {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return err
			}
		}
		size := min(500, size/4) + int(r.ExpFloat64()*float64(size))
		at := r.IntN(len(pool) - size%len(pool))
		b := append(text(r, 40), pool[at:min(at+size, len(pool))]...)
		if err := os.WriteFile(filepath.Join(d, fmt.Sprintf("f%06d.txt", i)), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// dump makes rows of about 200 bytes, each with a number of its own.
func dump(r *rand.Rand, path string, mib int) error {
	pool := text(r, 16<<20)
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var b []byte
	for row, left := 0, mib<<20; left > 0; left -= len(b) {
		b = b[:0]
		for len(b) < min(left, 1<<20) {
			row++
			at := r.IntN(len(pool) - 200)
			b = fmt.Appendf(b, "%d\t%016x\t%s\n", row, r.Uint64(), bytes.ReplaceAll(pool[at:at+100+r.IntN(100)], []byte{'\n'}, []byte{' '}))
		}
		b = b[:min(len(b), left)]
		if _, err := f.Write(b); err != nil {
			return err
		}
	}
	return f.Close()
}

// lines writes a file again with n lines more, spread evenly. The first is at the front.
func lines(path string, n int) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	out.Grow(len(b) + 64*n)
	for i := range n {
		at := 0
		if i > 0 {
			at = bytes.IndexByte(b, '\n') + 1
		}
		out.Write(b[:at])
		fmt.Fprintf(&out, "-- a line that was not there before, %d\n", i)
		b = b[at:]
		k := len(b) / (n - i)
		out.Write(b[:k])
		b = b[k:]
	}
	return os.WriteFile(path, out.Bytes(), 0o644)
}

func flat(dir string, n int) error {
	for i := range n {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%07d.txt", i)), fmt.Appendf(nil, "this is file number %d\n", i), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// each calls change for n of the regular files below dir, spread evenly. Every round
// takes the next ones.
func each(dir string, n, round int, change func(name string, content []byte) error) error {
	var names []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == ".secrate" {
			return fs.SkipDir
		}
		if err == nil && d.Type().IsRegular() {
			if info, err := d.Info(); err == nil && info.Size() > 200 && info.Size() < 1<<20 {
				names = append(names, p)
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	slices.Sort(names)
	for i := range min(n, len(names)) {
		name := names[(i*len(names)/n+round)%len(names)]
		b, err := os.ReadFile(name)
		if err == nil {
			err = change(name, b)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func inserted(r *rand.Rand, b []byte) []byte {
	at := r.IntN(len(b))
	if i := bytes.IndexByte(b[at:], '\n'); i >= 0 {
		at += i + 1
	}
	return slices.Concat(b[:at], []byte("an inserted line "+strconv.Itoa(r.IntN(1e9))+"\n"), b[at:])
}

func image(r *rand.Rand, name string, mib int) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 1<<20)
	for i := range mib {
		if i%4 == 3 {
			copy(b, text(r, len(b)))
		} else {
			for j := 0; j < len(b); j += 8 {
				v := r.Uint64()
				for k := range 8 {
					b[j+k] = byte(v >> (8 * k))
				}
			}
		}
		if _, err := f.Write(b); err != nil {
			return err
		}
	}
	return f.Sync()
}

func scatter(r *rand.Rand, name string, n, size int) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	for range n {
		b := make([]byte, size)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		if _, err := f.WriteAt(b, r.Int64N(info.Size()-int64(size))); err != nil {
			return err
		}
	}
	return f.Sync()
}

// count forwards requests to the S3 server at endpoint for as long as it lives, and
// writes method and path of each as a line to the file name.
func count(endpoint, name string) error {
	target, err := url.Parse(endpoint)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("http://%s\n", l.Addr())
	forward := &httputil.ReverseProxy{
		// The signature covers the Host header: it stays what the client sent.
		Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = target.Scheme, target.Host },
	}
	return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(f, r.Method, r.URL.Path) // one write, so lines stay whole
		forward.ServeHTTP(w, r)
	}))
}
