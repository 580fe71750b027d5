package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"github.com/spf13/cobra"

	"github.com/secrate/secrate/internal/catalog"
	"github.com/secrate/secrate/internal/config"
	"github.com/secrate/secrate/internal/progress"
	"github.com/secrate/secrate/internal/seal"
	"github.com/secrate/secrate/s3history"
	"github.com/secrate/secrate/s3history/store"
	"github.com/secrate/secrate/s3history/store/open"
	"github.com/secrate/secrate/s3history/store/s3"
)

func newInit(a *app) *cobra.Command {
	var o initOptions
	cmd := &cobra.Command{
		Use:   "init --repo URL",
		Short: "Make a repository, or join one as a new writer",
		Long: `Make the repository at URL, or join the one that is there as a new writer, and write
the configuration and this writer's metadata key. URL is one of

    s3://BUCKET/PREFIX?endpoint=https://HOST:PORT&region=REGION
    file:///DIRECTORY, or the path of a directory

Credentials for S3 come from where every AWS tool finds them. Buckets are not made.

Recipients may decrypt: age1pq1…, age1… and SSH public keys. Without --recipient an
age identity is made and written to the file that --identity-out names, or that you
are asked for. Whoever has the identity and may read the repository can restore;
without the identity nothing can ever be restored. This machine does not need it to
write: move it away from here. A machine that joins should use the same recipients.

What the destination can do is tried out with one small object, which stays there.
Everything that is there is left as it is. Written are the configuration, writer.json
(the metadata key) and the catalog in the state directory, and the identity file, all
readable for you alone. None of them is ever overwritten: if there is one, nothing is
done. If something fails, what was made here is taken away again.

Exit statuses:

    0  done
    2  usage, such as neither --recipient nor --identity-out without a terminal
    3  nothing was done`,
		Example: `  secrate init --repo "s3://backups/nas?endpoint=https://s3.example.org&region=eu-1" --identity-out /media/stick/secrate.key
  secrate init --repo /mnt/disk/secrate --recipient age1pq1…`,
		Args: arguments(0, 0, ""),
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&o.repo, "repo", "", "the repository's address `URL` (needed)")
	f.StringArrayVar(&o.recipients, "recipient", nil, "encrypt to `RECIPIENT`; may be repeated")
	f.StringVar(&o.identityOut, "identity-out", "", "make an identity and write it to the new `FILE`")
	f.BoolVar(&o.classic, "classic", false, "make a plain X25519 identity (age1…), not a post-quantum one (age1pq1…)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return a.init(cmd.Context(), o) }
	return cmd
}

type initOptions struct {
	repo        string
	recipients  []string
	identityOut string
	classic     bool
}

// An initialization is one run of secrate init: the files it makes, in the order in
// which they are made.
type initialization struct {
	initOptions
	configPath, stateDir string
	identity             string // its file's content, when one is made
	to                   *seal.Recipients
	caps                 store.Capabilities
	me                   s3history.WriterIdentity
	newRepo              bool

	made []string // files, to be taken away if something fails
}

func (a *app) init(ctx context.Context, o initOptions) (err error) {
	i := &initialization{initOptions: o}
	if i.configPath, i.stateDir, err = a.paths(); err != nil {
		return err
	}
	if err := i.check(a); err != nil {
		return err
	}
	if err := config.EnsureStateDir(i.stateDir); err != nil {
		return err
	}
	lock, err := config.Lock(ctx, i.stateDir, "init", 0)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	if err := i.refuseExisting(); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			i.undo(a)
		}
	}()
	if err := i.make(ctx, a); err != nil {
		return err
	}
	return i.report(a)
}

// check takes the options, and asks for the identity's file if it must.
func (i *initialization) check(a *app) error {
	switch {
	case i.repo == "":
		return &usageError{"the repository's address is missing", "secrate init --repo s3://BUCKET/PREFIX?endpoint=https://HOST&region=REGION, or --repo DIRECTORY"}
	case len(i.recipients) > 0 && i.identityOut != "":
		return &usageError{"--recipient and --identity-out do not go together", "with --recipient, the identities are with those who gave you the recipients"}
	case len(i.recipients) > 0 && i.classic:
		return &usageError{"--classic is about the identity that is made, and with --recipient none is", "leave one of them out"}
	}
	if !strings.Contains(i.repo, "://") { // as another directory must find it
		abs, err := filepath.Abs(i.repo)
		if err != nil {
			return err
		}
		i.repo = abs
	}
	var err error
	if i.identityOut, err = absolute(i.identityOut); err != nil {
		return err
	}
	if err := i.refuseExisting(); err != nil {
		return err
	}
	if len(i.recipients) == 0 {
		if err := i.newIdentity(a); err != nil {
			return err
		}
	}
	if i.to, err = seal.ParseRecipients(i.recipients, a.sealOptions()); err != nil {
		return &usageError{fmt.Sprintf("--recipient: %v", err), "recipients are age1pq1…, age1…, ssh-ed25519 … and ssh-rsa …"}
	}
	return nil
}

