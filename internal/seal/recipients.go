package seal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"filippo.io/age/plugin"
	"golang.org/x/crypto/ssh"
)

// MaxSealed bounds the length of a message sealed to recipients: enough for a
// key and forty hybrid recipients or six hundred classic ones.
const MaxSealed = 64 << 10

// Errors that callers may test for.
var (
	// ErrNoRecipients is returned when there is nobody to seal to.
	ErrNoRecipients = errors.New("no recipients")
	// ErrMixedRecipients is wrapped when post-quantum recipients stand
	// beside classic ones: the message would be as weak as the classic ones.
	ErrMixedRecipients = errors.New("post-quantum and classic recipients cannot be used together")
	// ErrNoIdentity is wrapped when a message was sealed to none of the
	// identities at hand.
	ErrNoIdentity = errors.New("no identity matches")
)

// Options are the questions that keys may raise. Its zero value answers none.
type Options struct {
	// Passphrase is asked for the passphrase of what the argument names
	// ("identity file", "SSH private key"). When it is nil, whatever needs
	// a passphrase is an error that wraps [ErrPassphrase].
	Passphrase func(what string) ([]byte, error)
	// Plugin talks to the user on behalf of age plugins, while sealing and
	// opening. When it is nil, a plugin is refused all it asks for.
	Plugin *plugin.ClientUI
}

func (o Options) pluginUI() *plugin.ClientUI {
	if o.Plugin == nil {
		return &plugin.ClientUI{}
	}
	return o.Plugin
}

// Recipients are those who may open what is sealed to them.
type Recipients struct {
	list  []age.Recipient
	names []string // canonical, parallel to list
}

// ParseRecipients parses one recipient a line: age1… (X25519), age1pq1…
// (hybrid), ssh-ed25519 and ssh-rsa public keys with or without a comment, and
// age1name1… for the plugin age-plugin-name, which is not run yet. Empty lines
// and those that start with # are skipped, duplicates dropped.
//
// age lets post-quantum recipients stand only among their like, and so does
// ParseRecipients: the error wraps [ErrMixedRecipients]. What a plugin's
// recipients are, only SealTo finds out. Without any recipient the error is
// [ErrNoRecipients].
func ParseRecipients(lines []string, o Options) (*Recipients, error) {
	rs := &Recipients{}
	seen := make(map[string]bool)
	classicAt, hybridAt := 0, 0
	for i, line := range lines {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		r, name, err := parseRecipient(line, o)
		if err != nil {
			return nil, fmt.Errorf("recipient %d: %w", i+1, err)
		}
		if seen[name] {
			continue
		}
		seen[name] = true
		switch r.(type) {
		case *age.HybridRecipient:
			hybridAt = i + 1
		case *plugin.Recipient:
		default:
			classicAt = i + 1
		}
		rs.list = append(rs.list, r)
		rs.names = append(rs.names, name)
	}
	if len(rs.list) == 0 {
		return nil, ErrNoRecipients
	}
	if classicAt > 0 && hybridAt > 0 {
		return nil, fmt.Errorf("recipients %d and %d: %w: use age1pq1… recipients only, or none",
			classicAt, hybridAt, ErrMixedRecipients)
	}
	return rs, nil
}

