package seal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"filippo.io/age/armor"
	"filippo.io/age/plugin"
	"github.com/google/go-cmp/cmp"
)

func generate(t testing.TB, classic bool) (identity, recipient string) {
	t.Helper()
	identity, recipient, err := GenerateIdentity(classic)
	if err != nil {
		t.Fatal(err)
	}
	return identity, recipient
}

func readTestdata(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func mustRecipients(t testing.TB, lines ...string) *Recipients {
	t.Helper()
	rs, err := ParseRecipients(lines, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return rs
}

func mustIdentities(t testing.TB, file string) []age.Identity {
	t.Helper()
	ids, err := ParseIdentityFile([]byte(file), Options{})
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

// passphrase answers every question with pass.
func passphrase(pass string) Options {
	return Options{Passphrase: func(string) ([]byte, error) { return []byte(pass), nil }}
}

func TestGenerateIdentity(t *testing.T) {
	for _, tt := range []struct {
		classic             bool
		identity, recipient string
	}{
		{true, "AGE-SECRET-KEY-1", "age1"},
		{false, "AGE-SECRET-KEY-PQ-1", "age1pq1"},
	} {
		id, r := generate(t, tt.classic)
		if !strings.HasPrefix(id, tt.identity) || !strings.HasPrefix(r, tt.recipient) {
			t.Errorf("classic %v: %s… and %s…", tt.classic, id[:20], r[:8])
		}
	}
}

func TestParseRecipients(t *testing.T) {
	identity, x1 := generate(t, true)
	_, x2 := generate(t, true)
	_, pq1 := generate(t, false)
	_, pq2 := generate(t, false)
	yubikey := plugin.EncodeRecipient("yubikey", []byte("some key, the plugin knows"))
	ed, rsa := strings.TrimSpace(readTestdata(t, "ssh_ed25519.pub")), strings.TrimSpace(readTestdata(t, "ssh_rsa.pub"))

	for _, tt := range []struct {
		name  string
		lines []string
		want  []string
		err   error
		says  string
	}{
		{name: "none", err: ErrNoRecipients},
		{name: "comments only", lines: []string{"", "# " + x1, "  "}, err: ErrNoRecipients},
		{name: "one", lines: []string{" " + x1 + "\r\n"}, want: []string{x1}},
		{name: "duplicates", lines: []string{x1, x2, x1}, want: []string{x1, x2}},
		{name: "hybrid", lines: []string{pq1, "# the safe", pq2, pq1}, want: []string{pq1, pq2}},
		{name: "SSH, comments apart", lines: []string{ed + " nas", rsa + " old", ed + " laptop"}, want: []string{ed, rsa}},
		{name: "classic of all kinds", lines: []string{ed, x1, rsa}, want: []string{ed, x1, rsa}},
		{name: "plugin beside classic", lines: []string{yubikey, x1}, want: []string{yubikey, x1}},
		{name: "plugin beside hybrid", lines: []string{yubikey, pq1}, want: []string{yubikey, pq1}},
		{name: "mixed", lines: []string{x1, "", pq1}, err: ErrMixedRecipients, says: "recipients 1 and 3"},
		{name: "mixed with SSH", lines: []string{pq1, ed}, err: ErrMixedRecipients, says: "age1pq1… recipients only"},
		{name: "unknown", lines: []string{x1, "github:somebody"}, says: "recipient 2: unknown type"},
		{name: "mistyped", lines: []string{strings.Replace(x1, "q", "p", 1) + "q"}, says: "recipient 1: malformed age1…"},
		{name: "mistyped hybrid", lines: []string{pq1 + "q"}, says: "recipient 1: malformed age1pq1…"},
		{name: "mistyped plugin", lines: []string{yubikey + "q"}, says: "recipient 1: malformed age1name1…"},
		{name: "malformed SSH", lines: []string{"ssh-ed25519 AAAA"}, says: "recipient 1: malformed SSH"},
		{name: "unsupported SSH", lines: []string{readTestdata(t, "ssh_ecdsa.pub")}, says: "recipient 1: SSH public key of type ecdsa-sha2-nistp256"},
		{name: "an identity", lines: []string{identity}, says: "recipient 1: this is an identity"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rs, err := ParseRecipients(tt.lines, Options{})
			if tt.want != nil {
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(tt.want, rs.Strings()); diff != "" {
					t.Errorf("recipients (-want +got):\n%s", diff)
				}
				return
			}
			if err == nil {
				t.Fatal("no error")
			}
			if tt.err != nil && !errors.Is(err, tt.err) {
				t.Errorf("error %q does not wrap %q", err, tt.err)
			}
			if !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %q does not say %q", err, tt.says)
			}
			if strings.Contains(err.Error(), "AGE-SECRET-KEY-1") {
				t.Errorf("error %q shows an identity", err)
			}
		})
	}
}

// TestEncryptRefusesMixed pins down the rule of age's that ErrMixedRecipients stands for.
func TestEncryptRefusesMixed(t *testing.T) {
	_, x := generate(t, true)
	_, pq := generate(t, false)
	mixed := &Recipients{list: append(mustRecipients(t, x).list, mustRecipients(t, pq).list...)}
	if _, err := mixed.SealTo(nil); err == nil || !strings.Contains(err.Error(), "can't mix post-quantum and classic") {
		t.Errorf("got %v", err)
	}
}

func TestSealTo(t *testing.T) {
	x1, rx1 := generate(t, true)
	x2, rx2 := generate(t, true)
	pq1, rpq1 := generate(t, false)
	pq2, rpq2 := generate(t, false)
	ed, rsa := readTestdata(t, "ssh_ed25519"), readTestdata(t, "ssh_rsa")
	key := NewKey()

	for _, tt := range []struct {
		name       string
		recipients []string
		opens      []string
		not        string
		size       int // the documented one, of a 32-byte message
	}{
		{"X25519", []string{rx1}, []string{x1}, x2, 232},
		{"two X25519", []string{rx1, rx2}, []string{x1, x2, "# both\n" + x1 + "\n" + x2, pq1 + "\n" + x2}, pq1, 232 + 98},
		{"hybrid", []string{rpq1}, []string{pq1}, pq2, 1691},
		{"two hybrid", []string{rpq1, rpq2}, []string{pq1, pq2}, x1, 1691 + 1557},
		{"SSH", []string{readTestdata(t, "ssh_ed25519.pub"), readTestdata(t, "ssh_rsa.pub")}, []string{ed, rsa}, x1, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sealed, err := mustRecipients(t, tt.recipients...).SealTo(key[:])
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("a 32-byte key takes %d bytes", len(sealed))
			if tt.size != 0 && len(sealed) != tt.size {
				t.Errorf("%d bytes, documented are %d", len(sealed), tt.size)
			}
			for i, file := range tt.opens {
				got, err := OpenWith(mustIdentities(t, file), sealed)
				if err != nil || !bytes.Equal(got, key[:]) {
					t.Errorf("identity file %d: %v", i, err)
				}
			}
			_, err = OpenWith(mustIdentities(t, tt.not), sealed)
			if !errors.Is(err, ErrNoIdentity) {
				t.Errorf("error %v, want %v", err, ErrNoIdentity)
			}
			if _, ok := errors.AsType[*age.NoIdentityMatchError](err); !ok {
				t.Errorf("error %v wraps no NoIdentityMatchError", err)
			}
		})
	}
}