func (i *initialization) newIdentity(a *app) error {
	if i.identityOut == "" {
		if !progress.IsTerminal(a.stdin) || !progress.IsTerminal(a.stderr) {
			return &usageError{"nobody to encrypt to, and no terminal to ask on",
				"--identity-out FILE makes a new identity and writes it to FILE; --recipient age1… uses one you have"}
		}
		fmt.Fprint(a.stderr, "A new identity is made. Without it nothing can be restored, so it should not be\non this machine only. Write it to which file? ")
		line, err := bufio.NewReader(a.stdin).ReadString('\n')
		if i.identityOut = strings.TrimSpace(line); err != nil || i.identityOut == "" {
			return &usageError{"no file was named for the identity", "--identity-out FILE"}
		}
		if i.identityOut, err = absolute(i.identityOut); err != nil {
			return err
		}
		if err := i.refuseExisting(); err != nil {
			return err
		}
	}
	identity, recipient, err := seal.GenerateIdentity(i.classic)
	if err != nil {
		return err
	}
	i.recipients = []string{recipient}
	i.identity = fmt.Sprintf("# created: %s\n# by secrate init, for %s\n# public key: %s\n%s\n",
		time.Now().Format(time.RFC3339), i.repo, recipient, identity)
	return nil
}

// refuseExisting returns an error if one of the files is there.
func (i *initialization) refuseExisting() error {
	writer := filepath.Join(i.stateDir, writerFile)
	for _, f := range []struct{ path, what, hint string }{
		{i.configPath, "a configuration", "secrate source add NAME PATH goes on with it; --config names another for a second repository, together with SECRATE_STATE"},
		{writer, "a writer's key", "this machine is a writer already: --config names its configuration. SECRATE_STATE names another directory for a second writer. If an earlier init was killed, nothing was written with this key, and the file can be removed"},
		{filepath.Join(i.stateDir, catalogFile), "a catalog", "SECRATE_STATE names another directory; a catalog without a writer's key beside it can be removed"},
		{i.identityOut, "a file", "name one that is not there: identities are never overwritten"},
	} {
		if f.path == "" {
			continue
		}
		if _, err := os.Lstat(f.path); err == nil {
			return hinted(fmt.Errorf("there is %s already at %s", f.what, f.path), "%s", f.hint)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// make does it. The destination comes first, since most goes wrong there; the
// configuration last: without it there is no writer, whatever else is left by a crash.
func (i *initialization) make(ctx context.Context, a *app) error {
	s, err := open.Store(ctx, i.repo, open.Options{Create: true, Log: a.log})
	if err != nil {
		return err
	}
	defer open.Close(s)
	if i.caps, err = store.Probe(ctx, s, "probe"); err != nil {
		return err
	}
	// Before anything is encrypted to it, it is where it will be looked for.
	if i.identity != "" {
		if err := i.write(i.identityOut, []byte(i.identity)); err != nil {
			return fmt.Errorf("identity: %w", err)
		}
	}
	repo, made, err := s3history.InitRepository(ctx, s)
	if err != nil {
		return err
	}
	i.newRepo = made
	if i.me, err = s3history.NewWriterIdentity(ctx, s, repo, hostname(), i.to); err != nil {
		return err
	}
	caps, err := json.MarshalIndent(i.caps, "", "  ")
	if err != nil {
		return err
	}
	// Not a secret, and of no use without the rest: one from an earlier try goes.
	if err := os.WriteFile(filepath.Join(i.stateDir, destinationFile), append(caps, '\n'), 0o600); err != nil {
		return err
	}
	i.made = append(i.made, filepath.Join(i.stateDir, destinationFile))
	path := filepath.Join(i.stateDir, catalogFile)
	i.made = append(i.made, path, path+"-wal", path+"-shm")
	db, err := catalog.Open(path, catalog.Options{})
	if err != nil {
		return err
	}
	if err := db.Close(); err != nil {
		return err
	}
	path = filepath.Join(i.stateDir, writerFile)
	if err := writeWriter(path, i.me, i.repo); err != nil {
		return err
	}
	i.made = append(i.made, path)
	return config.Create(i.configPath, &config.Config{Repository: config.Repository{URL: i.repo, Recipients: i.to.Strings()}})
}

func (i *initialization) write(path string, data []byte) error {
	if err := config.CreateSecretFile(path, data); err != nil {
		return err
	}
	i.made = append(i.made, path)
	return nil
}

// undo takes away what was made. What is stored stays: a key that nothing was ever
// encrypted under.
func (i *initialization) undo(a *app) {
	for _, path := range i.made {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			a.warn("not taken away: %v", err)
		}
	}
}

// kit is what init says when it is done.
var kit = template.Must(template.New("kit").Parse(`{{if .New}}Made repository {{.Repo}}{{else}}Joined repository {{.Repo}}{{end}} at {{.Store}},
as writer {{.Writer}}, called {{.Name}}.

    configuration  {{.Config}}
    state          {{.State}}
{{range .Can}}    {{.}}
{{end}}
RECOVERY KIT. Keep these where they survive this machine, and print this:

  1. The identity.
{{- if .Identity}} It is in {{.Identity}}.
     Without it nothing can be restored, by anybody, ever. Make two copies, neither
     of them on this machine. secrate does not need it here: move it away.
{{- else}} It belongs to {{if eq (len .Recipients) 1}}this recipient{{else}}any one of these recipients{{end}}:
{{- range .Recipients}}
         {{.}}
{{- end}}
     You have it, and secrate never saw it. Without it nothing can be restored, by
     anybody, ever. Make sure now that there are two copies, not on this machine only.
{{- end}}
  2. The repository's address:
         {{.Address}}
{{- if .S3}}
  3. Credentials that may read it: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of a
     user with GetObject and ListBucket, or the login with which to make one.
{{- else}}
  3. The disk itself, if possible not only in this building.
{{- end}}

With these alone, on any Linux machine with secrate, this restores all of NAME:

    secrate restore --repo {{.Quoted}} --identity {{.File}} --at latest --to DIR NAME

Next: secrate source add NAME PATH, then secrate snap.
`))

// report prints the recovery kit.
func (i *initialization) report(a *app) error {
	file := i.identityOut
	if file == "" {
		file = "FILE"
	}
	address, isS3 := fullAddress(i.repo)
	var b bytes.Buffer
	err := kit.Execute(&b, map[string]any{
		"New": i.newRepo, "Repo": i.me.Repo, "Store": i.repo, "Writer": i.me.ID, "Name": i.me.Name,
		"Config": i.configPath, "State": i.stateDir, "Can": abilities(i.caps),
		"Identity": i.identityOut, "Recipients": i.to.Strings(), "Address": address, "S3": isS3,
		"Quoted": quote(address), "File": quote(file),
	})
	if err != nil {
		return err
	}
	_, err = a.stdout.Write(b.Bytes())
	return err
}

// fullAddress returns the address with the region that applies here: elsewhere the
// environment will be another.
func fullAddress(repo string) (address string, isS3 bool) {
	o, err := s3.ParseURL(repo)
	if err != nil {
		return repo, false
	}
	for _, name := range []string{"AWS_REGION", "AWS_DEFAULT_REGION"} {
		if region := os.Getenv(name); region != "" && o.Region == "" {
			sep := "?"
			if strings.Contains(repo, "?") {
				sep = "&"
			}
			return repo + sep + "region=" + region, true
		}
	}
	return repo, true
}

// abilities says what a destination was found to do.
func abilities(c store.Capabilities) []string {
	list := []string{fmt.Sprintf("destination    conditional writes %s, ranges %s, object lock %s, versions %s",
		c.ConditionalPut, c.Range, c.ObjectLock, c.Versioning)}
	if c.Get == store.No {
		list = append(list, "               these credentials cannot read what they wrote")
	}
	for _, d := range c.Detail {
		list = append(list, "               "+progress.Printable(d))
	}
	return list
}

// quote writes s so that a shell reads it as one word.
func quote(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/.:-_") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
