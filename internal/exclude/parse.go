package exclude

import "strings"

// parse compiles one pattern. A reason that is not empty says why it cannot be.
func parse(p string) (r rule, reason string) {
	if strings.ContainsAny(p, "\x00\n") {
		return rule{}, "has a NUL or a line break"
	}
	p = trimSpaces(p)
	if p == "" || p[0] == '#' {
		return rule{}, ""
	}
	if p[0] == '!' {
		r.negated = true
		p = p[1:]
	}
	if rest, ok := strings.CutSuffix(p, "/"); ok {
		r.dirOnly = true
		p = rest
	}
	r.anchored = strings.Contains(p, "/")
	p = strings.TrimPrefix(p, "/")
	if p == "" {
		return rule{}, "matches nothing"
	}
	var parts []string
	literal, plain := true, ""
	for part := range strings.SplitSeq(p, "/") {
		switch part {
		case "":
			return rule{}, "has an empty name between two slashes"
		case ".", "..":
			return rule{}, "has a name . or .., which no path in a source has"
		}
		g, text, isLiteral, reason := parseName(part)
		if reason != "" {
			return rule{}, reason
		}
		literal = literal && isLiteral
		parts = append(parts, g)
		plain += "/" + text
	}
	if literal {
		r.how, r.text = equal, plain[1:]
		return r, ""
	}
	if !r.anchored {
		if rest, ok := strings.CutPrefix(p, "*"); ok {
			if _, text, isLiteral, _ := parseName(rest); isLiteral {
				r.how, r.text = suffix, text
				return r, ""
			}
		}
	}
	if parts[len(parts)-1] == "**" && r.anchored {
		// a/** is what is below a; to doublestar it is a as well.
		parts = append(parts, "*")
	}
	r.how, r.text = glob, strings.Join(parts, "/")
	return r, ""
}

// trimSpaces drops the spaces at the end of p that no backslash protects.
func trimSpaces(p string) string {
	end := 0
	for i := 0; i < len(p); i++ {
		switch {
		case p[i] == '\\' && i+1 < len(p):
			i++
			end = i + 1
		case p[i] != ' ':
			end = i + 1
		}
	}
	return p[:end]
}

// parseName translates one name of a pattern for doublestar. If nothing in it is
// special, literal is true and text is what it stands for.
func parseName(p string) (glob, text string, literal bool, reason string) {
	if strings.Trim(p, "*") == "" && len(p) >= 2 {
		return "**", "", false, ""
	}
	literal = true
	var g, t []byte
	for i := 0; i < len(p); {
		switch c := p[i]; c {
		case '*':
			literal = false
			for i < len(p) && p[i] == '*' {
				i++
			}
			g = append(g, '*')
		case '?':
			literal = false
			i++
			g = append(g, '?')
		case '[':
			literal = false
			set, n, reason := parseClass(p[i:])
			if reason != "" {
				return "", "", false, reason
			}
			i += n
			g = set.append(g)
		case '\\':
			if i+1 == len(p) {
				return "", "", false, "ends in a backslash with nothing to escape"
			}
			c = p[i+1]
			i += 2
			g = appendEscaped(g, c)
			t = append(t, c)
		default:
			i++
			g = appendEscaped(g, c)
			t = append(t, c)
		}
	}
	return string(g), string(t), literal, ""
}

func appendEscaped(g []byte, c byte) []byte {
	if strings.IndexByte(`*?[]{},\-^!`, c) >= 0 {
		g = append(g, '\\')
	}
	return appendLatin1(g, c)
}

// A byteSet is what a character class matches.
type byteSet [256]bool

// parseClass reads the class that p starts with and returns how long it is.
func parseClass(p string) (set byteSet, n int, reason string) {
	const unclosed = "has a [ without its ]"
	i := 1
	negated := i < len(p) && (p[i] == '!' || p[i] == '^')
	if negated {
		i++
	}
	for first := true; ; first = false {
		if i >= len(p) {
			return set, 0, unclosed
		}
		if p[i] == ']' && !first {
			break
		}
		if strings.HasPrefix(p[i:], "[:") {
			name, _, ok := strings.Cut(p[i+2:], ":]")
			if !ok {
				return set, 0, "has a [: without its :]"
			}
			in := classes[name]
			if in == nil {
				return set, 0, "has no known class [:" + name + ":]"
			}
			for c := range len(set) {
				set[c] = set[c] || in(byte(c))
			}
			i += len("[:") + len(name) + len(":]")
			continue
		}
		lo, n := classByte(p[i:])
		if n == 0 {
			return set, 0, unclosed
		}
		i += n
		hi := lo
		if i+1 < len(p) && p[i] == '-' && p[i+1] != ']' {
			hi, n = classByte(p[i+1:])
			if n == 0 {
				return set, 0, unclosed
			}
			i += 1 + n
			if hi < lo {
				return set, 0, "has a range in a [] that ends before it starts"
			}
		}
		for c := int(lo); c <= int(hi); c++ {
			set[c] = true
		}
	}
	if negated {
		for c := range len(set) {
			set[c] = !set[c]
		}
	}
	set['/'], set[0] = false, false // no name has them
	if set == (byteSet{}) {
		return set, 0, "has a [] that matches nothing"
	}
	return set, i + 1, ""
}

// classByte reads one byte of a class, which may be escaped; n is 0 at the end.
func classByte(p string) (c byte, n int) {
	switch {
	case p == "":
		return 0, 0
	case p[0] != '\\':
		return p[0], 1
	case len(p) == 1:
		return 0, 0
	}
	return p[1], 2
}

// append adds set to g as a class of ranges.
func (set *byteSet) append(g []byte) []byte {
	g = append(g, '[')
	for lo := 0; lo < len(set); lo++ {
		if !set[lo] {
			continue
		}
		hi := lo
		for hi+1 < len(set) && set[hi+1] {
			hi++
		}
		g = appendEscaped(g, byte(lo))
		if hi > lo {
			g = append(g, '-')
			g = appendEscaped(g, byte(hi))
		}
		lo = hi
	}
	return append(g, ']')
}

// classes are the named ones, of ASCII alone as in git.
var classes = map[string]func(byte) bool{
	"alnum":  func(c byte) bool { return isAlpha(c) || isDigit(c) },
	"alpha":  isAlpha,
	"blank":  func(c byte) bool { return c == ' ' || c == '\t' },
	"cntrl":  func(c byte) bool { return c < 0x20 || c == 0x7f },
	"digit":  isDigit,
	"graph":  isGraph,
	"lower":  isLower,
	"print":  func(c byte) bool { return c == ' ' || isGraph(c) },
	"punct":  func(c byte) bool { return isGraph(c) && !isAlpha(c) && !isDigit(c) },
	"space":  func(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' },
	"upper":  isUpper,
	"xdigit": func(c byte) bool { return isDigit(c) || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F' },
}

func isAlpha(c byte) bool { return isLower(c) || isUpper(c) }
func isDigit(c byte) bool { return c >= '0' && c <= '9' }
func isGraph(c byte) bool { return c > 0x20 && c < 0x7f }
func isLower(c byte) bool { return c >= 'a' && c <= 'z' }
func isUpper(c byte) bool { return c >= 'A' && c <= 'Z' }
