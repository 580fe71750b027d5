package seal

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"filippo.io/age/armor"
	"filippo.io/age/plugin"
	"golang.org/x/crypto/ssh"
)

// MaxIdentityFile bounds the length of an identity file.
const MaxIdentityFile = 64 << 10

// ErrPassphrase is wrapped when a passphrase is needed and none was to be had,
// or when it is wrong.
var ErrPassphrase = errors.New("passphrase missing or wrong")

// GenerateIdentity returns a new identity and the recipient that belongs to it:
// a hybrid, post-quantum one (AGE-SECRET-KEY-PQ-1…, age1pq1…), or if classic a
// plain X25519 one (AGE-SECRET-KEY-1…, age1…), whose recipient can be typed by
// hand and which every version of age understands.
func GenerateIdentity(classic bool) (identity, recipient string, err error) {
	if classic {
		id, err := age.GenerateX25519Identity()
		if err != nil {
			return "", "", fmt.Errorf("generate identity: %w", err)
		}
		return id.String(), id.Recipient().String(), nil
	}
	id, err := age.GenerateHybridIdentity()
	if err != nil {
		return "", "", fmt.Errorf("generate identity: %w", err)
	}
	return id.String(), id.Recipient().String(), nil
}

// ParseIdentityFile returns the identities in data, at least one. data is one of
//
//   - lines of AGE-SECRET-KEY-1…, AGE-SECRET-KEY-PQ-1… and AGE-PLUGIN-NAME-1…
//     (for which age-plugin-name is run when a message is opened), empty lines,
//     and comments that start with #;
//   - an SSH private key, RSA or Ed25519, in any format of ssh-keygen's, with or
//     without a passphrase;
//   - either of them encrypted by age with a passphrase, armored or not.
//
// A passphrase is asked for at once, so that no question comes up in the midst
// of a restore; a missing or wrong one wraps [ErrPassphrase]. Errors say which
// line is wrong and repeat nothing of it.
func ParseIdentityFile(data []byte, o Options) ([]age.Identity, error) {
	if len(data) > MaxIdentityFile {
		return nil, fmt.Errorf("identity file: %d bytes, may be %d", len(data), MaxIdentityFile)
	}
	ids, err := parseIdentityFile(data, o)
	if err != nil {
		return nil, fmt.Errorf("identity file: %w", err)
	}
	return ids, nil
}

func parseIdentityFile(data []byte, o Options) ([]age.Identity, error) {
	trimmed := bytes.TrimSpace(data)
	switch {
	case bytes.HasPrefix(trimmed, []byte(armor.Header)):
		return parseEncrypted(armor.NewReader(bytes.NewReader(trimmed)), o)
	case bytes.HasPrefix(data, []byte("age-encryption.org/")):
		return parseEncrypted(bytes.NewReader(data), o)
	}
	return parsePlain(data, o)
}

func parsePlain(data []byte, o Options) ([]age.Identity, error) {
	if trimmed := bytes.TrimSpace(data); bytes.HasPrefix(trimmed, []byte("-----BEGIN")) {
		id, err := parseSSH(trimmed, o)
		if err != nil {
			return nil, err
		}
		return []age.Identity{id}, nil
	}
	var ids []age.Identity
	n := 0
	for line := range strings.Lines(string(data)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		id, err := parseIdentity(line, o)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		ids = append(ids, id)
	}
	if len(ids) == 0 {
		return nil, errors.New("no identity in it")
	}
	return ids, nil
}