// parseRecipient returns a recipient and its canonical name. Its errors do not
// repeat the line, which may be an identity that went astray.
func parseRecipient(line string, o Options) (age.Recipient, string, error) {
	switch {
	case strings.HasPrefix(line, "age1pq1"):
		r, err := age.ParseHybridRecipient(line)
		if err != nil {
			return nil, "", errors.New("malformed age1pq1… recipient: mistyped or cut off")
		}
		return r, r.String(), nil
	case strings.HasPrefix(line, "age1") && strings.Count(line, "1") > 1:
		// No 1 is in the bech32 alphabet: the last one ends the plugin's name.
		r, err := plugin.NewRecipient(line, o.pluginUI())
		if err != nil {
			return nil, "", errors.New("malformed age1name1… plugin recipient: mistyped or cut off")
		}
		return r, r.String(), nil
	case strings.HasPrefix(line, "age1"):
		r, err := age.ParseX25519Recipient(line)
		if err != nil {
			return nil, "", errors.New("malformed age1… recipient: mistyped or cut off")
		}
		return r, r.String(), nil
	case strings.HasPrefix(line, "ssh-"), strings.HasPrefix(line, "ecdsa-"), strings.HasPrefix(line, "sk-"):
		key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
		if err != nil {
			return nil, "", errors.New("malformed SSH public key")
		}
		// Without the comment, so that it is no part of the recipient's name.
		name := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
		r, err := agessh.ParseRecipient(name)
		if err != nil {
			return nil, "", fmt.Errorf("SSH public key of type %s: only ssh-ed25519, and ssh-rsa from 2048 bits on, can be recipients", key.Type())
		}
		return r, name, nil
	case strings.HasPrefix(line, "AGE-"), strings.HasPrefix(line, "-----BEGIN"):
		return nil, "", errors.New("this is an identity: it is secret, and the recipient (age1…) that belongs to it is needed here")
	}
	return nil, "", errors.New("unknown type: want age1…, age1pq1…, ssh-ed25519 … or ssh-rsa …")
}

// Strings returns the recipients in the order they were parsed, without
// comments. [ParseRecipients] understands them.
func (rs *Recipients) Strings() []string { return slices.Clone(rs.names) }

// SealTo returns plain as a binary age file that any one of the recipients can
// open. The error of a plugin whose recipients do not go with the others wraps
// no sentinel, but says so.
func (rs *Recipients) SealTo(plain []byte) ([]byte, error) {
	if rs == nil || len(rs.list) == 0 {
		return nil, ErrNoRecipients
	}
	var buf bytes.Buffer
	w, err := age.Encrypt(&buf, rs.list...)
	if err != nil {
		return nil, fmt.Errorf("seal to recipients: %w", err)
	}
	if _, err := w.Write(plain); err != nil {
		return nil, fmt.Errorf("seal to recipients: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("seal to recipients: %w", err)
	}
	if buf.Len() > MaxSealed {
		return nil, fmt.Errorf("seal to %d recipients: message of %d bytes, may be %d: use fewer recipients",
			len(rs.list), buf.Len(), MaxSealed)
	}
	return buf.Bytes(), nil
}

// OpenWith returns what was sealed to the recipient of one of the identities.
// When none fits, the error wraps [ErrNoIdentity] and, if there were any to
// try, a [*age.NoIdentityMatchError]; a message whose header was altered can
// look the same. A message longer than [MaxSealed] is an error.
//
// Whoever made the message need only have known a recipient.
func OpenWith(identities []age.Identity, sealed []byte) ([]byte, error) {
	if len(sealed) > MaxSealed {
		return nil, fmt.Errorf("open sealed message: %d bytes, may be %d", len(sealed), MaxSealed)
	}
	if len(identities) == 0 {
		return nil, fmt.Errorf("open sealed message: %w: none given", ErrNoIdentity)
	}
	r, err := age.Decrypt(bytes.NewReader(sealed), identities...)
	if nm, ok := errors.AsType[*age.NoIdentityMatchError](err); ok {
		return nil, fmt.Errorf("open sealed message: %w: it is sealed to %s, %d tried: %w",
			ErrNoIdentity, describeStanzas(nm.StanzaTypes), len(identities), nm)
	}
	if err != nil {
		return nil, fmt.Errorf("open sealed message: %w", err)
	}
	plain, err := io.ReadAll(r) // less than sealed, which is bounded
	if err != nil {
		return nil, fmt.Errorf("open sealed message: %w", err)
	}
	return plain, nil
}

// describeStanzas counts the types of recipients for an error message. It
// quotes them, as they come from a message that nobody has authenticated.
func describeStanzas(types []string) string {
	const shown = 4
	var order []string
	count := make(map[string]int)
	for _, t := range types {
		if count[t]++; count[t] == 1 {
			order = append(order, t)
		}
	}
	var parts []string
	for _, t := range order[:min(shown, len(order))] {
		parts = append(parts, fmt.Sprintf("%d × %.32q", count[t], t))
	}
	if len(order) > shown {
		parts = append(parts, "others")
	}
	return strings.Join(parts, ", ")
}