func TestSealToBounds(t *testing.T) {
	id, r := generate(t, true)
	rs := mustRecipients(t, r)
	if _, err := (&Recipients{}).SealTo(nil); !errors.Is(err, ErrNoRecipients) {
		t.Errorf("nobody: %v", err)
	}
	if _, err := rs.SealTo(make([]byte, MaxSealed)); err == nil {
		t.Error("sealed more than can be opened")
	}
	sealed, err := rs.SealTo(make([]byte, MaxSealed-200))
	if err != nil || len(sealed) != MaxSealed {
		t.Fatalf("%d bytes, %v", len(sealed), err)
	}
	if _, err := OpenWith(mustIdentities(t, id), sealed); err != nil {
		t.Error(err)
	}
	if _, err := OpenWith(mustIdentities(t, id), append(sealed, 0)); err == nil {
		t.Error("opened more than can be sealed")
	}
	if _, err := OpenWith(nil, sealed); !errors.Is(err, ErrNoIdentity) {
		t.Errorf("without an identity: %v", err)
	}
}

func TestOpenWithRefusesAltered(t *testing.T) {
	for _, classic := range []bool{true, false} {
		id, r := generate(t, classic)
		ids := mustIdentities(t, id)
		sealed, err := mustRecipients(t, r).SealTo([]byte("key"))
		if err != nil {
			t.Fatal(err)
		}
		step := 1
		if !classic {
			step = 7 // hybrid: slower, and ten times as long
		}
		for i := 0; i < len(sealed); i += step {
			sealed[i] ^= 1
			if _, err := OpenWith(ids, sealed); err == nil {
				t.Errorf("classic %v: byte %d altered, opened all the same", classic, i)
			}
			sealed[i] ^= 1
			if _, err := OpenWith(ids, sealed[:i]); err == nil {
				t.Errorf("classic %v: cut at %d, opened all the same", classic, i)
			}
		}
		if _, err := OpenWith(ids, append(bytes.Clone(sealed), 0)); err == nil {
			t.Errorf("classic %v: lengthened, opened all the same", classic)
		}
	}
}