// parseIdentity hides the errors of age's parsers: those of bech32 show single
// characters of what they choke on, and it is secret.
func parseIdentity(line string, o Options) (age.Identity, error) {
	var id age.Identity
	var err error
	switch {
	case strings.HasPrefix(line, "AGE-SECRET-KEY-PQ-1"):
		id, err = age.ParseHybridIdentity(line)
	case strings.HasPrefix(line, "AGE-SECRET-KEY-1"):
		id, err = age.ParseX25519Identity(line)
	case strings.HasPrefix(line, "AGE-PLUGIN-"):
		id, err = plugin.NewIdentity(line, o.pluginUI())
	case strings.HasPrefix(line, "age1"), strings.HasPrefix(line, "ssh-"):
		return nil, errors.New("this is a recipient: the identity (AGE-SECRET-KEY-…) that belongs to it is needed here")
	default:
		return nil, errors.New("unknown type: want AGE-SECRET-KEY-…, AGE-PLUGIN-… or a comment")
	}
	if err != nil {
		return nil, errors.New("malformed identity: mistyped or cut off")
	}
	return id, nil
}

// parseEncrypted parses an identity file that age encrypted with a passphrase.
func parseEncrypted(r io.Reader, o Options) ([]age.Identity, error) {
	d, err := age.Decrypt(r, &passphraseIdentity{o})
	if errors.Is(err, ErrPassphrase) {
		return nil, err
	}
	if _, ok := errors.AsType[*age.NoIdentityMatchError](err); ok {
		return nil, errors.New("it is encrypted, but not with a passphrase: decrypt it with age first")
	}
	if err != nil {
		return nil, fmt.Errorf("decrypt: %w", err)
	}
	plain, err := io.ReadAll(d)
	if err != nil {
		return nil, fmt.Errorf("decrypt: %w", err)
	}
	return parsePlain(plain, o)
}

// A passphraseIdentity asks for a passphrase once it has seen that one is
// needed, and tells a wrong one from a file that is not for passphrases.
type passphraseIdentity struct{ o Options }

func (p *passphraseIdentity) Unwrap(stanzas []*age.Stanza) ([]byte, error) {
	if len(stanzas) != 1 || stanzas[0].Type != "scrypt" {
		return nil, age.ErrIncorrectIdentity
	}
	pass, err := p.o.passphrase("identity file")
	if err != nil {
		return nil, err
	}
	id, err := age.NewScryptIdentity(string(pass))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPassphrase, err)
	}
	key, err := id.Unwrap(stanzas)
	if errors.Is(err, age.ErrIncorrectIdentity) {
		return nil, fmt.Errorf("%w: it does not open the file", ErrPassphrase)
	}
	return key, err
}

func (o Options) passphrase(what string) ([]byte, error) {
	if o.Passphrase == nil {
		return nil, fmt.Errorf("%w: the %s is encrypted", ErrPassphrase, what)
	}
	pass, err := o.Passphrase(what)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPassphrase, err)
	}
	return pass, nil
}

func parseSSH(pem []byte, o Options) (age.Identity, error) {
	key, err := ssh.ParseRawPrivateKey(pem)
	if _, ok := errors.AsType[*ssh.PassphraseMissingError](err); ok {
		pass, err := o.passphrase("SSH private key")
		if err != nil {
			return nil, err
		}
		key, err = ssh.ParseRawPrivateKeyWithPassphrase(pem, pass)
		if err != nil {
			// Old PEM keys have no integrity: a wrong passphrase that happens
			// to decrypt shows as any error of the parser.
			return nil, fmt.Errorf("SSH private key: %w", ErrPassphrase)
		}
		return sshIdentity(key)
	}
	if err != nil {
		return nil, errors.New("malformed SSH private key, or of a type that is not supported")
	}
	return sshIdentity(key)
}

func sshIdentity(key any) (age.Identity, error) {
	switch k := key.(type) {
	case *ed25519.PrivateKey: // from the OpenSSH format
		return agessh.NewEd25519Identity(*k)
	case ed25519.PrivateKey: // from PKCS #8
		return agessh.NewEd25519Identity(k)
	case *rsa.PrivateKey:
		return agessh.NewRSAIdentity(k)
	}
	return nil, fmt.Errorf("SSH private key of type %T: only Ed25519 and RSA keys can be identities", key)
}
