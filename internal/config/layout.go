package config

import (
	"bytes"
	"strings"

	"github.com/BurntSushi/toml"
)

// A layout is what stands where in a TOML text: its keys and table headers, in the
// order of the text. The toml library says what a text means; this says which
// bytes to edit and which line to name.
type layout []item

// An item is one key or one table header.
type item struct {
	key        toml.Key // from the root, as in source.name
	kind       kind     // of the value
	header     bool     // [key] or [[key]]
	line       int      // from 1
	start, end int      // bytes of the text: from the key or the bracket to after the value
}

// nth returns the index of the n-th header of table, from 0, or -1.
func (l layout) nth(table string, n int) int {
	for i, it := range l {
		if it.header && it.key.String() == table {
			if n == 0 {
				return i
			}
			n--
		}
	}
	return -1
}

// find returns the index of the item for a key of the n-th table of a name, or of
// what comes nearest to it: the table's header; the table, if it is written
// inline; -1.
func (l layout) find(table string, n int, key string) (i int, exact bool) {
	h := l.nth(table, n)
	if h < 0 {
		near := -1
		for i, it := range l {
			switch it.key.String() {
			case table + "." + key:
				return i, n == 0
			case table:
				near = i
			}
		}
		return near, false
	}
	for i := h + 1; i < len(l) && !l[i].header; i++ {
		if l[i].key.String() == table+"."+key {
			return i, true
		}
	}
	return h, false
}

func (l layout) line(table string, n int, key string) int {
	if i, _ := l.find(table, n, key); i >= 0 {
		return l[i].line
	}
	return 0
}

func (l layout) has(table string, n int, key string) bool {
	_, exact := l.find(table, n, key)
	return exact
}

// block returns the bytes of text from the n-th header of table to the end of the
// last line that belongs to it. Comments after that line are not in it.
func (l layout) block(text []byte, table string, n int) (start, end int, ok bool) {
	h := l.nth(table, n)
	if h < 0 {
		return 0, 0, false
	}
	start = bytes.LastIndexByte(text[:l[h].start], '\n') + 1
	last := h
	for i := h + 1; i < len(l) && !l[i].header; i++ {
		if l[i].end > l[last].end {
			last = i
		}
	}
	end = l[last].end
	if i := bytes.IndexByte(text[end:], '\n'); i >= 0 {
		end += i + 1
	} else {
		end = len(text)
	}
	return start, end, true
}

// scan returns the layout of text, which must be TOML: of what is not, it returns
// as much as it understands.
func scan(text []byte) layout {
	s := scanner{text: text, line: 1}
	var table toml.Key
	for {
		s.space(true)
		if s.pos == len(s.text) {
			return s.items
		}
		start, line := s.pos, s.line
		if s.peek() != '[' {
			if !s.pair(table) {
				return s.items
			}
			continue
		}
		k := kindTable
		s.pos++
		if s.peek() == '[' {
			k = kindTables
			s.pos++
		}
		key, ok := s.key()
		if !ok || s.peek() != ']' {
			return s.items
		}
		s.pos++
		if k == kindTables {
			if s.peek() != ']' {
				return s.items
			}
			s.pos++
		}
		table = key
		s.items = append(s.items, item{key: key, kind: k, header: true, line: line, start: start, end: s.pos})
	}
}

type scanner struct {
	text  []byte
	pos   int
	line  int // of pos
	items layout
}

// peek returns the next byte, 0 at the end.
func (s *scanner) peek() byte {
	if s.pos < len(s.text) {
		return s.text[s.pos]
	}
	return 0
}

// space skips blanks, and line ends and comments too if lines is set.
func (s *scanner) space(lines bool) {
	for s.pos < len(s.text) {
		switch c := s.text[s.pos]; {
		case c == ' ' || c == '\t' || c == '\r':
			s.pos++
		case lines && c == '\n':
			s.pos++
			s.line++
		case lines && c == '#':
			for s.pos < len(s.text) && s.text[s.pos] != '\n' {
				s.pos++
			}
		default:
			return
		}
	}
}