func TestOpenWithNamesTypesSafely(t *testing.T) {
	id, _ := generate(t, true)
	var hdr strings.Builder
	hdr.WriteString("age-encryption.org/v1\n")
	for i := range 300 {
		fmt.Fprintf(&hdr, "-> %s%d\n\n", strings.Repeat("x", 100), i)
	}
	hdr.WriteString("--- " + strings.Repeat("A", 43) + "\n0123456789abcdef")
	_, err := OpenWith(mustIdentities(t, id), []byte(hdr.String()))
	if !errors.Is(err, ErrNoIdentity) || len(err.Error()) > 400 {
		t.Errorf("got %v", err)
	}
}

// encryptFile returns an identity file encrypted with a passphrase, as age -p
// does, with less work.
func encryptFile(t testing.TB, plain, pass string, armored bool) string {
	t.Helper()
	r, err := age.NewScryptRecipient(pass)
	if err != nil {
		t.Fatal(err)
	}
	r.SetWorkFactor(4)
	var buf bytes.Buffer
	w, err := age.Encrypt(&buf, r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(plain)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if armored {
		return armorText(t, buf.String())
	}
	return buf.String()
}

func armorText(t testing.TB, s string) string {
	t.Helper()
	var buf bytes.Buffer
	w := armor.NewWriter(&buf)
	if _, err := w.Write([]byte(s)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.String()
}

func TestParseIdentityFile(t *testing.T) {
	x, rx := generate(t, true)
	pq, rpq := generate(t, false)
	ed, rsa := readTestdata(t, "ssh_ed25519.pub"), readTestdata(t, "ssh_rsa.pub")
	yubikey := plugin.EncodeIdentity("yubikey", []byte("slot"))
	toSomebody, err := mustRecipients(t, rx).SealTo([]byte(pq))
	if err != nil {
		t.Fatal(err)
	}
	lines := "# created by secrate\r\n# public key: " + rx + "\n\n" + x + "\r\n" + yubikey + "\n  " + pq

	for _, tt := range []struct {
		name string
		file string
		o    Options
		n    int      // identities in it
		rs   []string // each opens what is sealed to any of them
		err  error
		says string
	}{
		{name: "one", file: x, n: 1, rs: []string{rx}},
		{name: "several, a comment, CRLF", file: lines, n: 3, rs: []string{rx, rpq}},
		{name: "SSH Ed25519", file: readTestdata(t, "ssh_ed25519"), n: 1, rs: []string{ed}},
		{name: "SSH RSA", file: "\n" + readTestdata(t, "ssh_rsa"), n: 1, rs: []string{rsa}},
		{name: "SSH Ed25519 encrypted", file: readTestdata(t, "ssh_ed25519_encrypted"), o: passphrase("secrate"), n: 1, rs: []string{readTestdata(t, "ssh_ed25519_encrypted.pub")}},
		{name: "SSH RSA encrypted", file: readTestdata(t, "ssh_rsa_encrypted"), o: passphrase("secrate"), n: 1, rs: []string{readTestdata(t, "ssh_rsa_encrypted.pub")}},
		{name: "SSH RSA encrypted PEM", file: readTestdata(t, "ssh_rsa_pem_encrypted"), o: passphrase("secrate"), n: 1, rs: []string{readTestdata(t, "ssh_rsa_pem_encrypted.pub")}},
		{name: "encrypted", file: encryptFile(t, lines, "secrate", false), o: passphrase("secrate"), n: 3, rs: []string{rx, rpq}},
		{name: "encrypted, armored", file: "\n" + encryptFile(t, lines, "secrate", true) + "\n", o: passphrase("secrate"), n: 3, rs: []string{rx, rpq}},
		{name: "encrypted SSH key", file: encryptFile(t, readTestdata(t, "ssh_rsa"), "secrate", true), o: passphrase("secrate"), n: 1, rs: []string{rsa}},

		{name: "empty", says: "no identity in it"},
		{name: "comments only", file: "# " + x + "\n", says: "no identity in it"},
		{name: "malformed", file: "# 1\n\n" + x + "\n" + x[:len(x)-1], says: "identity file: line 4: malformed"},
		{name: "bad characters", file: x[:30] + "#" + x[30:], says: "line 1: malformed"},
		{name: "mistyped hybrid", file: pq + "Q", says: "line 1: malformed"},
		{name: "malformed plugin", file: yubikey + "Q", says: "line 1: malformed"},
		{name: "lower case", file: strings.ToLower(x), says: "line 1: unknown type"},
		{name: "a recipient", file: "\n" + rx, says: "line 2: this is a recipient"},
		{name: "too long", file: strings.Repeat("#\n", MaxIdentityFile), says: "may be 65536"},
		{name: "SSH malformed", file: readTestdata(t, "ssh_rsa")[:500], says: "malformed SSH"},
		{name: "SSH ECDSA", file: readTestdata(t, "ssh_ecdsa"), says: "only Ed25519 and RSA"},
		{name: "SSH without passphrase", file: readTestdata(t, "ssh_ed25519_encrypted"), err: ErrPassphrase, says: "the SSH private key is encrypted"},
		{name: "SSH wrong passphrase", file: readTestdata(t, "ssh_ed25519_encrypted"), o: passphrase("x"), err: ErrPassphrase},
		{name: "SSH PEM wrong passphrase", file: readTestdata(t, "ssh_rsa_pem_encrypted"), o: passphrase("x"), err: ErrPassphrase},
		{name: "no passphrase", file: encryptFile(t, x, "secrate", false), err: ErrPassphrase, says: "the identity file is encrypted"},
		{name: "wrong passphrase", file: encryptFile(t, x, "secrate", true), o: passphrase("x"), err: ErrPassphrase},
		{name: "empty passphrase", file: encryptFile(t, x, "secrate", true), o: passphrase(""), err: ErrPassphrase},
		{name: "passphrase refused", file: encryptFile(t, x, "secrate", true), err: os.ErrDeadlineExceeded,
			o: Options{Passphrase: func(string) ([]byte, error) { return nil, os.ErrDeadlineExceeded }}},
		{name: "encrypted to a recipient", file: string(toSomebody), o: passphrase("secrate"), says: "not with a passphrase"},
		{name: "encrypted to a recipient, armored", file: armorText(t, string(toSomebody)), o: passphrase("secrate"), says: "not with a passphrase"},
		{name: "encrypted, malformed inside", file: encryptFile(t, "\n"+x+"Q", "secrate", true), o: passphrase("secrate"), says: "line 2: malformed"},
		{name: "encrypted twice", file: encryptFile(t, encryptFile(t, x, "secrate", true), "secrate", true), o: passphrase("secrate"), says: "malformed SSH"},
		{name: "encrypted, cut", file: encryptFile(t, lines, "secrate", false)[:200], o: passphrase("secrate"), says: "decrypt"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ids, err := ParseIdentityFile([]byte(tt.file), tt.o)
			if tt.n > 0 {
				if err != nil || len(ids) != tt.n {
					t.Fatalf("%d identities, want %d; error %v", len(ids), tt.n, err)
				}
				for _, r := range tt.rs {
					sealed, err := mustRecipients(t, r).SealTo([]byte("key"))
					if err != nil {
						t.Fatal(err)
					}
					if plain, err := OpenWith(ids, sealed); err != nil || string(plain) != "key" {
						t.Errorf("%q, %v", plain, err)
					}
				}
				return
			}
			if err == nil {
				t.Fatal("no error")
			}
			if tt.err != nil && !errors.Is(err, tt.err) {
				t.Errorf("error %q does not wrap %q", err, tt.err)
			}
			if !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %q does not say %q", err, tt.says)
			}
			for _, secret := range []string{x[16:26], pq[20:30], yubikey[19:26]} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("error %q shows part of an identity", err)
				}
			}
		})
	}
}