// pair reads a key, the equals sign and the value.
func (s *scanner) pair(table toml.Key) bool {
	start, line := s.pos, s.line
	key, ok := s.key()
	if !ok || s.peek() != '=' {
		return false
	}
	s.pos++
	full := append(table[:len(table):len(table)], key...)
	i := len(s.items)
	s.items = append(s.items, item{key: full, line: line, start: start})
	s.space(false)
	k, ok := s.value(full)
	s.items[i].kind, s.items[i].end = k, s.pos
	return ok
}

// key reads a dotted key and the blanks around it.
func (s *scanner) key() (key toml.Key, ok bool) {
	for {
		s.space(false)
		var part string
		if c := s.peek(); c == '"' || c == '\'' {
			start := s.pos
			if !s.str() {
				return nil, false
			}
			part = unquote(string(s.text[start:s.pos]))
		} else {
			start := s.pos
			for s.pos < len(s.text) && strings.IndexByte(" \t\r\n.=]#", s.text[s.pos]) < 0 {
				s.pos++
			}
			part = string(s.text[start:s.pos])
			if part == "" {
				return nil, false
			}
		}
		key = append(key, part)
		s.space(false)
		if s.peek() != '.' {
			return key, true
		}
		s.pos++
	}
}

// unquote returns what a quoted key stands for.
func unquote(s string) string {
	var v struct{ K map[string]any }
	if err := toml.Unmarshal([]byte("[K]\n"+s+"=1"), &v); err == nil {
		for k := range v.K {
			return k
		}
	}
	return s
}

// value reads a value; the keys of an inline table become items below key.
func (s *scanner) value(key toml.Key) (kind, bool) {
	switch c := s.peek(); {
	case c == '"' || c == '\'':
		return kindString, s.str()
	case c == '[':
		s.pos++
		list := kindList
		for {
			s.space(true)
			switch s.peek() {
			case ']':
				s.pos++
				return list, true
			case ',':
				s.pos++
				continue
			}
			k, ok := s.value(key)
			switch {
			case !ok:
				return list, false
			case k == kindTable:
				list = kindInline
			case k != kindString:
				list = "a list of something else"
			}
		}
	case c == '{':
		s.pos++
		for {
			s.space(true)
			switch s.peek() {
			case '}':
				s.pos++
				return kindTable, true
			case ',':
				s.pos++
				continue
			}
			if !s.pair(key) {
				return kindTable, false
			}
		}
	}
	start := s.pos
	for s.pos < len(s.text) && strings.IndexByte(",]}#\n", s.text[s.pos]) < 0 {
		s.pos++
	}
	word := strings.TrimSpace(string(s.text[start:s.pos]))
	s.pos = start + len(word)
	switch {
	case word == "":
		return "nothing", false
	case word == "true" || word == "false":
		return "true or false", true
	case strings.Count(word, "-") > 1 || strings.Contains(word, ":"):
		return "a date", true
	}
	return kindInt, true
}

// str reads a string of any of the four kinds.
func (s *scanner) str() bool {
	q := s.text[s.pos]
	long := bytes.HasPrefix(s.text[s.pos:], []byte{q, q, q})
	if long {
		s.pos += 3
	} else {
		s.pos++
	}
	for s.pos < len(s.text) {
		switch c := s.text[s.pos]; {
		case c == '\\' && q == '"' && s.pos+1 < len(s.text):
			if s.text[s.pos+1] == '\n' {
				s.line++
			}
			s.pos += 2
			continue
		case c == '\n':
			if !long {
				return false
			}
			s.line++
		case c == q && !long:
			s.pos++
			return true
		case c == q && bytes.HasPrefix(s.text[s.pos:], []byte{q, q, q}):
			s.pos += 3
			// Up to two quotes may stand before the three that end it.
			for range 2 {
				if s.peek() == q {
					s.pos++
				}
			}
			return true
		}
		s.pos++
	}
	return false
}