func TestPluginNotInstalled(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	rs := mustRecipients(t, plugin.EncodeRecipient("yubikey", []byte("key")))
	_, err := rs.SealTo(nil)
	if nf, ok := errors.AsType[*plugin.NotFoundError](err); !ok || nf.Name != "yubikey" {
		t.Errorf("got %v", err)
	}
}

func FuzzOpenWith(f *testing.F) {
	x, rx := generate(f, true)
	pq, rpq := generate(f, false)
	ids := mustIdentities(f, x+"\n"+pq)
	for _, r := range []string{rx, rpq} {
		sealed, err := mustRecipients(f, r).SealTo([]byte("key"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(sealed)
	}
	f.Add([]byte("age-encryption.org/v1\n-> X25519 AAAA\n\n--- AAAA\n"))
	f.Fuzz(func(t *testing.T, sealed []byte) {
		plain, err := OpenWith(ids, sealed)
		if err == nil && len(plain) >= len(sealed) {
			t.Errorf("%d bytes opened from %d", len(plain), len(sealed))
		}
		if err != nil && plain != nil {
			t.Error("plaintext beside an error")
		}
	})
}

func FuzzParseIdentityFile(f *testing.F) {
	x, _ := generate(f, true)
	pq, rpq := generate(f, false)
	for _, name := range []string{"ssh_ed25519", "ssh_rsa", "ssh_ecdsa", "ssh_ed25519_encrypted", "ssh_rsa_pem_encrypted"} {
		f.Add([]byte(readTestdata(f, name)))
	}
	f.Add([]byte("# comment\n\n" + x + "\r\n" + pq + "\n" + rpq))
	f.Add([]byte(plugin.EncodeIdentity("yubikey", []byte("slot"))))
	f.Add([]byte(encryptFile(f, x, "secrate", true)))
	f.Add([]byte(encryptFile(f, x, "secrate", false)))
	f.Fuzz(func(t *testing.T, data []byte) {
		// No passphrase: how much work it starts is up to the file's owner.
		ids, err := ParseIdentityFile(data, Options{})
		if (err == nil) != (len(ids) > 0) {
			t.Errorf("%d identities, error %v", len(ids), err)
		}
		if err != nil && len(err.Error()) > 500 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
	})
}

func FuzzParseRecipients(f *testing.F) {
	x, rx := generate(f, true)
	_, rpq := generate(f, false)
	f.Add(x)
	f.Add("# comment\n" + rx + "\n" + rx)
	f.Add(rpq + "\n" + plugin.EncodeRecipient("yubikey", []byte("key")))
	f.Add(readTestdata(f, "ssh_ed25519.pub") + readTestdata(f, "ssh_rsa.pub"))
	f.Fuzz(func(t *testing.T, text string) {
		rs, err := ParseRecipients(strings.Split(text, "\n"), Options{})
		if err != nil {
			return
		}
		again, err := ParseRecipients(rs.Strings(), Options{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(rs.Strings(), again.Strings()); diff != "" {
			t.Errorf("parsed again (-first +second):\n%s", diff)
		}
	})
}
